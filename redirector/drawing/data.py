"""What is drawn, as plain data: stations that a connection passes, and ways through them; as a graph, nodes and edges.

Theory of operation. The kernel asks the NAT base chains of a hook by their priorities, then the filters of the input
hook, then the sockets: these are the *stations*, in this order, a column each. A *way* is what becomes of some clients'
connections to some ports: at which stations something happens to it (*stops*), and its *end*. Ways that differ in
clients or ports only are one. Every text in here is printable, whoever chose it.
"""

from __future__ import annotations

from collections.abc import Iterable

from redirector.others import Spans, spans
from redirector.records import NamedTuple

OUTSIDE, HERE = "outside", "this host"
TAKES, MAY, UNREACHED, DROPS, REFUSES = "takes", "may take", "not reached", "drops", "refuses"
SERVED, NOBODY, STOPPED, ELSEWHERE, UNKNOWN = "served", "nobody", "stopped", "elsewhere", "unknown"
MANY = 120  # ways from which on those that fare alike are drawn as one
PORTS_SHOWN = 6


class Client(NamedTuple):
    """Who connects: `side` OUTSIDE or HERE, `family` ipv4 or ipv6, `scope` a mapping's scope in words, "" for nobody
    in particular."""

    side: str
    family: str
    scope: str = ""


class Station(NamedTuple):
    """`form` nftables, iptables-nft or iptables-legacy ("" for ours: `own`), `table` its family and name, `kind` nat or
    filter, `hooks` where its base chains (`chains`) are attached; `priority` None where it is not known."""

    form: str
    table: str
    kind: str
    priority: int | None
    hooks: tuple[str, ...]
    chains: tuple[str, ...] = ()
    own: bool = False


class Stop(NamedTuple):
    """What a station (its number) does: `verdict` TAKES …; `name` of the mapping (`own`), or the rule; `detail` what
    more."""

    station: int
    verdict: str
    name: str
    detail: str = ""
    own: bool = False


class End(NamedTuple):
    """`kind` SERVED (by a process), NOBODY listens, STOPPED by a filter, ELSEWHERE (another host), or UNKNOWN."""

    kind: str
    title: str
    detail: str = ""


class Way(NamedTuple):
    """`ports` that clients use, and the `targets` that they come to; not `sure`: a rule may take it before."""

    clients: tuple[Client, ...]
    protocol: str
    ports: Spans
    stops: tuple[Stop, ...]
    targets: Spans
    end: End
    sure: bool = True


class Graph(NamedTuple):
    """`known`: the clients that were asked for at every port. `notes`: what a reader has to know besides."""

    stations: tuple[Station, ...]
    ways: tuple[Way, ...]
    known: tuple[Client, ...]
    notes: tuple[str, ...] = ()


class Node(NamedTuple):
    """`kind`: client, port, stop or end; `station` of a stop, else -1."""

    id: str
    kind: str
    label: str
    station: int = -1


class Edge(NamedTuple):
    """`kind`: goes, may (a rule that takes some only, or a way that is not sure), unreached."""

    tail: str
    head: str
    kind: str = "goes"


def elements(graph: Graph) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
    """The ways as a graph. Clients and ends are shared; ports and stops are each way's own, so that none is mistaken
    for another's."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    ends: dict[End, str] = {}
    for number, way in enumerate(graph.ways):
        words = clients_words(way.clients, graph.known)
        client = Node(f"client:{words}", "client", words)
        port = Node(f"port:{number}", "port", f"{way.protocol} {ports_words(way.ports)}")
        end = Node(ends.setdefault(way.end, f"end:{len(ends)}"), "end", ": ".join(filter(None, way.end[1:])))
        stops = [(stop, _stop(way, number, at)) for at, stop in enumerate(way.stops)]
        nodes |= {node.id: node for node in (client, port, *(node for _, node in stops), end)}
        edges.append(Edge(client.id, port.id))
        last = port.id
        for stop, node in stops:
            if stop.verdict == UNREACHED:
                edges.append(Edge(last, node.id, "unreached"))
            else:
                edges.append(Edge(last, node.id, "may" if stop.verdict == MAY else "goes"))
                last = node.id
        edges.append(Edge(last, end.id, "goes" if way.sure else "may"))
    return tuple(nodes.values()), tuple(edges)


def _stop(way: Way, number: int, at: int) -> Node:
    stop = way.stops[at]
    return Node(f"stop:{number}.{at}", "stop", stop_words(way, stop), stop.station)


def stop_words(way: Way, stop: Stop) -> str:
    """What happens at a stop."""
    if stop.verdict == TAKES:  # others' rules say themselves where they lead
        return f"{stop.name} → {ports_words(way.targets)}" if stop.own else stop.name
    return f"{stop.verdict}: {stop.name}"


def clients_words(clients: Iterable[Client], known: Iterable[Client]) -> str:
    """Who they are: "anyone", "outside", "this host, IPv6", "from 10.0.0.0/8"."""
    found, all_of = set(clients), set(known)
    if all_of and all_of <= found:
        return "anyone"
    words: list[str] = []
    general = {side: {one.family for one in found if one.side == side and not one.scope} for side in (OUTSIDE, HERE)}
    if general[OUTSIDE] == general[HERE] and len(found) == 2 * len(general[HERE]) == 2:
        return f"anyone, {_family(*general[HERE])}"
    for side in (OUTSIDE, HERE):
        here = general[side]
        asked = {one.family for one in all_of if one.side == side}
        if here:
            families = "" if here == asked else ", " + " and ".join(_family(name) for name in sorted(here))
            words.append(f"{side}{families}")
        scopes = [one.scope for one in clients if one.side == side and one.scope and one.family not in here]
        words += [scope if side == OUTSIDE else f"{side} {scope}" for scope in dict.fromkeys(scopes)]
    return "; ".join(words)


def _family(name: str) -> str:
    return {"ipv4": "IPv4", "ipv6": "IPv6"}[name]


def ports_words(ports: Spans) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(str(one) for one in ports[:PORTS_SHOWN])
    more = sum(one.size for one in ports[PORTS_SHOWN:])
    return f"{shown} and {more} more" if more else shown


def joined(ways: Iterable[Way]) -> list[Way]:
    """Ways that differ in clients only as one, then those that differ in ports only."""
    by_client: dict[Way, list[Client]] = {}
    for way in ways:
        by_client.setdefault(way._replace(clients=()), []).extend(way.clients)
    rows = [way._replace(clients=tuple(dict.fromkeys(clients))) for way, clients in by_client.items()]
    by_ports: dict[tuple[Way, object], list[Way]] = {}
    for way in rows:
        # A range that is shifted one to one stays one where a listener had cut it; else all have one target.
        shift = way.targets[0].first - way.ports[0].first if way.targets else 0
        alike = way.end.kind in (NOBODY, STOPPED) and bool(way.targets) and way.targets[0].size == way.ports[0].size
        key = shift if alike else way.targets
        by_ports.setdefault((way._replace(ports=(), targets=()), key), []).append(way)
    found = [_union(same) for same in by_ports.values()]
    return sorted(found, key=lambda way: (way.ports[0].first, way.protocol, -len(way.clients)))


def grouped(graph: Graph) -> Graph:
    """Of many ways, those of the same clients that meet the same verdicts and end alike as one."""
    if len(graph.ways) <= MANY:
        return graph
    groups: dict[object, list[Way]] = {}
    for way in graph.ways:
        verdicts = tuple((stop.station, stop.verdict) for stop in way.stops)
        key = frozenset(way.clients), way.protocol, verdicts, way.end.kind, way.end.title, way.sure
        groups.setdefault(key, []).append(way)
    ways = [same[0] if len(same) == 1 else _group(same) for same in groups.values()]
    note = f"{len(graph.ways):,} ways, those that fare alike drawn as one"
    return graph._replace(ways=tuple(ways), notes=(*graph.notes, note))


def _group(same: list[Way]) -> Way:
    stops = []
    for at, stop in enumerate(same[0].stops):
        names = list(dict.fromkeys(way.stops[at].name for way in same))
        what = f"{names[0]} and {len(names) - 1:,} more" if len(names) > 1 else stop.name
        stops.append(stop._replace(name=what, detail=", ".join(names)))
    details = list(dict.fromkeys(way.end.detail for way in same))
    end = same[0].end if len(details) == 1 else same[0].end._replace(detail=f"{len(details):,} times")
    return _union(same)._replace(stops=tuple(stops), end=end)


def _union(same: list[Way]) -> Way:
    ports = spans([one for way in same for one in way.ports])
    return same[0]._replace(ports=ports, targets=spans([one for way in same for one in way.targets]))
