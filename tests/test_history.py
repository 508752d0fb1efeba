"""Generations on disk: what is read is what was written, or told as damaged; and which ones are kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redirector.errors import NotFound, Refused
from redirector.history import KEEP, History, Record, Unreadable, _checksum, _encode
from redirector.mappings import digest
from redirector.model import Ruleset
from tests.strategies import mapping, rulesets

WEB = Ruleset((mapping("web", comment="für alle ☃"), mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))))

Save = Callable[..., Record]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


@pytest.fixture
def save(history: History) -> Save:
    """Writes the next generation, with other fields where they are given."""

    def write(**fields: Any) -> Record:
        record = make(history.next_number())._replace(**fields)
        history.prepare(record).keep()
        return record

    return write


def make(number: int, ruleset: Ruleset = WEB) -> Record:
    return Record(number, "apply", "2026-01-31T23:59:59Z", "/etc/m.toml", "anna (sudo)", "boot/1f", "nftables", ruleset)


def file_of(history: History, number: int) -> Path:
    return Path(history.folder) / "generations" / f"{number:06d}.json"


def forge(history: History, number: int, **changed: object) -> None:
    """A file with a checksum that fits, and other contents; None takes a field away."""
    content = json.loads(_encode(make(number))) | changed
    content = {name: value for name, value in content.items() if value is not None and name != "checksum"}
    file_of(history, number).write_text(json.dumps(content | {"checksum": _checksum(content)}))


def test_before_the_first_there_is_nothing(history: History) -> None:
    assert history.numbers() == []
    assert history.current() is None
    assert history.all() == []
    assert history.next_number() == 1
    with pytest.raises(NotFound):
        history.read(1)
    with pytest.raises(NotFound):
        history.previous()
    assert not os.path.exists(history.folder)  # reading makes nothing


def test_what_is_kept_is_read_again(history: History) -> None:
    record = make(1)._replace(confirmed=False, purged=True, action="rollback")
    prepared = history.prepare(record)
    assert history.current() is None
    prepared.keep()
    assert history.current() == record
    assert history.numbers() == [1]
    assert record.digest == digest(WEB)


def test_generations_are_numbered_on(history: History, save: Save) -> None:
    saved = [save() for _ in range(3)]
    assert [record.generation for record in saved] == [1, 2, 3]
    assert history.all() == saved
    assert history.previous() == 2
    file_of(history, 2).unlink()
    assert history.numbers() == [1, 3]
    assert history.previous() == 1
    assert history.next_number() == 4  # a number is never used twice
    with pytest.raises(NotFound, match="there is no generation 2"):
        history.read(2)


def test_numbers_go_on_past_six_digits(history: History, save: Save) -> None:
    save(generation=999_999)
    last = save()
    assert last.generation == 1_000_000
    assert history.current() == last
    assert history.previous() == 999_999


def test_folders_and_files_are_private(history: History, save: Save) -> None:
    save()
    folder = Path(history.folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "generations")] == [0o700, 0o700]
    assert file_of(history, 1).stat().st_mode & 0o777 == 0o600


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rulesets())
def test_any_ruleset_is_read_again(history: History, ruleset: Ruleset) -> None:
    record = make(history.next_number(), ruleset)
    history.prepare(record).keep()
    assert history.current() == record


def test_names_of_any_bytes_are_recorded(history: History, save: Save) -> None:
    """A file's name need not be UTF-8: Python has its bytes as lone surrogates."""
    record = save(origin=os.fsdecode(b"/etc/\xff\n\x1b.toml"), author="\U0001f6f0 \ud800")
    assert history.current() == record


def test_a_file_that_is_cut_off_is_damaged_wherever(history: History, save: Save) -> None:
    save()
    path = file_of(history, 1)
    data = path.read_bytes()
    for length in range(len(data) - 1):  # without the final line feed it is still whole
        path.write_bytes(data[:length])
        found = history.read(1)
        assert isinstance(found, Unreadable), length
        assert found.generation == 1
        assert found.reason


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with one stretch of them replaced by others."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 20)))
    return data[:start] + draw(st.binary(max_size=20)) + data[end:]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled(_encode(make(1))))
def test_damage_is_told_and_never_an_exception_nor_another_record(history: History, data: bytes) -> None:
    history.make_folders()
    file_of(history, 1).write_bytes(data)
    found = history.read(1)
    assert isinstance(found, Unreadable) or found == make(1)
    assert history.current() == found


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"null", b"[]", b"3", b'"x"', b"{}", b'{"checksum": 3}', b"\xff", b"NaN"),
        *(b"[" * 100_000, b"9" * 10_000, b'{"a":' * 50_000, b'{"checksum": "00000000", "generation": 1e999}'),
    ],
    ids=lambda data: data[:12],
)
def test_files_of_anything_else_are_damaged(history: History, data: bytes) -> None:
    history.make_folders()
    file_of(history, 1).write_bytes(data)
    assert isinstance(history.read(1), Unreadable)
    assert isinstance(history.current(), Unreadable)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"format": None},
        {"generation": 2},
        {"generation": None},
        {"generation": "1"},
        {"author": None},
        {"applied_at": 3},
        {"ruleset": None},
        {"ruleset": []},
        {"ruleset": {"version": 2, "mapping": []}},
        {"ruleset": {"version": 1, "mapping": [{"name": "a"}]}},
        {"ruleset": {"version": 1, "mapping": [{"name": "\ud800", "listen": 1, "to": 1}]}},
        {"ruleset": {"version": 1, "mapping": [{"name": "a", "listen": 1, "to": 1}] * 2}},
    ],
)
def test_what_we_could_not_have_written_is_not_believed(history: History, changed: dict[str, object]) -> None:
    history.make_folders()
    forge(history, 1)
    assert history.read(1) == make(1)
    forge(history, 1, **changed)
    found = history.read(1)
    assert isinstance(found, Unreadable)
    assert found.reason.isprintable()


def test_a_generation_under_another_number_is_damaged(history: History, save: Save) -> None:
    save()
    file_of(history, 2).write_bytes(file_of(history, 1).read_bytes())
    assert history.read(2) == Unreadable(2, "its file is damaged (it belongs to another generation)")


def test_a_damaged_generation_still_has_its_number(history: History, save: Save) -> None:
    save()
    file_of(history, 2).write_text("damaged")
    assert isinstance(history.current(), Unreadable)
    assert history.next_number() == 3
    record = save()
    assert history.current() == record
    assert [type(found) for found in history.all()] == [Record, Unreadable, Record]


@pytest.mark.parametrize(
    "name",
    [
        "0000007.json",
        "7.json",
        "x.json",
        "000007.json.1.tmp",
        "\u0660\u0660\u0660\u0660\u0660\u0667.json",
        "-00007.json",
    ],
)
def test_other_files_in_the_folder_are_no_generations(history: History, save: Save, name: str) -> None:
    record = save()
    (Path(history.folder) / "generations" / name).write_bytes(_encode(make(7)))
    assert history.numbers() == [1]
    assert history.current() == record


def test_a_folder_a_fifo_or_a_link_in_place_of_a_generation_is_damage(history: History, save: Save) -> None:
    save()
    file_of(history, 2).mkdir()
    os.mkfifo(file_of(history, 3))
    file_of(history, 4).symlink_to(file_of(history, 1))
    assert [type(found) for found in history.all()] == [Record, Unreadable, Unreadable, Unreadable]


def test_a_file_in_place_of_the_folder_is_refused(history: History) -> None:
    folder = Path(history.folder)
    folder.mkdir(mode=0o700)
    (folder / "generations").write_text("")
    with pytest.raises(Refused, match="is not a folder"):
        history.current()
    with pytest.raises(Refused, match="cannot be written"):
        history.prepare(make(1))


def test_the_last_fifty_are_kept(history: History, save: Save) -> None:
    for _ in range(KEEP + 5):
        save()
    history.prune()
    assert history.numbers() == list(range(6, KEEP + 6))
    history.prune()
    assert len(history.numbers()) == KEEP


def test_the_last_confirmed_generation_is_kept_however_old(history: History, save: Save) -> None:
    save()
    confirmed = save()
    for _ in range(KEEP + 5):
        save(confirmed=False)
    history.prune()
    assert history.numbers() == [2, *range(8, KEEP + 8)]
    assert history.read(2) == confirmed
    # … until there is a younger one.
    save()
    history.prune()
    assert history.numbers() == list(range(9, KEEP + 9))


def test_damaged_generations_do_not_count_as_confirmed(history: History, save: Save) -> None:
    save()
    for _ in range(KEEP):
        file_of(history, save().generation).write_text("damaged")
    history.prune()
    assert history.numbers() == list(range(1, KEEP + 2))


def test_pruning_takes_away_what_the_dead_left_and_stumbles_over_nothing(history: History, save: Save) -> None:
    folder = Path(history.folder) / "generations"
    for _ in range(KEEP + 3):
        save()
    (folder / "000099.json.4711.tmp").write_text("half")
    (folder / "notes.txt").write_text("of the administrator")
    (folder / "odd.tmp").mkdir()
    file_of(history, 1).unlink()
    file_of(history, 1).mkdir()  # cannot be unlinked
    history.prune()
    names = {path.name for path in folder.iterdir()}
    assert "000099.json.4711.tmp" not in names
    assert "notes.txt" in names
    assert history.numbers()[-KEEP:] == list(range(4, KEEP + 4))


def test_a_folder_that_others_may_write_is_refused(history: History, save: Save) -> None:
    save()
    Path(history.folder).chmod(0o777)
    with pytest.raises(Refused, match="can be written by others"):
        history.prepare(make(2))
    with pytest.raises(Refused, match="can be written by others"), history.locked():
        raise AssertionError
    assert history.numbers() == [1]
