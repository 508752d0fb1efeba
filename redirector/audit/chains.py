"""Per port the whole chain: rules, then the sockets that get the connections, and for each who, how and where. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from redirector.audit.facts import PRIVILEGED, Facts, ProxyListen, Rule, Socket
from redirector.audit.mechanisms.authbind import Grant
from redirector.audit.mechanisms.units import SocketListen
from redirector.audit.ways import Means, Way, means, ways
from redirector.model import Ports
from redirector.records import NamedTuple

MOST = 64  # ports of one range that get a chain of their own; of longer ones those on which something listens


class Served(NamedTuple):
    """A socket, and how it came to its port."""

    socket: Socket
    means: Means


class Chain(NamedTuple):
    """`ports` are one, or neighbours that one rule takes and nobody listens on. `leads_to`: where the first rule that
    is certain leads, None where there is none; `served` the sockets there, `shadowed` those on the port itself."""

    protocol: str
    ports: Ports
    rules: tuple[Rule, ...]
    leads_to: int | None
    served: tuple[Served, ...]
    shadowed: tuple[Served, ...]
    ways: tuple[Way, ...]


def chains(facts: Facts, asked: Iterable[int]) -> list[Chain]:
    """The chains of the ports that are asked for, or of all that matter."""
    wanted = sorted(set(asked))
    found = dict.fromkeys(_asked(facts, wanted) if wanted else _all(facts))
    return [_chain(facts, protocol, ports) for protocol, ports in sorted(found, key=lambda key: (key[1], key[0]))]


def _asked(facts: Facts, wanted: list[int]) -> Iterator[tuple[str, Ports]]:
    known = list(_known(facts))
    for port in wanted:
        protocols = [p for p, ports in known if ports.first <= port <= ports.last] or ["tcp"]
        yield from ((protocol, Ports(port, port)) for protocol in protocols)


def _all(facts: Facts) -> Iterator[tuple[str, Ports]]:
    for protocol, ports in _known(facts):
        if ports.first < PRIVILEGED or facts.taking(protocol, Ports(ports.first, ports.first)):
            yield protocol, ports


def _known(facts: Facts) -> Iterator[tuple[str, Ports]]:
    """(protocol, ports) of everything that was found."""
    for rule in facts.of(Rule):
        if rule.ports.size <= MOST:
            yield from ((rule.protocol, Ports(port, port)) for port in range(rule.ports.first, rule.ports.last + 1))
        else:
            yield rule.protocol, rule.ports
    for socket in facts.of(Socket):
        yield socket.listener.protocol, Ports(socket.listener.port, socket.listener.port)
    for proxy in facts.of(ProxyListen):
        yield proxy.protocol, Ports(proxy.port, proxy.port)
    for unit in facts.of(SocketListen):
        yield unit.protocol, Ports(unit.port, unit.port)
    for grant in facts.of(Grant):
        if grant.kind != "byuid":
            yield "tcp", grant.ports


def _chain(facts: Facts, protocol: str, ports: Ports) -> Chain:
    port = ports.first
    rules = tuple(facts.taking(protocol, Ports(port, port)))
    taken = next((rule for rule in rules if rule.certain), rules[0] if rules else None)
    leads_to = taken.target_of(port) if taken and not taken.address else None
    here: list[Served] = []
    there: list[Served] = []
    for at in {port, leads_to or port}:
        for socket in facts.on(protocol, Ports(at, at)):
            (there if at == leads_to else here).append(Served(socket, means(socket, facts)))
    if taken is None:
        here, there = [], here
    return Chain(protocol, ports, rules, leads_to, tuple(there), tuple(here), tuple(ways(facts, protocol, port)))
