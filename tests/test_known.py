"""Planning without a reading: the same changes and the same end as with one, by what differs alone."""

from hypothesis import event, given
from hypothesis import strategies as st

from redirector.compile import compile_ruleset, sizes
from redirector.known import Difference, Known, differing, plan_from
from redirector.model import Ruleset, Settings
from redirector.plan import AddEntries, AddMap, DeleteEntries, DeleteMap, capacity_for, make_plan, perform
from redirector.program import COUNTS, PORTS, TRANSLATIONS, Program, port_key
from tests.simulate import Busy, transact
from tests.strategies import mapping, quick, rebuilt, rulesets


def held(ruleset: Ruleset) -> Program:
    """What the kernel holds after a first apply."""
    program = perform(None, make_plan(compile_ruleset(ruleset), None).steps)
    assert program is not None
    return program


def known(ruleset: Ruleset) -> Known:
    return Known.of(ruleset, {name: found.capacity for name, found in held(ruleset).maps.items()}, 7)


@st.composite
def edits(draw: st.DrawFn) -> tuple[Ruleset, Ruleset]:
    """Two rulesets that have something in common."""
    one, other = draw(rulesets()), draw(rulesets())
    names = {found.name for found in other.mappings}
    kept = [found for found in one.mappings if found.name not in names and draw(st.booleans())]
    for i in range(len(kept) + 1):  # as many as do not conflict with the new ones
        try:
            return one, Ruleset((*kept[i:], *other.mappings), other.settings)
        except ValueError:
            continue
    return one, other


@quick
@given(edits())
def test_it_leads_where_a_reading_would_have_led_and_tells_the_same(pair: tuple[Ruleset, Ruleset]) -> None:
    old, new = pair
    before, want = held(old), compile_ruleset(new)
    plan, read = plan_from(known(old), new), make_plan(want, before)
    assert perform(before, plan.steps) == want
    assert bool(plan) == bool(read)
    assert plan.changes == read.changes
    assert (plan.desired, plan.observed) == (want, before)
    transact(before, plan.steps)  # in an order that the kernel takes
    event(f"{type(plan).__name__}, {len(differing(old, new))} differ")


@quick
@given(rulesets())
def test_what_is_known_needs_nothing(ruleset: Ruleset) -> None:
    plan = plan_from(known(ruleset), ruleset)
    assert not plan
    assert plan.changes == ()


@quick
@given(rulesets())
def test_entries_are_counted_without_being_made(ruleset: Ruleset) -> None:
    program = compile_ruleset(ruleset)
    made = {name: len(found.entries) for name, found in program.maps.items() if found.kind in (*TRANSLATIONS, COUNTS)}
    assert dict(sizes(ruleset.enabled)) == made


HUNDREDS = (mapping(f"m{i}", f"{1000 + 100 * i}-{1099 + 100 * i}", "40000") for i in range(300))
MANY = Ruleset((*HUNDREDS, mapping("one", "80", "8080")))


def test_only_what_differs_is_compiled_and_sent() -> None:
    new = Ruleset((*MANY.mappings[:-1], rebuilt(MANY.mappings[-1], to=mapping("x", "1", "8081").to)))
    plan = plan_from(known(MANY), new)
    key = port_key(6, 80)
    assert plan.steps == (
        DeleteEntries("ports", PORTS, (key,)),
        AddEntries("ports", PORTS, {key: (8081, "one")}),
    )
    (told,) = plan.changes
    assert (told.action, told.mapping) == ("change", "one")
    assert isinstance(plan, Difference)
    assert not {"desired", "observed"} & set(vars(plan))
    assert "program" not in vars(plan.known)


def test_a_map_that_would_be_too_small_is_made_anew() -> None:
    start = Ruleset((mapping("a", "1-60", "9000"),))
    assert known(start).capacities["ports"] == capacity_for(60) == 128
    for last, fits in ((128, True), (129, False)):
        grown = Ruleset((*start.mappings, mapping("b", f"61-{last}", "9001")))
        plan = plan_from(known(start), grown)
        kinds = {type(step) for step in plan.steps}
        assert (kinds >= {AddMap, DeleteMap}) != fits
        assert perform(held(start), plan.steps) == compile_ruleset(grown)


def test_where_the_capacities_are_not_known_it_is_still_right() -> None:
    start = Ruleset((mapping("a", "1-60", "9000"),))
    plan = plan_from(Known.of(start, {}, 7), Ruleset((mapping("a", "1-61", "9000"),)))
    assert perform(held(start), plan.steps) == plan.desired


def test_another_priority_makes_the_base_chains_anew() -> None:
    new = Ruleset(MANY.mappings, Settings(priority=-120))
    plan = plan_from(known(MANY), new)
    assert perform(held(MANY), plan.steps) == compile_ruleset(new)
    assert not [step for step in plan.steps if isinstance(step, AddEntries | DeleteEntries)]


def test_the_order_is_one_that_the_kernel_takes_also_for_scopes() -> None:
    scoped = Ruleset((mapping("lan", "80", "8090", source=("10.0.0.0/8",)), mapping("web", "80", "8080")))
    for old, new in ((MANY, scoped), (scoped, MANY), (scoped, Ruleset()), (Ruleset(), scoped)):
        plan = plan_from(known(old), new)
        try:
            transact(held(old), plan.steps)
        except Busy as error:
            raise AssertionError(plan.steps) from error
