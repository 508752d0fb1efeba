"""Which rule takes what. Pure.

Theory of operation. With iptables the first rule that matches wins; with mappings the narrowest scope. Both agree where
a narrower rule stands before a wider one. Where a wider one stands first, the narrower is never reached, and ports that
both have are taken out of it. Where two scopes only cross (a source here, an interface there), the mapping that would
win in both must be the one that comes first, or the later is left out.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from redirector.importers.found import Entry, Leftover, Place
from redirector.importers.scopes import relation
from redirector.model import Ports, Scope

_Span = tuple[int, int, int]  # first and last port, and the index of the entry that takes them


def settle(entries: list[Entry]) -> tuple[list[Entry], list[Leftover], list[str]]:
    """The entries that have a target and are reached, with the ports that they take; what is left out; hints."""
    taken: dict[tuple[str, str, str], dict[Scope, list[_Span]]] = {}
    passing: list[tuple[int, Entry]] = []  # that return from a chain which is not over
    kept: list[Entry] = []
    fates: dict[Place, list[tuple[str, bool]]] = {}  # of each entry of a rule: why it is out, and whether that matters
    relations: dict[tuple[Scope, Scope], str] = {}
    keeping: set[int] = set()
    for index, entry in enumerate(entries):
        passing = [(i, other) for i, other in passing if other.until > index]
        table = taken.setdefault((entry.side, entry.family, entry.protocol), {})
        left = list(entry.ports)
        takers: list[int] = []
        why = ""
        for scope, spans in table.items():
            known = relations.get((scope, entry.scope))
            if known is None:
                known = relations[scope, entry.scope] = relation(scope, entry.scope)
            if known == "covers":
                left = _without(left, spans, takers)
            elif known == "crosses" and entry.target and scope.specificity < entry.scope.specificity:
                crossing: list[int] = []
                _without(left, spans, crossing)
                rivals = (entries[i] for i in crossing if i in keeping)
                other = next((e for e in rivals if e.target != entry.target), None)
                if other and not why:
                    first = other.place.beside(entry.place)
                    why = f"{first} comes before it where both match; a mapping file would have it the other way"
        hidden = [(p.first, p.last, i) for i, other in passing if _hides(other, entry) for p in other.ports]
        for span in hidden:
            left = _without(left, [span], takers)
        if entry.target is not None:
            fate = (why, True)
            if not left:
                other = entries[takers[0]]
                same = all(_same(entries[i], entry) for i in takers)
                fate = (f"never reached: {other.place.beside(entry.place)} takes it", not same)
            elif not why:
                keeping.add(index)
                kept.append(entry._replace(ports=tuple(left)))
            fates.setdefault(entry.place, []).append(fate if not left or why else ("", False))
        elif entry.until <= len(entries):
            passing.append((index, entry))
            continue
        for ports in left:
            insort(table.setdefault(entry.scope, []), (ports.first, ports.last, index))
    out = [(place, fate) for place, found in fates.items() for fate in _verdict(found)]
    hints = [f"{place} says again what the mappings say: {place.text}" for place, (_, matters) in out if not matters]
    return kept, [Leftover(place, reason) for place, (reason, matters) in out if matters], hints


def _verdict(fates: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """What to tell of a rule: nothing of one that acts anywhere, unless something that matters was left out."""
    crossed = [fate for fate in fates if fate[0] and not fate[0].startswith("never")]
    if crossed:
        return crossed[:1]
    return [] if any(not why for why, _ in fates) else sorted(fates, key=lambda fate: not fate[1])[:1]


def _hides(other: Entry, entry: Entry) -> bool:
    same = (other.side, other.family, other.protocol) == (entry.side, entry.family, entry.protocol)
    return same and relation(other.scope, entry.scope) == "covers"


def _same(one: Entry, other: Entry) -> bool:
    return one.target == other.target and one.scope == other.scope


def _without(ports: list[Ports], spans: list[_Span], takers: list[int]) -> list[Ports]:
    """The ports that are in none of the spans (disjoint, in order); who has the others is added to `takers`."""
    left: list[Ports] = []
    for first, last in ports:
        begin = first
        i = max(bisect_left(spans, (first,)) - 1, 0)
        while i < len(spans) and spans[i][0] <= last:
            low, high, owner = spans[i]
            if high >= begin:
                takers.append(owner)
                if low > begin:
                    left.append(Ports(begin, low - 1))
                begin = high + 1
            i += 1
        if begin <= last:
            left.append(Ports(begin, last))
    return left
