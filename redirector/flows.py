"""UDP flows that go on to where a mapping no longer leads. Pure.

NAT sees a connection's first packet only. A UDP "connection" is over when nobody has used it for a while, so a busy
client keeps its old target after a mapping has come, changed or gone, as long as the kernel's conntrack entry lives.
After a commit, the entries that contradict the new rules are deleted, so that the next packet is a first one again;
only those, only for ports of which the entries have changed, and nobody else's: flows in transit, and flows that
another program's NAT leads to another address, are left alone. (One to an address that a mapping led to until now is
taken for ours.)
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from redirector.decide import Packet, decide
from redirector.model import Mapping, Ruleset
from redirector.records import NamedTuple

Endpoint = tuple[str, int]  # address and port


class Flow(NamedTuple):
    """A conntrack entry: the client's address; the address and port that it uses; who answers it; and `ident`, the
    attributes by which the kernel knows the entry."""

    source: str
    address: str
    port: int
    target_address: str
    target_port: int
    ident: bytes = b""


def contradicted(
    ruleset: Ruleset,
    flows: Iterable[Flow],
    ports: AbstractSet[int],
    local: AbstractSet[str],
    former: AbstractSet[Endpoint] = frozenset(),
) -> list[Flow]:
    """The flows on `ports` that would go elsewhere today; `local` are the host's own addresses, and `former` targets on
    others to which mappings led before.

    There may be very many flows, and very many mappings: only those that matter are asked, and of flows that are alike
    to all of them one.
    """
    mappings = tuple(m for m in ruleset.enabled if "udp" in m.protocol and _listens(m, ports))
    relevant = Ruleset.checked(mappings, ruleset.settings)
    by_source = any(mapping.source for mapping in mappings)
    known: dict[tuple[str | bool, str, int], set[Endpoint]] = {}
    found = []
    for flow in flows:
        if flow.port not in ports or not _own(flow.address, local):
            continue  # in transit, or to somebody else: never ours
        elsewhere = flow.target_address != flow.address and not _own(flow.target_address, local)
        target = flow.target_address if elsewhere else "", flow.target_port
        if elsewhere and target not in former:
            continue  # another program's NAT
        own = _own(flow.source, local)
        key = (flow.source if by_source else own, flow.address, flow.port)
        if key not in known:
            known[key] = _wanted(relevant, flow, own=own)
        if target not in known[key]:
            found.append(flow)
    return found


def _listens(mapping: Mapping, ports: AbstractSet[int]) -> bool:
    return any(not ports.isdisjoint(range(listen.first, listen.last + 1)) for listen in mapping.listen)


def _wanted(ruleset: Ruleset, flow: Flow, *, own: bool) -> set[Endpoint]:
    """Where the flow's next first packet could go ("" is this host): conntrack does not tell the interface, so all that
    matter count."""
    interfaces = {""}
    if not own:
        # One that nothing names, and one for each that something names (a wildcard's own text is matched by it).
        interfaces = {"?"} | {name for mapping in ruleset.enabled for name in mapping.interface if name != "lo"}
    packets = (Packet(name, flow.source, flow.address, "udp", flow.port) for name in interfaces)
    return {(decision.address, decision.port) for decision in (decide(ruleset, packet) for packet in packets)}


def _own(address: str, local: AbstractSet[str]) -> bool:
    return address in local or address.startswith("127.")
