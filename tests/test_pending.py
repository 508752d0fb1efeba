"""The note about what waits for confirm, and what becomes of it; with a backend without a kernel."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from redirector import pending
from redirector.backends.base import OutcomeDoubtful, Overtaken, Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.committing import ATTEMPTS
from redirector.compile import compile_ruleset
from redirector.errors import NotFound, OutcomeUnknown, RedirectorError, Refused, RolledBack, TryAgain
from redirector.history import KEEP, History, Record
from redirector.model import Ruleset
from redirector.plan import Step
from redirector.program import Program
from redirector.reconcile import Origin, Wish, change
from tests.strategies import mapping
from tests.waiting import leave_waiting

OLD = Ruleset((mapping("web", "80", "8080"),))
NEW = Ruleset((mapping("web", "80", "8081"),))
LONG = 3600.0


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def apply(backend: MemoryBackend, history: History, ruleset: Ruleset) -> None:
    with history.locked():
        change(backend, history, Wish(ruleset, Origin("apply", "a file", "anna")))


def settle(backend: MemoryBackend, history: History) -> pending.Pending | None:
    with history.locked():
        return pending.settle(backend, history)


def path(history: History) -> Path:
    return Path(history.folder) / pending.NOTE


def current(history: History) -> Record:
    found = history.current()
    assert isinstance(found, Record)
    return found


class TestTheNote:
    def test_what_is_written_is_read(self, history: History) -> None:
        assert pending.load(history) is None
        assert not os.path.exists(history.folder)
        with history.locked():
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            found = pending.arm(history, 7, LONG)
            after = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert pending.load(history) == found
        assert found.generation == 7
        assert before + LONG - 0.001 <= found.deadline <= after + LONG + 0.001  # written to the millisecond
        assert 0 < found.seconds_left <= LONG
        assert path(history).stat().st_mode & 0o777 == 0o600
        with history.locked():
            assert pending.arm(history, 7, LONG).token != found.token
            pending.disarm(history)
            assert pending.load(history) is None
            pending.disarm(history)  # and again does no harm

    def test_of_another_boot_it_is_overdue(self) -> None:
        now = pending.now()
        for later in (-LONG, 0.0, LONG):
            assert pending.Pending(1, now + later, "another boot", "t").seconds_left == 0
        assert pending.Pending(1, now - LONG, pending.boot_id(), "t").seconds_left == 0
        assert pending.Pending(1, now + LONG, pending.boot_id(), "t").seconds_left > 0

    def test_damaged_anywhere_it_is_overdue(self, history: History, backend: MemoryBackend) -> None:
        """Cut off after each byte, and each bit the other way round."""
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, LONG)
        whole = path(history).read_bytes()
        damages = [whole[:length] for length in range(len(whole))]
        damages += [
            whole[:i] + bytes([byte ^ 1 << bit]) + whole[i + 1 :] for i, byte in enumerate(whole) for bit in range(8)
        ]
        for damage in damages:
            path(history).write_bytes(damage)
            found = pending.load(history)
            assert found is not None
            assert not found.seconds_left, damage

    @pytest.mark.parametrize(
        "junk",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b'"x"',
            b"7",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"generation": 1e999, "deadline": NaN, "boot": null, "token": [], "checksum": 0}',
            b'{"generation": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_junk_is_overdue(self, history: History, backend: MemoryBackend, junk: bytes) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, LONG)
        path(history).write_bytes(junk)
        assert settle(backend, history) is None
        assert backend.program == compile_ruleset(OLD)
        assert not path(history).exists()

    @pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
    def test_what_is_no_file_is_overdue(self, history: History, backend: MemoryBackend, kind: str) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, LONG)
        elsewhere = path(history).rename(path(history).with_name("elsewhere"))
        if kind == "folder":
            path(history).mkdir()
        elif kind == "fifo":
            os.mkfifo(path(history))
        else:
            path(history).symlink_to(elsewhere)
        assert settle(backend, history) is None
        assert backend.program == compile_ruleset(OLD)
        assert elsewhere.exists()
        assert pending.load(history) is None

    def test_a_damaged_note_without_anything_that_waits_is_void(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        path(history).write_bytes(b"?")
        assert pending.load(history) is None
        with history.locked():
            pending.require_none(backend, history)
        assert (backend.program, history.numbers()) == (compile_ruleset(OLD), [1])
        assert not path(history).exists()


class TestKeeping:
    def test_it_is_confirmed(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, LONG)
        waiting = current(history)
        assert not waiting.confirmed
        with history.locked():
            assert pending.keep(backend, history, "anna") == 2
        assert current(history) == waiting._replace(confirmed=True)
        assert pending.load(history) is None
        assert backend.program == compile_ruleset(NEW)

    def test_nothing_to_keep(self, history: History, backend: MemoryBackend) -> None:
        with history.locked():
            for act in (
                lambda: pending.keep(backend, history, "anna"),
                lambda: pending.cancel(backend, history, "anna"),
            ):
                with pytest.raises(NotFound):
                    act()

    def test_too_late(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, 0.0)
        with history.locked(), pytest.raises(NotFound, match="time was over"):
            pending.keep(backend, history, "anna")
        assert backend.program == compile_ruleset(OLD)

    def test_a_record_that_cannot_be_read_cannot_be_confirmed(self, history: History, backend: MemoryBackend) -> None:
        leave_waiting(backend, history, NEW, LONG)
        (Path(history.folder) / "generations" / "000001.json").write_text("?")
        with history.locked(), pytest.raises(NotFound, match="cannot be read"):
            pending.keep(backend, history, "anna")
        assert pending.load(history)

    def test_others_are_told_how_long(self, history: History, backend: MemoryBackend) -> None:
        leave_waiting(backend, history, NEW, LONG)
        with history.locked(), pytest.raises(TryAgain, match=r"generation 1 waits for confirm, for another 3\d\d\d s"):
            pending.require_none(backend, history)


class TestTakingBack:
    def test_to_the_last_that_was_confirmed(self, history: History, backend: MemoryBackend) -> None:
        """Not to what came right before, nor to what cannot be read."""
        apply(backend, history, OLD)
        apply(backend, history, Ruleset((mapping("lost", "1", "2"),)))
        (Path(history.folder) / "generations" / "000002.json").write_text("?")
        leave_waiting(backend, history, NEW, 0.0)
        assert settle(backend, history) is None
        assert backend.program == compile_ruleset(OLD)
        record = current(history)
        assert (record.generation, record.action, record.ruleset) == (4, "cancel", OLD)
        assert record.confirmed
        assert not path(history).exists()

    def test_to_no_table_where_it_was_purged(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        with history.locked():
            change(backend, history, Wish(Ruleset(), Origin("remove", "--purge", "anna"), purge=True))
        leave_waiting(backend, history, NEW, 0.0)
        settle(backend, history)
        assert backend.program is None
        assert current(history).purged

    def test_the_first_of_all_is_drained(self, history: History, backend: MemoryBackend) -> None:
        leave_waiting(backend, history, NEW, 0.0)
        settle(backend, history)
        assert backend.program == compile_ruleset(Ruleset())

    def test_what_others_did_to_it_meanwhile_goes_as_well(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, 0.0)
        backend.program = compile_ruleset(Ruleset((mapping("odd", "1", "2"),)))
        settle(backend, history)
        assert backend.program == compile_ruleset(OLD)

    @pytest.mark.parametrize("until", ["armed", "committed"])
    def test_what_was_never_recorded(self, history: History, backend: MemoryBackend, until: str) -> None:
        """`apply` was killed after its note was written, or after its commit."""
        apply(backend, history, OLD)
        with history.locked():
            pending.arm(history, 2, 0.0)
        if until == "committed":
            backend.program = compile_ruleset(NEW)
        assert settle(backend, history) is None
        assert backend.program == compile_ruleset(OLD)
        assert not path(history).exists()
        apply(backend, history, NEW)
        assert backend.program == compile_ruleset(NEW)

    def test_it_is_done_once(self, history: History, backend: MemoryBackend) -> None:
        """Whoever did it was killed before the note was removed."""
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, 0.0)
        kept = path(history).read_bytes()
        settle(backend, history)
        path(history).write_bytes(kept)
        done = (len(backend.commits), history.numbers())
        assert pending.load(history) is None
        assert settle(backend, history) is None
        assert (len(backend.commits), history.numbers()) == done
        assert not path(history).exists()

    def test_what_was_confirmed_stays(self, history: History, backend: MemoryBackend) -> None:
        """`confirm` was killed before the note was removed; neither a cancel nor the deadline undoes it."""
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, 0.0)
        history.prepare(current(history)._replace(confirmed=True)).keep()
        with history.locked(), pytest.raises(NotFound):
            pending.cancel(backend, history, "anna")
        settle(backend, history)
        assert backend.program == compile_ruleset(NEW)

    def test_it_is_not_forgotten_while_it_cannot_be_done(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        leave_waiting(backend, history, NEW, 0.0)
        backend.touch(ATTEMPTS)
        with pytest.raises(TryAgain):
            settle(backend, history)
        assert pending.load(history)
        settle(backend, history)
        assert backend.program == compile_ruleset(OLD)

    def test_the_last_confirmed_is_kept_for_it(self, history: History, backend: MemoryBackend) -> None:
        apply(backend, history, OLD)
        for i in range(KEEP + 5):  # never confirmed: no command leaves so many, a damaged folder may
            history.prepare(current(history)._replace(generation=i + 2, confirmed=False, ruleset=NEW)).keep()
        with history.locked():
            pending.arm(history, KEEP + 6, 0.0)
        history.prune()
        settle(backend, history)
        assert backend.program == compile_ruleset(OLD)


class Counting:
    """Arms as `apply --confirm` does, and counts."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.armed = 0
        self.disarmed = 0

    def __call__(self, generation: int) -> Callable[[], None]:
        self.armed += 1
        pending.arm(self._history, generation, LONG)
        return self._disarm

    def _disarm(self) -> None:
        self.disarmed += 1
        pending.disarm(self._history)


class TestArming:
    def attempt(self, backend: MemoryBackend, history: History) -> tuple[Counting, RedirectorError | None]:
        arm = Counting(history)
        try:
            with history.locked():
                change(backend, history, Wish(NEW, Origin("apply", "a file", "anna"), arm=arm))
        except RedirectorError as error:
            return arm, error
        return arm, None

    def test_once_however_often_others_are_faster(self, history: History, backend: MemoryBackend) -> None:
        backend.touch(5)
        arm, error = self.attempt(backend, history)
        assert (arm.armed, arm.disarmed, error) == (1, 0, None)
        assert not current(history).confirmed

    def test_before_the_commit(self, history: History) -> None:
        class Watched(MemoryBackend):
            def commit(self, steps: Iterable[Step], expect: int) -> None:
                assert pending.load(history)
                assert history.numbers() == []
                super().commit(steps, expect)

        assert self.attempt(Watched(), history)[1] is None

    @pytest.mark.parametrize("refusal", [Refused("no"), TryAgain("not now")])
    def test_and_not_for_what_was_refused(
        self, history: History, backend: MemoryBackend, refusal: RedirectorError
    ) -> None:
        backend.fail(refusal)
        arm, error = self.attempt(backend, history)
        assert (arm.armed, arm.disarmed, error) == (1, 1, refusal)
        assert pending.load(history) is None

    def test_and_not_for_what_others_never_let_happen(self, history: History, backend: MemoryBackend) -> None:
        backend.touch(ATTEMPTS)
        arm, error = self.attempt(backend, history)
        assert (arm.armed, arm.disarmed, type(error)) == (1, 1, TryAgain)

    def test_and_not_for_what_was_put_back(self, history: History) -> None:
        class Unrecorded(MemoryBackend):
            def commit(self, steps: Iterable[Step], expect: int) -> None:
                super().commit(steps, expect)
                (Path(history.folder) / "generations" / "000001.json").mkdir(exist_ok=True)

        arm, error = self.attempt(Unrecorded(), history)
        assert (arm.armed, arm.disarmed, type(error)) == (1, 1, RolledBack)

    def test_but_for_what_nobody_knows(self, history: History) -> None:
        class Silent(MemoryBackend):
            def commit(self, steps: Iterable[Step], expect: int) -> None:
                super().commit(steps, expect)
                if len(self.commits) == 1:
                    self.silent = True
                    raise OutcomeDoubtful

            def observe(self) -> Snapshot:
                if self.silent:
                    raise OSError(5, "no answer")
                return super().observe()

            silent = False

        backend = Silent(compile_ruleset(OLD))
        arm, error = self.attempt(backend, history)
        assert (arm.armed, arm.disarmed, type(error)) == (1, 0, OutcomeUnknown)
        assert pending.load(history)
        backend.silent = False
        with history.locked():
            pending.cancel(backend, history, "anna")
        assert backend.program == compile_ruleset(Ruleset())

    def test_but_for_what_was_committed_and_overwritten(self, history: History) -> None:
        class Overwritten(MemoryBackend):
            def commit(self, steps: Iterable[Step], expect: int) -> None:
                super().commit(steps, expect)
                self.program = Program({}, {})
                self.generation += 1
                if len(self.commits) == ATTEMPTS:
                    raise Overtaken

        arm, error = self.attempt(Overwritten(), history)
        assert (arm.armed, arm.disarmed, type(error)) == (1, 0, OutcomeUnknown)
