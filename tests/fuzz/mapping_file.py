"""Fuzz target: the mapping file. Whatever the bytes, it is a ruleset, or problems that each have a place in the file.

A case is the files of a folder, or one file, as `source.read` gives them: real ones that were damaged, text made of
TOML's parts and of our keys, long lists and many tables, bytes of no sense, and saved plans, which `apply` takes too.
"""

import json
import random
import re
from pathlib import Path

import tomli

from redirector import mappings, output, renderers, saved
from redirector.backends.nftables.encode import Batch
from redirector.compile import compile_ruleset
from redirector.errors import BadConfiguration, Refused, Usage
from redirector.fields import FIELDS, SETTINGS
from redirector.guards import static_findings
from redirector.mappings import Diagnostic, InvalidFile, from_document, to_document, write
from redirector.model import InvalidModel, Ruleset
from redirector.plan import make_plan, perform
from redirector.source import SourceFile
from redirector.terminal import Paint
from tests.fuzz.engine import Case
from tests.fuzz.mutation import LONGEST, damaged

RULES = Path(__file__).parents[2] / "rules"
COMPILED = 20_000  # elements: what is larger is read and written only

# fmt: off
KEYS = (
    *FIELDS, *SETTINGS, "version", "mapping", "settings", "protcol", "Name", '"name"', "'to'", '"a b"', "a.b",
    "x.y.z", "é", '"\\u0000"', '""', "-", "1",
)
SCALARS = (
    "1", "0", "80", "8080", "65535", "65536", "-1", "+5", "1_000", "0x50", "0o17", "0b11", "1e5", "1.5", "nan",
    "-inf", "99999999999999999999", "0x" + "f" * 4000, "9" * 5000, "true", "false", "True", '""', '"tcp"', '"udp"',
    '"sctp"', '"TCP"', '"1-5"', '"5-1"', '"1-65535"', '"0-0"', '"80"', '"8000 - 8010"', '"10.0.0.0/8"',
    '"10.0.0.1/8"', '"10.0.0.1"', '"0.0.0.0/0"', '"::1"', '"::ffff:1.2.3.4"', '"fd00::/8"', '"fe80::1%eth0"',
    '"::/129"', '"224.0.0.1"', '"eth0"', '"eth*"', '"*"', '"+"', '"a/b"', '"lo"', '"web"', '"a"', '"both"', '"ipv4"',
    '"ipv6"', '"port"', '"redirect"', '"auto"', '"iptables-nft"', '"root"', '"www-data"', '"²"', '"٣"', '"\\u0000"',
    '"\\u001b[31m"', '"\\ud800"', "'''x\ny'''", '"""\n\\\n  x"""', "'\x7f'", '"\U0001f6f0"', '"\u202e"', "1979-05-27",
    "1979-05-27 07:32:00", "1979-13-99", "07:32:00", "07:32:00.999999999", "1979-05-27T00:32:00.999999-07:00", "{}",
    "[]", "[[1]]", "{a = 1}", "{a.b = {c = 1}}", "[{}]", '["tcp", "udp"]', '[80, "90-99"]',
)
GOOD = {
    "name": ("m1", "m2", "x" * 63, "A.b-c_d"), "listen": (80, "80-89", [1, "3-9"], "1-65535"),
    "to": (80, 8080, "90-99"), "protocol": ("udp", ["tcp", "sctp"]), "family": ("both", "ipv4", "ipv6"),
    "address": ("10.0.0.1", ["fd00::1", "10.0.0.2"]), "interface": ("eth0", "br-*", ["lo", "a#b"]),
    "source": ("10.0.0.0/8", ["::/0", "192.0.2.1"]), "local": (True, False), "exclusive": (True, False),
    "rewrite": ("port", "redirect"), "owner": ("root", 0, "a$"), "enabled": (True, False),
    "comment": ("\U0001f6f0 'x' \\ \"y\"", "ünï", "# {} [] ; $(x)"), "backend": ("auto", "nftables"),
    "priority": (-199, 0, 32767),
}
LINES = (
    "[[mapping]]", "[mapping]", "[[mapping.x]]", "[settings]", "[[settings]]", "[mapping.settings]", "version = 1",
    "version = 2", "version = 1.0", "version = true", 'name = "a"', 'name = "b"', "listen = 80", 'listen = "80-89"',
    "to = 8080", 'to = "90-99"', "# comment", "#\t\u2028", "", " \t", "[", "]", "[[", "= 1", "x", "x =", "\ufeff",
    "[a.b.c]", "[[a.b]]", "a.b.c = 1", "\r", "\x00", "\x1b[2J",
)
# fmt: on
MARKS = ('"', "'", '"""', "'''", "\\", "\n", "\r\n", ",", ".", "=", "{", "}", "\\u", "é")
WORDS = (
    *(word.encode("utf-8", "surrogatepass") for word in (*KEYS, *SCALARS, *LINES, *MARKS)),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
)


class MappingFile:
    """See above. Raises InvalidFile and BadConfiguration within `run` only."""

    name = "mapping-file"

    def __init__(self) -> None:
        self.real = [path.read_bytes() for path in sorted(RULES.glob("*.toml"))]
        assert self.real
        document = {"redirector_plan": 1, "identity": "boot/1", "observed": "absent", "origin": "/etc/m.toml"}
        self.plans = [json.dumps(document | {"ruleset": to_document(_read([data]))}).encode() for data in self.real]

    def make(self, dice: random.Random) -> Case:
        files = 1 if dice.random() < 0.9 else dice.randint(2, 3)
        return [(f"{number}.toml", self._file(dice)) for number in range(files)]

    def run(self, case: Case) -> None:
        files = [SourceFile(name, data) for name, data in case]
        if len(files) == 1 and files[0].data[:1] == b"{":
            try:
                check_ruleset(saved.read(files[0]).ruleset)
            except BadConfiguration as error:
                check_words(error.message, error.hint)
        try:
            found = mappings.parse(files)
        except InvalidFile as error:
            check_problems(error, files)
        else:
            check_ruleset(found)

    def _file(self, dice: random.Random) -> bytes:
        chance = dice.random()
        if chance < 0.15:
            return damaged(dice, dice.choice(self.real), WORDS)
        if chance < 0.55:
            return _rewritten(dice, dice.choice(self.real))
        if chance < 0.82:
            return _document(dice)
        if chance < 0.9:
            return damaged(dice, _document(dice), WORDS)
        if chance < 0.94:
            return damaged(dice, dice.choice(self.plans), WORDS)
        if chance < 0.997:
            count = dice.randint(0, 40)
            return b"".join(dice.choice(WORDS) if dice.random() < 0.7 else dice.randbytes(3) for _ in range(count))
        return _large(dice)


def _rewritten(dice: random.Random, data: bytes) -> bytes:
    """A real file with other values, keys, lines: most of what comes of it is TOML still."""
    lines = data.decode().split("\n")
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(lines))
        key, equals, value = lines[at].partition(" = ")
        what = dice.randrange(7)
        if what == 0:
            del lines[at : at + dice.randint(1, 2)]
            lines = lines or [""]
        elif what == 1:
            lines.insert(dice.randrange(len(lines) + 1), lines[at])
        elif what == 2 or not equals:
            lines.insert(at, dice.choice(LINES) if dice.random() < 0.3 else f"{dice.choice(KEYS)} = {_value(dice)}")
        elif what == 3 and key in GOOD:
            lines[at] = f"{key} = {json.dumps(dice.choice(GOOD[key]), ensure_ascii=False)}"
        elif what == 4:
            lines[at] = f"{dice.choice(KEYS)} = {value}"
        else:
            lines[at] = f"{key} = {_value(dice)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _document(dice: random.Random) -> bytes:
    """Lines of our own kind, in no order that makes sense."""
    lines = ["version = 1"] if dice.random() < 0.8 else []
    for _ in range(dice.randint(0, 5)):
        lines.append(dice.choice(LINES[:4]) if dice.random() < 0.2 else "[[mapping]]")
        if dice.random() < 0.8:
            lines += [f'name = "m{dice.randint(0, 5)}"', f"listen = {dice.randint(1, 9)}", f"to = {dice.randint(1, 9)}"]
        good = dice.sample(sorted(GOOD), dice.randint(0, 3))
        lines += [f"{key} = {json.dumps(dice.choice(GOOD[key]), ensure_ascii=False)}" for key in good]
        for _ in range(dice.choice((0, 0, 1, 2, 4))):
            lines.append(f"{dice.choice(KEYS)} = {_value(dice)}" if dice.random() < 0.85 else dice.choice(LINES))
    return dice.choice(("\n", "\n", "\n", "\r\n")).join(lines).encode("utf-8", "surrogatepass")


def _value(dice: random.Random) -> str:
    if dice.random() < 0.7:
        return dice.choice(SCALARS)
    return f"[{', '.join(dice.choice(SCALARS) for _ in range(dice.randint(0, 4)))}]"


ITEMS = {
    "listen": lambda n: str(n % 65535 + 1),
    "address": lambda n: (
        f'"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255 or 1}"' if n % 2 else f'"fd00::{n % 65535 + 1:x}"'
    ),
    "source": lambda n: f'"10.{n >> 8 & 255}.{n & 255}.0/24"' if n % 2 else f'"fd00:{n % 65536:x}::/32"',
    "interface": lambda n: f'"eth{n}"',
    "protocol": lambda n: f'"p{n}"' if n > 2 else ('"tcp"', '"udp"', '"sctp"')[n],
    "comment": lambda n: f'"{n}"',
}


def _large(dice: random.Random) -> bytes:
    """Many tables, or long lists, of the same form: what takes time that grows faster than the file shows then."""
    tables = dice.choice((1, 1, 1, 20, 2000))
    size = LONGEST // 2 // tables
    keys = dice.sample(sorted(ITEMS), dice.randint(1, 4))
    lines = ["version = 1"]
    for table in range(tables):
        same = dice.random() < 0.3
        lines += ["[[mapping]]", f'name = "m{0 if same else table}"', "to = 9"]
        lines += [] if "listen" in keys else ["listen = 80"]
        for key in keys:
            first = 0 if dice.random() < 0.7 else dice.randrange(1000)
            count = max(1, size // len(keys) // 18)
            lines.append(f"{key} = [{', '.join(ITEMS[key](first + n) for n in range(count))}]")
    return "\n".join(lines).encode()


def _read(data: list[bytes]) -> Ruleset:
    return mappings.parse([SourceFile(f"{i}.toml", part) for i, part in enumerate(data)])


def check_problems(error: InvalidFile, files: list[SourceFile]) -> None:
    """Every problem has a place inside its file, in the order of the files, and can be shown on a terminal."""
    names = [file.name for file in files]
    texts = [file.data.decode("utf-8", "replace").split("\n") for file in files]
    assert error.diagnostics
    places = []
    for found in error.diagnostics:
        lines = texts[names.index(found.file)]
        assert 1 <= found.line <= len(lines), found
        assert 1 <= found.column <= len(lines[found.line - 1]) + 1, found
        assert 1 <= found.length <= max(1, len(found.text) - found.column + 1), found
        assert found.text == lines[found.line - 1].rstrip("\r"), found
        _check_place(found)
        places.append((names.index(found.file), found.line, found.column))
    assert places == sorted(places)
    for found in error.diagnostics[:50]:
        _check_shown(found)


def _check_place(found: Diagnostic) -> None:
    """Where the message says what it is about, that is what stands there."""
    there = found.text[found.column - 1 :][: found.length]
    if found.message.endswith("a mapping file is UTF-8 text"):
        assert there == "\ufffd", found
    unknown = re.fullmatch('unknown key "(.{1,50})"', found.message)
    if unknown:
        assert list(tomli.loads(f"{there} = 0")) == [unknown[1]], found


def _check_shown(found: Diagnostic) -> None:
    shown = output.diagnostic_text(found, Paint(enabled=False))
    assert all(c.isprintable() or c == "\n" for c in shown), shown
    json.dumps(output.diagnostic_json(found))


def check_words(*words: str) -> None:
    assert all(c.isprintable() for word in words for c in word), words


def check_ruleset(found: Ruleset) -> None:
    """It can be written and read again, and the kernel's tables can be made of it."""
    assert from_document(to_document(found)) == found
    text = write(found)
    assert _read([text.encode()]) == found, text
    for finding in static_findings(found):
        check_words(finding.mapping, finding.message)
    if sum(mapping.elements for mapping in found.mappings) > COMPILED:
        return
    program = compile_ruleset(found)
    plan = make_plan(program, None)
    assert perform(None, plan.steps) == program
    Batch(plan.steps, 1, 1).committed()
    for kind in renderers.KINDS:
        try:
            renderers.render(kind, found, program)
        except (Refused, Usage) as error:  # Usage: where the options tell no program
            check_words(error.message, error.hint)
        except InvalidModel as error:
            for problem in error.problems:
                check_words(problem.message, problem.hint)
