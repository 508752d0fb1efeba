"""The backend without a kernel keeps what the real ones promise."""

import pytest

from redirector.backends.base import OutcomeDoubtful, Overtaken, Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.compile import compile_ruleset
from redirector.model import Ruleset
from redirector.plan import make_plan
from tests.strategies import mapping

PROGRAM = compile_ruleset(Ruleset((mapping(),)))
STEPS = make_plan(PROGRAM, None).steps


def test_a_commit_takes_effect_and_moves_the_generation_by_one() -> None:
    backend = MemoryBackend()
    assert backend.observe() == Snapshot(None, 1)
    backend.commit(STEPS, 1)
    assert backend.observe() == Snapshot(PROGRAM, 2)
    assert backend.genid() == 2
    assert backend.commits == [STEPS]


def test_a_check_changes_nothing() -> None:
    backend = MemoryBackend()
    backend.check(STEPS)
    assert backend.observe() == Snapshot(None, 1)
    with pytest.raises(KeyError):
        backend.check(make_plan(None, PROGRAM).steps + make_plan(PROGRAM, None).steps[-1:])


@pytest.mark.parametrize("expect", [0, 2, 3])
def test_a_commit_against_another_generation_is_overtaken(expect: int) -> None:
    backend = MemoryBackend()
    with pytest.raises(Overtaken):
        backend.commit(STEPS, expect)
    assert backend.observe() == Snapshot(None, 1)


def test_others_can_be_made_to_commit_in_between() -> None:
    backend = MemoryBackend()
    backend.touch(2)
    for _ in range(2):
        with pytest.raises(Overtaken):
            backend.commit(STEPS, backend.genid())
    backend.commit(STEPS, backend.genid())
    assert backend.observe() == Snapshot(PROGRAM, 4)


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_can_be_made_to_fail_before_or_after_it_takes_effect(after: bool) -> None:
    backend = MemoryBackend()
    backend.fail(OutcomeDoubtful(), after=after)
    with pytest.raises(OutcomeDoubtful):
        backend.commit(STEPS, 1)
    assert backend.observe() == (Snapshot(PROGRAM, 2) if after else Snapshot(None, 1))
    # … once only.
    backend.commit(make_plan(None, backend.program).steps, backend.genid())


def test_what_was_observed_does_not_change_afterwards() -> None:
    backend = MemoryBackend(PROGRAM)
    before = backend.observe()
    other = compile_ruleset(Ruleset((mapping(to="8081"),)))
    backend.commit(make_plan(other, PROGRAM).steps, 1)
    assert before.program == PROGRAM
    assert backend.program == other


def test_a_foreign_table_is_one_until_it_is_deleted() -> None:
    backend = MemoryBackend()
    backend.foreign = "somebody else made it"
    assert backend.observe().foreign == "somebody else made it"
    replaced = make_plan(PROGRAM, PROGRAM._replace(strays=("a table that is not ours",)))
    backend.commit(replaced.steps, 1)
    assert backend.observe() == Snapshot(PROGRAM, 2)
