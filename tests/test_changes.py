"""What people are told of a difference: mappings that come and go by their routes, damage to the frame in words."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.changes import Change, changes, describe
from redirector.compile import compile_ruleset
from redirector.model import Mapping, Ports, Ruleset, Settings
from redirector.plan import AddEntries, DeleteEntries, make_plan
from redirector.program import (
    COUNTS,
    PORTS,
    Chain,
    Count,
    Foreign,
    Guard,
    Hook,
    Keep,
    LocalJump,
    Map,
    Program,
    Route,
    Translate,
    port_key,
)
from tests.simulate import transact
from tests.strategies import damaged, mapping, programs, quick, rebuilt

WEB = mapping("web", "80", "8080")
VOICE = mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))


def compiled(*mappings: Mapping) -> Program:
    return compile_ruleset(Ruleset(mappings))


def told(desired: Program | None, observed: Program | None) -> list[str]:
    """The details of the changes that concern no mapping."""
    return [change.detail for change in make_plan(desired, observed).changes if change.mapping is None]


def damage(program: Program, **changed: Any) -> Program:
    """The program with other chains or maps; None takes one away. Its counters stay."""
    chains, maps = dict(program.chains), dict(program.maps)
    for name, value in changed.items():
        where: dict[str, Any] = maps if isinstance(value, Map) or (value is None and name in maps) else chains
        where.pop(name, None)
        if value is not None:
            where[name] = value
    return Program(chains, maps, counters=program.counters)


BASE = compiled(WEB, mapping("lan", "81", "8090", source=("10.0.0.0/8",)))
NAT = Hook("nat", "prerouting", -110)
PREROUTING = BASE.chains["prerouting"]
BY_SOURCE = BASE.maps["arriving_sources_ipv4_8"]


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        (damage(BASE, prerouting=PREROUTING._replace(hook=NAT._replace(priority=-100))), "priority -100, not"),
        (damage(BASE, prerouting=PREROUTING._replace(hook=NAT._replace(policy="drop"))), "policy drop"),
        (damage(BASE, prerouting=PREROUTING._replace(hook=NAT._replace(hook="forward"))), "nat at forward"),
        (damage(BASE, prerouting=PREROUTING._replace(hook=None)), "chain prerouting is at no hook"),
        (damage(BASE, prerouting=PREROUTING._replace(rules=())), "chain prerouting lacks a rule: localjump"),
        (damage(BASE, output=None), "chain output is missing (serves web)"),
        (damage(BASE, own=Chain(None, ())), "chain own lacks a rule: translate rewrite port, map ports (serves web)"),
        (damage(BASE, own=Chain(None, (*BASE.chains["own"].rules, Foreign("drop")))), "a rule that is not ours: drop"),
        (damage(BASE, own=Chain(None, BASE.chains["own"].rules * 2)), "in another order or twice (serves web)"),
        (damage(BASE, arriving=Chain(None, BASE.chains["arriving"].rules[::-1])), "in another order or twice"),
        (
            damage(BASE, own=Chain(None, BASE.chains["own"].rules[1:])),
            "chain own lacks a rule: count map counts (serves web)",
        ),
        (
            damage(BASE, own=Chain(None, ()), counts=Map(COUNTS, {"06": (None, "", "an odd key")})),  # type: ignore[dict-item]
            "chain own lacks a rule: count map counts",
        ),
        (damage(BASE, counts=None), "map counts is missing"),
        (damage(BASE, counts=Map(PORTS, {})), "map counts is of another kind (ports)"),
        (damage(BASE, ports=Map("foreign: key type 0x7", {})), "map ports is of another kind (foreign: key type 0x7)"),
        (damage(BASE, own_counts=Map(COUNTS, {})), "chain own lacks a rule: count map own_counts"),
        (BASE._replace(counters=BASE.counters | {"mine"}), "counter mine is not ours"),
        (BASE._replace(counters=BASE.counters | {"taken_gone"}), "counter taken_gone is not ours"),
        (BASE._replace(counters=frozenset({"taken_lan"})), "counter taken_web is missing (serves web)"),
        (damage(BASE, mine=Chain(None, ())), "chain mine is not ours"),
        (damage(BASE, mine=Map("foreign: key type 0x7", {})), "map mine is not ours"),
        (damage(BASE, arriving_sources_ipv4_8=None), "map arriving_sources_ipv4_8 is missing (serves lan)"),
        (
            damage(BASE, arriving_sources_ipv4_8=Map(PORTS, {})),
            "map arriving_sources_ipv4_8 is of another kind (ports)",
        ),
        (damage(BASE, arriving_sources_ipv4_8=Map(BY_SOURCE.kind, {})), "does not lead 10.0.0.0 to arriving_from_10"),
        (
            damage(BASE, arriving_sources_ipv4_8=Map(BY_SOURCE.kind, BY_SOURCE.entries | {"11.0.0.0": ("own", "")})),
            "has an entry that is not ours: 11.0.0.0",
        ),
    ],
)
def test_drift_of_the_frame_is_told_with_what_it_serves(observed: Program, words: str) -> None:
    assert any(words in detail for detail in told(BASE, observed)), told(BASE, observed)


def test_mappings_that_come_and_go_are_no_drift_of_the_frame() -> None:
    scoped = mapping("lan", "80", "8090", source=("10.0.0.0/8",), interface=("eth0", "w*"), exclusive=True)
    for desired, observed in permutations((compiled(WEB), compiled(scoped), compiled(WEB, scoped), compiled()), 2):
        assert told(desired, observed) == []


def test_changes_are_told_by_mapping_with_ranges_kept_together() -> None:
    moved = rebuilt(WEB, to=Ports(8081, 8081))
    added = mapping("lan", "90-99", "1090-1099", source=("10.0.0.0/8",), rewrite="redirect", exclusive=True)
    assert make_plan(compiled(moved, added), compiled(WEB, VOICE)).changes == (
        Change(
            "change",
            "web",
            (Route("tcp", Ports(80, 80), Ports(8080, 8080)),),
            (Route("tcp", Ports(80, 80), Ports(8081, 8081)),),
        ),
        Change(
            "add",
            "lan",
            (),
            (
                Route("tcp", Ports(90, 99), Ports(1090, 1099), "from 10.0.0.0/8", "redirect"),
                Route("tcp", Ports(1090, 1099), None),
            ),
        ),
        Change("remove", "voice", (Route("udp", Ports(5000, 5009), Ports(6000, 6009)),), ()),
    )


def test_what_grows_or_shrinks_is_a_change_and_no_addition() -> None:
    more = mapping("web", "80 81", "8080")
    assert [(c.action, c.mapping) for c in make_plan(compiled(more), compiled(WEB)).changes] == [("change", "web")]
    assert [(c.action, c.mapping) for c in make_plan(compiled(WEB), compiled(more)).changes] == [("change", "web")]


def test_entries_of_no_mapping_are_told_as_well() -> None:
    observed = compiled(WEB)
    observed.maps["ports"].entries[port_key(6, 99)] = (98, "")
    assert make_plan(compiled(WEB), observed).changes == (
        Change("remove", None, (Route("tcp", Ports(99, 99), Ports(98, 98)),), ()),
    )


TCP_80, TCP_81 = port_key(6, 80), port_key(6, 81)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, [("change", "web", "tcp 80-81 not counted")]),
        ({TCP_80: ("taken_web", "")}, [("change", "web", "tcp 81 not counted")]),
        (
            {TCP_80: ("taken_voice", ""), TCP_81: ("taken_web", "")},
            [("change", "web", "tcp 80 counted by taken_voice")],
        ),
        (
            {TCP_80: ("taken_web", "", "attribute 4"), TCP_81: ("taken_web", "")},
            [("change", "web", "tcp 80 counted by taken_web, attribute 4")],
        ),
        (
            {TCP_80: ("mine\n", ""), TCP_81: ("taken_web", "")},
            [("change", "web", "tcp 80 counted by mine\\n")],
        ),
    ],
)
def test_what_is_not_counted_is_told_by_mapping(entries: Any, expected: list[tuple[str, str, str]]) -> None:
    desired = compiled(rebuilt(WEB, listen=(Ports(80, 81),)), VOICE)
    kept = {key: value for key, value in desired.maps["counts"].entries.items() if key not in (TCP_80, TCP_81)}
    plan = make_plan(desired, damage(desired, counts=Map(COUNTS, kept | entries)))
    assert [(c.action, c.mapping, c.detail) for c in plan.changes] == expected
    assert all(isinstance(step, AddEntries | DeleteEntries) and step.map == "counts" for step in plan.steps)


def test_what_is_counted_and_not_redirected_is_told() -> None:
    desired = compiled(WEB)
    for counter, action, name in (
        ("taken_web", "change", "web"),
        ("taken_gone", "remove", "gone"),
        ("mine", "remove", None),
    ):
        counts = Map(COUNTS, desired.maps["counts"].entries | {port_key(17, 7): (counter, "")})
        found = make_plan(desired, damage(desired, counts=counts)).changes
        assert found == (Change(action, name, detail=f"udp 7 counted by {counter} and not redirected"),)
    odd: Any = {"0600": (None, "", "an odd key")}
    counts = Map(COUNTS, desired.maps["counts"].entries | odd)
    assert make_plan(desired, damage(desired, counts=counts)).changes == (
        Change("remove", None, detail="map counts has an odd key 0600"),
    )


def test_counting_that_comes_and_goes_with_its_routes_is_not_told() -> None:
    wide = rebuilt(WEB, listen=(Ports(80, 89),))
    renamed, moved = rebuilt(WEB, name="www"), rebuilt(WEB, source=("10.0.0.0/8",), local=False)
    programs = [compiled(*some) for some in ((), (WEB,), (VOICE,), (WEB, VOICE), (wide,), (renamed,), (moved,))]
    for desired, observed in permutations((*programs, None), 2):
        found = make_plan(desired, observed).changes
        assert not [change for change in found if change.mapping and change.detail]
        assert not any("count" in change.detail for change in found)


def test_routes_and_counting_of_one_mapping_are_one_change() -> None:
    desired = compiled(rebuilt(WEB, listen=(Ports(80, 81),)))
    observed = damage(
        desired, counts=Map(COUNTS, {TCP_80: ("taken_web", "")}), ports=Map(PORTS, {TCP_81: (8080, "web")})
    )
    route = Route("tcp", Ports(80, 80), Ports(8080, 8080))
    assert make_plan(desired, observed).changes == (Change("change", "web", (), (route,), "tcp 81 not counted"),)


@quick
@given(st.data())
def test_every_damage_to_counting_is_told_as_such(data: st.DataObject) -> None:
    """Not only as a table that differs."""
    desired = data.draw(programs())
    observed = data.draw(damaged(desired))
    same = {name: found for name, found in desired.maps.items() if found.kind != COUNTS}
    counts = {name: found for name, found in observed.maps.items() if found.kind == COUNTS}
    only = Program(desired.chains, same | counts, counters=observed.counters)
    assert bool(list(changes(desired, only))) == (desired != only)


def test_odd_entries_are_told_and_healed() -> None:
    observed = compiled(WEB)
    observed.maps["ports"].entries[port_key(6, 80)] = (8080, "web", "attribute 7")  # type: ignore[assignment]
    plan = make_plan(compiled(WEB), observed)
    assert plan.changes != ()
    assert transact(observed, plan.steps) == compiled(WEB)


def test_the_table_itself_coming_and_going_is_told() -> None:
    drained = compiled()
    assert [c.action for c in make_plan(drained, None).changes] == ["add"]
    assert [c.action for c in make_plan(None, drained).changes] == ["remove"]
    assert [(c.action, c.mapping) for c in make_plan(compiled(WEB), None).changes] == [("add", "web")]
    assert [(c.action, c.mapping) for c in make_plan(None, compiled(WEB)).changes] == [
        ("remove", "web"),
        ("remove", None),
    ]


def test_flags_and_strays_are_told() -> None:
    assert "dormant" in told(compiled(WEB), compiled(WEB)._replace(flags=1))[0]
    assert "flags 0x8" in told(compiled(WEB), compiled(WEB)._replace(flags=8))[0]
    assert "object quota is not ours" in told(compiled(WEB), compiled(WEB)._replace(strays=("object quota",)))


def test_another_priority_is_a_change_without_mappings() -> None:
    one = compile_ruleset(Ruleset((WEB,)))
    other = compile_ruleset(Ruleset((WEB,), Settings(priority=-105)))
    plan = make_plan(other, one)
    assert {change.mapping for change in plan.changes} == {None}
    assert not any(isinstance(step, AddEntries | DeleteEntries) for step in plan.steps)
    assert transact(one, plan.steps) == other


def test_rules_in_words() -> None:
    assert describe(LocalJump("arriving")) == "localjump chain arriving"
    assert describe(Count("ipv4", "counts_ipv4")) == "count family ipv4, map counts_ipv4"
    assert describe(Translate("port", "", "ports")) == "translate rewrite port, map ports"
    assert describe(Guard("ipv4", True, "guards_ipv4_at", "refuse")).startswith("guard family ipv4, at True")
    assert describe(Keep()) == "keep"
    assert describe(Foreign("drop")) == "drop"


def test_guards_at_addresses_are_told_with_the_address() -> None:
    at = mapping("at", "80", "8080", address=("192.0.2.1", "::1"), exclusive=True)
    (found,) = make_plan(compiled(at), None).changes
    assert {route.where for route in found.new if route.target is None} == {"at 192.0.2.1 ipv4", "at ::1 ipv6"}
