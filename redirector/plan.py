"""Desired and observed Program → Plan: what to tell people, and what to send to the kernel. Pure.

A Plan's `steps` are data: they can be stored, printed, sent by any backend, and applied to a Program by `perform`
(which is how the in-memory backend works, and how tests hold that a plan leads exactly to what was desired).
`changes` folds the same difference back into mappings (module changes). An empty plan is falsy and sends nothing.

Order of the steps, which the kernel checks reference by reference: rules go first (they hold maps and chains), then
map entries, maps, counters, chains; then the same upwards. A map or chain that is replaced is deleted and added under
its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from redirector.model import PROTOCOLS
from redirector.program import (
    FORWARDS,
    TRANSLATIONS,
    Chain,
    Entries,
    Hook,
    Map,
    Program,
    Rule,
    endpoint_parts,
    references,
)
from redirector.records import NamedTuple

if TYPE_CHECKING:
    from redirector.changes import Change

SMALLEST_CAPACITY = 64


class AddTable(NamedTuple):
    """Create our table; or, where it exists, set its flags to none."""


class DeleteTable(NamedTuple):
    """Delete our table with everything in it."""


class AddChain(NamedTuple):
    name: str
    hook: Hook | None


class DeleteChain(NamedTuple):
    name: str


class FlushChain(NamedTuple):
    """Delete the chain's rules."""

    name: str


class AddRules(NamedTuple):
    """Append rules to a chain."""

    chain: str
    rules: tuple[Rule, ...]


class AddMap(NamedTuple):
    name: str
    kind: str
    capacity: int


class DeleteMap(NamedTuple):
    name: str


class AddEntries(NamedTuple):
    map: str
    kind: str
    entries: Entries


class DeleteEntries(NamedTuple):
    map: str
    kind: str
    keys: tuple[Any, ...]


class AddCounters(NamedTuple):
    names: tuple[str, ...]


class DeleteCounters(NamedTuple):
    names: tuple[str, ...]


Step = (
    AddTable
    | DeleteTable
    | AddChain
    | DeleteChain
    | FlushChain
    | AddRules
    | AddMap
    | DeleteMap
    | AddEntries
    | DeleteEntries
    | AddCounters
    | DeleteCounters
)


class _PlanFields(NamedTuple):
    desired: Program | None
    observed: Program | None
    steps: tuple[Step, ...]


class Plan(_PlanFields):
    """The way from `observed` to `desired`; None stands for no table at all."""

    def __bool__(self) -> bool:
        return bool(self.steps)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What the steps mean, by mapping; never empty where there are steps, because drift must be told."""
        from redirector.changes import Change

        found = self._told()
        if self.steps and not found:
            return (Change("change", None, detail=f"the table differs ({len(self.steps)} steps)"),)
        return found

    def _told(self) -> tuple[Change, ...]:
        from redirector.changes import changes

        return tuple(changes(self.desired, self.observed))


def make_plan(desired: Program | None, observed: Program | None) -> Plan:
    return Plan(desired, observed, tuple(_steps(desired, observed)))


def capacity_for(count: int) -> int:
    """The size of a map for `count` entries: a power of two with at least a quarter of room to grow."""
    wanted = max(SMALLEST_CAPACITY, count + count // 4)
    return 1 << (wanted - 1).bit_length()


def _steps(desired: Program | None, observed: Program | None) -> Iterator[Step]:
    if desired is None:
        if observed is not None:
            yield DeleteTable()
        return
    if observed is not None and (observed.strays or observed.damage):
        # Objects of kinds that we never make, or damage that has no name: only a new table is sure to be without.
        yield DeleteTable()
        observed = None
    if observed is None:
        observed = Program({}, {}, flags=-1)
    if desired.flags != observed.flags:
        yield AddTable()
    yield from _contents(desired, observed)


def _contents(desired: Program, observed: Program) -> Iterator[Step]:
    """The steps within the table: everything that goes, then everything that comes."""
    updates = {n: _update(old, desired.maps[n]) for n, old in observed.maps.items() if n in desired.maps}
    remade = {name for name, update in updates.items() if update is None}
    doomed = {name for name, old in observed.chains.items() if name not in desired.chains}
    rehooked = {n for n, c in observed.chains.items() if n in desired.chains and desired.chains[n].hook != c.hook}
    # A chain that jumps to a chain made anew, or looks into a map made anew, lets go of it first and takes it up again.
    rewritten = {
        name
        for name, chain in desired.chains.items()
        if name in observed.chains
        and (chain.rules != observed.chains[name].rules or name in rehooked or _uses(chain.rules, remade, rehooked))
    }
    for name, chain in observed.chains.items():
        if chain.rules and (name in doomed or name in rewritten):
            yield FlushChain(name)
    kept = {name: update for name, update in updates.items() if update is not None}
    for name, (stale, _) in kept.items():
        if stale:
            yield DeleteEntries(name, desired.maps[name].kind, tuple(stale))
    for name in observed.maps:
        if name not in kept:
            yield DeleteMap(name)
    if observed.counters - desired.counters:
        yield DeleteCounters(tuple(sorted(observed.counters - desired.counters)))
    for name in sorted(doomed | rehooked):
        yield DeleteChain(name)
    for name, chain in desired.chains.items():
        if name not in observed.chains or name in rehooked:
            yield AddChain(name, chain.hook)
    if desired.counters - observed.counters:
        yield AddCounters(tuple(sorted(desired.counters - observed.counters)))
    for name, wanted in desired.maps.items():
        if name not in kept:
            yield AddMap(name, wanted.kind, capacity_for(len(wanted.entries)))
    for name, wanted in desired.maps.items():
        missing = kept[name][1] if name in kept else wanted.entries
        if missing:
            yield AddEntries(name, wanted.kind, missing)
    for name, chain in desired.chains.items():
        if chain.rules and (name not in observed.chains or name in rewritten):
            yield AddRules(name, chain.rules)


def _update(old: Map, wanted: Map) -> tuple[Entries, Entries] | None:
    """(entries to delete, entries to add) of a map that stays; one that changes is in both. None for a map that must be
    made anew: of another kind, too small, or with keys that cannot even be named. Maps may be large: few passes."""
    if old == wanted:
        return {}, {}
    if old.kind != wanted.kind or 0 < old.capacity < len(wanted.entries):
        return None
    before, after = old.entries, wanted.entries
    missing = {key: value for key, value in after.items() if before.get(key) != value}
    stale = {key: before[key] for key in missing if key in before}
    if len(before) > len(after) - len(missing) + len(stale):
        stale |= {key: value for key, value in before.items() if key not in after}
    return (stale, missing) if all(value[0] is not None for value in stale.values()) else None


def _uses(rules: Iterable[Rule], maps: set[str], chains: set[str]) -> bool:
    return any(references(rule) in maps or getattr(rule, "chain", None) in chains for rule in rules)


def changed_udp_ports(plan: Plan) -> set[int]:
    """The UDP ports of which map entries come or go."""
    keys: set[int] = set()
    for step in plan.steps:
        if isinstance(step, AddEntries | DeleteEntries) and step.kind in TRANSLATIONS:
            found = step.entries if isinstance(step, AddEntries) else step.keys
            keys.update(key for key in found if isinstance(key, int))
        elif isinstance(step, DeleteTable | DeleteMap) and plan.observed:
            for _, gone in _gone(plan.observed, step):
                keys.update(key for key in gone if isinstance(key, int))
    return {key & 0xFFFF for key in keys if key >> 16 == PROTOCOLS["udp"]}


def former_udp_targets(plan: Plan) -> set[tuple[str, int]]:
    """The addresses and ports to which UDP entries led that go (or change)."""
    found: set[tuple[str, int]] = set()
    for step in plan.steps:
        if isinstance(step, DeleteEntries) and step.kind not in FORWARDS.values():
            continue
        if not isinstance(step, DeleteTable | DeleteMap | DeleteEntries) or not plan.observed:
            continue
        for kind, gone in _gone(plan.observed, step):
            keys = step.keys if isinstance(step, DeleteEntries) else tuple(gone)
            numbers = [gone[k][0] for k in keys if isinstance(k, int) and k >> 16 == PROTOCOLS["udp"]]
            found.update(endpoint_parts(kind, number) for number in numbers if kind in FORWARDS.values())
    return found


def _gone(observed: Program, step: DeleteTable | DeleteMap | DeleteEntries) -> Iterator[tuple[str, Entries]]:
    """(kind, entries) of the maps of targets that a step takes away, or takes something from."""
    names = list(observed.maps) if isinstance(step, DeleteTable) else [step[0]]
    for found in (observed.maps[name] for name in names):
        if found.kind in TRANSLATIONS:
            yield found.kind, found.entries


def capacities_after(before: Mapping[str, int], steps: Iterable[Step]) -> dict[str, int]:
    """How many entries each map can take, by name, after `steps`."""
    found = dict(before)
    for step in steps:
        if isinstance(step, DeleteTable):
            found.clear()
        elif isinstance(step, DeleteMap):
            found.pop(step.name, None)
        elif isinstance(step, AddMap):
            found[step.name] = step.capacity
    return found


def perform(program: Program | None, steps: Iterable[Step]) -> Program | None:
    """The Program after `steps`. Raises KeyError where the kernel would say that there is no such thing."""
    chains = dict(program.chains) if program else {}
    maps = {name: Map(m.kind, dict(m.entries), m.capacity) for name, m in program.maps.items()} if program else {}
    flags = program.flags if program else 0
    strays = program.strays if program else ()
    counters = set(program.counters) if program else set()
    damage = program.damage if program else ()
    exists = program is not None
    for step in steps:
        match step:
            case AddTable():
                exists, flags = True, 0
            case DeleteTable():
                chains, maps, flags, strays, counters, damage, exists = {}, {}, 0, (), set(), (), False
            case AddChain(name, hook):
                chains[name] = Chain(hook, ())
            case DeleteChain(name):
                del chains[name]
            case FlushChain(name):
                chains[name] = chains[name]._replace(rules=())
            case AddRules(name, rules):
                chains[name] = chains[name]._replace(rules=chains[name].rules + rules)
            case AddMap(name, kind, capacity):
                maps[name] = Map(kind, {}, capacity)
            case DeleteMap(name):
                del maps[name]
            case AddEntries(name, _, entries):
                maps[name].entries.update(entries)
            case DeleteEntries(name, _, keys):
                for key in keys:
                    del maps[name].entries[key]
            case AddCounters(names):
                counters.update(names)
            case DeleteCounters(names):
                for name in names:
                    counters.remove(name)
    return Program(chains, maps, flags, strays, frozenset(counters), damage) if exists else None


def program_digest(program: Program | None) -> str:
    """SHA-256 (hex) of everything in a Program; capacities are not part of it."""
    if program is None:
        return "absent"
    import hashlib

    chains = sorted((name, chain.hook, chain.rules) for name, chain in program.chains.items())
    maps = sorted((name, m.kind, sorted(map(repr, m.entries.items()))) for name, m in program.maps.items())
    rest = program.flags, program.strays, sorted(program.counters), *program.damage
    return hashlib.sha256(repr((chains, maps, rest)).encode()).hexdigest()
