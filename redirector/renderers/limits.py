"""What a mechanism can do of what a mapping asks, and what it cannot, each with its place in the file. Pure.

A redirect acts on packets, so it can tell clients apart by everything that a packet says. Any other mechanism ends in a
socket that is bound to a port, and a socket knows less. Whatever is lost on the way is a problem here, never a silent
difference: a rendering either does what the file says, or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from redirector.model import InvalidModel, Mapping, Ports, Problem, Ruleset, Target
from redirector.renderers.binding import families

# Interfaces that units and configuration files can name as they are.
PLAIN_INTERFACE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MAX_SOCKETS = 512  # of one mapping; a process starts with 1,024 descriptors (systemd.exec(5), LimitNOFILE=)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one mechanism can do."""

    what: str
    """Its name, as messages tell it."""
    protocols: tuple[str, ...]
    proxy: bool
    """Whether it passes connections on to the target; if not, the server itself has the port that clients use."""
    source: bool = False
    """Whether it can turn clients away by their address."""
    interface: bool = False
    """Whether it can bind to an interface."""
    shift: bool = True
    """Whether it can pass a range on one to one. (Where there is no proxy, nothing is passed on.)"""
    nested: bool = True
    """Whether one mapping may have a port on one address, and another the same port on all others."""
    sockets: int = MAX_SOCKETS
    """How many sockets a mapping may come to, 0 where the mechanism opens none itself."""


def require(ruleset: Ruleset, limits: Limits, more: Iterable[Problem] = ()) -> None:
    """Raises InvalidModel with all problems: those of `problems`, and `more` of the mechanism's own."""
    found = [*problems(ruleset, limits), *more]
    if found:
        raise InvalidModel(found)


def problems(ruleset: Ruleset, limits: Limits) -> Iterator[Problem]:
    """What the mechanism cannot do of the enabled mappings; paths start with ("mapping", index)."""
    enabled = [(index, mapping) for index, mapping in enumerate(ruleset.mappings) if mapping.enabled]
    for index, mapping in enabled:
        for problem in (*_of_packets(mapping, limits), *_of_targets(mapping, limits)):
            yield problem._replace(path=("mapping", index, *problem.path))
    yield from _of_two(ruleset, limits)


def interfaces(mapping: Mapping) -> tuple[str, ...]:
    """The interfaces to bind to, "" for none in particular: the host's own connections arrive by lo."""
    own = ("lo",) if mapping.interface and mapping.local and "lo" not in mapping.interface else ()
    return (*mapping.interface, *own) or ("",)


def count(mapping: Mapping) -> int:
    """How many sockets a mapping comes to, where one serves both families."""
    ports = sum(ports.size for ports in mapping.listen) * len(mapping.protocol)
    return ports * max(1, len(mapping.address)) * len(interfaces(mapping))


def about_own(ruleset: Ruleset) -> list[str]:
    """What else gets in where source or interface say who: a socket sees the host's own connections like any others."""
    lines = []
    for key, where in (("source", "from an address in its source"), ("interface", "to an address of its interface")):
        names = [m.name for m in ruleset.enabled if getattr(m, key) and not m.local]
        if names:
            lines.append(f"This host's own connections {where} get in, too: {', '.join(names)}.")
    return lines


def _of_packets(mapping: Mapping, limits: Limits) -> Iterator[Problem]:
    """Which packets the mapping wants, as far as a bound socket cannot tell."""
    what = limits.what
    for i, protocol in enumerate(mapping.protocol):
        if protocol not in limits.protocols:
            yield Problem(("protocol", i), f"{what} cannot do {protocol}, only {' and '.join(limits.protocols)}")
    if mapping.source and not limits.source:
        message = f"{what} cannot tell clients apart by their address: everybody would get in"
        yield Problem(("source",), message, "filter in the server or the firewall, and take source out", True)
    elif mapping.source and mapping.local:
        message = f"{what} cannot let this host's own connections past source: they come from any of its addresses"
        yield Problem(("local",), message, "take local out, and name those addresses in source")
    for i, interface in enumerate(mapping.interface):
        if not limits.interface:
            yield Problem(("interface", i), f"{what} cannot bind to an interface", "name addresses instead, by address")
        elif not re.fullmatch(PLAIN_INTERFACE, interface):
            wildcard = interface.endswith("*")
            message = f"{what} binds to one interface of a plain name, not to {interface}"
            yield Problem(("interface", i), message, "name each interface" if wildcard else "")
    if not mapping.local and not mapping.source and not mapping.interface:
        message = f"{what} cannot leave this host's own connections out: who asks its addresses gets the same answer"
        yield Problem(("local",), message, "take local out, if that is acceptable")


def _of_targets(mapping: Mapping, limits: Limits) -> Iterator[Problem]:
    """What becomes of the target and of addresses."""
    what = limits.what
    if mapping.forwards:
        message = f"{what} cannot lead to another address and keep the client's: {mapping.to} would not see it"
        yield Problem(("to",), message, "a redirect does it; or name a port of this host")
        return
    if mapping.rewrite != "port":
        message = f"{what} cannot rewrite the address to the interface's own"
        yield Problem(("rewrite",), message, "take rewrite out, if that is acceptable")
    sockets = count(mapping)
    if 0 < limits.sockets < sockets:
        message = f"{what} needs a socket for each port and address, here {sockets:,}: {limits.sockets} is the limit"
        yield Problem(("listen",), message, "a redirect needs none at all")
    if not limits.proxy:
        return
    if mapping.exclusive:
        message = f"{what} cannot refuse clients that go to port {mapping.to} directly"
        yield Problem(("exclusive",), message, "let the server listen on 127.0.0.1 alone, and take exclusive out")
    if mapping.shifted and not limits.shift:
        message = f"{what} has one target, and cannot pass a range on one to one"
        yield Problem(("to",), message, "write a mapping for each port")
    if any(_overlap(ports, mapping.to) for ports in mapping.listen):
        message = f"{what} would be its own target: it has port {mapping.to} itself"
        yield Problem(("to",), message, "let the server listen on another port, or disable the mapping")


def sharing(ruleset: Ruleset) -> frozenset[str]:
    """The names of the mappings that have a port which another one has, too: on another address, or it is a problem."""
    pairs = _meetings(ruleset, ("listen",))
    return frozenset(ruleset.mappings[index].name for pair in pairs for index, _ in pair)


def _of_two(ruleset: Ruleset, limits: Limits) -> Iterator[Problem]:
    """Where two mappings have the same port, and where a proxy has for one of them the target of the other."""
    keys = ("listen", "to") if limits.proxy else ("listen",)
    for (at, key), (other_at, other_key) in sorted(_meetings(ruleset, keys)):
        if key == other_key:
            message = _shared(ruleset.mappings[at], ruleset.mappings[other_at], limits)
            if message:
                yield Problem(("mapping", other_at, "listen"), message, related=("mapping", at, "listen"))
            continue
        led, taker = (at, other_at) if key == "to" else (other_at, at)
        port, name = ruleset.mappings[led].to, ruleset.mappings[taker].name
        message = f'{limits.what} itself has port {port}, for "{name}": no server can be there'
        yield Problem(("mapping", led, "to"), message, related=("mapping", taker, "listen"))


_End = tuple[int, str]  # index of a mapping, and "listen" or "to"


def _meetings(ruleset: Ruleset, keys: tuple[str, ...]) -> set[tuple[_End, _End]]:
    """Pairs of ports of different enabled mappings that overlap in one protocol, the earlier mapping first. Two targets
    are no pair: they may be one server.

    By a sweep over the ports in order, so that n mappings that do not meet cost n log n.
    """
    ranges = [
        (ports.first, ports.last, (index, key))
        for index, mapping in enumerate(ruleset.mappings)
        if mapping.enabled
        for key in keys
        for ports in (mapping.listen if key == "listen" else (mapping.to,))
    ]
    found: set[tuple[_End, _End]] = set()
    active: list[tuple[int, _End]] = []
    for first, last, end in sorted(ranges):
        active = [(other_last, other) for other_last, other in active if other_last >= first]
        for _, other in active:
            one, another = ruleset.mappings[end[0]], ruleset.mappings[other[0]]
            if one is not another and "listen" in (end[1], other[1]) and {*one.protocol} & {*another.protocol}:
                found.add((min(end, other), max(end, other)))
        active.append((last, end))
    return found


def _shared(one: Mapping, other: Mapping, limits: Limits) -> str:
    """What is wrong with two mappings that have a port in common, "" if nothing."""
    if not {*families(one)} & {*families(other)}:
        return ""
    if one.interface and other.interface:
        if not {*one.interface} & {*other.interface}:
            return ""
    elif one.address and other.address:
        if not {*one.address} & {*other.address}:
            return ""
    elif limits.nested and not (one.interface or other.interface or one.source or other.source):
        return ""
    elif not limits.nested and (one.address or other.address):
        message = f'{limits.what}: "{one.name}" and "{other.name}" bind one port, one of them on every address'
        return f"{message}, and the second is refused (EADDRINUSE)"
    return f'{limits.what} cannot tell the clients of "{one.name}" and "{other.name}" apart: they share a port'


def _overlap(one: Ports, other: Ports | Target) -> bool:
    return one.first <= other.last and other.first <= one.last
