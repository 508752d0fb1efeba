"""Desired and observed: the steps lead there in an order that the kernel takes, and no difference goes untold."""

from itertools import permutations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from redirector.compile import compile_ruleset
from redirector.model import Mapping, Ports, Ruleset
from redirector.plan import (
    AddCounters,
    AddEntries,
    AddMap,
    AddTable,
    DeleteCounters,
    DeleteEntries,
    DeleteMap,
    DeleteTable,
    Plan,
    Step,
    capacity_for,
    make_plan,
    perform,
    program_digest,
)
from redirector.program import COUNTS, PORTS, Chain, Map, Program, port_key
from tests.simulate import Busy, transact
from tests.strategies import damaged, mapping, programs, quick, rebuilt

WEB = mapping("web", "80", "8080")
VOICE = mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))


def compiled(*mappings: Mapping) -> Program:
    return compile_ruleset(Ruleset(mappings))


def steps_of(plan: Plan, *kinds: type[Step]) -> list[Step]:
    return [step for step in plan.steps if isinstance(step, kinds)]


@quick
@given(programs())
def test_a_program_as_desired_needs_nothing(program: Program) -> None:
    chains = {name: Chain(*chain) for name, chain in program.chains.items()}
    maps = {name: Map(found.kind, dict(found.entries)) for name, found in program.maps.items()}
    copy = Program(chains, maps, counters=frozenset(sorted(program.counters)))
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
    assert bool(plan.changes) == (observed != desired)
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
        counters=one.counters,
    )
    assert program_digest(reordered) == program_digest(one)
    assert program_digest(one._replace(counters=one.counters ^ {"mine"})) != program_digest(one)
    assert program_digest(None) not in (program_digest(one), program_digest(Program({}, {})))


def test_a_change_of_one_mapping_touches_only_its_entries() -> None:
    """Its counter stays whatever becomes of its entries, and comes and goes with it."""
    moved = rebuilt(WEB, to=Ports(8081, 8081))
    assert make_plan(compiled(moved, VOICE), compiled(WEB, VOICE)).steps == (
        DeleteEntries("ports", PORTS, (port_key(6, 80),)),
        AddEntries("ports", PORTS, {port_key(6, 80): (8081, "web")}),
    )
    added = mapping("more", "81", "8080")
    assert make_plan(compiled(WEB, VOICE, added), compiled(WEB, VOICE)).steps == (
        AddCounters(("taken_more",)),
        AddEntries("ports", PORTS, {port_key(6, 81): (8080, "more")}),
        AddEntries("counts", COUNTS, {port_key(6, 81): ("taken_more", "")}),
    )
    voice = tuple(port_key(17, port) for port in range(5000, 5010))
    assert make_plan(compiled(WEB), compiled(WEB, VOICE)).steps == (
        DeleteEntries("ports", PORTS, voice),
        DeleteEntries("counts", COUNTS, voice),
        DeleteCounters(("taken_voice",)),
    )
    wider = rebuilt(WEB, listen=(Ports(80, 81),))
    assert make_plan(compiled(wider, VOICE), compiled(WEB, VOICE)).steps == (
        AddEntries("ports", PORTS, {port_key(6, 81): (8080, "web")}),
        AddEntries("counts", COUNTS, {port_key(6, 81): ("taken_web", "")}),
    )
    elsewhere = rebuilt(WEB, listen=(Ports(81, 81),))  # as many ports as before, and none of them
    assert make_plan(compiled(elsewhere, VOICE), compiled(WEB, VOICE)).steps == (
        DeleteEntries("ports", PORTS, (port_key(6, 80),)),
        DeleteEntries("counts", COUNTS, (port_key(6, 80),)),
        AddEntries("ports", PORTS, {port_key(6, 81): (8080, "web")}),
        AddEntries("counts", COUNTS, {port_key(6, 81): ("taken_web", "")}),
    )
    renamed = make_plan(compiled(rebuilt(WEB, name="www"), VOICE), compiled(WEB, VOICE))
    assert len(renamed.steps) == 6
    assert steps_of(renamed, AddCounters, DeleteCounters) == [
        DeleteCounters(("taken_web",)),
        AddCounters(("taken_www",)),
    ]


def test_a_counter_outlives_its_map() -> None:
    """Another scope, another rewrite, a map that is made anew: the mapping is the same."""
    scoped = rebuilt(WEB, source=("10.0.0.0/8",), local=False, rewrite="redirect")
    full = compiled(WEB)
    for name in ("ports", "counts"):
        full.maps[name] = full.maps[name]._replace(capacity=1)
    for desired, observed in (
        (compiled(scoped), compiled(WEB)),
        (compiled(WEB), compiled(scoped)),
        (compiled(rebuilt(WEB, listen=(Ports(80, 200),))), full),
    ):
        plan = make_plan(desired, observed)
        assert steps_of(plan, AddMap)
        assert not steps_of(plan, AddCounters, DeleteCounters)


def test_a_counter_is_made_before_what_leads_to_it_and_goes_after() -> None:
    for desired, observed in ((compiled(WEB), compiled()), (compiled(), compiled(WEB))):
        kinds = [type(step) for step in make_plan(desired, observed).steps]
        if AddCounters in kinds:
            assert kinds.index(AddCounters) < kinds.index(AddEntries)
        else:
            assert kinds.index(DeleteCounters) > kinds.index(DeleteMap)


def test_a_new_mapping_in_a_scope_of_its_own_leaves_the_other_maps_alone() -> None:
    scoped = mapping("lan", "80", "8090", source=("10.0.0.0/8",))
    plan = make_plan(compiled(WEB, scoped), compiled(WEB))
    assert not steps_of(plan, DeleteEntries)
    assert {step.map for step in plan.steps if isinstance(step, AddEntries)} == {
        "arriving_sources_ipv4_8",
        "arriving_from_10.0.0.0/8_ports",
        "arriving_from_10.0.0.0/8_counts",
    }


def test_maps_have_room_to_grow_and_are_made_anew_when_it_is_used_up() -> None:
    wide = mapping("wide", "1-1000", "1001-2000")
    plan = make_plan(compiled(wide), None)
    assert [step.capacity for step in plan.steps if isinstance(step, AddMap)] == [2048, 2048]
    full = compiled(mapping("few", "1", "2"))
    for name in ("ports", "counts"):
        full.maps[name] = full.maps[name]._replace(capacity=64)
    assert not steps_of(make_plan(compiled(mapping("fits", "1-64", "1001-1064")), full), AddMap)
    outgrown = make_plan(compiled(mapping("more", "1-65", "1001-1065")), full)
    assert steps_of(outgrown, AddMap) == [AddMap("ports", PORTS, 128), AddMap("counts", COUNTS, 128)]
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


def test_strays_need_a_new_table() -> None:
    observed = compiled(WEB)._replace(strays=("object quota",))
    plan = make_plan(compiled(WEB), observed)
    assert plan.steps[:2] == (DeleteTable(), AddTable())


def test_perform_refuses_what_the_kernel_would() -> None:
    with pytest.raises(KeyError):
        perform(compiled(), [DeleteEntries("ports", PORTS, (port_key(6, 80),))])
    with pytest.raises(KeyError):
        perform(compiled(WEB), [DeleteEntries("ports", PORTS, (port_key(6, 81),))])
    with pytest.raises(KeyError):
        perform(compiled(WEB), [DeleteCounters(("taken_voice",))])


def test_the_strict_kernel_of_the_tests_refuses_bad_orders() -> None:
    """Or else the properties above would hold for anything."""
    full = compiled(WEB, mapping("lan", "81", "8090", source=("10.0.0.0/8",)))
    with pytest.raises(Busy):
        transact(full, make_plan(compiled(), full).steps[::-1])
    for steps in (make_plan(full, None).steps[::-1], make_plan(full, None).steps[1:]):
        with pytest.raises(Busy):
            transact(None, steps)
