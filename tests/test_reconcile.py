"""The story, told to a backend without a kernel: what is committed, recorded, undone, and what the exit code says."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redirector.backends.base import OutcomeDoubtful, Overtaken, Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.committing import ATTEMPTS
from redirector.compile import compile_ruleset
from redirector.errors import NotFound, OutcomeUnknown, RedirectorError, Refused, RolledBack, TryAgain, Unavailable
from redirector.history import History, Record, Unreadable
from redirector.model import Ruleset, Settings
from redirector.plan import Plan, Step, program_digest
from redirector.program import PORTS, Map, Program, port_key
from redirector.reconcile import Origin, Outcome, Wish, change, plan_for, rollback_target
from redirector.status import status
from tests.strategies import damaged, mapping, rebuilt, rulesets

EMPTY = Ruleset()
WEB = Ruleset((mapping("web", "80", "8080"),))
MORE = Ruleset((mapping("web", "80", "8081"), mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))))
APPLY = Origin("apply", "/etc/m.toml", "anna")


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


def apply(backend: MemoryBackend, history: History, ruleset: Ruleset, **more: Any) -> Outcome:
    with history.locked():
        return change(backend, history, Wish(ruleset, APPLY)._replace(**more))


def files(history: History) -> list[str]:
    """All that lies in the folder of generations, temporary files as well."""
    folder = Path(history.folder) / "generations"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failing(
    kind: type[RedirectorError], backend: MemoryBackend, history: History, ruleset: Ruleset, **more: Any
) -> RedirectorError:
    """The error of an apply that must fail; exactly of this kind, for that is the exit code."""
    with pytest.raises(kind) as caught:
        apply(backend, history, ruleset, **more)
    assert type(caught.value) is kind
    return caught.value


def test_an_apply_commits_once_and_records_a_generation(history: History) -> None:
    backend = MemoryBackend()
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded) == (1, True)
    assert backend.program == compile_ruleset(WEB)
    assert len(backend.commits) == 1
    (record,) = history.all()
    assert isinstance(record, Record)
    assert record[:2] + record[3:] == (
        1,
        "apply",
        "/etc/m.toml",
        "anna",
        backend.identity(),
        "memory",
        WEB,
        True,
        False,
    )
    assert files(history) == ["000001.json"]


def test_a_second_apply_commits_and_records_nothing(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    outcome = apply(backend, history, WEB)
    assert not outcome.plan
    assert (outcome.generation, outcome.recorded) == (1, False)
    assert (backend.generation, len(backend.commits)) == (2, 1)
    assert files(history) == ["000001.json"]


def test_what_changes_the_file_but_not_the_program_is_recorded_and_not_committed(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    commented = Ruleset((rebuilt(WEB.mappings[0], comment="for the people"),))
    outcome = apply(backend, history, commented)
    assert (outcome.generation, outcome.recorded, len(backend.commits)) == (2, True, 1)


def test_healing_drift_is_committed_and_not_recorded(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    backend.program = None
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded, len(backend.commits)) == (1, False, 2)
    assert backend.program == compile_ruleset(WEB)


def test_nothing_asked_of_nothing_there_is_nothing(history: History) -> None:
    backend = MemoryBackend()
    outcome = apply(backend, history, EMPTY)
    assert (outcome.generation, outcome.recorded, backend.commits, files(history)) == (None, False, [], [])


def test_what_was_applied_is_adopted_where_the_kernel_has_it_already(history: History) -> None:
    """State that was lost: the record is made anew, the kernel left alone."""
    backend = MemoryBackend(compile_ruleset(WEB))
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded, backend.commits) == (1, True, [])


def test_a_damaged_history_does_not_stop_an_apply(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    (Path(history.folder) / "generations" / "000001.json").write_text("damaged")
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded, len(backend.commits)) == (2, True, 1)
    assert isinstance(history.current(), Record)


def test_who_is_overtaken_plans_again(history: History) -> None:
    backend = MemoryBackend()
    backend.touch(3)
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded, len(backend.commits)) == (1, True, 1)
    assert files(history) == ["000001.json"]


class Meddled(MemoryBackend):
    """Somebody else works on our table: `meddle` is called before or right after each commit of ours."""

    def __init__(self, program: Program | None = None) -> None:
        super().__init__(program)
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        self.observed = 0

    def observe(self) -> Snapshot:
        self.observed += 1
        return super().observe()

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        if self.before:
            self.before()
            self.generation += 1
        super().commit(steps, expect)
        if self.after:
            self.after()
            self.generation += 1


def test_what_others_did_to_our_table_in_between_is_planned_against(history: History) -> None:
    backend = Meddled()

    def once() -> None:
        backend.program, backend.before = compile_ruleset(MORE), None

    backend.before = once
    outcome = apply(backend, history, WEB)
    assert outcome.plan.observed == compile_ruleset(MORE)
    assert backend.program == compile_ruleset(WEB)


def test_being_overtaken_for_ever_ends_with_nothing_changed(history: History) -> None:
    backend = Meddled()
    backend.before = lambda: None
    failing(TryAgain, backend, history, WEB)
    assert backend.observed <= ATTEMPTS
    assert (backend.program, backend.commits, files(history)) == (None, [], [])


def test_others_who_commit_right_after_us_do_no_harm(history: History) -> None:
    """The genid is one too many, and so everything is read back."""
    backend = Meddled()
    backend.after = lambda: None
    apply(backend, history, WEB)
    assert (len(backend.commits), backend.observed, files(history)) == (1, 2, ["000001.json"])


def test_who_is_overwritten_right_afterwards_plans_again(history: History) -> None:
    backend = Meddled()

    def once() -> None:
        backend.program, backend.after = compile_ruleset(MORE), None

    backend.after = once
    apply(backend, history, WEB)
    assert (backend.program, len(backend.commits)) == (compile_ruleset(WEB), 2)
    assert files(history) == ["000001.json"]


def test_being_overwritten_for_ever_is_not_told_as_nothing_changed(history: History) -> None:
    backend = Meddled()

    def empty() -> None:
        backend.program = compile_ruleset(MORE)

    backend.after = empty
    error = failing(OutcomeUnknown, backend, history, WEB)
    assert "nothing was changed" not in error.message
    assert files(history) == []


def test_a_refusal_of_the_kernel_changes_nothing(history: History) -> None:
    backend = MemoryBackend()
    backend.fail(Refused("the kernel refuses"))
    failing(Refused, backend, history, WEB)
    assert (backend.program, files(history)) == (None, [])


def test_a_lost_answer_after_the_commit_is_told_as_applied(history: History) -> None:
    backend = MemoryBackend()
    backend.fail(OutcomeDoubtful("timed out"), after=True)
    outcome = apply(backend, history, WEB)
    assert (outcome.generation, outcome.recorded, len(backend.commits)) == (1, True, 1)


def test_a_lost_answer_before_the_commit_is_told_as_refused(history: History) -> None:
    backend = MemoryBackend()
    backend.fail(OutcomeDoubtful("timed out"))
    error = failing(Refused, backend, history, WEB)
    assert "timed out" in error.message
    assert (backend.program, files(history)) == (None, [])


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), OutcomeDoubtful("")])
def test_an_error_that_says_nothing_is_read_back(history: History, failure: Exception) -> None:
    backend = MemoryBackend()
    backend.fail(failure, after=True)
    assert apply(backend, history, WEB).recorded


class Silent(MemoryBackend):
    """Once something was committed, the kernel answers no question of these kinds any more."""

    def __init__(self, error: Exception, *, genid: bool = False, observe: bool = False) -> None:
        super().__init__()
        self.error, self.no_genid, self.no_observe = error, genid, observe

    def genid(self) -> int:
        if self.no_genid and self.commits:
            raise self.error
        return super().genid()

    def observe(self) -> Snapshot:
        if self.no_observe and self.commits:
            raise self.error
        return super().observe()


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), Unavailable("gone"), TryAgain("busy")])
def test_where_the_genid_cannot_be_asked_everything_is_read_back(history: History, error: Exception) -> None:
    backend = Silent(error, genid=True)
    assert apply(backend, history, WEB).recorded


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), Unavailable("gone"), TryAgain("busy")])
def test_what_cannot_be_read_back_is_unknown(history: History, error: Exception) -> None:
    backend = Silent(error, genid=True, observe=True)
    failing(OutcomeUnknown, backend, history, WEB)
    assert files(history) == []


class Overwriting(MemoryBackend):
    """Somebody else changes what was committed, and then nothing can be read any more."""

    reads = 0
    error: Exception = TryAgain("busy")

    def genid(self) -> int:
        return super().genid() + bool(self.commits)

    def observe(self) -> Snapshot:
        self.reads += 1
        if self.commits and self.reads > 2:
            raise self.error
        return Snapshot(None, self.generation) if self.commits else super().observe()


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), Unavailable("gone"), TryAgain("busy")])
def test_what_was_overwritten_and_cannot_be_read_any_more_is_unknown(history: History, error: Exception) -> None:
    """It was committed: "try again, nothing was changed" would be a lie."""
    backend = Overwriting()
    backend.error = error
    failing(OutcomeUnknown, backend, history, WEB)


def test_what_could_never_be_read_has_changed_nothing(history: History) -> None:
    backend = Overwriting()
    backend.observe = lambda: (_ for _ in ()).throw(TryAgain("busy"))  # type: ignore[method-assign]
    assert "nothing was changed" in str(failing(TryAgain, backend, history, WEB))
    assert backend.commits == []


class Lying(MemoryBackend):
    """Acknowledges, counts one generation, and loses an entry of each commit."""

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        super().commit(steps, expect)
        assert self.program is not None
        self.program.maps["ports"].entries.popitem()


def test_verifying_reads_back_even_after_proof(history: History) -> None:
    assert apply(Lying(), history, WEB).recorded
    shutil.rmtree(history.folder)
    failing(OutcomeUnknown, Lying(), history, WEB, verify=True)
    backend = Meddled()
    apply(backend, history, WEB, verify=True)
    assert backend.observed == 2


class Unrecorded(MemoryBackend):
    """While it commits, the folder of generations goes away; so do others' commits come between the undo."""

    def __init__(self, history: History, program: Program | None = None) -> None:
        super().__init__(program)
        self._folder = Path(history.folder) / "generations"

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        super().commit(steps, expect)
        if self._folder.exists():
            shutil.rmtree(self._folder)


@pytest.mark.parametrize("before", [None, compile_ruleset(EMPTY), compile_ruleset(MORE)])
def test_what_cannot_be_recorded_is_rolled_back(history: History, before: Program | None) -> None:
    backend = Unrecorded(history, before)
    error = failing(RolledBack, backend, history, WEB)
    assert error.exit_code == 5
    assert backend.program == before
    assert len(backend.commits) == 2


def test_an_undo_that_is_overtaken_is_tried_again(history: History) -> None:
    class Busy(Unrecorded):
        def commit(self, steps: Iterable[Step], expect: int) -> None:
            if len(self.commits) == 1 and not self.touched:
                self.touched = True
                self.touch(3)
            super().commit(steps, expect)

        touched = False

    backend = Busy(history)
    failing(RolledBack, backend, history, WEB)
    assert backend.program is None


@pytest.mark.parametrize("error", [Refused("no"), OutcomeDoubtful("no answer"), OSError(5, "Input/output error")])
def test_an_undo_that_fails_is_unknown(history: History, error: Exception) -> None:
    class Stuck(Unrecorded):
        def commit(self, steps: Iterable[Step], expect: int) -> None:
            if self.commits:
                raise error
            super().commit(steps, expect)

    failing(OutcomeUnknown, Stuck(history), history, WEB)


def test_an_undo_that_others_prevent_for_ever_is_unknown(history: History) -> None:
    class Overrun(Unrecorded):
        def commit(self, steps: Iterable[Step], expect: int) -> None:
            if self.commits:
                raise Overtaken
            super().commit(steps, expect)

    failing(OutcomeUnknown, Overrun(history), history, WEB)


def test_a_replaced_foreign_table_cannot_be_put_back(history: History) -> None:
    backend = Unrecorded(history)
    backend.foreign = "somebody else made it"
    failing(OutcomeUnknown, backend, history, WEB, replace_foreign=True)


def test_no_room_for_the_record_is_refused_before_the_commit(history: History) -> None:
    history.make_folders()
    (Path(history.folder) / "generations").rmdir()
    (Path(history.folder) / "generations").write_text("")
    backend = MemoryBackend()
    with pytest.raises(Refused):
        change(backend, history, Wish(WEB, APPLY))
    assert backend.commits == []


def test_a_saved_plan_is_carried_out_only_on_what_it_was_made_against(history: History) -> None:
    backend = MemoryBackend(compile_ruleset(MORE))
    error = failing(TryAgain, backend, history, WEB, expected=program_digest(None))
    assert error.exit_code == 75
    assert (backend.commits, files(history)) == ([], [])
    outcome = apply(backend, history, WEB, expected=program_digest(compile_ruleset(MORE)))
    assert outcome.recorded


def test_a_saved_plan_that_is_overtaken_in_our_table_is_refused(history: History) -> None:
    backend = Meddled(compile_ruleset(MORE))

    def once() -> None:
        backend.program, backend.before = None, None

    backend.before = once
    failing(TryAgain, backend, history, WEB, expected=program_digest(compile_ruleset(MORE)))
    assert (backend.program, backend.commits) == (None, [])


def test_a_saved_plan_that_is_overtaken_elsewhere_is_carried_out(history: History) -> None:
    backend = MemoryBackend()
    backend.touch(2)
    assert apply(backend, history, WEB, expected=program_digest(None)).recorded


def test_a_foreign_table_is_refused_or_replaced_on_demand(history: History) -> None:
    backend = MemoryBackend()
    backend.foreign = "it does not carry our mark"
    error = failing(Refused, backend, history, WEB)
    assert "--replace-foreign" in error.hint
    assert (backend.commits, files(history)) == ([], [])
    apply(backend, history, WEB, replace_foreign=True)
    assert (backend.program, backend.foreign) == (compile_ruleset(WEB), "")


def test_the_guards_judge_each_plan_before_it_is_carried_out(history: History) -> None:
    seen: list[tuple[Ruleset, Plan, Snapshot]] = []

    def judge(ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> None:
        seen.append((ruleset, plan, snapshot))

    backend = MemoryBackend()
    backend.touch(1)
    apply(backend, history, WEB, judge=judge)
    assert [snapshot.genid for _, _, snapshot in seen] == [1, 2]
    assert all(plan.desired == compile_ruleset(ruleset) for ruleset, plan, _ in seen)
    apply(backend, history, WEB, judge=judge)
    assert len(seen) == 2  # nothing to do, nothing to judge

    def refuse(ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> None:
        raise Refused("dangerous")

    failing(Refused, backend, history, MORE, judge=refuse)
    assert (backend.program, files(history)) == (compile_ruleset(WEB), ["000001.json"])


def test_a_rollback_goes_to_the_one_before_and_twice_returns(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    apply(backend, history, MORE)
    for number, ruleset in ((3, WEB), (4, MORE), (5, WEB)):
        target = rollback_target(history, None)
        outcome = apply(backend, history, target.ruleset, purge=target.purged)
        assert (outcome.generation, outcome.recorded) == (number, True)
        assert backend.program == compile_ruleset(ruleset)
    assert rollback_target(history, 2).ruleset == MORE


def test_there_may_be_nothing_to_go_back_to(history: History) -> None:
    with pytest.raises(NotFound):
        rollback_target(history, None)
    apply(MemoryBackend(), history, WEB)
    for number in (None, 0, 2):
        with pytest.raises(NotFound) as caught:
            rollback_target(history, number)
        assert caught.value.exit_code == 7


def test_a_damaged_generation_cannot_be_gone_back_to(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    apply(backend, history, MORE)
    (Path(history.folder) / "generations" / "000001.json").write_text("damaged")
    with pytest.raises(NotFound, match="generation 1 cannot be gone back to: its file is damaged"):
        rollback_target(history, None)


def test_remove_drains_and_purge_takes_the_table_away(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    drained = apply(backend, history, EMPTY)
    assert (drained.generation, backend.program) == (2, compile_ruleset(EMPTY))
    assert not apply(backend, history, EMPTY).recorded
    purged = apply(backend, history, EMPTY, purge=True)
    assert (purged.generation, backend.program) == (3, None)
    assert not apply(backend, history, EMPTY, purge=True).recorded
    assert len(backend.commits) == 3


def test_a_table_that_is_gone_is_not_made_to_be_drained(history: History) -> None:
    assert not plan_for(EMPTY, Snapshot(None, 1))
    assert plan_for(EMPTY, Snapshot(compile_ruleset(WEB), 1)).desired == compile_ruleset(EMPTY)


def test_settings_are_part_of_what_is_applied(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    outcome = apply(backend, history, WEB._replace(settings=Settings(priority=-105)))
    assert (outcome.recorded, len(backend.commits)) == (True, 2)


@st.composite
def _events(draw: st.DrawFn) -> list[tuple[str, object]]:
    kinds = st.sampled_from(
        ("apply", "apply", "remove", "purge", "rollback", "damage", "touch", "doubt", "lose", "again")
    )
    return [
        (kind, draw(rulesets()) if kind == "apply" else draw(st.integers(1, 5)))
        for kind in draw(st.lists(kinds, min_size=1, max_size=8))
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_events(), st.data())
def test_whatever_happens_the_record_the_kernel_and_the_answer_agree(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, object]], data: st.DataObject
) -> None:
    history = History(str(tmp_path_factory.mktemp("state") / "state"))
    backend = MemoryBackend()
    wanted: tuple[Ruleset, bool] | None = None
    for kind, value in events:
        if kind == "damage" and backend.program is not None:
            backend.program = data.draw(damaged(backend.program))
            backend.generation += 1
            continue
        if kind == "touch":
            backend.touch(int(str(value)))
            continue
        if kind == "lose" and history.numbers():
            (Path(history.folder) / "generations" / f"{history.numbers()[-1]:06d}.json").write_text("damaged")
            continue
        if kind == "doubt":
            backend.fail(OutcomeDoubtful(), after=True)
            continue
        try:
            if kind == "rollback":
                target = rollback_target(history, None)
                wanted = target.ruleset, target.purged
            elif isinstance(value, Ruleset):
                wanted = value, False
            elif kind in ("remove", "purge"):
                wanted = EMPTY, kind == "purge"
        except NotFound:
            continue
        if wanted is None:
            continue
        numbers = history.numbers()
        outcome = apply(backend, history, wanted[0], purge=wanted[1])
        assert outcome.recorded == (history.numbers() != numbers)
        found = history.current()
        if found is not None:
            assert not isinstance(found, Unreadable)
            assert (found.ruleset, found.purged) == wanted
        state = status(backend, history).state
        if wanted[1]:
            assert (backend.program, state) == (None, "absent")
        elif wanted[0].enabled:
            assert (backend.program, state) == (compile_ruleset(wanted[0]), "in-sync")
        else:
            assert backend.program in (compile_ruleset(wanted[0]), None)
            assert state in ("drained", "absent")
        commits = len(backend.commits)
        assert not apply(backend, history, wanted[0], purge=wanted[1]).recorded
        assert len(backend.commits) == commits


def test_an_entry_is_worth_a_commit(history: History) -> None:
    backend = MemoryBackend()
    apply(backend, history, WEB)
    assert backend.program is not None
    entries = dict(backend.program.maps["ports"].entries) | {port_key(6, 81): (8080, "stranger")}
    backend.program = backend.program._replace(maps={"ports": Map(PORTS, entries)})
    assert apply(backend, history, WEB).plan
    assert backend.program == compile_ruleset(WEB)
