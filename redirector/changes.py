"""The difference between two Programs, folded back into mappings: what people are told of a plan, and of drift. Pure.

Three things can differ. *Entries* (ports, guards, what is masqueraded) carry the name of their mapping, and are told as
its routes that go and come. *Counting* is told in words, and only where it differs though the routes do not. The
*frame* around them (chains, rules, verdict maps) follows from which maps there are; it is compared with the frame that
`compile.skeleton` makes for the maps that were observed, so that what is told is damage, and never a mere consequence
of mappings that come or go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from redirector import naming
from redirector.compile import data_kind, skeleton
from redirector.errors import plural, printable
from redirector.model import ARRIVING, Ports, family_of
from redirector.program import (
    COUNTS,
    GUARDS,
    GUARDS_AT,
    NAMED,
    TRANSLATIONS,
    VERDICTS,
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
    targets_of,
)
from redirector.records import NamedTuple

TABLE_DORMANT = 0x1  # NFT_TABLE_F_DORMANT, linux/netfilter/nf_tables.h


class Change(NamedTuple):
    """What changes for one mapping (or, with `mapping` None, for the table): routes that go, and routes that come.

    `detail` tells in words what is not of routes: how a mapping is counted, or what is wrong with the table. `serves`
    names the mappings behind a damaged part of the frame: their packets may go elsewhere.
    """

    action: str  # add, remove, change
    mapping: str | None
    gone: tuple[Route, ...] = ()
    new: tuple[Route, ...] = ()
    detail: str = ""
    serves: tuple[str, ...] = ()


DONE = {"add": "added", "change": "changed", "remove": "removed"}


def summary(changes: Sequence[Change], *, done: bool = False) -> str:
    """One line: how many mappings come (or came), change and go."""
    if not changes:
        return "in sync: nothing to do"
    counts = {"add": 0, "change": 0, "remove": 0}
    for change in changes:
        counts[change.action] += change.mapping is not None
    words = (f"{n} {DONE[action]}" if done else f"{n} to {action}" for action, n in counts.items() if n)
    repairs = sum(change.mapping is None for change in changes)
    table = [plural(repairs, "change") + " of the table"] if repairs else []
    return ", ".join([*words, *table])


def changes(desired: Program | None, observed: Program | None) -> Iterator[Change]:
    """The difference by mapping, in the order of the desired Program; then what concerns the table as a whole."""
    none = Program({}, {})
    want, have = desired or none, observed or none
    gone: dict[str, list[Route]] = {}
    new: dict[str, list[Route]] = {}
    kept: set[str] = set()
    order: dict[str, None] = {}  # mappings as the desired Program has them, then those that only the kernel has
    for name in [*want.maps, *(n for n in have.maps if n not in want.maps)]:
        wanted, old = want.maps.get(name), have.maps.get(name)
        kind = (wanted or old or Map("", {})).kind
        if kind not in NAMED:
            continue
        # A map of another kind in its place holds nothing that counts.
        before, after = old.entries if old and old.kind == kind else {}, wanted.entries if wanted else {}
        order |= dict.fromkeys(value[1] for value in after.values())
        if before == after:
            kept.update(mapping for _, mapping in after.values())
            continue
        if before:
            kept.update(value[1] for key, value in after.items() if before.get(key) == value)
            _collect(gone, name, kind, {k: v for k, v in before.items() if after.get(k) != v})
            after = {k: v for k, v in after.items() if before.get(k) != v}
        _collect(new, name, kind, after)
    miscounted = _miscounted(want, have)
    for mapping in order | dict.fromkeys((*gone, *miscounted)):
        if mapping not in new and mapping not in gone and mapping not in miscounted:
            continue
        action = "change" if mapping in kept or (mapping in new and mapping in gone) else "add"
        if mapping not in new and mapping not in kept:
            action = "remove"
        detail = printable("; ".join(miscounted.get(mapping, ())))
        yield Change(action, mapping or None, tuple(gone.get(mapping, ())), tuple(new.get(mapping, ())), detail)
    if desired is None and observed is not None:
        yield _told("remove", "the table and all that is in it")
    elif desired is not None and observed is None:
        if not new:
            yield _told("add", "the table")
    elif desired is not None and observed is not None:
        yield from _table_changes(desired, observed)


def _told(action: str, detail: str, serves: Iterable[str] = ()) -> Change:
    """A change of the frame. The names in it may be anybody's: no terminal is to obey them."""
    serves = tuple(serves)
    shown = [*serves[:5], *("…" for _ in serves[5:6])]
    words = f" (serves {', '.join(shown)})" if shown else ""
    return Change(action, None, detail=printable(detail + words), serves=serves)


def _collect(into: dict[str, list[Route]], name: str, kind: str, entries: Entries) -> None:
    """Add the entries of one map to the routes of their mappings, neighbouring ports joined."""
    where = naming.where(name)
    found = naming.parse_port_map(name)
    rewrite = found.rewrite if found else "masquerade" if naming.targets_network(name) else "port"
    places: dict[str, dict[int, tuple[Any, ...]]] = {}
    if all(isinstance(key, int) for key in entries):  # nearly always, and there may be many
        places, entries = {"": entries}, {}
    for key, value in entries.items():
        if isinstance(key, int):
            places.setdefault("", {})[key] = value
        elif isinstance(key, tuple):
            places.setdefault(f"at {key[0]}", {})[key[1]] = value
        else:  # only ever observed: no protocol and port at all
            into.setdefault(value[1], []).append(Route(f"odd key {key}", Ports(0, 0), None, where))
    for place, found_entries in places.items():
        label = f"{place} {where}".strip()
        for mapping, protocol, ports, target in runs(found_entries):
            targets = targets_of(kind, target) if kind in TRANSLATIONS else None
            into.setdefault(mapping, []).append(Route(protocol_name(protocol), ports, targets, label, rewrite))


def _entries(program: Program, name: str, kind: str) -> Entries:
    """The entries of a map; none where it is missing or of another kind."""
    found = program.maps.get(name)
    return found.entries if found and found.kind == kind else {}


def _miscounted(want: Program, have: Program) -> dict[str, list[str]]:
    """What is wrong with the counting of ports of which the routes are as they should be, by mapping, in words."""
    ports: dict[tuple[str, str, str], dict[int, tuple[Any, ...]]] = {}  # by mapping, words, and where they count
    odd: dict[str, list[str]] = {}
    for name in want.maps | have.maps:
        leaf = naming.parse_count_map(name)
        before, after = _entries(have, name, COUNTS), _entries(want, name, COUNTS)
        if leaf is None or before == after:
            continue
        routes = naming.port_map(leaf)
        old, new = (_entries(program, routes, data_kind(leaf)) for program in (have, want))
        if not (old and new) and before.keys() == old.keys() and after.keys() == new.keys():
            continue  # everything comes, or goes
        for key in after | before:
            was, wanted = before.get(key), after.get(key)
            if was == wanted or old.get(key) != new.get(key):
                continue
            if not isinstance(key, int):  # only ever observed
                odd.setdefault("", []).append(f"map {name} has an odd key {key}")
                continue
            words = "not counted" if was is None else f"counted by {', '.join(filter(None, (was[0], *was[2:])))}"
            words += "" if wanted else " and not redirected"
            mapping = naming.counted((wanted or was or ("",))[0])
            ports.setdefault((mapping, words, naming.where(name)), {})[key] = (0, mapping)
    for (mapping, words, where), found in ports.items():
        ranges = [f"{protocol_name(protocol)} {some}" for _, protocol, some, _ in runs(found)]
        shown = [*ranges[:5], *("…" for _ in ranges[5:6])]
        odd.setdefault(mapping, []).append(" ".join(filter(None, (", ".join(shown), where, words))))
    return odd


def _table_changes(desired: Program, observed: Program) -> Iterator[Change]:
    """What is wrong with the frame that holds the observed mappings: chains, rules, verdict maps."""
    hook = desired.chains[naming.BASE_CHAINS[ARRIVING]].hook
    leaves = {naming.parse_port_map(name) or naming.parse_count_map(name): None for name in observed.maps}
    kinds = {name: _guards_kind(name) for name in observed.maps if naming.of_all(name)}
    for leaf in filter(None, leaves):
        kinds |= {naming.port_map(leaf): data_kind(leaf), naming.count_map(leaf): COUNTS}
    contents = {name: Map(kind, _entries(observed, name, kind)) for name, kind in kinds.items()}
    frame = skeleton(filter(None, leaves), contents, hook.priority if hook else 0)
    whole = Program(frame.chains, contents | frame.maps)
    if observed.flags != desired.flags:
        asleep = "the table is dormant: none of its rules act" if observed.flags & TABLE_DORMANT else ""
        served = _serves(whole, chains=whole.chains) if asleep else ()
        yield _told("change", asleep or f"the table has flags {observed.flags:#x}", served)
    for stray in observed.strays:
        yield _told("remove", f"{stray} is not ours")
    for found in observed.damage:
        yield _told(found.action, found.text, found.serves)
    if not observed.chains and not observed.maps:
        if not observed.strays:
            yield _told("add", "the table is empty")
        return
    for name, chain in frame.chains.items():
        was = observed.chains.get(name)
        if was is None:
            yield _told("add", f"chain {name} is missing", _serves(whole, [name]))
            continue
        if was.hook != chain.hook:
            detail = f"chain {name} is {_hook_text(was.hook)}, not {_hook_text(chain.hook)}"
            yield _told("change", detail, _serves(whole, [name]))
        missing = [rule for rule in chain.rules if rule not in was.rules]
        extra = [rule for rule in was.rules if rule not in chain.rules]
        for rule in missing:
            yield _told("add", f"chain {name} lacks a rule: {describe(rule)}", _serves(whole, rules=[rule]))
        for rule in extra:
            yield _told("remove", f"chain {name} has a rule that is not ours: {describe(rule)}", _serves(whole, [name]))
        if not missing and not extra and was.rules != chain.rules:
            detail = f"chain {name} has its rules in another order or twice"
            yield _told("change", detail, _serves(whole, [name]))
    for name in observed.chains:
        if name not in frame.chains:
            yield _told("remove", f"chain {name} is not ours")
    yield from _map_changes(whole, observed)
    yield from _counter_changes(desired, observed)


def _guards_kind(name: str) -> str:
    network = naming.targets_network(name)
    family, by_address = (family_of(network), True) if network else naming.GUARD_MAPS[name]
    return GUARDS_AT[family] if by_address else GUARDS


def _map_changes(whole: Program, observed: Program) -> Iterator[Change]:
    for name, wanted in whole.maps.items():
        was = observed.maps.get(name)
        if was is None or was.kind != wanted.kind:
            fault = "is missing" if was is None else f"is of another kind ({was.kind})"
            yield _told("add" if was is None else "change", f"map {name} {fault}", _serves(whole, maps=[name]))
        elif wanted.kind in VERDICTS and was.entries != wanted.entries:
            for key, value in wanted.entries.items():
                if was.entries.get(key) != value:
                    yield _told("add", f"map {name} does not lead {key} to {value[0]}", _serves(whole, [value[0]]))
            for key in was.entries:
                if key not in wanted.entries:
                    yield _told("remove", f"map {name} has an entry that is not ours: {key}")
    for name in observed.maps:
        if name not in whole.maps:
            yield _told("remove", f"map {name} is not ours")


def _counter_changes(desired: Program, observed: Program) -> Iterator[Change]:
    """Counters that are missing or too many, but for those that come and go with their mapping."""
    if desired.counters == observed.counters:
        return
    held = {value[1] for m in observed.maps.values() if m.kind in TRANSLATIONS for value in m.entries.values()}
    for name in sorted(desired.counters ^ observed.counters):
        there = naming.counted(name) in held
        if name in desired.counters and there:
            yield _told("add", f"counter {name} is missing", [naming.counted(name)])
        elif name in observed.counters and not there:
            yield _told("remove", f"counter {name} is not ours")


def _serves(
    program: Program, chains: Iterable[str] = (), rules: Iterable[Rule] = (), maps: Iterable[str] = ()
) -> list[str]:
    """The mappings that these parts serve, and whatever they lead to."""
    seen: set[str] = set()
    names: dict[str, None] = {}
    pending, found, looked_up = list(chains), list(rules), list(maps)
    while pending or found or looked_up:
        if found:
            rule = found.pop()
            looked_up += [references(rule) or ""]
            pending += [getattr(rule, "chain", "")]
        elif looked_up:
            name = looked_up.pop()
            found_map = program.maps.get(name, Map("", {}))
            for value, mapping, *_ in found_map.entries.values():
                if found_map.kind == COUNTS:
                    names[naming.counted(value or "")] = None
                elif mapping:
                    names[mapping] = None
                elif isinstance(value, str):
                    pending.append(value)
        else:
            name = pending.pop()
            if name in program.chains and name not in seen:
                seen.add(name)
                found += program.chains[name].rules
    return sorted(filter(None, names))


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
