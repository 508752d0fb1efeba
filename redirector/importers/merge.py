"""From entries that each take their own ports to mappings as people would write them. Pure.

Theory of operation. What has one name (the comment of a rule), or the same ports and target, is one mapping if a
mapping can say it: with one target or one shifted range, protocols that have everything in common, and sources,
addresses and interfaces that meet each other all. That is put to the test: the claims of the mapping must be those that
were found. If they are not, it becomes several, named NAME, NAME-2 and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from redirector.importers.found import Entry, Findings, Imported, Leftover, Place, Target
from redirector.importers.order import settle
from redirector.importers.rules import joined
from redirector.model import (
    ARRIVING,
    FAMILIES,
    OWN,
    PROTOCOLS,
    InvalidModel,
    Mapping,
    Ports,
    Ruleset,
    Scope,
    Settings,
    family_of,
    family_problems,
    ruleset_problems,
)
from redirector.model import Target as Elsewhere
from redirector.records import NamedTuple
from redirector.values import NAME

Cell = tuple[str, Scope, str]  # side, scope and family


class _Piece(NamedTuple):
    """Ports and where they go, as one mapping can have it; `addresses` are those of its targets, () for this host."""

    rewrite: str
    listen: tuple[Ports, ...]
    to: Ports
    addresses: tuple[str, ...] = ()

    def target(self, families: AbstractSet[str]) -> Ports | Elsewhere:
        """What a mapping for these families has as its target."""
        fitting = tuple(a for a in self.addresses if family_of(a) in families)
        return Elsewhere(self.to.first, self.to.last, fitting) if fitting else self.to


def merge(findings: Findings) -> Imported:
    """Mappings for what was found, in the order in which it stood."""
    entries, left, hints = settle(findings.entries)
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        valid = re.fullmatch(NAME, entry.name)
        groups.setdefault((entry.name,) if valid else entry.group, []).append(entry)
    reserved = {str(group[0]) for group in groups if len(group) == 1}
    used: set[str] = set()
    mappings: list[Mapping] = []
    places: list[Place] = []
    for group, found in groups.items():
        name = str(group[0]) if len(group) == 1 else ""
        comment = "" if name or not found[0].name.isprintable() else found[0].name[:120]
        for piece, protocols, cells in _pieces(found):
            for mapping, unsaid in _cover(piece, protocols, cells):
                if mapping is None:
                    where = dict.fromkeys(e.place for e in found if (e.side, e.scope, e.family) in unsaid)
                    left += [Leftover(place, "no mapping has such a scope") for place in where]
                    continue
                wanted = name if name not in used else ""
                wanted = wanted or _free(name or _derived(mapping), reserved)
                used.add(wanted)
                reserved.add(wanted)
                named = mapping._replace(name=wanted, comment=comment)
                mappings.append(_guarded(named, {f for of, f in findings.exclusive if of == name}))
                places.append(found[0].place)
    ruleset, refused = _valid(mappings, places)
    lost = sorted({name for name, _ in findings.exclusive} - {m.name for m in ruleset.mappings})
    hints += [f"{name} is guarded, but nothing leads there: a guard is part of a mapping" for name in lost]
    hints += _told(ruleset, entries)
    files = list(dict.fromkeys([*(e.place.file for e in findings.entries), *(e.place.file for e in findings.left)]))
    out = sorted(findings.left + left + refused, key=lambda found: (files.index(found.place.file), found.place.line))
    return Imported(ruleset, tuple(out), tuple(findings.hints + hints))


def _guarded(mapping: Mapping, families: set[str]) -> Mapping:
    """The mapping, exclusive where its target is guarded for these families."""
    if mapping.forwards:
        return mapping
    if len(families) == 1 and mapping.family == "both" and not mapping.address:
        # Its sources may leave the family open where the guard, which knows no sources, does not.
        narrow = mapping._replace(family=next(iter(families))) if _may_be(mapping, families) else mapping
        mapping = narrow if _cells(narrow) == _cells(mapping) else mapping
    return mapping._replace(exclusive=bool(families))


def _may_be(mapping: Mapping, families: set[str]) -> bool:
    return not any(family_problems(next(iter(families)), mapping.address, mapping.source))


def _derived(mapping: Mapping) -> str:
    return f"{mapping.protocol[0]}-{mapping.listen[0]}"


def _free(name: str, taken: set[str]) -> str:
    wanted, number = name, 1
    while wanted in taken:
        number += 1
        wanted = f"{name[:55]}-{number}"
    return wanted


def _pieces(entries: list[Entry]) -> Iterator[tuple[_Piece, tuple[str, ...], frozenset[Cell]]]:
    """What one mapping can have: ports and target, the protocols, and sides, scopes and families for all of them."""
    there = sorted({e.target.address for e in entries if e.target and e.target.address}, key=family_of)
    alone = len({family_of(address) for address in there}) == len(there)  # then they are those of one mapping
    cells: dict[tuple[str, str, Scope, str, str, tuple[str, ...]], list[Entry]] = {}
    for e in entries:
        if e.target:
            addresses = () if not e.target.address else tuple(there) if alone else (e.target.address,)
            cells.setdefault((e.side, e.family, e.scope, e.protocol, e.target.rewrite, addresses), []).append(e)
    found: dict[_Piece, dict[str, set[Cell]]] = {}
    for (side, family, scope, protocol, rewrite, addresses), mine in cells.items():
        for listen, to in _targets(mine):
            by_protocol = found.setdefault(_Piece(rewrite, listen, to, addresses), {})
            by_protocol.setdefault(protocol, set()).add((side, scope, family))
    for piece, by_protocol in found.items():
        alike: dict[frozenset[Cell], list[str]] = {}
        for protocol in PROTOCOLS:
            if protocol in by_protocol:
                alike.setdefault(frozenset(by_protocol[protocol]), []).append(protocol)
        for where, protocols in alike.items():
            yield piece, tuple(protocols), where


def _targets(entries: list[Entry]) -> Iterator[tuple[tuple[Ports, ...], Ports]]:
    """(listen, to) for the ports of entries, neighbours joined where one target or one shift can say it."""
    spans = sorted((ports, e.target) for e in entries for ports in e.ports if e.target)
    runs: list[tuple[Ports, int, int | None]] = []  # ports, first target, step between targets (None: one port)
    for ports, target in spans:
        first, step = _start(ports, target), None if ports.size == 1 else int(target.shift)
        if runs:
            before, start, known = runs[-1]
            final = start + (known or 0) * (before.size - 1)
            delta = first - final
            if ports.first == before.last + 1 and delta in (0, 1) and {known, step} <= {None, delta}:
                runs[-1] = (Ports(before.first, ports.last), start, delta)
                continue
        runs.append((ports, first, step))
    same: dict[int, list[Ports]] = {}
    for ports, first, step in runs:
        if step:
            yield (ports,), Ports(first, first + ports.size - 1)
        else:
            same.setdefault(first, []).append(ports)
    for first, listen in same.items():
        yield joined(listen), Ports(first, first)


def _start(ports: Ports, target: Target) -> int:
    return ports.first + target.first if target.shift else target.first


def _cover(
    piece: _Piece, protocols: tuple[str, ...], cells: frozenset[Cell]
) -> Iterator[tuple[Mapping | None, frozenset[Cell]]]:
    """Mappings whose claims together are exactly these cells; one if that can be. None: these cannot be said."""
    whole = _one(piece, protocols, cells)
    if whole:
        yield whole, cells
        return
    parts = (frozenset(cell for cell in cells if cell[2] == family) for family in FAMILIES)
    each = [(_one(piece, protocols, part), part) for part in parts if part]
    if len(each) > 1 and all(mapping for mapping, _ in each):  # each family has something of its own
        yield from each
        return
    scopes: dict[tuple[str, Scope], set[Cell]] = {}
    for cell in sorted(cells):
        scopes.setdefault(cell[:2], set()).add(cell)
    for (side, scope), part_cells in scopes.items():
        # The host's own connections belong to what arrives at the same address.
        own = scopes.get((OWN, Scope("", scope.address, "")), set())
        if side == ARRIVING and own and _one(piece, protocols, frozenset(part_cells | own)):
            part_cells.update(own)
            own.clear()
    for part_cells in filter(None, scopes.values()):
        yield _one(piece, protocols, frozenset(part_cells)), frozenset(part_cells)


def _one(piece: _Piece, protocols: tuple[str, ...], cells: Iterable[Cell]) -> Mapping | None:
    """The mapping that claims these cells and no others; None if there is none."""
    cells = frozenset(cells)
    plain = {(side, scope) for side, scope, _ in cells if side == OWN and not scope.source and not scope.interface}
    narrow = {(side, scope) for side, scope, _ in cells} - plain
    local = bool(plain) and bool(narrow)
    if not narrow:  # nothing but the host's own
        narrow = {(OWN, scope._replace(interface="lo")) for _, scope in plain}
        cells = frozenset((side, scope._replace(interface="lo"), family) for side, scope, family in cells)
    parts = [tuple(sorted({scope[i] for _, scope in narrow} - {""})) for i in range(3)]
    for family in ("both", *FAMILIES):
        try:
            mapping = Mapping(
                "x",
                piece.listen,
                piece.target({of for _, _, of in cells}),
                protocols,
                family,
                source=parts[0],
                address=parts[1],
                interface=parts[2],
                local=local,
                rewrite=piece.rewrite,
            )
        except InvalidModel:
            continue
        if _cells(mapping) == cells:
            return mapping
    return None


def _cells(mapping: Mapping) -> frozenset[Cell]:
    return frozenset(
        (side, scope, family)
        for side, scope in mapping.claims
        for family in ((scope.family,) if scope.family else mapping.families)
    )


def _valid(mappings: list[Mapping], places: list[Place]) -> tuple[Ruleset, list[Leftover]]:
    """A ruleset of those mappings that can be together."""
    left: list[Leftover] = []
    while True:
        problems = ruleset_problems(mappings)
        if not problems:
            return Ruleset.checked(tuple(mappings), Settings()), left
        out = {int(problem.path[1]): problem.message for problem in reversed(problems)}
        left += [Leftover(places[index], why) for index, why in sorted(out.items())]
        mappings, places = (
            [mapping for index, mapping in enumerate(mappings) if index not in out],
            [place for index, place in enumerate(places) if index not in out],
        )


def _told(ruleset: Ruleset, entries: list[Entry]) -> Iterator[str]:
    """What the mappings lack that people expect, because what they came from lacks it; and what came besides."""
    for family, other in (("ipv4", "IPv6"), ("ipv6", "IPv4")):
        names = [m.name for m in ruleset.mappings if m.family == family]
        if names:
            yield f"not for {other}, as what they came from is not: {_list(names)}; to have it, take family out"
    names = [m.name for m in ruleset.mappings if not (m.local or m.source or m.interface)]
    if names:
        yield f"not for this host's own connections: {_list(names)}; to have them, take local = false out"
    through = dict.fromkeys(str(e.place) for e in entries if e.transit)
    if through:
        words = "connections that go through this host, or from it to others, were taken as well by"
        yield f"{words} {_list(list(through))}; a mapping takes those to this host's own addresses alone"


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
