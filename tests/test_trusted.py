"""Who could change what a unit loads, and what is not there when the machine starts."""

from pathlib import Path

import pytest

from redirector.source import LINKS, steps
from redirector.trusted import VOLATILE, unsafe, volatile


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """real/file, and link → real, as folders of ours."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    return tmp_path


def above(folder: Path) -> list[str]:
    return [str(path) for path in (*reversed(folder.parents), folder)]


def test_every_folder_link_and_file_on_the_way(tree: Path) -> None:
    (tree / "real" / "again").symlink_to(tree / "link" / ".." / "link" / "file")
    found = list(steps(f"{tree}/link/./again/"))
    link, real, file = (str(tree / name) for name in ("link", "real", "real/file"))
    once = [*above(tree), link, real]
    # The second link is absolute, and leads through the first one twice.
    assert found == [*once, f"{real}/again", *once[1:], link, real, file]


def test_of_what_is_missing_the_path_says_the_way(tmp_path: Path) -> None:
    assert list(steps(f"{tmp_path}/a/b/../c")) == [*above(tmp_path), *(str(tmp_path / n) for n in ("a", "a/b", "a/c"))]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert len(list(steps(str(tmp_path / "a")))) == len(above(tmp_path)) + LINKS + 1


def test_nobody_else_may_change_anything_on_the_way(tree: Path) -> None:
    path = str(tree / "link" / "file")
    assert unsafe(path) == ""
    for place, mode in ((tree, 0o757), (tree / "real", 0o703), (tree / "real" / "file", 0o602)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert unsafe(path) == f"{place}: unsafe: everybody may write it"
        place.chmod(before)
    assert unsafe(path) == ""


def test_in_a_sticky_folder_what_is_ours_is_safe_and_what_is_missing_is_not(tree: Path) -> None:
    tree.chmod(0o1777)
    assert unsafe(str(tree / "link" / "file")) == ""
    assert unsafe(str(tree / "missing" / "file")) == f"{tree}: unsafe: everybody may write it"
    tree.chmod(0o755)
    assert unsafe(str(tree / "missing" / "file")) == ""


@pytest.mark.parametrize("folder", VOLATILE)
def test_what_is_emptied_before_the_machine_starts(folder: str) -> None:
    for path in (folder, f"{folder}/", f"{folder}/a/b", f"/etc/../{folder}/a"):
        assert f": {folder} is emptied" in volatile(path)
    for path in (f"{folder}x", f"/etc{folder}", "/"):
        assert volatile(path) == ""


def test_a_link_may_lead_there(tree: Path) -> None:
    real, link = str(tree / "real"), str(tree / "link")
    assert (
        volatile(f"{link}/missing", [real])
        == f"{link}/missing: {real} is emptied, or not there yet, when the machine starts"
    )
    assert volatile(f"{link}/../file", [f"{real}/file", f"{link}/x"]) == ""
