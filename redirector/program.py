"""What the kernel holds, as plain data: chains, rules, maps, counters. Compiled or observed, it is one type for both.

The words are nftables': a *base chain* sits at a hook, a *map* gives a value for a key, a *verdict* map a chain to jump
to. Rules are symbolic and few; a backend writes each in its own form, and reads what it does not recognise as
`Foreign`, so that drift is `desired != observed` and nothing else. Entries of ports and guards carry the name of their
mapping. Each mapping has one counter, to which the entries of counting maps lead.
"""

from __future__ import annotations

import _socket as socket  # see netlink
from collections.abc import Iterator
from typing import Any

from redirector.model import PROTOCOLS, Ports, Target, ipv6
from redirector.records import NamedTuple

# Kinds of maps, by key; the first four are keyed by protocol and port, `port_key`.
PORTS = "ports"  # → (target port, mapping)
FORWARDS = {"ipv4": "forwards-ipv4", "ipv6": "forwards-ipv6"}  # → (target address and port, `endpoint`; mapping)
COUNTS = "counts"  # → (counter, "")
GUARDS = "guards"  # set of (protocol, target port) → (0, mapping)
GUARDS_AT = {"ipv4": "guards-ipv4", "ipv6": "guards-ipv6"}  # set of (address, port key) → (0, mapping)
ADDRESSES = {"ipv4": "addresses-ipv4", "ipv6": "addresses-ipv6"}  # local address, or base of a network → (chain, "")
INTERFACES = "interfaces"  # interface name → (chain, "")
SETS = frozenset({GUARDS, *GUARDS_AT.values()})  # keys without data
TRANSLATIONS = frozenset({PORTS, *FORWARDS.values()})  # whose data is a target
NAMED = SETS | TRANSLATIONS  # whose entries carry the name of their mapping, as a comment
VERDICTS = frozenset({INTERFACES, *ADDRESSES.values()})  # whose data is a chain to jump to

Entries = dict[Any, tuple[Any, str]]
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Hook(NamedTuple):
    """Where a base chain is attached: `type` nat or filter, the hook's name, its priority and policy."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"


class LocalJump(NamedTuple):
    """A destination that is one of this host's own addresses: jump (`fib daddr type local`)."""

    chain: str


class Dispatch(NamedTuple):
    """Look `field` (source, address, interface) up in a verdict map; a miss goes on to the next rule.

    `prefix` is the length to which a source is cut before the look-up.
    """

    field: str
    family: str
    prefix: int
    map: str


class Jump(NamedTuple):
    """Jump if the packet is of `family` ("": any) and arrived on `interface` ("": any; "veth*" is a wildcard)."""

    family: str
    interface: str
    chain: str


class Count(NamedTuple):
    """Count the packet with the counter that the map has for its port; a miss goes on. A nat chain sees a connection's
    first packet only, and so this counts connections."""

    family: str
    map: str


class Skip(NamedTuple):
    """A destination of `family` on loopback: return, a miss."""

    family: str


class Translate(NamedTuple):
    """Give the connection the port that the map has for it; a miss goes on. `rewrite` as in a mapping, or "forward":
    the map has an address of `family` and a port."""

    rewrite: str
    family: str
    map: str


class Masquerade(NamedTuple):
    """A redirected connection of another machine to an entry of the set, of addresses and ports: give it the address
    of the interface that it leaves by.

    (Its fields are in another order than those of `Count`: tuples of equal values are equal.)
    """

    map: str
    family: str


class Guard(NamedTuple):
    """A new connection from outside, not redirected, to an entry of the set (`at`: address and port): jump."""

    family: str
    at: bool
    map: str
    chain: str


class Refuse(NamedTuple):
    """Answer with a TCP reset (`how` "reset") or port unreachable ("unreachable")."""

    how: str


class Keep(NamedTuple):
    """Does nothing but hold connection tracking, so that a drained table does not reset what it once redirected."""


class Foreign(NamedTuple):
    """A rule that we did not write, as text for people. Only ever observed."""

    text: str


Rule = LocalJump | Dispatch | Jump | Count | Skip | Translate | Masquerade | Guard | Refuse | Keep | Foreign


class Chain(NamedTuple):
    """Rules in order; `hook` is None for a chain that is only jumped to."""

    hook: Hook | None
    rules: tuple[Rule, ...]


class Map(NamedTuple):
    """A map or set of one `kind`. `capacity` is how many entries the kernel's fixed hash can take: a fact, not a wish,
    and so no part of equality."""

    kind: str
    entries: Entries
    capacity: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Map) and self.kind == other.kind and self.entries == other.entries

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        raise TypeError("a map cannot be hashed: its entries are a dict")


class Damage(NamedTuple):
    """What a backend finds wrong in its own form, where a Program has no words for it: what `action` (add, remove,
    change) would mend, in words; `serves` names the mappings that are behind it. Only ever observed."""

    action: str
    text: str
    serves: tuple[str, ...] = ()


class Program(NamedTuple):
    """One table. `flags` are the kernel's table flags; `strays` names objects in it that no compiled Program has;
    `counters` are the names of its counters (what they have counted is no part of a Program)."""

    chains: dict[str, Chain]
    maps: dict[str, Map]
    flags: int = 0
    strays: tuple[str, ...] = ()
    counters: frozenset[str] = frozenset()
    damage: tuple[Damage, ...] = ()


class Route(NamedTuple):
    """Entries that belong together, for people: a port range, its target, and where it counts.

    `target` is None for a guard, and for what is masqueraded. `where` is the scope's text; `rewrite` as in a mapping,
    "forward" or "masquerade".
    """

    protocol: str
    ports: Ports
    target: Ports | Target | None
    where: str = ""
    rewrite: str = "port"


def port_key(protocol: int, port: int) -> int:
    """Protocol number and port in one integer: entries of a map by the ten thousand should be cheap."""
    return protocol << 16 | port


def endpoint(address: str, port: int) -> int:
    """An address and a port in one number, the port last; the family is that of the map that it is in."""
    family = socket.AF_INET6 if ipv6(address) else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, address), "big") << 16 | port


def endpoint_parts(kind: str, number: int) -> tuple[str, int]:
    """Inverts `endpoint`, in a map of one of the kinds `FORWARDS`."""
    family, size = (socket.AF_INET6, 16) if kind == FORWARDS["ipv6"] else (socket.AF_INET, 4)
    return socket.inet_ntop(family, (number >> 16).to_bytes(size, "big")), number & 0xFFFF


def targets_of(kind: str, found: Ports) -> Ports | Target:
    """The targets of a run, as `runs` gives them, of a map of this kind."""
    if kind == PORTS:
        return found
    (address, first), (_, last) = (endpoint_parts(kind, number) for number in found)
    return Target(first, last, (address,))


def protocol_name(number: int) -> str:
    return _PROTOCOL_NAMES.get(number) or f"protocol-{number}"


def references(rule: Rule) -> str | None:
    """The map that a rule looks things up in."""
    return rule.map if isinstance(rule, Dispatch | Count | Translate | Masquerade | Guard) else None


def runs(entries: dict[int, tuple[Any, ...]]) -> Iterator[tuple[str, int, Ports, Ports]]:
    """(mapping, protocol number, ports, targets) of entries by port key: see `spans`."""
    for mapping, first, last, target, final in spans(entries):
        yield mapping, first >> 16, Ports(first & 0xFFFF, last & 0xFFFF), Ports(target, final)


def spans(entries: dict[int, tuple[Any, ...]]) -> Iterator[tuple[str, int, int, int, int]]:
    """(mapping, first port key, last, first target, last) of entries by port key, neighbours joined where they can be:
    those of one mapping whose targets are all the same, or go up by one with the ports. In the order of the keys."""
    first = last = target = final = -1
    owner = ""
    step = None  # between targets, 0 or 1; known from a run's second entry on
    for key in sorted(entries):
        value, mapping = entries[key][:2]
        if key == last + 1 and mapping == owner and key & 0xFFFF:
            delta = value - final
            if delta in (0, 1) and step in (None, delta):
                last, final, step = key, value, delta
                continue
        if first >= 0:
            yield owner, first, last, target, final
        first = last = key
        target = final = value
        owner, step = mapping, None
    if first >= 0:
        yield owner, first, last, target, final
