"""Desired and observed: the steps lead there in an order that the kernel takes, and nothing that differs goes untold."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from redirector.compile import compile_ruleset
from redirector.model import Mapping, Ports, Ruleset, Settings
from redirector.plan import (
    AddEntries,
    AddMap,
    AddTable,
    Change,
    DeleteEntries,
    DeleteTable,
    Plan,
    Step,
    capacity_for,
    describe,
    make_plan,
    perform,
    program_digest,
)
from redirector.program import (
    GUARDS_AT,
    PORTS,
    Chain,
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
    protocol_name,
    runs,
)
from tests.simulate import Busy, transact
from tests.strategies import damaged, mapping, programs, quick, rebuilt, rulesets

WEB = mapping("web", "80", "8080")
VOICE = mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))


def compiled(*mappings: Mapping) -> Program:
    return compile_ruleset(Ruleset(mappings))


def told(desired: Program | None, observed: Program | None) -> list[str]:
    """The details of the changes that concern no mapping."""
    return [change.detail for change in make_plan(desired, observed).changes if change.mapping is None]


def steps_of(plan: Plan, *kinds: type[Step]) -> list[Step]:
    return [step for step in plan.steps if isinstance(step, kinds)]


@quick
@given(programs())
def test_a_program_as_desired_needs_nothing(program: Program) -> None:
    copy = Program(*({n: type(x)(*x) for n, x in part.items()} for part in (program.chains, program.maps)))  # type: ignore[arg-type]
    plan = make_plan(program, copy)
    assert not plan
    assert plan.steps == ()
    assert plan.changes == ()


def test_no_table_as_desired_needs_nothing() -> None:
    assert not make_plan(None, None)
    assert make_plan(None, None).changes == ()


@quick
@given(programs(), programs())
def test_a_plan_leads_from_any_program_to_any_other_and_back(one: Program, other: Program) -> None:
    for before, after in permutations((one, other, None), 2):
        plan = make_plan(after, before)
        assert bool(plan) == (before != after)
        assert bool(plan.changes) == (before != after)
        assert perform(before, plan.steps) == after
        assert transact(before, plan.steps) == after
        # … and the plan that undoes it leads back.
        assert transact(after, make_plan(before, after).steps) == before


@quick
@given(st.data())
def test_a_plan_heals_whatever_was_done_to_a_program(data: st.DataObject) -> None:
    desired: Program = data.draw(programs())
    observed: Program = data.draw(damaged(desired))
    event("damaged" if desired != observed else "as it was")
    plan = make_plan(desired, observed)
    assert bool(plan) == (desired != observed)
    assert bool(plan.changes) == (desired != observed)
    assert perform(observed, plan.steps) == desired
    assert transact(observed, plan.steps) == desired


@quick
@given(st.data())
def test_a_damaged_program_becomes_any_other(data: st.DataObject) -> None:
    """Drift and a new file at once; and a plan never touches what it was made from."""
    observed: Program = data.draw(programs().flatmap(damaged))
    desired: Program = data.draw(programs())
    before = repr((observed, desired))
    plan = make_plan(desired, observed)
    assert transact(observed, plan.steps) == desired
    assert [change for change in plan.changes if not str(change)] == []
    assert repr((observed, desired)) == before


@quick
@given(st.data())
def test_digests_are_equal_exactly_where_programs_are(data: st.DataObject) -> None:
    one: Program = data.draw(programs())
    other: Program = data.draw(st.one_of(damaged(one), programs()))
    assert (program_digest(one) == program_digest(other)) == (one == other)
    reordered = Program(
        dict(reversed(one.chains.items())),
        {n: Map(m.kind, dict(reversed(m.entries.items())), 7) for n, m in reversed(one.maps.items())},
    )
    assert program_digest(reordered) == program_digest(one)
    assert program_digest(None) not in (program_digest(one), program_digest(Program({}, {})))


def test_a_change_of_one_mapping_touches_only_its_entries() -> None:
    """What it does not touch keeps its counters."""
    moved = rebuilt(WEB, to=Ports(8081, 8081))
    assert make_plan(compiled(moved, VOICE), compiled(WEB, VOICE)).steps == (
        DeleteEntries("ports", PORTS, (port_key(6, 80),)),
        AddEntries("ports", PORTS, {port_key(6, 80): (8081, "web")}),
    )
    added = mapping("more", "81", "8080")
    assert make_plan(compiled(WEB, VOICE, added), compiled(WEB, VOICE)).steps == (
        AddEntries("ports", PORTS, {port_key(6, 81): (8080, "more")}),
    )
    assert make_plan(compiled(WEB), compiled(WEB, VOICE)).steps == (
        DeleteEntries("ports", PORTS, tuple(port_key(17, port) for port in range(5000, 5010))),
    )
    renamed = rebuilt(WEB, name="www")
    assert len(make_plan(compiled(renamed, VOICE), compiled(WEB, VOICE)).steps) == 2


def test_a_new_mapping_in_a_scope_of_its_own_leaves_the_other_maps_alone() -> None:
    scoped = mapping("lan", "80", "8090", source=("10.0.0.0/8",))
    plan = make_plan(compiled(WEB, scoped), compiled(WEB))
    assert not steps_of(plan, DeleteEntries)
    assert {step.map for step in plan.steps if isinstance(step, AddEntries)} == {
        "arriving_sources_ipv4_8",
        "arriving_from_10.0.0.0/8_ports",
    }


def test_maps_have_room_to_grow_and_are_made_anew_when_it_is_used_up() -> None:
    wide = mapping("wide", "1-1000", "1001-2000")
    plan = make_plan(compiled(wide), None)
    assert [step.capacity for step in plan.steps if isinstance(step, AddMap)] == [2048]
    full = compiled(mapping("few", "1", "2"))
    full.maps["ports"] = full.maps["ports"]._replace(capacity=64)
    assert not steps_of(make_plan(compiled(mapping("fits", "1-64", "1001-1064")), full), AddMap)
    outgrown = make_plan(compiled(mapping("more", "1-65", "1001-1065")), full)
    assert steps_of(outgrown, AddMap) == [AddMap("ports", PORTS, 128)]
    assert transact(full, outgrown.steps) == compiled(mapping("more", "1-65", "1001-1065"))


@pytest.mark.parametrize(("count", "capacity"), [(0, 64), (1, 64), (51, 64), (52, 128), (1000, 2048), (65536, 131072)])
def test_capacity(count: int, capacity: int) -> None:
    assert capacity_for(count) == capacity
    assert capacity >= count * 5 // 4


def test_the_capacity_of_a_map_is_no_drift() -> None:
    observed = compiled(WEB)
    observed.maps["ports"] = observed.maps["ports"]._replace(capacity=4096)
    assert not make_plan(compiled(WEB), observed)


def test_a_sleeping_table_is_woken() -> None:
    observed = compiled(WEB)._replace(flags=1)
    plan = make_plan(compiled(WEB), observed)
    assert plan.steps == (AddTable(),)
    assert "dormant" in told(compiled(WEB), observed)[0]


def test_strays_need_a_new_table() -> None:
    observed = compiled(WEB)._replace(strays=("object quota",))
    plan = make_plan(compiled(WEB), observed)
    assert plan.steps[:2] == (DeleteTable(), AddTable())
    assert "object quota is not ours" in told(compiled(WEB), observed)


def damage(program: Program, **changed: Any) -> Program:
    """The program with other chains or maps; None takes one away."""
    chains, maps = dict(program.chains), dict(program.maps)
    for name, value in changed.items():
        where: dict[str, Any] = maps if isinstance(value, Map) or (value is None and name in maps) else chains
        where.pop(name, None)
        if value is not None:
            where[name] = value
    return Program(chains, maps)


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


def test_odd_entries_are_told_and_healed() -> None:
    observed = compiled(WEB)
    observed.maps["ports"].entries[port_key(6, 80)] = (8080, "web", "no counter")  # type: ignore[assignment]
    plan = make_plan(compiled(WEB), observed)
    assert plan.changes != ()
    assert transact(observed, plan.steps) == compiled(WEB)


def test_the_table_itself_coming_and_going_is_told() -> None:
    drained = compiled()
    for desired, observed, action in (
        (drained, None, "add"),
        (None, drained, "remove"),
        (None, compiled(WEB), "remove"),
    ):
        found = make_plan(desired, observed).changes
        assert action in {change.action for change in found}
    assert make_plan(compiled(), None).changes == (Change("add", None, detail="the table is made ready"),)
    assert make_plan(None, compiled()).changes == (Change("remove", None, detail="the table goes"),)


def test_another_priority_is_a_change_without_mappings() -> None:
    one = compile_ruleset(Ruleset((WEB,)))
    other = compile_ruleset(Ruleset((WEB,), Settings(priority=-105)))
    plan = make_plan(other, one)
    assert {change.mapping for change in plan.changes} == {None}
    assert not steps_of(plan, AddEntries, DeleteEntries)
    assert transact(one, plan.steps) == other


def test_perform_refuses_what_the_kernel_would() -> None:
    with pytest.raises(KeyError):
        perform(compiled(), [DeleteEntries("ports", PORTS, (port_key(6, 80),))])
    with pytest.raises(KeyError):
        perform(compiled(WEB), [DeleteEntries("ports", PORTS, (port_key(6, 81),))])


def test_the_strict_kernel_of_the_tests_refuses_bad_orders() -> None:
    """Or else the properties above would hold for anything."""
    plan = make_plan(compiled(), BASE)
    with pytest.raises(Busy):
        transact(BASE, plan.steps[::-1])
    for steps in (make_plan(BASE, None).steps[::-1], make_plan(BASE, None).steps[1:]):
        with pytest.raises(Busy):
            transact(None, steps)


@quick
@given(st.dictionaries(st.integers(1, 30), st.integers(1, 30), max_size=20), st.sampled_from((6, 17)))
def test_runs_cover_exactly_what_they_were_made_of(entries: dict[int, int], protocol: int) -> None:
    pairs = sorted((port_key(protocol, port), to) for port, to in entries.items())
    unfolded = {}
    found = list(runs([*pairs]))
    for number, ports, targets in found:
        assert number == protocol
        assert targets is not None
        assert targets.count in (1, ports.count)
        for port in range(ports.first, ports.last + 1):
            unfolded[port] = targets.first + (port - ports.first if targets.count > 1 else 0)
    assert unfolded == entries
    assert [ports for _, ports, _ in found] == sorted(ports for _, ports, _ in found)


def test_runs_join_what_they_can() -> None:
    shifted = [(port_key(6, p), p + 100) for p in range(10, 20)]
    many = [(port_key(6, p), 7) for p in range(20, 30)]
    other = [(port_key(17, 30), 7)]
    guards: list[tuple[int, int | None]] = [(port_key(132, p), None) for p in (1, 2, 4)]
    assert list(runs([*shifted, *many, *other])) == [
        (6, Ports(10, 19), Ports(110, 119)),
        (6, Ports(20, 29), Ports(7, 7)),
        (17, Ports(30, 30), Ports(7, 7)),
    ]
    assert list(runs(guards)) == [(132, Ports(1, 2), None), (132, Ports(4, 4), None)]
    # The last port of one protocol and the first of the next are neighbours as numbers.
    edge: list[tuple[int, int | None]] = [(port_key(6, 65535), 7), (port_key(7, 0), 7)]
    assert len(list(runs(edge))) == 2


def test_rules_in_words() -> None:
    assert describe(LocalJump("arriving")) == "localjump chain arriving"
    assert describe(Translate("port", "", "ports")) == "translate rewrite port, map ports"
    assert describe(Guard("ipv4", True, "guards_ipv4_at", "refuse")).startswith("guard family ipv4, at True")
    assert describe(Keep()) == "keep"
    assert describe(Foreign("drop")) == "drop"


def test_routes_in_words() -> None:
    assert str(Route("tcp", Ports(80, 80), Ports(8080, 8080))) == "tcp 80 → 8080"
    shifted = Route("udp", Ports(1, 9), Ports(11, 19), "from 10.0.0.0/8", "redirect")
    assert str(shifted) == "udp 1-9 → 11-19 (redirect) from 10.0.0.0/8"
    assert str(Route("tcp", Ports(8080, 8080), None)) == "tcp 8080 refused when connected to directly"
    assert protocol_name(132) == "sctp"
    assert protocol_name(47) == "protocol-47"


def test_guards_at_addresses_are_told_with_the_address() -> None:
    at = mapping("at", "80", "8080", address=("192.0.2.1", "::1"), exclusive=True)
    (found,) = make_plan(compiled(at), None).changes
    assert {route.where for route in found.new if route.target is None} == {"at 192.0.2.1 ipv4", "at ::1 ipv6"}
    assert set(GUARDS_AT) == {"ipv4", "ipv6"}
