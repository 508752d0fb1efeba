"""State cut off after every byte, as a bad disk leaves it after a power cut: every command ends as the README says.

What is on the disk is written and read alike whatever the backend, so one is enough: the quickest.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector import pending
from redirector.history import History
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_nftables, ruleset
from tests.kernel.running import Commands
from tests.waiting import leave_waiting

pytestmark = on_nftables

OLD, NEW = mapping("a", 80, 8080), mapping("a", 80, 8081)
LONG = 3600.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With its state in memory: thousands of commands flush thousands of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Lab(f"{folder}/state") as built:
        yield built


@pytest.fixture
def redirector(lab: Lab) -> Iterator[Commands]:
    with Commands(lab) as made:
        yield made


class State:
    """The files of a state folder, to be put back as they were after each command."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.files = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def put_back(self, damaged: Path, data: bytes) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, content in self.files.items():
            path.write_bytes(data if path == damaged else content)


def test_a_generation(product: Product, redirector: Commands) -> None:
    old, new = product.file(OLD, "old.toml"), product.file(NEW)
    for file in (old, new):
        redirector("apply", file)
    state = State(product.history.folder)
    path = Path(product.history.folder) / "generations" / "000002.json"
    whole = state.files[path]
    for length in range(len(whole) - 1):  # without its line feed it is whole
        state.put_back(path, whole[:length])
        told = json.loads(redirector("history", "--json").output)
        assert [("unreadable" in one, one["generation"]) for one in told] == [(False, 1), (True, 2)], length
        assert redirector("status").code == 4
        assert redirector("confirm").code == 7
        if length % 4:  # to those that write, all unreadable ones are alike
            continue
        assert redirector("rollback", "2").code == 7
        assert redirector("rollback").code == 0  # to the first one, which can be read
        state.put_back(path, whole[:length])
        assert redirector("apply", new).code == 0
        assert product.history.numbers() == [1, 2, 3]
        assert redirector("status").code == 0
    state.put_back(path, whole[:-1])
    assert redirector("status").code == 0


@pytest.mark.parametrize("command", ["status", "apply", "rollback", "confirm", "cancel", "history", "boot"])
def test_the_note(product: Product, redirector: Commands, command: str) -> None:
    """Damaged, it counts as overdue, and whoever comes first takes the change back; history only reads."""
    old, new = product.file(OLD, "old.toml"), product.file(NEW)
    redirector("apply", old)
    leave_waiting(product.backend, product.history, ruleset(NEW), LONG)
    state = State(product.history.folder)
    path = Path(product.history.folder) / pending.NOTE
    whole = state.files[path]
    words = {"apply": ["apply", new], "boot": ["boot", old]}.get(command, [command])
    # Then: its exit code, what the kernel holds afterwards, and the generations.
    code, held, numbers = {
        "status": (0, OLD, [1, 2, 3]),
        "apply": (0, NEW, [1, 2, 3, 4]),
        "rollback": (7, OLD, [1, 2, 3]),  # there is no generation before the first that was confirmed
        "confirm": (7, OLD, [1, 2, 3]),
        "cancel": (0, OLD, [1, 2, 3]),
        "history": (0, None, [1, 2]),
        "boot": (0, OLD, [1, 2, 3]),
    }[command]
    for length in range(len(whole)):
        state.put_back(path, whole[:length])
        assert redirector(*words).code == code, length
        assert product.history.numbers() == numbers, length
        assert os.path.exists(path) == (command == "history")
        if held:
            assert product.backend.observe().program == reached(held), length


def reached(text: str) -> object:
    from redirector.compile import compile_ruleset

    return compile_ruleset(ruleset(text))


@pytest.mark.parametrize("content", [b"", b"1", b"12345", b"12345\n", b"\xff\x1b[31m", b"-1\n", b"9" * 5000])
def test_the_lock(product: Product, redirector: Commands, content: bytes) -> None:
    """What is in it is for people; the lock is another thing."""
    History(product.history.folder).make_folders()
    path = Path(product.history.folder) / "lock"
    path.write_bytes(content)
    assert redirector("apply", product.file(OLD)).code == 0
    path.write_bytes(content)
    assert redirector("status").code == 0
    assert redirector("remove").code == 0
    assert path.read_bytes().strip().isdigit()
