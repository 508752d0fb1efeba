"""What boot loads, and what it makes of changes that wait, damage, and disks that take nothing; without a kernel."""

import os
from pathlib import Path

import pytest

from redirector import pending
from redirector.backends.memory import MemoryBackend
from redirector.boot import Booted, boot
from redirector.compile import compile_ruleset
from redirector.errors import BadConfiguration, Refused
from redirector.history import History, Record
from redirector.journal import Entry
from redirector.model import Ruleset
from redirector.reconcile import Origin, Wish, change
from tests.strategies import mapping
from tests.waiting import leave_waiting

OLD = Ruleset((mapping("web", "80", "8080"),))
NEW = Ruleset((mapping("web", "80", "8081"),))
FIRST = Ruleset((mapping("first", "81", "8082"),))
FILE = 'version = 1\n[[mapping]]\nname = "first"\nlisten = 81\nto = 8082\n'
LONG = 3600.0


class Machine:
    """One that was set up in an earlier boot; `start` makes it forget what the kernel held."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "mappings.toml"
        self.told: list[Entry] = []
        self.history = History(str(folder / "state"), self.told.append)
        self.backend = MemoryBackend()

    def apply(self, ruleset: Ruleset, *, purge: bool = False) -> None:
        with self.history.locked():
            change(self.backend, self.history, Wish(ruleset, Origin("apply", "a file", "anna"), purge=purge))

    def wait(self, ruleset: Ruleset, *, another_boot: bool = False, seconds: float = LONG) -> None:
        leave_waiting(self.backend, self.history, ruleset, seconds)
        found = pending.read(self.history)
        assert found is not None
        if another_boot:
            pending._write(self.history, found._replace(boot="another boot"))

    def start(self) -> Booted:
        self.backend = MemoryBackend()
        self.told.clear()
        return boot(lambda wanted: self.backend, self.history, str(self.file))

    def holds(self, ruleset: Ruleset) -> bool:
        return self.backend.program == compile_ruleset(ruleset)

    @property
    def current(self) -> Record:
        found = self.history.current()
        assert isinstance(found, Record)
        return found

    def record(self, number: int) -> Path:
        return Path(self.history.folder) / "generations" / f"{number:06d}.json"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.file.write_text(FILE)
    made.file.chmod(0o600)
    return made


class TestFirstBoot:
    def test_the_file_is_applied_and_recorded(self, machine: Machine) -> None:
        booted = machine.start()
        assert machine.holds(FIRST)
        assert (booted.loaded, booted.fault, booted.notes) == (str(machine.file), None, [])
        assert machine.current[:2] == (1, "apply")
        assert machine.current.confirmed
        assert (machine.current.origin, machine.current.author) == (str(machine.file), "boot")

    @pytest.mark.parametrize("damage", ["missing", "broken", "unsafe"])
    def test_without_a_file_nothing_is_loaded(self, machine: Machine, damage: str) -> None:
        if damage == "missing":
            machine.file.unlink()
        elif damage == "broken":
            machine.file.write_text("to = 80 80")
        else:
            machine.file.chmod(0o666)
        with pytest.raises(BadConfiguration):
            machine.start()
        assert machine.backend.program is None
        assert machine.history.numbers() == []


class TestLastConfirmed:
    def test_it_is_loaded_and_not_the_file(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.apply(NEW)
        booted = machine.start()
        assert machine.holds(NEW)
        assert (booted.loaded, booted.fault, booted.notes) == ("generation 2", None, [])
        assert machine.history.numbers() == [1, 2]

    def test_a_second_time_nothing_is_sent(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.start()
        before = list(machine.backend.commits)
        boot(lambda wanted: machine.backend, machine.history, str(machine.file))
        assert machine.backend.commits == before

    @pytest.mark.parametrize("purge", [False, True])
    def test_what_was_removed_stays_removed(self, machine: Machine, purge: bool) -> None:
        machine.apply(OLD)
        machine.apply(Ruleset(), purge=purge)
        assert machine.start().loaded == "generation 2"
        assert machine.backend.program is None
        assert machine.history.numbers() == [1, 2]

    @pytest.mark.parametrize("text", ["to = 80 80", "version = 1\n[[mapping]]\n", "version = 2\n"])
    def test_a_broken_file_is_told_of_afterwards(self, machine: Machine, text: str) -> None:
        machine.apply(OLD)
        machine.file.write_text(text)
        booted = machine.start()
        assert machine.holds(OLD)
        assert booted.fault is not None
        assert [entry.failed for entry in machine.told] == [False, True]
        assert machine.told[-1].summary == booted.fault.message

    def test_so_is_one_that_others_may_write(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.file.chmod(0o666)
        assert machine.start().fault is not None
        assert machine.holds(OLD)

    def test_one_that_is_gone_is_no_fault(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.file.unlink()
        booted = machine.start()
        assert (booted.fault, len(booted.notes)) == (None, 1)
        assert machine.holds(OLD)

    def test_where_the_last_is_damaged_it_is_the_one_before_and_a_fault(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.apply(NEW)
        machine.record(2).write_text("{}")
        booted = machine.start()
        assert machine.holds(OLD)
        assert booted.fault is not None
        assert "generation 2" in booted.fault.message

    def test_where_all_are_damaged_it_is_the_file(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.record(1).write_text("{}")
        assert machine.start().loaded == str(machine.file)
        assert machine.holds(FIRST)
        assert machine.current.generation == 2

    def test_a_table_that_is_not_ours_is_left_alone(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.backend.program, machine.backend.foreign = None, "it has no mark"
        with pytest.raises(Refused):
            boot(lambda wanted: machine.backend, machine.history, str(machine.file))


class TestWhatWaits:
    @pytest.mark.parametrize("another_boot", [False, True])
    def test_overdue_it_is_taken_back_and_that_is_recorded(self, machine: Machine, another_boot: bool) -> None:
        machine.apply(OLD)
        machine.wait(NEW, another_boot=another_boot, seconds=LONG if another_boot else 0.0)
        booted = machine.start()
        assert machine.holds(OLD)
        assert booted.notes == ["generation 2 was not confirmed in time: it is taken back"]
        assert machine.current[:2] == (3, "cancel")
        assert machine.current.confirmed
        assert machine.current.ruleset == OLD
        assert pending.read(machine.history) is None

    def test_of_this_boot_it_is_put_back_and_goes_on_waiting(self, machine: Machine) -> None:
        """As when somebody else flushed the rules, and the unit started again."""
        machine.apply(OLD)
        machine.wait(NEW)
        note = pending.read(machine.history)
        assert machine.start().loaded == "generation 2"
        assert machine.holds(NEW)
        assert pending.read(machine.history) == note
        assert not machine.current.confirmed

    def test_one_that_was_never_recorded_is_not_put_back(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.wait(NEW)
        machine.record(2).unlink()
        assert machine.start().loaded == "generation 1"
        assert machine.holds(OLD)

    def test_the_very_first_change_is_taken_back_to_nothing(self, machine: Machine) -> None:
        machine.wait(NEW, another_boot=True)
        assert machine.start().loaded == "generation 2"
        assert machine.backend.program is None

    def test_a_damaged_note_is_overdue(self, machine: Machine) -> None:
        machine.apply(OLD)
        machine.wait(NEW)
        (Path(machine.history.folder) / pending.NOTE).write_text("{}")
        machine.start()
        assert machine.holds(OLD)

    def test_where_nothing_was_ever_confirmed_and_the_note_is_lost_nothing_is_loaded(self, machine: Machine) -> None:
        machine.wait(NEW)
        (Path(machine.history.folder) / pending.NOTE).unlink()
        with pytest.raises(Refused, match="ever confirmed"):
            machine.start()
        assert machine.backend.program is None


class TestDisksThatTakeNothing:
    """The lock cannot even be opened. Root writes everywhere: a folder in its place is what it fails at."""

    @pytest.fixture
    def stuck(self, machine: Machine) -> Machine:
        machine.apply(OLD)
        return machine

    def block(self, machine: Machine) -> None:
        lock = Path(machine.history.folder) / "lock"
        lock.unlink()
        lock.mkdir()

    def test_the_last_confirmed_generation_is_loaded_all_the_same(self, stuck: Machine) -> None:
        self.block(stuck)
        booted = stuck.start()
        assert stuck.holds(OLD)
        assert len(booted.notes) == 1
        assert "cannot be written" in booted.notes[0]

    def test_also_when_a_change_is_overdue_which_stays_so(self, stuck: Machine) -> None:
        stuck.wait(NEW, another_boot=True)
        self.block(stuck)
        booted = stuck.start()
        assert stuck.holds(OLD)
        assert "could not be recorded yet" in booted.notes[1]
        assert pending.read(stuck.history) is not None

    def test_also_when_only_the_record_cannot_be_written(self, stuck: Machine) -> None:
        stuck.wait(NEW, another_boot=True)
        Path(f"{stuck.record(3)}.{os.getpid()}.tmp").mkdir()  # in place of the temporary file
        booted = stuck.start()
        assert stuck.holds(OLD)
        assert "could not be recorded yet" in booted.notes[0]

    def test_a_state_folder_that_others_may_write_is_not_believed(self, stuck: Machine) -> None:
        Path(stuck.history.folder).chmod(0o770)
        with pytest.raises(Refused, match="can be written by others"):
            stuck.start()
        assert stuck.backend.program is None
