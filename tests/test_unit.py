"""The text of the units: what systemd makes of it, and of paths with whatever characters in them."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from redirector.errors import Refused
from redirector.unit import METRICS, NAME, STAND_IN, WATCH, unit_texts
from redirector.unitfile import quoted
from tests.strategies import quick

PYTHON = "/usr/bin/python3"
FILE = "/etc/redirector/mappings.toml"
UNITS = 4
ODD = '/it\'s a 100% "odd" $HOME; #é\\'

characters = st.sampled_from("\"'\\%$;# @-!+|:{}/") | st.characters(codec="utf-8").filter(str.isprintable)
paths = st.text(characters, max_size=20).map(lambda name: f"/{name}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of the units on the disk; again with another state folder and odd paths, and for iptables-legacy."""
    found = []
    for state, backend in (("", "nftables"), (f"/srv{ODD}", "iptables-nft"), ("", "iptables-legacy")):
        folder = tmp_path_factory.mktemp("units")
        for name, text in unit_texts(PYTHON, FILE if not state else ODD, state, backend, watch=True).items():
            (folder / name).write_text(text)
            found.append(str(folder / name))
    return found


def run(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_exposure_is_2_at_most(written: list[str]) -> None:
    for path in written:
        run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", path)


def test_systemd_finds_nothing_wrong(written: list[str]) -> None:
    for at in range(0, len(written), UNITS):
        assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *written[at : at + UNITS]) == ""


def test_the_one_capability_is_spelt_right(written: list[str]) -> None:
    """Of a misspelt one systemd-analyze verify says nothing."""
    for path in written:
        (found,) = re.findall(r"^\w*Capabilit\w*=(.*)$", Path(path).read_text(), re.MULTILINE)
        assert found == "CAP_NET_ADMIN" + " CAP_NET_RAW" * (path in written[2 * UNITS :])
        told = run("systemd-analyze", "capability", "--no-pager", *found.split())
        assert all(name.lower() in told for name in found.split())


def assignments(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def unquote(line: str, *, variables: bool = False) -> list[str]:
    """The words of a line, as systemd.syntax(7) and systemd.unit(5) have them. `variables`: of a command, where a
    dollar sign in the arguments begins a variable unless it is doubled."""
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at] == " ":
            at += 1
            continue
        word, quote = "", ""
        while at < len(line) and (quote or line[at] != " "):
            if line[at] == "\\":
                at += 1
                word += line[at]
            elif line[at] == quote:
                quote = ""
            elif not quote and line[at] in "\"'":
                quote = line[at]
            else:
                assert quote or line[at] not in ";#" or word, line
                word += line[at]
            at += 1
        assert not quote, line
        assert not re.search(r"(?<!%)(%%)*%(?!%)", word), line
        word = word.replace("%%", "%")
        if variables and words:
            assert "$" not in word.replace("$$", ""), line
            word = word.replace("$$", "$")
        words.append(word)
    return words


@quick
@given(paths, paths, paths)
@example(ODD, ODD, ODD)
@example("/-", "/@x", "/'")
def test_the_paths_that_systemd_reads_are_those_that_were_given(python: str, file: str, state: str) -> None:
    argv = [python, "-I", "-m", "redirector", "--state-dir", state, "boot", file]
    texts = unit_texts(python, file, state, watch=True)
    for name, text in texts.items():
        commands = [*assignments(text, "ExecStart"), *assignments(text, "ExecReload")]
        wanted = [*argv[:-2], "watch", "--metrics", METRICS] if name == WATCH else argv
        assert all(unquote(command, variables=True) == wanted for command in commands if command[:5] != "/bin/")
        (writable,) = assignments(text, "ReadWritePaths")
        assert unquote(writable) == [f"-{state}"]
    assert len(assignments(texts[NAME], "ExecStart")) == 1
    assert assignments(texts[STAND_IN], "ExecStart") == ["/bin/true"]


@given(st.text(st.characters(exclude_categories=()), max_size=20))
@example("/a\nExecStart=/bin/sh")
@example("/a\x1b[2J")
@example("/\udcff")
@example("/a\u2028b")
def test_no_path_can_begin_a_new_line_or_command_a_terminal(path: str) -> None:
    assume(not path.isprintable())
    with pytest.raises(Refused) as refused:
        quoted(path)
    assert refused.value.message.isprintable()


def test_without_a_state_folder_it_is_the_default_one() -> None:
    for text in unit_texts(PYTHON, FILE).values():
        assert assignments(text, "StateDirectory") == ["redirector"]
        assert "--state-dir" not in text
    assert f"ExecStart={PYTHON} -I -m redirector boot {FILE}\n" in unit_texts(PYTHON, FILE)[NAME]
