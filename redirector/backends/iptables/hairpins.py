"""What is masqueraded, as rules of iptables, and read back. Pure.

-A POSTROUTING -m conntrack --ctstate DNAT -m addrtype ! --src-type LOCAL -j REDIRECTOR-POST
-A REDIRECTOR-POST -s 10.88.0.0/16 -j REDIRECTOR-…                   by the network that the client is in
-A REDIRECTOR-… -d 10.88.0.5/32 -j REDIRECTOR-…                      by the target's address
-A REDIRECTOR-… -p tcp -m tcp --dport 8080 -m comment --comment web -j MASQUERADE
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector import naming
from redirector.backends.iptables.tree import PREFIX
from redirector.model import Scope, family_of
from redirector.program import Entries, Program

BUILTIN = "POSTROUTING"
TOP = f"{PREFIX}POST"
REDIRECTED = f"-m conntrack --ctstate DNAT -m addrtype ! --src-type LOCAL -j {TOP}"
ACTION = " -j MASQUERADE"


def by_network(program: Program, family: str) -> Iterator[tuple[str, dict[str, Entries]]]:
    """(network, entries of its set by address) of one family, narrowest network first."""
    networks = (naming.targets_network(name) for name in program.maps)
    scopes = [Scope(network) for network in networks if network and family_of(network) == family]
    for scope in sorted(scopes, key=lambda s: (-s.specificity[0], s)):
        found: dict[str, Entries] = {}
        for (address, port), value in sorted(program.maps[naming.targets_set(scope.source)].entries.items()):
            found.setdefault(address, {})[port] = value
        yield scope.source, found
