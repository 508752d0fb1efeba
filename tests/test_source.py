"""Reading a mapping file: regular files, folders, and whatever else a name may lead to; and who could write it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redirector import source
from redirector.errors import BadConfiguration
from redirector.source import MAX_BYTES, SourceFile, read

STRANGER = 4711  # a user id that is neither root nor, in all likelihood, the caller
as_root = pytest.mark.usefixtures("root")


@pytest.fixture
def root() -> None:
    """Giving files away takes root; the suite runs as root, for it makes namespaces too."""
    assert os.geteuid() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that only we may write, in one that only we may write."""
    tmp_path.chmod(0o755)
    return tmp_path


def put(path: Path, text: str = "version = 1\n", mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(path: Path | str, *, insist: bool = True) -> str:
    with pytest.raises(BadConfiguration) as caught:
        read(str(path), insist=insist)
    return caught.value.message


def test_a_file_is_read_as_it_is(folder: Path) -> None:
    path = folder / "m.toml"
    path.write_bytes(b"\xff\0 anything")
    assert read(str(path)) == [SourceFile(str(path), b"\xff\0 anything")]


def test_the_files_of_a_folder_count_in_the_order_of_their_names(folder: Path) -> None:
    for name in ("b.toml", "a.toml", "10.toml", "9.toml", ".hidden.toml", "c.toml~", "d.tml", "e.toml.bak"):
        put(folder / name, name)
    (folder / "sub").mkdir()
    assert [Path(file.name).name for file in read(str(folder))] == ["10.toml", "9.toml", "a.toml", "b.toml"]
    assert [file.data for file in read(str(folder))] == [b"10.toml", b"9.toml", b"a.toml", b"b.toml"]


def test_a_folder_without_files_is_refused(folder: Path) -> None:
    put(folder / "readme.txt")
    assert "holds no *.toml file" in refusal(folder)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"version = 1\n")))
    assert read("-") == [SourceFile("<stdin>", b"version = 1\n")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"#" * (MAX_BYTES + 1))))
    assert "larger than" in refusal("-")


def test_what_is_not_there(folder: Path) -> None:
    assert "No such file" in refusal(folder / "none.toml")
    assert "Not a directory" in refusal(put(folder / "m.toml") / "x.toml")
    (folder / "loop").symlink_to("loop")
    assert "Too many levels" in refusal(folder / "loop")
    assert "File name too long" in refusal("x" * 5000)
    assert "no file can have that name" in refusal("a\0b")
    (folder / "dangling.toml").symlink_to("nowhere")
    assert "No such file" in refusal(folder)


def test_names_are_made_printable(folder: Path) -> None:
    assert refusal(folder / "\x1b[31m").startswith(f"{folder}/\\x1b[31m: ")
    path = put(folder / "\x1b.toml")
    assert [file.name for file in read(str(path))] == [f"{folder}/\\x1b.toml"]


def test_a_fifo_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "f.toml")
    assert "not a regular file" in refusal(folder / "f.toml")
    assert "f.toml: not a regular file" in refusal(folder)


def test_devices_are_no_files() -> None:
    for device in ("/dev/zero", "/dev/null"):
        assert "not a regular file" in refusal(device)


def test_a_folder_in_place_of_a_file_is_told_by_its_own_name(folder: Path) -> None:
    (folder / "sub.toml").mkdir()
    assert refusal(folder).startswith(f"{folder}/sub.toml: ")


def test_the_size_is_bounded(folder: Path) -> None:
    path = folder / "big.toml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES)
    assert len(read(str(path))[0].data) == MAX_BYTES
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: nothing of it may be read into memory but what proves it too large
    assert "larger than 16 MiB" in refusal(path)


@as_root
def test_a_file_of_our_own_in_a_folder_of_our_own_is_safe(folder: Path) -> None:
    path = put(folder / "m.toml", mode=0o600)
    for mode in (0o600, 0o644, 0o755, 0o664):  # group 0 may write it: that is root's own group
        path.chmod(mode)
        os.chown(path, 0, 0)
        assert len(read(str(path), insist=False)) == 1
    assert len(read(str(folder), insist=False)) == 1


@as_root
@pytest.mark.parametrize(
    ("mode", "uid", "gid", "why"),
    [
        (0o646, 0, 0, "everybody may write it"),
        (0o666, 0, 0, "everybody may write it"),
        (0o664, 0, STRANGER, f"group id {STRANGER} may write it"),
        (0o600, STRANGER, 0, f"it belongs to user id {STRANGER}"),
        (0o400, STRANGER, 0, f"it belongs to user id {STRANGER}"),
        (0o1646, 0, 0, "everybody may write it"),  # the sticky bit means nothing on a file
    ],
)
def test_what_others_may_write_is_refused(folder: Path, mode: int, uid: int, gid: int, why: str) -> None:
    path = put(folder / "m.toml")
    os.chown(path, uid, gid)
    path.chmod(mode)
    assert len(read(str(path))) == 1
    for named in (path, folder):
        assert refusal(named, insist=False) == f"{path}: unsafe: {why}"


@as_root
@pytest.mark.parametrize(
    ("mode", "uid", "gid", "safe"),
    [
        (0o755, 0, 0, True),
        (0o775, 0, 0, True),
        (0o777, 0, 0, False),
        (0o775, 0, STRANGER, False),
        (0o755, STRANGER, 0, False),
        (0o1777, 0, 0, True),  # sticky: nobody else can replace our file there
        (0o1777, STRANGER, 0, False),  # … but the folder's owner can
    ],
)
def test_folders_above_are_judged_as_well(folder: Path, mode: int, uid: int, gid: int, safe: bool) -> None:
    outer = folder / "outer"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    path = put(inner / "m.toml")
    for judged in (outer, inner):
        os.chown(judged, uid, gid)
        judged.chmod(mode)
        for named in (path, inner):
            if safe:
                assert len(read(str(named), insist=False)) == 1
            else:
                assert refusal(named, insist=False).startswith(f"{judged}: unsafe: ")
        os.chown(judged, 0, 0)
        judged.chmod(0o755)


@as_root
def test_the_target_of_a_link_is_what_is_judged(folder: Path) -> None:
    safe, unsafe = folder / "safe", folder / "unsafe"
    safe.mkdir()
    unsafe.mkdir()
    put(unsafe / "m.toml")
    unsafe.chmod(0o777)
    (safe / "link.toml").symlink_to(unsafe / "m.toml")
    assert refusal(safe / "link.toml", insist=False) == f"{unsafe}: unsafe: everybody may write it"
    (folder / "there").symlink_to(unsafe)
    assert refusal(folder / "there", insist=False) == f"{unsafe}: unsafe: everybody may write it"


@as_root
def test_a_link_that_others_may_replace_is_refused(folder: Path) -> None:
    """It leads to a file of ours, today."""
    put(folder / "m.toml")
    unsafe = folder / "unsafe"
    unsafe.mkdir()
    unsafe.chmod(0o777)
    (unsafe / "link.toml").symlink_to(folder / "m.toml")
    assert refusal(unsafe / "link.toml", insist=False) == f"{unsafe}: unsafe: everybody may write it"


def test_a_file_in_tmp_is_safe_though_everybody_may_write_there(tmp_path: Path) -> None:
    """The system's own /tmp, if it is as it should be; pytest's folders in it are 0700."""
    status = os.stat("/tmp")
    assert status.st_mode & 0o1777 == 0o1777
    assert len(read(str(put(tmp_path / "m.toml")), insist=False)) == 1


def test_relative_names_are_judged_by_where_they_lead(folder: Path) -> None:
    put(folder / "m.toml")
    folder.chmod(0o777)
    script = "import sys; from redirector.source import read; read('m.toml', insist=False)"
    root = str(Path(source.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{folder}: unsafe: everybody may write it" in done.stderr
