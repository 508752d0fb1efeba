"""Desired and observed Program → Plan: what to tell people, and what to send to the kernel. Pure.

A Plan's `steps` are data: they can be stored, printed, sent by any backend, and applied to a Program by `perform`
(which is how the in-memory backend works, and how tests hold that a plan leads exactly to what was desired).
`changes` folds the same difference back into mappings. An empty plan is falsy and sends nothing.

Order of the steps, which the kernel checks reference by reference: rules go first (they hold maps and chains), then
map entries, maps, chains; then the same upwards. A map or chain that is replaced is deleted and added under its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from redirector import naming
from redirector.compile import skeleton
from redirector.model import ARRIVING, Ports
from redirector.program import (
    COUNTED,
    PORTS,
    Chain,
    Entries,
    Foreign,
    Hook,
    Map,
    Program,
    Route,
    Rule,
    protocol_name,
    references,
    runs,
)

SMALLEST_CAPACITY = 64
TABLE_DORMANT = 0x1  # NFT_TABLE_F_DORMANT, linux/netfilter/nf_tables.h


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
)


class Change(NamedTuple):
    """What changes for one mapping (or, with `mapping` None, for the table): routes that go, and routes that come."""

    action: str  # add, remove, change
    mapping: str | None
    gone: tuple[Route, ...] = ()
    new: tuple[Route, ...] = ()
    detail: str = ""


class Plan(NamedTuple):
    """The way from `observed` to `desired`; None stands for no table at all."""

    desired: Program | None
    observed: Program | None
    steps: tuple[Step, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the steps mean, by mapping; never empty where there are steps, because drift must be told."""
        found = tuple(changes(self.desired, self.observed))
        if self.steps and not found:
            detail = "the table goes" if self.desired is None else "the table is made ready" if self.observed is None else ""
            action = "remove" if self.desired is None else "add" if self.observed is None else "change"
            return (Change(action, None, detail=detail or f"the table differs ({len(self.steps)} steps)"),)
        return found


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
    if observed is not None and observed.strays:
        # Objects of kinds that we never make: only a new table is sure to be without them.
        yield DeleteTable()
        observed = None
    if observed is None:
        observed = Program({}, {}, flags=-1)
    if desired.flags != observed.flags:
        yield AddTable()
    remade = {name for name, old in observed.maps.items() if name in desired.maps and _unfit(old, desired.maps[name])}
    doomed_maps = [name for name in observed.maps if name not in desired.maps or name in remade]
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
    fresh: dict[str, Entries] = {}
    for name, wanted in desired.maps.items():
        old = observed.maps.get(name)
        if old is None or name in remade:
            fresh[name] = wanted.entries
        elif old.entries != wanted.entries:
            # Values are compared as well: an entry that changes is deleted and added, both in this transaction.
            stale = tuple(key for key, value in old.entries.items() if wanted.entries.get(key) != value)
            if stale:
                yield DeleteEntries(name, wanted.kind, stale)
            added = {key: value for key, value in wanted.entries.items() if old.entries.get(key) != value}
            if added:
                fresh[name] = added
    for name in doomed_maps:
        yield DeleteMap(name)
    for name in sorted(doomed | rehooked):
        yield DeleteChain(name)
    for name, chain in desired.chains.items():
        if name not in observed.chains or name in rehooked:
            yield AddChain(name, chain.hook)
    for name, wanted in desired.maps.items():
        if name not in observed.maps or name in remade:
            yield AddMap(name, wanted.kind, capacity_for(len(wanted.entries)))
    for name, entries in fresh.items():
        if entries:
            yield AddEntries(name, desired.maps[name].kind, entries)
    for name, chain in desired.chains.items():
        if chain.rules and (name not in observed.chains or name in rewritten):
            yield AddRules(name, chain.rules)


def _unfit(old: Map, wanted: Map) -> bool:
    """Whether a map must be made anew: of another kind, or too small."""
    return old.kind != wanted.kind or (0 < old.capacity < len(wanted.entries))


def _uses(rules: Iterable[Rule], maps: set[str], chains: set[str]) -> bool:
    return any(references(rule) in maps or getattr(rule, "chain", None) in chains for rule in rules)


def perform(program: Program | None, steps: Iterable[Step]) -> Program | None:
    """The Program after `steps`. Raises KeyError where the kernel would say that there is no such thing."""
    chains = dict(program.chains) if program else {}
    maps = {name: Map(m.kind, dict(m.entries), m.capacity) for name, m in program.maps.items()} if program else {}
    flags = program.flags if program else 0
    strays = program.strays if program else ()
    exists = program is not None
    for step in steps:
        match step:
            case AddTable():
                exists, flags = True, 0
            case DeleteTable():
                chains, maps, flags, strays, exists = {}, {}, 0, (), False
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
    return Program(chains, maps, flags, strays) if exists else None


def changes(desired: Program | None, observed: Program | None) -> Iterator[Change]:
    """The difference by mapping, in the order of the desired Program; then what concerns the table as a whole."""
    none = Program({}, {})
    want, have = desired or none, observed or none
    gone: dict[str, list[Route]] = {}
    new: dict[str, list[Route]] = {}
    kept: set[str] = set()
    for name in [*want.maps, *(n for n in have.maps if n not in want.maps)]:
        wanted, old = want.maps.get(name), have.maps.get(name)
        kind = (wanted or old or Map("", {})).kind
        if kind not in COUNTED or (old is not None and wanted is not None and old.kind != wanted.kind):
            continue
        before, after = old.entries if old else {}, wanted.entries if wanted else {}
        if before == after:
            kept.update(mapping for _, mapping in after.values())
            continue
        kept.update(value[1] for key, value in after.items() if before.get(key) == value)
        _collect(gone, name, kind, {k: v for k, v in before.items() if after.get(k) != v})
        _collect(new, name, kind, {k: v for k, v in after.items() if before.get(k) != v})
    for mapping in [*new, *(m for m in gone if m not in new)]:
        action = "change" if mapping in kept or (mapping in new and mapping in gone) else "add"
        if mapping not in new and mapping not in kept:
            action = "remove"
        yield Change(action, mapping or None, tuple(gone.get(mapping, ())), tuple(new.get(mapping, ())))
    if desired is not None and observed is not None:
        yield from _table_changes(desired, observed)


def _collect(into: dict[str, list[Route]], name: str, kind: str, entries: Entries) -> None:
    """Add the entries of one map to the routes of their mappings, neighbouring ports joined."""
    where = naming.where(name)
    found = naming.parse_port_map(name)
    grouped: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    for key, (target, mapping, *_odd) in entries.items():
        place, port = (key[0], key[1]) if isinstance(key, tuple) else ("", key)
        grouped.setdefault((mapping, place), []).append((port, target if kind == PORTS else None))
    for (mapping, place), pairs in grouped.items():
        label = " ".join(word for word in (f"at {place}" if place else "", where) if word)
        for protocol, ports, targets in runs(sorted(pairs, key=lambda p: p[0])):
            rewrite = found.rewrite if found else "port"
            route = Route(protocol_name(protocol), Ports(*ports), targets, label, rewrite)
            into.setdefault(mapping, []).append(route)


def _table_changes(desired: Program, observed: Program) -> Iterator[Change]:
    """What is wrong with the frame that holds the observed mappings: chains, rules, verdict maps."""
    if observed.flags != desired.flags:
        asleep = "the table is dormant: none of its rules act" if observed.flags & TABLE_DORMANT else ""
        yield Change("change", None, detail=asleep or f"the table has flags {observed.flags:#x}")
    for stray in observed.strays:
        yield Change("remove", None, detail=f"{stray} is not ours")
    hook = desired.chains[naming.BASE_CHAINS[ARRIVING]].hook
    contents = {name: m for name, m in observed.maps.items() if m.kind in COUNTED}
    leaves = [wanted for wanted in map(naming.parse_port_map, contents) if wanted]
    frame = skeleton(leaves, contents, hook.priority if hook else 0)
    whole = Program(frame.chains, contents | frame.maps)
    for name, chain in frame.chains.items():
        was = observed.chains.get(name)
        if was is None:
            yield Change("add", None, detail=f"chain {name} is missing{_serves(whole, name)}")
            continue
        if was.hook != chain.hook:
            yield Change("change", None, detail=f"chain {name} is {_hook_text(was.hook)}, not {_hook_text(chain.hook)}")
        missing = [rule for rule in chain.rules if rule not in was.rules]
        extra = [rule for rule in was.rules if rule not in chain.rules]
        for rule in missing:
            yield Change("add", None, detail=f"chain {name} lacks a rule: {describe(rule)}{_serves(whole, name)}")
        for rule in extra:
            yield Change("remove", None, detail=f"chain {name} has a rule that is not ours: {describe(rule)}")
        if not missing and not extra and was.rules != chain.rules:
            detail = f"chain {name} has its rules in another order or twice{_serves(whole, name)}"
            yield Change("change", None, detail=detail)
    for name in observed.chains:
        if name not in frame.chains:
            yield Change("remove", None, detail=f"chain {name} is not ours")
    yield from _map_changes(whole, observed)


def _map_changes(whole: Program, observed: Program) -> Iterator[Change]:
    for name, wanted in whole.maps.items():
        was = observed.maps.get(name)
        if was is None or was.kind != wanted.kind:
            fault = "is missing" if was is None else f"is of another kind ({was.kind})"
            served = ", ".join(_serves(whole, value) for value, *_ in wanted.entries.values() if isinstance(value, str))
            yield Change("add" if was is None else "change", None, detail=f"map {name} {fault}{served}")
        elif wanted.kind not in COUNTED and was.entries != wanted.entries:
            for key, value in wanted.entries.items():
                if was.entries.get(key) != value:
                    served = _serves(whole, value[0])
                    yield Change("add", None, detail=f"map {name} does not lead {key} to {value[0]}{served}")
            for key in was.entries:
                if key not in wanted.entries:
                    yield Change("remove", None, detail=f"map {name} has an entry that is not ours: {key}")
    for name in observed.maps:
        if name not in whole.maps or (observed.maps[name].kind in COUNTED and not _ours(name)):
            yield Change("remove", None, detail=f"map {name} is not ours")


def _ours(name: str) -> bool:
    return naming.parse_port_map(name) is not None or name in naming.GUARD_MAPS


def _serves(program: Program, chain: str) -> str:
    """The mappings that a chain serves, in words: its own and those of the chains that it leads to."""
    seen: set[str] = set()
    names: dict[str, None] = {}
    pending = [chain]
    while pending:
        current = pending.pop()
        if current in seen or current not in program.chains:
            continue
        seen.add(current)
        for rule in program.chains[current].rules:
            target = getattr(rule, "chain", None)
            if target:
                pending.append(target)
            entries = program.maps[references(rule) or ""].entries if references(rule) in program.maps else {}
            for value, mapping, *_ in entries.values():
                if mapping:
                    names[mapping] = None
                elif isinstance(value, str):
                    pending.append(value)
    shown = [*names][:5] + (["…"] if len(names) > 5 else [])
    return f" (serves {', '.join(shown)})" if shown else ""


def _hook_text(hook: Hook | None) -> str:
    if hook is None:
        return "at no hook"
    policy = "" if hook.policy == "accept" else f", policy {hook.policy}"
    return f"{hook.type} at {hook.hook}, priority {hook.priority}{policy}"


def describe(rule: Rule) -> str:
    """A rule in words."""
    if isinstance(rule, Foreign):
        return rule.text
    parts = ", ".join(f"{k} {v}" for k, v in rule._asdict().items() if v not in ("", 0))
    return f"{type(rule).__name__.lower()} {parts}".strip()


def program_digest(program: Program | None) -> str:
    """SHA-256 (hex) of everything in a Program; capacities and counters are not part of it."""
    if program is None:
        return "absent"
    import hashlib

    chains = sorted((name, chain.hook, chain.rules) for name, chain in program.chains.items())
    maps = sorted((name, m.kind, sorted(map(repr, m.entries.items()))) for name, m in program.maps.items())
    return hashlib.sha256(repr((chains, maps, program.flags, program.strays)).encode()).hexdigest()
