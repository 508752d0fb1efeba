"""Names that lead elsewhere from one moment to the next: what is read was judged, and nothing outside is touched.

Each test lets a process swap a name by turns between what is right and what is not, and meets it ATTEMPTS times. Where
the one who swaps could be a stranger, every attempt has to be refused; where only root could be, both outcomes have to
be seen, or there was no race.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from redirector import source, store
from redirector.errors import BadConfiguration, Refused
from redirector.history import History, Record, Unreadable
from redirector.model import Ruleset
from tests.racing import swapped
from tests.strategies import mapping

ATTEMPTS = 1500
PATIENCE = 40  # times as many
STRANGER = 4711
GOOD, EVIL = b"version = 1\n", b"version = 666\n"


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: names, modes, owners, contents, and when each was changed."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_size, content, status.st_ctime_ns)
    return found


def put(path: Path, data: bytes, mode: int = 0o600, uid: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.chown(path, uid, -1)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """safe/m.toml: a file of ours in a folder of ours."""
    return put(tmp_path / "safe" / "m.toml", GOOD)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """open/m.toml: another file of ours, in a folder where everybody may put another one in its place."""
    path = put(tmp_path / "open" / "m.toml", EVIL)
    path.parent.chmod(0o777)
    return path


def outcomes(attempt: Callable[[], object], attempts: int = ATTEMPTS, kinds: int = 1) -> Counter[str]:
    """What became of so many attempts: "done", "unsafe", or the words of another refusal. Of more, up to a bound, until
    there were so many `kinds`: on a busy machine the other process may be at rest for a while."""
    found: Counter[str] = Counter()
    for number in range(PATIENCE * attempts):
        if number >= attempts and len(found) >= kinds:
            break
        try:
            attempt()
        except (BadConfiguration, Refused) as error:
            found["unsafe" if "unsafe" in error.message or "by others" in error.message else error.message] += 1
        else:
            found["done"] += 1
    return found


class TestTheFile:
    def reader(self, path: Path) -> Callable[[], None]:
        def read() -> None:
            (file,) = source.read(str(path), insist=False)
            assert file.data == GOOD

        return read

    @pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["open", "sticky"])
    @pytest.mark.parametrize("part", ["file", "folder"])
    def test_a_link_of_a_stranger(self, tmp_path: Path, good: Path, evil: Path, mode: int, part: str) -> None:
        """It leads to what is right half of the time, and is still not to be relied on."""
        public = tmp_path / "public"
        public.mkdir()
        public.chmod(mode)
        ends = (good, evil) if part == "file" else (good.parent, evil.parent)
        named = public / "link" if part == "file" else public / "link" / "m.toml"
        with swapped(public / "link", *(f"link:{end}" for end in ends), uid=STRANGER):
            assert outcomes(self.reader(named)) == {"unsafe": ATTEMPTS}

    def test_a_folder_that_is_another_one_a_moment_later(self, tmp_path: Path, good: Path, evil: Path) -> None:
        with swapped(tmp_path / "way", f"link:{good.parent}", f"link:{evil.parent}"):
            found = outcomes(self.reader(tmp_path / "way" / "m.toml"), kinds=2)
        assert found.keys() == {"done", "unsafe"}

    def test_a_file_that_is_another_one_a_moment_later(self, tmp_path: Path, good: Path) -> None:
        theirs = put(tmp_path / "theirs.toml", EVIL, 0o644, STRANGER)
        with swapped(tmp_path / "m.toml", f"file:{good}", f"link:{theirs}"):
            found = outcomes(self.reader(tmp_path / "m.toml"), kinds=2)
        assert found.keys() == {"done", "unsafe"}

    def test_a_folder_of_files(self, tmp_path: Path, good: Path, evil: Path) -> None:
        with swapped(tmp_path / "way", f"link:{good.parent}", f"link:{evil.parent}"):
            found = outcomes(self.reader(tmp_path / "way"), kinds=2)
        assert found.keys() == {"done", "unsafe"}


RECORD = Record(1, "apply", "2026-01-01T00:00:00Z", "a", "b", "c/d", "memory", Ruleset((mapping("web", "80", "8080"),)))


def write(folder: Path) -> None:
    """What every change does there."""
    history = History(str(folder))
    with history.locked():
        prepared = history.prepare(RECORD)
        prepared.keep()
        assert history.current() == RECORD


class TestTheState:
    @pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["open", "sticky"])
    @pytest.mark.parametrize("part", ["state", "above"])
    def test_a_link_of_a_stranger(self, tmp_path: Path, mode: int, part: str) -> None:
        """Both ends are folders of ours, which nobody else may write; who may choose between them must not make us
        write into either."""
        public, ours = tmp_path / "public", (tmp_path / "ours", tmp_path / "etc")
        for folder in (public, *ours):
            folder.mkdir(mode=0o700)
        public.chmod(mode)
        before = [tree(folder) for folder in ours]
        state = public / "link" if part == "state" else public / "link" / "state"
        with swapped(public / "link", *(f"link:{folder}" for folder in ours), uid=STRANGER):
            assert outcomes(lambda: write(state)) == {"unsafe": ATTEMPTS}
        assert [tree(folder) for folder in ours] == before

    def test_the_lock(self, tmp_path: Path) -> None:
        state, victim = tmp_path / "state", put(tmp_path / "victim", b"untouched", 0o640)
        lock = put(tmp_path / "lock", b"")
        state.mkdir(mode=0o700)
        before = (victim.read_bytes(), victim.stat().st_mode, victim.stat().st_ctime_ns)

        def hold() -> None:
            with store.locked(str(state)):
                pass

        with swapped(state / "lock", f"file:{lock}", f"link:{victim}"):
            found = outcomes(hold, kinds=2)
        assert (victim.read_bytes(), victim.stat().st_mode, victim.stat().st_ctime_ns) == before
        assert found.pop("done") > 0
        assert found.total() > 0
        assert all("cannot be written (Too many levels of symbolic links)" in words for words in found)

    def test_what_is_written_beside(self, tmp_path: Path) -> None:
        """The temporary name, and the name that counts in the end."""
        victim, state = put(tmp_path / "victim", b"untouched", 0o640), tmp_path / "state"
        before = (victim.read_bytes(), victim.stat().st_mode, victim.stat().st_ctime_ns)
        store.make_private(str(state))
        for name in ("f", f"f.{os.getpid()}.tmp"):
            other = put(tmp_path / "other", b"")

            def keep() -> None:
                try:
                    store.prepare(str(state / "f"), b"new").keep()
                except FileNotFoundError:  # a temporary file that is gone cannot be renamed
                    raise Refused("gone") from None

            with swapped(state / name, f"link:{victim}", f"file:{other}"):
                assert outcomes(keep, 100)["done"] > 0  # each flushes a file
            assert (victim.read_bytes(), victim.stat().st_mode, victim.stat().st_ctime_ns) == before
            for left in state.iterdir():
                left.unlink()

    def test_a_generation(self, tmp_path: Path) -> None:
        """A link in its place is damage, wherever it leads: to a record that could be read, here."""
        history = History(str(tmp_path / "state"))
        other = RECORD._replace(author="somebody else")
        for record in (other, RECORD):
            history.prepare(record).keep()
            (tmp_path / "state" / "generations" / "000001.json").rename(tmp_path / record.author.split(" ")[0])
        found: Counter[bool] = Counter()
        name = tmp_path / "state" / "generations" / "000001.json"
        with swapped(name, f"file:{tmp_path / 'b'}", f"link:{tmp_path / 'somebody'}"):
            for number in range(PATIENCE * ATTEMPTS):
                if number >= ATTEMPTS and len(found) == 2:
                    break
                read = History(history.folder).read(1)  # which remembers nothing
                assert read == RECORD or isinstance(read, Unreadable)
                found[read == RECORD] += 1
        assert found.keys() == {True, False}
