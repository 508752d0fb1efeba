"""A sample of the cases that `make fuzz` tries, and tests of the fuzzing itself: that it finds what is wrong."""

import os
import random
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.__main__ import targets
from tests.fuzz.decoder import Decoder
from tests.fuzz.engine import Case, Target, campaign, load, made, save, tried
from tests.fuzz.mapping_file import MappingFile

SEED = "sample"
SAMPLE = 1_000  # of each target

TARGETS = targets()
each = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@each
def test_a_sample(target: Target) -> None:
    assert campaign([target], SEED, SAMPLE, os.cpu_count() or 1) == []


@each
def test_a_seed_gives_the_same_cases_whatever_came_before(target: Target) -> None:
    (again,) = (found for found in targets() if found.name == target.name)
    cases = [made(target, SEED, number) for number in range(20)]
    assert [made(again, SEED, number) for number in reversed(range(20))] == cases[::-1]
    assert [made(target, "another", number) for number in range(20)] != cases


class Planted:
    """Takes numbers as cases; some of them badly."""

    name = "planted"

    def make(self, dice: random.Random) -> Case:
        return [("n", bytes([dice.randrange(100)]))]

    def run(self, case: Case) -> None:
        number = case[0][1][0]
        assert number != 7, "it was seven"
        if number == 8:
            raise KeyError(number)
        while number == 9:
            pass
        if number == 10:
            os._exit(3)


class Only(Planted):
    """Only one of the cases."""

    def __init__(self, number: int) -> None:
        self._number = number

    def make(self, dice: random.Random) -> Case:
        return [("n", bytes([self._number]))]


def test_what_is_not_documented_is_a_failure() -> None:
    found = campaign([Planted()], "p", 300, 2)
    assert {failure.case[0][1][0] for failure in found} >= {7, 8}
    assert all(failure.case == made(Planted(), "p", failure.number) for failure in found)


@pytest.mark.parametrize(
    ("number", "words"), [(7, "it was seven"), (8, "KeyError"), (9, "no end after 0.2 s of CPU time")]
)
def test_the_failure_says_what_and_where(number: int, words: str) -> None:
    told = tried(Planted(), [("n", bytes([number]))], seconds=0.2)
    assert words in told
    assert __file__ in told
    assert tried(Planted(), [("n", b"\1")], seconds=0.2) == ""


def test_a_process_that_dies_is_told_with_its_case() -> None:
    (found,) = campaign([Only(10)], "p", 5, 1)
    assert (found.number, found.what) == (0, "the process ended with 3")


def test_a_process_that_is_stuck_is_told_with_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the signal is heeded."""
    monkeypatch.setattr(engine, "STUCK_SECONDS", 0.0)
    (found,) = campaign([Only(9)], "p", 5, 1)
    assert (found.number, found.what) == (0, "stuck for 0 s")


def test_a_failing_case_is_written_down_whole(tmp_path: Path) -> None:
    case = [("a\n", b"\0\xff"), ("", b"")]
    path = save(engine.Failure("planted", 3, case, "why"), str(tmp_path))
    assert load(path) == ("planted", case)


class TestTheChecks:
    """What the targets look for, they find."""

    @pytest.mark.parametrize(
        "data",
        [b"", b"version = 1", b"\xff", b"x", b'version = 1\n[[mapping]]\nname = "a"\nlisten = 0\nto = "\x1b"\n', b"{}"],
    )
    def test_files_good_and_bad_are_taken(self, data: bytes) -> None:
        assert tried(MappingFile(), [("m.toml", data)]) == ""

    def test_the_corpus_as_it_was_heard_is_taken(self) -> None:
        decoder = Decoder()
        for scene in decoder.scenes.values():
            assert tried(decoder, [("scene", scene.name.encode()), *scene.heard]) == ""

    def test_silence_is_taken(self) -> None:
        decoder = Decoder()
        for name in decoder.scenes:
            assert tried(decoder, [("scene", name.encode())]) == ""
