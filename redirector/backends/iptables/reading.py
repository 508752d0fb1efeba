"""What iptables-save tells of our chains, as a Program. Pure.

Theory of operation. The rules of both families are walked from our two chains of the nat table, and from the one of the
filter table, as packets would walk them: the way to a rule of ports is its scope. What both families have alike, and
both sides, is put into one map, as `compile` does; that gives the maps, and the frame around them follows from which
maps there are. So the result is a guess, and it is put to the test: written down again by `rules.encode` it must be
what was read, rule by rule. Every difference is told as `Damage`. Thus nothing needs to be understood that we did not
write, and nothing that we did not write can pass for ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from redirector import naming
from redirector.backends.iptables import hairpins, rules
from redirector.backends.iptables.damage import commented, damage, leads_to_us
from redirector.backends.iptables.save import Saved, SavedTable
from redirector.backends.iptables.tree import PREFIX, Chains
from redirector.compile import data_kind, whole
from redirector.errors import printable
from redirector.model import DEFAULT_PRIORITY, FAMILIES, OWN, PROTOCOLS, SIDES, Scope, family_of
from redirector.naming import PortMap
from redirector.program import (
    COUNTS,
    FORWARDS,
    GUARDS,
    GUARDS_AT,
    Entries,
    Map,
    Program,
    endpoint,
    port_key,
)

# Port key, target, mapping, and rewrite, or what kind of map the target is in where it has an address.
_Found = tuple[int, int, str, str]
_FORWARDED = {kind: family for family, kind in FORWARDS.items()}
_Where = frozenset[tuple[str, str]]  # (side, family)
_JUMP = f"-j {PREFIX}"
NO_PORT = 0  # instead of a port key: the scope has a chain, and that is empty
EMPTY = ""  # instead of a rule: the same
DEPTH = 16  # chains deep: what we write is at most 9


def held(saved: Saved) -> dict[str, rules.Tables]:
    """What is ours of what was read, by family: our chains whole, and of the built-in chains the jumps to ours."""
    return {family: _ours(tables) for family, tables in saved.items()}


def _ours(tables: dict[str, SavedTable]) -> rules.Tables:
    found: rules.Tables = {"nat": {}, "filter": {}}
    for name in found:
        table = tables.get(name, SavedTable({}, {}))
        found[name] = {c: [r.text for r in kept] for c, kept in table.rules.items() if c.startswith(PREFIX)}
        for _, chain in (place for place in rules.BUILTIN if place[0] == name):
            jumps = [rule.text for rule in table.rules.get(chain, ()) if leads_to_us(rule.text)]
            if jumps:
                found[name][chain] = jumps
    return found


def decode(saved: Saved) -> Program | None:
    """The Program that the chains mean; None where there are none of ours at all."""
    ours = held(saved)
    if not any(chains for tables in ours.values() for chains in tables.values()):
        return None
    guess = _guess(ours)
    wanted = rules.encoded(guess, ours)
    found = [one for family in ours for one in damage(family, wanted[family], ours[family], saved[family])]
    return guess._replace(damage=tuple(found))


def foreign_reason(saved: Saved) -> str:
    """Why chains of our name are not ours, in words; "" where they are, or there are none.

    The name is the mark (a flush takes comments away): not ours is what has rules of which we could have written none.
    """
    rest = [rule for tables in held(saved).values() for chains in tables.values() for rule in _chained(chains)]
    if not rest or any(_possible(text) for text in rest):
        return ""
    return f"chains {PREFIX}…: they have rules that we could not have written, such as {printable(rest[0][:100])}"


def _chained(chains: Chains) -> Iterator[str]:
    return (text for name, texts in chains.items() if name.startswith(PREFIX) for text in texts)


def _possible(text: str) -> bool:
    read = _translation(text) or _refusal(text) or _masqueraded(text)
    return text == rules.KEEP or leads_to_us(text) or read is not None


def counters(saved: Saved, program: Program | None) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by counter: those of all rules of a mapping's ports together."""
    found: dict[str, tuple[int, int]] = dict.fromkeys(program.counters if program else (), (0, 0))
    for tables in saved.values():
        for chain, kept in tables.get("nat", SavedTable({}, {})).rules.items():
            if not chain.startswith(PREFIX):
                continue
            for rule in kept:
                mapping = commented(rule.text) if rule.packets else ""
                if mapping and not rule.text.endswith(hairpins.ACTION):
                    packets, size = found.get(naming.counter(mapping), (0, 0))
                    found[naming.counter(mapping)] = (packets + rule.packets, size + rule.bytes)
    return found


def _guess(ours: dict[str, rules.Tables]) -> Program:
    """What the rules that can be understood mean."""
    leaves: dict[PortMap, tuple[Entries, Entries]] = {}
    counts: set[str] = set()
    for scope, texts in _by_scope(ours).items():
        presence: dict[_Found, _Where] = {}
        for text, where in texts.items():
            for found in _ports(text):
                presence[found] = presence[found] | where if found in presence else where
        covers = {where: [*_cover(where, scope)] for where in set(presence.values())}
        for (key, target, mapping, rewrite), where in presence.items():
            counter = naming.counter(mapping)
            for side, family in covers[where]:
                wanted = PortMap(side, scope, family, rewrite)
                if rewrite in _FORWARDED:
                    wanted = PortMap(side, scope, _FORWARDED[rewrite], "forward")
                entries, counted = leaves.setdefault(wanted, ({}, {}))
                if key == NO_PORT:
                    continue
                counts.add(counter)
                entries[key], counted[key] = (target, mapping), (counter, "")
    maps = _guarded({family: tables["filter"] for family, tables in ours.items()})
    for family, tables in ours.items():
        _read_hairpins(family, tables["nat"], maps)
    for wanted, (entries, counted) in leaves.items():
        maps[naming.port_map(wanted)] = Map(data_kind(wanted), entries)
        maps[naming.count_map(wanted)] = Map(COUNTS, counted)
    counts |= {naming.counter(value[1]) for found in maps.values() for value in found.entries.values() if value[1]}
    return whole(leaves, maps, DEFAULT_PRIORITY, frozenset(counts))


def _by_scope(ours: dict[str, rules.Tables]) -> dict[Scope, dict[str, _Where]]:
    """Where each rule of ports is, by scope. Most are on both sides and in both families, and so each is read once."""
    found: dict[Scope, dict[str, _Where]] = {}
    joined: dict[tuple[_Where, _Where], _Where] = {}  # ten thousand rules are in the same few places
    for family, tables in ours.items():
        for side in SIDES:
            here = frozenset([(side, family)])
            for scope, texts in _walk(tables["nat"], rules.TOP[side], side, family, Scope(), 0):
                known = found.setdefault(scope, {})
                for text in texts:
                    before = known.get(text, here)
                    if before is not here:
                        before = joined.get((before, here)) or joined.setdefault((before, here), before | here)
                    known[text] = before
    return found


def _ports(text: str) -> Iterator[_Found]:
    """What a rule of ports gives ports to; nothing for any other."""
    if text == EMPTY:
        yield NO_PORT, 0, "", "port"
    read = _translation(text)
    if read:
        protocol, first, last, mapping, target, step, rewrite = read
        for port in range(first, last + 1):
            yield port_key(protocol, port), target + step * (port - first), mapping, rewrite


def _cover(present: _Where, scope: Scope) -> Iterator[tuple[str, str]]:
    """(side, family) of the maps that together stand for exactly these sides and families; "" stands for both."""
    families = (scope.family,) if scope.family else FAMILIES
    left = set(present)
    wide = [("", ""), *((side, "") for side in SIDES), *(("", family) for family in FAMILIES)]
    for side, family in wide:
        whole_ = {(s, f) for s in ((side,) if side else SIDES) for f in ((family,) if family else families)}
        if whole_ <= left and (family == "" or not scope.family):
            left -= whole_
            yield side, family
    for side, family in sorted(left):
        yield side, "" if scope.family else family


def _walk(
    chains: Chains, name: str, side: str, family: str, scope: Scope, depth: int
) -> Iterator[tuple[Scope, list[str]]]:
    """The rules of a chain, and of the chains that it leads to: those that are no jumps to ours, by scope. A chain that
    somebody has emptied is still the chain of its scope."""
    texts = chains.get(name, []) if depth < DEPTH else []
    yield scope, [text for text in texts if _JUMP not in text] or [EMPTY] * (depth > 0 and chains.get(name) == [])
    for text in (text for text in texts if _JUMP in text):
        condition, _, target = text.rpartition("-j ")
        if target.startswith(PREFIX):
            # A branch of a tree of ports, what both sides share, or what is beyond loopback is in the same scope.
            same = target == rules.ALL or condition.startswith(("-p ", "! -d "))
            inner = scope if same else _narrower(scope, condition.split(), side, family)
            if inner is not None:
                yield from _walk(chains, target, side, family, inner, depth + 1)


def _narrower(scope: Scope, condition: list[str], side: str, family: str) -> Scope | None:
    """The scope that a jump leads to; None for a condition that we do not write."""
    match condition:
        case []:
            return scope._replace(source="::/0" if family == "ipv6" else "0.0.0.0/0")
        case ["-s", network]:
            return scope._replace(source=network)
        case ["-d", address]:
            return scope._replace(address=address.partition("/")[0])
        case ["-i", interface]:
            return scope._replace(interface=interface.replace("+", "*"))
        case ["-o", "lo"] if side == OWN:
            return scope._replace(interface="lo")
    return None


def _number(text: str) -> int:
    """A port, -1 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535 else -1


def _span(text: str, mark: str) -> tuple[int, int] | None:
    """(first, last) of "80" or "80:89", whatever the mark between."""
    first, several, last = text.partition(mark)
    low, high = _number(first), _number(last if several else first)
    return (low, high) if 0 <= low <= high else None


def _translation(text: str) -> tuple[int, int, int, str, int, int, str] | None:
    """(protocol, first, last, mapping, first target, step between targets, rewrite) of a rule of ports."""
    found = text.split(" ")
    if len(found) != 14 or found[0] != "-p" or found[4] != "--dport" or found[8] != "--comment" or found[10] != "-j":
        return None
    ports = _span(found[5], ":")
    if found[1] not in PROTOCOLS or ports is None:
        return None
    mapping, option, to = found[9].strip('"'), found[12], found[13]
    rewrite = {"--to-destination": "port", "--to-ports": "redirect"}.get(option)
    address, colon, behind = to.rpartition(":")
    if rewrite is None or (rewrite == "port") != bool(colon):
        return None
    span, _, base = behind.partition("/")
    targets = _span(span, "-")
    if targets is None:
        return None
    step = int(targets[1] > targets[0])
    if step and (_number(base) != ports[0] or targets[1] - targets[0] != ports[1] - ports[0]):
        return None
    first = targets[0]
    if address:
        address = address.removeprefix("[").removesuffix("]")
        rewrite = FORWARDS[family_of(address)]
        try:
            first = endpoint(address, first)
        except OSError:  # no address at all
            return None
    return PROTOCOLS[found[1]], *ports, mapping, first, step, rewrite


def _masqueraded(text: str) -> tuple[int, int, int, str] | None:
    """(protocol, first, last, mapping) of a rule that masquerades."""
    found = text.split(" ")
    if len(found) != 12 or found[0] != "-p" or found[4] != "--dport" or not text.endswith(hairpins.ACTION):
        return None
    ports = _span(found[5], ":")
    if found[1] not in PROTOCOLS or ports is None:
        return None
    return PROTOCOLS[found[1]], *ports, found[9].strip('"')


def _read_hairpins(family: str, chains: Chains, maps: dict[str, Map]) -> None:
    """Add the sets of what is masqueraded."""
    for text in chains.get(hairpins.TOP, ()):
        match text.split(" "):
            case ["-s", network, "-j", place]:
                name = naming.targets_set(network)
                if naming.targets_network(name) != network or family_of(network) != family:
                    continue
                entries = maps.setdefault(name, Map(GUARDS_AT[family], {})).entries
                for address, key, mapping in _walk_ports(chains, place, "", 0, _masqueraded):
                    entries[address, key] = (0, mapping)


def _refusal(text: str) -> tuple[int, int, int, str] | None:
    """(protocol, first, last, mapping) of a rule that guards ports."""
    before, refuses, _ = text.partition(" -j REJECT ")
    found = before.split(" ")
    if not refuses or len(found) not in (10, 13) or found[0] != "-p" or found[4] != "--dport":
        return None
    ports = _span(found[5], ":")
    if found[1] not in PROTOCOLS or ports is None:
        return None
    return PROTOCOLS[found[1]], *ports, found[-1].strip('"')


def _guarded(tables: dict[str, Chains]) -> dict[str, Map]:
    """The sets of guards."""
    presence: dict[tuple[str, int, str], list[str]] = {}
    for family, chains in tables.items():
        for found in _walk_ports(chains, rules.GUARD, "", 0, _refusal):
            presence.setdefault(found, []).append(family)
    maps: dict[str, Map] = {}
    for (address, key, mapping), families in presence.items():
        for family in [""] if len(families) == len(FAMILIES) and not address else families:
            kind = GUARDS_AT[family] if address else GUARDS
            entries: dict[Any, Any] = maps.setdefault(naming.guard_map(family, bool(address)), Map(kind, {})).entries
            entries[(address, key) if address else key] = (0, mapping)
    return maps


def _walk_ports(
    chains: Chains, name: str, address: str, depth: int, read: Callable[[str], tuple[int, int, int, str] | None]
) -> Iterator[tuple[str, int, str]]:
    """(address, port key, mapping) of the rules that can be `read`, in a chain and those that it leads to."""
    for text in chains.get(name, ()) if depth < DEPTH else ():
        found = read(text)
        if found:
            protocol, first, last, mapping = found
            yield from ((address, port_key(protocol, port), mapping) for port in range(first, last + 1))
            continue
        condition, jumps, target = text.rpartition("-j ")
        if jumps and target.startswith(PREFIX):
            at = condition[3:].partition("/")[0] if condition.startswith("-d ") else address
            yield from _walk_ports(chains, target, at, depth + 1, read)
