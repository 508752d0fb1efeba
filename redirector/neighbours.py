"""Who would be answered past the host: the networks that targets are in. Pure.

Theory of operation. A connection that the host forwards keeps the client's address, and the target answers to that
address. The answer has to come back through the host, which knows the connection, or the client takes it for a
stranger's. It does wherever the target's way to the client leads through the host, as that of a container does. It does
not where the client is the target itself, or a neighbour: those are answered at once, on their own link. (A *hairpin*:
a container that calls the host's address and lands on itself, or beside.) Such connections alone are masqueraded.

Who is a neighbour depends on the network that the target is in, which no mapping file says: it is a fact of the host,
the narrowest of its connected networks that has the target's address. It is looked up when a file is applied, and
recorded with the generation (`Ruleset.networks`), so that compiling stays pure, that boot and rollback lead to what was
in force, and that an interface which comes and goes invents no drift. A bridge that comes later counts from the next
apply on, which `plan` tells. (A key in the file could do it, too; but who has to say what the host knows gets it
wrong.) Where no network is known, as that of a routed target, the target itself is its only neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable

from redirector.decide import within
from redirector.model import Ruleset, Target, ipv6


def network_of(address: str, networks: Iterable[str]) -> str:
    """The narrowest of `networks` that has the address; that of the address alone if none has."""
    alone = f"{address}/{128 if ipv6(address) else 32}"
    return max((n for n in networks if within(address, n)), key=_prefix, default=alone)


def resolved(ruleset: Ruleset, connected: Iterable[str]) -> Ruleset:
    """The ruleset with those of the host's connected networks that matter to it."""
    connected = sorted(network for network in set(connected) if _prefix(network))
    found = {network_of(address, connected) for address in targets(ruleset)} & set(connected)
    return Ruleset.checked(ruleset.mappings, ruleset.settings, tuple(sorted(found)))


def targets(ruleset: Ruleset) -> set[str]:
    """The addresses that mappings lead to."""
    return {address for m in ruleset.enabled if isinstance(m.to, Target) for address in m.to.addresses}


def _prefix(network: str) -> int:
    return int(network.rpartition("/")[2])
