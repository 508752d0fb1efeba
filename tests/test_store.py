"""Files that are whole or not there, folders that are private, and a lock that dies with the process that holds it."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redirector import store
from redirector.errors import NotPermitted, Refused, TryAgain

CHECKOUT = str(Path(store.__file__).parent.parent)
STRANGER = 4711


def python(script: str, *arguments: str, before: tuple[str, ...] = ()) -> list[str]:
    """The command line of a Python process that knows `redirector`, and nothing else of ours."""
    lines = f"import sys\nsys.path.insert(0, {CHECKOUT!r})\n" + textwrap.dedent(script)
    return [*before, sys.executable, "-I", "-c", lines, *arguments]


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    script = """
        from redirector import store
        with store.locked(sys.argv[1]):
            print("held", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        python(script, str(folder)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
        process.wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait long for a lock that will not be freed."""
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_counts_only_once_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    prepared = store.prepare(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert len(entries(tmp_path)) == 2
    prepared.keep()
    assert path.read_bytes() == b"new"
    assert entries(tmp_path) == ["f"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    prepared = store.prepare(str(tmp_path / "f"), b"new")
    prepared.discard()
    assert entries(tmp_path) == []
    prepared.discard()  # and again does no harm


def test_what_cannot_be_kept_is_told_and_does_not_count(tmp_path: Path) -> None:
    prepared = store.prepare(str(tmp_path / "f"), b"new")
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        prepared.keep()
    prepared.discard()
    assert entries(tmp_path) == ["f"]


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_text("untouched")
    (tmp_path / f"f.{os.getpid()}.tmp").symlink_to(target)
    with pytest.raises(Refused):
        store.prepare(str(tmp_path / "f"), b"new")
    assert target.read_text() == "untouched"


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.make_private(str(tmp_path / "state"))
        store.prepare(str(tmp_path / "state" / "f"), b"").keep()
        with store.locked(str(tmp_path / "state")):
            pass
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state", *(tmp_path / "state").iterdir())}
    assert modes == {"state": 0o700, "f": 0o600, "lock": 0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(Refused, match="can be written by others"):
        store.make_private(str(folder))
    with pytest.raises(Refused, match="can be written by others"), store.locked(str(folder)):
        raise AssertionError
    assert entries(folder) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(Refused, match="can be written by others"):
        store.make_private(str(folder))


def test_a_link_to_a_folder_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "state").symlink_to(open_to_all)
    with pytest.raises(Refused):
        store.make_private(str(tmp_path / "state"))
    open_to_all.chmod(0o700)
    store.make_private(str(tmp_path / "state"))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    for folder in (tmp_path / "state", tmp_path / "state" / "below"):
        with pytest.raises(Refused, match="cannot be written"):
            store.make_private(str(folder))
        with pytest.raises(Refused, match="cannot be written"):
            store.prepare(str(folder / "f"), b"")


def test_the_lock_keeps_another_process_out_and_says_who_holds_it(tmp_path: Path, impatient: None) -> None:
    with (
        holder(tmp_path) as other,
        pytest.raises(TryAgain, match=f"^process {other.pid} has been changing"),
        store.locked(str(tmp_path)),
    ):
        raise AssertionError
    with store.locked(str(tmp_path)):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with store.locked(str(tmp_path)):
            got.set()

    with holder(tmp_path) as other:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.is_set()
        assert other.stdin is not None
        other.stdin.close()
        waiting.join()
    assert got.is_set()


def test_the_lock_dies_with_its_holder(tmp_path: Path, impatient: None) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with store.locked(str(tmp_path)):
            assert other.returncode == -signal.SIGKILL


def test_the_lock_is_freed_by_an_error_inside(tmp_path: Path, impatient: None) -> None:
    with pytest.raises(ZeroDivisionError), store.locked(str(tmp_path)):
        raise ZeroDivisionError
    with store.locked(str(tmp_path)):
        pass


def test_the_lock_is_not_inherited_by_children(tmp_path: Path, impatient: None) -> None:
    with store.locked(str(tmp_path)):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        with store.locked(str(tmp_path)):
            pass
        assert child.stdin is not None
        child.stdin.close()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "lock").symlink_to(victim)
    with pytest.raises(Refused), store.locked(str(folder)):
        raise AssertionError
    assert victim.read_text() == "untouched"


def test_no_room_is_refused_before_anything_counts(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: write(2) fails with EFBIG, as it would with ENOSPC, halfway through."""
    script = """
        import os, resource
        from redirector import store
        from redirector.errors import Refused
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.prepare(sys.argv[1] + "/f", b"x" * 5000)
        except Refused as error:
            print(error.message, os.listdir(sys.argv[1]))
    """
    done = subprocess.run(python(script, str(tmp_path)), capture_output=True, text=True, check=True)
    message = f"the state in {tmp_path} cannot be written ({os.strerror(errno.EFBIG)}); nothing was changed"
    assert done.stdout == f"{message} []\n"


@pytest.mark.parametrize(
    ("option", "number"), [("size=16k", errno.ENOSPC), ("nr_inodes=2", errno.ENOSPC), ("ro", errno.EROFS)]
)
def test_a_full_or_read_only_disk_is_refused(tmp_path: Path, option: str, number: int) -> None:
    """A real one: a small tmpfs in a mount namespace of its own."""
    script = """
        import os, subprocess
        from redirector import store
        from redirector.errors import Refused
        folder, option = sys.argv[1:]
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{option}", "none", folder], check=True)
        if "ro" not in option:
            open(folder + "/there", "wb").close()
        before = os.listdir(folder)
        for attempt in (lambda: store.prepare(folder + "/f", bytes(1 << 20)), store.locked(folder).__enter__):
            try:
                attempt()
            except Refused as error:
                print(error.message)
        assert os.listdir(folder) in (before, before + ["lock"], ["lock"] + before)
    """
    # Of the two, a lock needs an inode, but no room.
    command = python(
        script,
        str(tmp_path),
        option,
        before=("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message = f"the state in {tmp_path} cannot be written ({os.strerror(number)}); nothing was changed"
    assert done.stdout.splitlines() == [message] * (1 if "size" in option else 2)


def test_what_may_not_be_written_is_a_matter_of_permission(tmp_path: Path) -> None:
    script = """
        import os
        from redirector import store
        from redirector.errors import NotPermitted
        os.setgroups([])
        os.setresgid(4711, 4711, 4711)
        os.setresuid(4711, 4711, 4711)
        attempts = store.make_private, lambda f: store.prepare(f + "/f", b""), lambda f: store.locked(f).__enter__()
        for attempt in attempts:
            try:
                attempt(sys.argv[1] + "/state")
            except NotPermitted as error:
                print(error.exit_code)
    """
    done = subprocess.run(python(script, str(tmp_path)), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(NotPermitted.exit_code)] * 3
