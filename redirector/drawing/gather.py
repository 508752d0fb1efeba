"""From the facts of an audit to a Graph: which ports fare alike, who may connect, and what becomes of each. Pure.

Theory of operation. The ports are cut into segments wherever anything changes: a rule begins or ends, somebody listens,
a filter names a port; what is known of the ports behind a shifted range cuts that range, too. Then one port speaks for
its segment, and `fate` is asked once for each client: this host and somebody outside, over both families, and one
inside of each scope that a mapping of ours has there. Somebody outside is in none of these scopes: he comes by an
interface and to an address that none of them names. Clients that are in two scopes at once are not asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from redirector.audit.asking import OWN, SOMEBODY
from redirector.audit.facts import PRIVILEGED, Facts, Rule, Socket
from redirector.audit.nat import HOOKS, OURS, words
from redirector.audit.routing import Fate, Host, fate
from redirector.decide import Packet, decide
from redirector.drawing import data
from redirector.drawing.data import Client, End, Graph, Station, Stop
from redirector.drawing.data import Way as Drawn
from redirector.errors import plural, printable
from redirector.host.routes import Way
from redirector.model import ARRIVING, FAMILIES, Ports, Ruleset, Scope
from redirector.model import Mapping as PortMapping
from redirector.naming import GUARD_CHAIN
from redirector.others import Table, overlap, spans
from redirector.records import NamedTuple

PROTOCOLS = ("tcp", "udp", "sctp")
MOST = 5000  # segments that are looked at: each costs some walks through all filters


class Asked(NamedTuple):
    """A client, and its packet; port and protocol are still to be filled in."""

    client: Client
    packet: Packet
    host: Host


class _Stations:
    """The stations, and where each rule or filter is among them."""

    def __init__(self, facts: Facts) -> None:
        found: dict[tuple[object, ...], Station] = {}
        for table in facts.of(Table):
            for chain, base in table.bases.items():
                nat = base.type == "nat" and base.hook in HOOKS
                if not (nat or (base.type, base.hook) == ("filter", "input")) or not any(table.chains.values()):
                    continue
                key = (words(table), "nat", base.priority) if nat else (words(table), "filter", chain)
                name, kind = printable(f"{table.family} {table.name}"), str(key[1])
                before = found.get(key, Station(table.form, name, kind, base.priority, ()))
                hooks, chains = dict.fromkeys((*before.hooks, base.hook)), (*before.chains, printable(chain))
                found[key] = before._replace(hooks=tuple(hooks), chains=chains)
        for rule in facts.of(Rule):
            if rule.owner == OURS:
                found[OURS, "nat", rule.priority] = Station("", OURS, "nat", rule.priority, tuple(HOOKS), own=True)
        if any(mapping.exclusive for mapping in facts.mappings.values()):
            found[OURS, "filter", GUARD_CHAIN] = Station("", OURS, "filter", None, ("input",), (GUARD_CHAIN,), own=True)
        ordered = sorted(found.items(), key=lambda item: (item[1].kind == "filter", *_order(item[1])))
        self.all = tuple(station for _, station in ordered)
        self._at = {key: number for number, (key, _) in enumerate(ordered)}

    def at(self, *key: object) -> int:
        return self._at[key]


def _order(station: Station) -> tuple[bool, int]:
    """Our filter, of which the priority is not known here, goes before those of others: what it refuses is refused."""
    return station.priority is not None, station.priority or 0


def graph(facts: Facts, addresses: Sequence[Way], asked: Iterable[int] = ()) -> Graph:
    """The ways to the ports that are asked for, or to all that rules take, and to privileged ones that are open."""
    stations, wanted = _Stations(facts), tuple(asked)
    parts = segments(facts, wanted)
    ways = [
        _way(facts, stations, one, protocol, ports)
        for protocol, ports in parts[:MOST]
        for one in _clients(facts, addresses, protocol, ports)
    ]
    if not wanted:  # that a port is closed for some is worth no line, unless somebody asks
        ways = [way for way in ways if not _dull(way, facts)]
    notes = [f"not everything could be read: {printable(failure)}" for failure in facts.failures]
    if facts.drift:
        notes.append(f"the kernel does not hold all that was applied: {printable(facts.drift)[:200]}")
    if len(parts) > MOST:
        notes.append(f"{plural(len(parts) - MOST, 'port or range')} more left out: name the ports that matter")
    return Graph(
        stations.all, tuple(data.joined(ways)), tuple(one.client for one in _everybody(addresses, ())), tuple(notes)
    )


# -- ports -------------------------------------------------------------------------------------------------------


def segments(facts: Facts, asked: Iterable[int] = ()) -> list[tuple[str, Ports]]:
    """Ports of a protocol that fare alike, in order."""
    wanted = dict.fromkeys(asked)
    found = []
    for protocol in PROTOCOLS:
        rules = [rule for rule in facts.of(Rule) if rule.protocol == protocol]
        areas = [Ports(port, port) for port in wanted] or list(_areas(facts, protocol, rules))
        cuts = sorted(_cuts(facts, protocol, rules, areas))
        covered = spans(areas)
        pieces = [Ports(first, after - 1) for first, after in pairwise(cuts)]
        found += [(protocol, piece) for piece in pieces if overlap(covered, (piece,))]
    known = {protocol for protocol, ports in found if not wanted or _known(facts, protocol, ports)}
    kept = [one for one in found if one[0] in known or (one[0] == "tcp" and not known)]
    return sorted(kept, key=lambda one: (one[1].first, PROTOCOLS.index(one[0])))


def _known(facts: Facts, protocol: str, ports: Ports) -> bool:
    return bool(facts.taking(protocol, ports) or facts.on(protocol, ports))


def _areas(facts: Facts, protocol: str, rules: list[Rule]) -> Iterator[Ports]:
    yield from (rule.ports for rule in rules)
    for socket in facts.of(Socket):
        if socket.listener.protocol == protocol and socket.listener.port < PRIVILEGED:
            yield Ports(socket.listener.port, socket.listener.port)
    for mapping in facts.mappings.values():
        if mapping.exclusive and protocol in mapping.protocol:
            yield Ports(mapping.to.first, mapping.to.last)


def _cuts(facts: Facts, protocol: str, rules: list[Rule], areas: list[Ports]) -> set[int]:
    """The ports at which something begins."""
    there = {s.listener.port for s in facts.of(Socket) if s.listener.protocol == protocol}
    bounds = {bound for port in there for bound in (port, port + 1)} | _filters(facts, protocol)
    found = bounds | {bound for area in areas for bound in (area.first, area.last + 1)}
    for rule in rules:
        found |= {rule.ports.first, rule.ports.last + 1}
        if rule.target is not None and rule.target.size > 1:
            shift = rule.ports.first - rule.target.first
            found |= {bound + shift for bound in bounds if rule.target.first < bound <= rule.target.last}
    return found


def _filters(facts: Facts, protocol: str) -> set[int]:
    clauses = (
        clause
        for table in facts.of(Table)
        if any((base.type, base.hook) == ("filter", "input") for base in table.bases.values())
        for chain in table.chains.values()
        for clause in chain
    )
    wanted = (c for c in clauses if c.ports is not None and (c.protocols is None or protocol in c.protocols))
    return {bound for clause in wanted for ports in clause.ports or () for bound in (ports.first, ports.last + 1)}


# -- clients -----------------------------------------------------------------------------------------------------


def _clients(facts: Facts, addresses: Sequence[Way], protocol: str, ports: Ports) -> list[Asked]:
    scopes = _scopes(facts, protocol, ports)
    inside = (_inside(addresses, *scope) for scope in scopes)
    return [*_everybody(addresses, [scope for _, _, scope in scopes]), *filter(None, inside)]


def _everybody(addresses: Sequence[Way], scopes: Sequence[Scope]) -> Iterator[Asked]:
    """Somebody outside of all of these scopes, and this host."""
    for family in FAMILIES:
        free = [way for way in _of(addresses, family) if all(scope.address != way.source for scope in scopes)]
        way = next((way for way in free if not any(_fits(way.interface, scope) for scope in scopes)), None)
        if free and way is None:  # there is none now, but there may be one tomorrow
            way = free[0]._replace(interface="?", number=0)
        if way is not None:
            packet = Packet(way.interface, SOMEBODY[family], way.source, "", 0)
            yield Asked(Client(data.OUTSIDE, family), packet, Host(way.primary, way.number))
    for family in FAMILIES:
        yield Asked(Client(data.HERE, family), Packet("", OWN[family], OWN[family], "", 0), Host())


def _of(addresses: Sequence[Way], family: str) -> list[Way]:
    return [way for way in addresses if (":" in way.source) == (family == "ipv6")]


def _fits(interface: str, scope: Scope) -> bool:
    """Whether a scope names this interface."""
    name = scope.interface
    return interface.startswith(name[:-1]) if name.endswith("*") else name == interface


def _scopes(facts: Facts, protocol: str, ports: Ports) -> list[tuple[str, str, Scope]]:
    """(side, family, scope) of our mappings that take the ports."""
    names = {rule.mapping for rule in facts.taking(protocol, Ports(ports.first, ports.first))}
    scopes = (
        (claim.side, family, claim.scope)
        for name in names
        if name in facts.mappings
        for claim in facts.mappings[name].claims
        for family in facts.mappings[name].families
        if str(claim.scope) and claim.scope.family in ("", family)
    )
    return sorted(set(scopes))


def _inside(addresses: Sequence[Way], side: str, family: str, scope: Scope) -> Asked | None:
    """A client inside of a scope; None where there can be none, for want of an address."""
    words = printable(str(scope))
    if side != ARRIVING:
        own = scope.address or OWN[family]
        return Asked(Client(data.HERE, family, words), Packet("", own, own, "", 0), Host())
    known = _of(addresses, family)
    way = next((way for way in known if not scope.interface or _fits(way.interface, scope)), None)
    address = scope.address or (way.source if way else "")
    if not address:
        return None
    interface = way.interface if way else scope.interface.replace("*", "0") or "?"
    source = scope.source.rpartition("/")[0] or SOMEBODY[family]
    host = Host(way.primary, way.number) if way else Host()
    return Asked(Client(data.OUTSIDE, family, words), Packet(interface, source, address, "", 0), host)


# -- ways --------------------------------------------------------------------------------------------------------


def _way(facts: Facts, stations: _Stations, asked: Asked, protocol: str, ports: Ports) -> Drawn:
    packet = asked.packet._replace(protocol=protocol, port=ports.first)
    found = fate(packet, facts, asked.host)
    target = Ports(found.port, found.port)
    if found.rules and found.rules[0].target is not None and found.rules[0].target.size > 1:
        target = Ports(found.port, found.port + ports.size - 1)
    elif not found.rules:
        target = ports
    targets = () if found.outcome == "unknown" else (target,)
    stops = tuple(_stops(facts, stations, packet, found))
    return Drawn((asked.client,), protocol, (ports,), stops, targets, _end(found, facts), found.sure)


def _dull(way: Drawn, facts: Facts) -> bool:
    """Whether it is a closed port, that no rule takes."""
    told = any(stop.verdict != data.DROPS for stop in way.stops) or way.end.kind not in (data.NOBODY, data.STOPPED)
    return not told and not facts.on(way.protocol, way.ports[0])


def _stops(facts: Facts, stations: _Stations, packet: Packet, found: Fate) -> Iterator[Stop]:
    taker = found.rules[0] if found.rules else None
    over = False
    for rule in facts.taking(packet.protocol, Ports(packet.port, packet.port)):
        verdict = ""
        if rule is taker:
            verdict, over = data.TAKES, True
        elif rule in found.passed and not over:
            verdict = data.MAY
        elif over and _meets(rule, packet, taker, facts.mappings):
            verdict = data.UNREACHED
        if verdict:
            name = rule.mapping if rule.owner == OURS else rule.text
            detail = str(rule.where) if rule.where.file else "" if rule.owner == OURS else rule.owner
            at = stations.at(rule.table or OURS, "nat", rule.priority)
            yield Stop(at, verdict, printable(name), printable(detail), rule.owner == OURS)
    if found.stop is not None:
        own = found.stop.table == OURS
        verdict = data.REFUSES if own else data.DROPS
        at = stations.at(found.stop.table, "filter", found.stop.chain)
        yield Stop(at, verdict, "exclusive" if own else printable(found.stop.text), printable(found.reason))


def _meets(rule: Rule, packet: Packet, taker: Rule | None, mappings: Mapping[str, PortMapping]) -> bool:
    """Whether a rule behind the one that took it would have had a say."""
    if packet.side not in rule.sides or packet.family not in rule.families:
        return False
    if rule.owner != OURS:
        return True
    if (taker is not None and taker.owner == OURS) or rule.mapping not in mappings:
        return False
    return decide(Ruleset((mappings[rule.mapping],)), packet).action == "translate"


def _end(found: Fate, facts: Facts) -> End:
    if found.socket is not None:
        listener, holders = found.socket.listener, found.socket.holders
        address = f"[{listener.address}]" if listener.family == "ipv6" else listener.address
        place = "*" if listener.wildcard else address
        user = facts.user(holders[0].uid if holders else listener.uid)
        where = f"user {user}, {place}:{listener.port}"
        if not holders:
            return End(data.SERVED, "a process that cannot be seen", printable(where))
        one, more = holders[0], f" and {len(holders) - 1} more" if len(holders) > 1 else ""
        unit = f", {one.unit}" if one.unit else ""
        return End(data.SERVED, printable(one.command), printable(f"process {one.pid}{more}, {where}{unit}"))
    if found.stop is not None:
        return End(data.STOPPED, found.outcome)
    if found.outcome == "elsewhere":
        place = f"[{found.address}]" if ":" in found.address else found.address
        return End(data.ELSEWHERE, printable(f"{place}:{found.port}"), "another host")
    if found.outcome == "unknown":
        return End(data.UNKNOWN, "unknown", "the rule does not say where it leads in words known here")
    return End(data.NOBODY, "nobody listens")
