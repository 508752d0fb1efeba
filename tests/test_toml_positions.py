"""Positions against what is seen by eye in small texts, and against a writer that notes where it puts everything."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tomli
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from redirector.toml_positions import Path, Position, Positions, syntax_error_position

START = Position(1, 1, 1)


def marked(text: str) -> tuple[str, Position]:
    """A text in which « and » stand around one place, without them; and that place."""
    before, inside, _ = re.split("[«»]", text)
    line_start = before.rfind("\n") + 1
    return text.replace("«", "").replace("»", ""), Position(
        before.count("\n") + 1, len(before) - line_start + 1, len(inside)
    )


VALUES: list[tuple[str, Path]] = [
    ("a = «1»", ("a",)),
    ("a=«1»# no blanks", ("a",)),
    ("# a = 0\n\n \t a\t= \t«-1_000» # a = 2\n", ("a",)),
    ("b = 0x1F\na = «0x1F»\r\nc = 0", ("a",)),
    ("a = «+1.5e-3»\nb = 0", ("a",)),
    ("a = «-inf»", ("a",)),
    ("a = [nan, «true», false]", ("a", 1)),
    ("a = [true,false,«1»]", ("a", 2)),
    ("a = «1979-05-27T07:32:00.5-07:00» # T", ("a",)),
    ("a = [1979-05-27, «1979-05-27 07:32:00Z» , 07:32:00]", ("a", 1)),
    ("a = [«1979-05-27» , 1979-05-27 07:32:00Z]", ("a", 0)),
    ("a = [1979-05-27 07:32:00,«07:32:00.25»]", ("a", 1)),
    ('a = «"x # y"» # "z"', ("a",)),
    (r'a = «"\"]\\"» # "', ("a",)),
    (r"a = «'\'» # '", ("a",)),
    ("a = [«''», '']", ("a", 0)),
    ("a = ['', «\"\"»]", ("a", 1)),
    ('a = «"""x"y""z"""»', ("a",)),
    ('a = «"""x"""""» # ends in two quotes of its own', ("a",)),
    ("a = «''''x'''''»", ("a",)),
    ('a = «"""\\""""»\nb = 0', ("a",)),
    ('a = «"""»\n[b]\r\n"""\nb = 0', ("a",)),
    ("a = «'''x # ''»\r\nb = 0 '''\nb = 0", ("a",)),
    ('a = """\n[b]\r\n\\\n  """\nb = «0»', ("b",)),
    ("a = '''\n\\'''\nb = «0»", ("b",)),
    ('"ä€😀" = "ä€😀"\n b = {"😀" = «"€"»}', ("b", "😀")),
    ("a = «[»1, 2]", ("a",)),
    ("a = [1, «[»2]]", ("a", 1)),
    ("a = [ # [9]\n  1, # ]\n\n  # 8\n «2» ,\n]", ("a", 1)),
    ("a = [\r\n\t1\r\n\t,\r\n\t«'x'»,\r\n]\r\n", ("a", 1)),
    ("a = «{»}", ("a",)),
    ("a = { b = 1, c.d = {e = [«2»]} }", ("a", "c", "d", "e", 0)),
    ("a = {b = [{c = 1}, «{»c = 2}]}", ("a", "b", 1)),
    ("a = [{b = 1}, {b = «2»}]", ("a", 1, "b")),
    ("[«a»]\nb = 1", ("a",)),
    ("[ «a . 'b'» ]\nc = 1", ("a", "b")),
    ("[«a».b]\nc = 1", ("a",)),
    ("[a.b]\nc = 1\n[«a»]\nd = 1", ("a",)),
    ("[a.b]\nc = 1\n[a]\nd = «1»", ("a", "d")),
    ("[[«a»]]\n[[a]]\n[[a]]", ("a",)),
    ("[[a]]\n[[«a»]]\n[[a]]", ("a", 1)),
    ("[[«a.b»]]\n[[a.b]]", ("a", "b")),
    ("[[a]]\n[[a]]\nb = «1»\n[[a]]\nb = 1", ("a", 1, "b")),
    ("[[a]]\n[a.b]\nc = 1\n[[a]]\n[«a.b»]\nc = 2", ("a", 1, "b")),
    ("[[a]]\n[[a.b]]\n[[a]]\n[[a.b]]\n[[a.b]]\nc.d = «2»", ("a", 1, "b", 1, "c", "d")),
    ("«a».b = 1\na.c = 2", ("a",)),
    ("a.b = 1\na . c = «2»", ("a", "c")),
]
KEYS: list[tuple[str, Path]] = [
    ("«a» = 1", ("a",)),
    ("x = 1\n\t«a-_9»=1", ("a-_9",)),
    ("«'a.b'» = 1", ("a.b",)),
    ('«"a\\u002eb\\""» = 1', ('a.b"',)),
    ("«''» = 1", ("",)),
    ("a \t. «b» . c = 1", ("a", "b")),
    ("a.b.«c» = 1", ("a", "b", "c")),
    ("3.«14» = 1", ("3", "14")),
    ("a = {b = 1, c . «d» = 2}", ("a", "c", "d")),
    ("a = [1, «22»]", ("a", 1)),
    ("[a.«b»]", ("a", "b")),
    ("[«a».b]", ("a",)),
    ("[[a.«b»]]\n[[a.b]]", ("a", "b")),
    ("[[a.b]]\n[[«a.b»]]", ("a", "b", 1)),
    ("[[mapping]]\n[[mapping]]\r\nname = 'x'\r\n«listn» = 1", ("mapping", 1, "listn")),
]


@pytest.mark.parametrize(("text", "path"), VALUES)
def test_value(text: str, path: Path) -> None:
    text, place = marked(text)
    tomli.loads(text)
    assert Positions(text).value(path) == place


@pytest.mark.parametrize(("text", "path"), KEYS)
def test_key(text: str, path: Path) -> None:
    text, place = marked(text)
    tomli.loads(text)
    assert Positions(text).key(path) == place


def test_line_ends_inside_inline_tables_as_toml_1_1_allows_them() -> None:
    text, place = marked("a = {\n  b = 1, # }\n  c = {\r\n    d = «2»,\r\n  },\n}\ne = 3\n")
    positions = Positions(text)
    assert positions.value(("a", "c", "d")) == place
    assert positions.key(("e",)) == Position(7, 1, 1)


def test_an_unknown_path_is_answered_by_its_longest_known_part() -> None:
    positions = Positions("version = 1\n[[mapping]]\n  listen = [80, 443]\n")
    listen = ("mapping", 0, "listen")
    assert positions.key((*listen, 2)) == positions.key(listen) == Position(3, 3, 6)
    assert positions.value((*listen, 2)) == positions.value((*listen, "x", 0)) == Position(3, 12, 1)
    assert positions.value((*listen, -1)) == positions.value(listen)
    assert positions.value((*listen, 1, 0, "x")) == Position(3, 17, 3)
    assert positions.value(("mapping", 0, "to")) == positions.key(("mapping", 0)) == Position(2, 3, 7)
    assert positions.value(("mapping", 1, "to")) == positions.value(("mapping",))
    assert positions.value(("version", "x")) == Position(1, 11, 1)
    for path in ((), ("x",), (0,), ("x", "mapping", 0)):
        assert positions.value(path) == positions.key(path) == START
    assert Positions("").value(("a",)) == START


def test_nesting_costs_no_recursion() -> None:
    depth = 20_000
    arrays = Positions("a = " + "[" * depth + "7" + "]" * depth)
    assert arrays.value(("a",) + (0,) * depth) == Position(1, 5 + depth, 1)
    tables = Positions("{a = ".join(["a = "] + [""] * depth) + "7" + "}" * depth)
    assert tables.value(("a",) * (depth + 1)) == Position(1, 5 + 5 * depth, 1)
    dotted = Positions(".".join("a" * depth) + " = 7")
    assert dotted.key(("a",) * depth) == Position(1, 2 * depth - 1, 1)
    headers = Positions("[" + ".".join("a" * depth) + "]\nb = 7")
    assert headers.value((*("a",) * depth, "b")) == Position(2, 5, 1)


@pytest.mark.parametrize(
    "rest",
    [
        "x",
        "x =",
        "x = ?",
        'x = "',
        "x = '''",
        'x = """\\',
        '"\\q" = 1',
        '"',
        "[",
        "[x",
        "a = 2",
        "a.b = 1",
        "[a]\n7",
        "[a.b]",
        "x.y = 1\n[[x]]",
        "x = []\n[x.y]",
    ],
)
def test_text_that_is_not_toml_leaves_what_stands_before(rest: str) -> None:
    with pytest.raises(tomli.TOMLDecodeError):
        tomli.loads(f"a = [1, 22]\n{rest}")
    positions = Positions(f"a = [1, 22]\n{rest}")
    assert positions.value(("a", 1)) == Position(1, 9, 2)
    assert positions.value(("a", 2)) == Position(1, 5, 1)  # nothing was added to it


# The place that tomli reports for each of these, marked.
SYNTAX_ERRORS = [
    ("a = «?»", "Invalid value"),
    ("a = 1\nb = 'ä€😀' «x»\n", "Expected newline or end of document after a statement"),
    ("a = 1\r\n\r\nb = «\r»\n", "Invalid value"),
    ("a = 1\nb =«\n»c = 2", "Invalid value"),
    ("a = [1,\n2,\n«»", None),
    ('a = "x«»', None),
    ('a = "\\«»', None),
    ("«»=", None),
    ("\n  «»= 1", None),
]


@pytest.mark.parametrize(("text", "expected"), SYNTAX_ERRORS)
def test_syntax_error(text: str, expected: str | None) -> None:
    text, place = marked(text)
    with pytest.raises(tomli.TOMLDecodeError) as caught:
        tomli.loads(text)
    message, found = syntax_error_position(caught.value, text)
    assert (found.line, found.column, found.length) == (place.line, place.column, 1)
    assert str(caught.value).startswith(f"{message} (at ")
    assert expected in (None, message)


def test_a_syntax_error_that_quotes_something_like_a_place() -> None:
    text = '["x (at line 7, column 8)"]\n["x (at line 7, column 8)"]'
    with pytest.raises(tomli.TOMLDecodeError) as caught:
        tomli.loads(text)
    message, place = syntax_error_position(caught.value, text)
    assert "(at line 7, column 8)" in message
    assert place.line == 2


def test_a_place_beyond_the_text_is_brought_back() -> None:
    error = tomli.TOMLDecodeError("Invalid value", "a = 1\n\n\nb = 22222222", 17)
    assert (error.lineno, error.colno) == (4, 10)
    assert syntax_error_position(error, "a = 1\nb =") == ("Invalid value", Position(2, 4, 1))


# --- A writer of random documents that notes the place of everything that it writes ---

NAMES = st.text(st.sampled_from("abAB01-_.'\"\\# =[]{},\tä€😀\n\x7f"), max_size=4)
BARE = re.compile(r"[A-Za-z0-9_-]+")
SHORT_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
PLAIN = (
    "0 -0 +99 1_000 0xdead_BEEF 0o17 0b1 1.5 -0.0 6.626e-34 1e+9 inf -inf +inf nan true false 1979-05-27 07:32:00 "
    "00:32:00.999 1979-05-27T07:32:00 1979-05-27t07:32:00.5z 1979-05-27T07:32:00-07:00"
)
SINGLE_LINE = st.sampled_from([*PLAIN.split(), *["1979-05-27 07:32:00", "1979-05-27 07:32:00.5+07:00"] * 4])
BASIC_PARTS = ["a", "]", "}", "#", "'", "=", " ", "ä", "😀", "\\n", '\\"', "\\\\", "\\u00e4", "\\U0001F600", "\t", ","]
LITERAL_PARTS = ["a", "]", "}", "#", '"', "=", " ", "ä", "😀", "\\", "\t", ","]
LINE_ENDS = st.sampled_from(["\n", "\r\n"])


class Writer:
    """Writes one random document. `keys` and `values`: the places noted, by path."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.parts: list[str] = []
        self.line, self.column = 1, 1
        self.keys: dict[Path, Position] = {}
        self.values: dict[Path, Position] = {}
        self.used: dict[Path, set[str]] = {}

    def put(self, text: str) -> Position:
        """Append `text`; where it starts, and how long it is on its first line."""
        place = Position(self.line, self.column, len(re.split("\r?\n", text)[0]))
        self.parts.append(text)
        for character in text:
            self.line, self.column = (self.line + 1, 1) if character == "\n" else (self.line, self.column + 1)
        return place

    def chance(self, *, one_in: int = 2) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def blank(self) -> None:
        self.put(self.draw(st.sampled_from(["", "", "", " ", "\t", "  "])))

    def end_line(self) -> None:
        self.blank()
        if self.chance(one_in=4):
            self.put(self.draw(st.sampled_from(["#", "# a = 1", "#]}", "# \"\"\" '''", "#ä😀,", "# [x]"])))
        self.put(self.draw(LINE_ENDS))

    def gap(self) -> None:
        """What may stand between the items of an array."""
        while self.chance(one_in=4):
            self.end_line()
        self.blank()

    def fresh(self, table: Path) -> str:
        used = self.used.setdefault(table, set())
        name = self.draw(NAMES.filter(lambda name: name not in used))
        used.add(name)
        return name

    def name(self, name: str) -> Position:
        forms = (
            ["basic"]
            + ["bare"] * 3 * bool(BARE.fullmatch(name))
            + ["literal"] * bool(re.fullmatch("[^'\n\x7f]*", name))
        )
        form = self.draw(st.sampled_from(forms))
        if form != "basic":
            return self.put(name if form == "bare" else f"'{name}'")
        letters = [SHORT_ESCAPES[c] if c in SHORT_ESCAPES else f"\\u{ord(c):04X}" if c == "\x7f" else c for c in name]
        letters = [
            f"\\U{ord(c):08x}" if self.chance(one_in=6) else letter for c, letter in zip(name, letters, strict=True)
        ]
        return self.put('"' + "".join(letters) + '"')

    def dotted(self, names: list[str]) -> list[Position]:
        places = []
        for i, name in enumerate(names):
            if i:
                self.blank()
                self.put(".")
                self.blank()
            places.append(self.name(name))
        return places

    def note_implied(self, path: Path, place: Position) -> None:
        self.keys.setdefault(path, place)
        self.values.setdefault(path, place)

    def value(self, path: Path, depth: int) -> None:
        kinds = ["plain", "basic", "literal", "long basic", "long literal"] + ["array", "inline table"] * (depth > 0)
        kind = self.draw(st.sampled_from(kinds))
        if kind == "array":
            place = self.put("[")
            self.items(path, depth - 1)
        elif kind == "inline table":
            place = self.put("{")
            self.inline_pairs(path, depth - 1)
        else:
            place = self.put(self.draw(SINGLE_LINE) if kind == "plain" else self.string(kind))
        self.values[path] = place
        if path and isinstance(path[-1], int):
            self.keys[path] = place

    def string(self, kind: str) -> str:
        basic = kind.endswith("basic")
        quote = '"' if basic else "'"
        parts = list(BASIC_PARTS if basic else LITERAL_PARTS)
        if not kind.startswith("long"):
            return quote + "".join(self.draw(st.lists(st.sampled_from(parts), max_size=4))) + quote
        # One or two quotes are content anywhere, as long as they do not become three; not so behind an opening """.
        parts += ["\n", "\r\n", quote + "x", quote * 2 + "x"] + ["\\\n ", "\\ \r\n\n\t"] * basic
        text = "".join(self.draw(st.lists(st.sampled_from(parts), max_size=5)))
        return quote * 3 + text + self.draw(st.sampled_from(["", "", quote, quote * 2])) + quote * 3

    def items(self, path: Path, depth: int) -> None:
        count = self.draw(st.integers(0, 3))
        self.gap()
        for i in range(count):
            self.value((*path, i), depth)
            self.gap()
            if i < count - 1 or self.chance():
                self.put(",")
                self.gap()
        self.put("]")

    def inline_pairs(self, path: Path, depth: int) -> None:
        implied: list[Path] = [path]
        self.blank()
        for i in range(self.draw(st.integers(0, 3))):
            if i:
                self.put(",")
                self.blank()
            self.pair(path, implied, depth)
            self.blank()
        self.put("}")

    def pair(self, table: Path, implied: list[Path], depth: int) -> None:
        """key = value, at `table` or, by a dotted key, in one of the tables that dotted keys before it implied."""
        base = self.draw(st.sampled_from(implied))
        path = base
        for _ in range(self.draw(st.sampled_from([1, 1, 1, 2, 3]))):
            path = (*path, self.fresh(path))
        places = self.dotted([str(part) for part in path[len(table) :]])
        for length in range(len(table) + 1, len(path)):
            self.note_implied(path[:length], places[length - len(table) - 1])
            if path[:length] not in implied:
                implied.append(path[:length])
        self.keys[path] = places[-1]
        self.blank()
        self.put("=")
        self.blank()
        self.value(path, depth)

    def body(self, table: Path) -> None:
        implied: list[Path] = [table]
        for _ in range(self.draw(st.integers(0, 2))):
            while self.chance(one_in=5):
                self.end_line()
            self.blank()
            self.pair(table, implied, 2)
            self.end_line()

    def header(self, path: Path, brackets: int) -> tuple[Position, Position]:
        """[path] or [[path]]; the places of the whole name and of its last part."""
        self.blank()
        self.put("[" * brackets)
        self.blank()
        numbered = [i for i, part in enumerate(path) if isinstance(part, str)]
        places = self.dotted([str(path[i]) for i in numbered])
        for i, place in zip(numbered[:-1], places, strict=False):
            self.note_implied(path[: i + 1], place)
        first, last = places[0], places[-1]
        self.blank()
        self.put("]" * brackets)
        self.end_line()
        return Position(first.line, first.column, last.column + last.length - first.column), last

    def tables(self, parent: Path, depth: int) -> None:
        """Sections for some tables inside `parent`, each with those inside it."""
        for _ in range(self.draw(st.integers(0, 2 if depth else 0))):
            path = (*parent, self.fresh(parent))
            kind = self.draw(st.sampled_from(["table", "array", "array", "implied"]))
            if kind == "table":
                self.section(path, depth)
            elif kind == "array":
                for i in range(self.draw(st.integers(1, 3))):
                    whole, last = self.header(path, 2)
                    self.keys.setdefault(path, last)
                    self.values.setdefault(path, whole)
                    self.keys[*path, i] = self.values[*path, i] = whole
                    self.body((*path, i))
                    self.tables((*path, i), depth - 1)
            else:  # the table of a table comes first; its own header later, or never
                self.section((*path, self.fresh(path)), depth - 1)
                if self.chance():
                    self.section(path, 0)

    def section(self, path: Path, depth: int) -> None:
        self.values[path], self.keys[path] = self.header(path, 1)
        self.body(path)
        self.tables(path, max(0, depth - 1))

    def document(self) -> str:
        self.body(())
        self.tables((), 3)
        text = "".join(self.parts)
        return text.rstrip(" \t\r\n") if self.chance() else text


def paths_of(data: Any) -> dict[Path, Any]:
    """Every path in what tomli returned, with its value."""
    found: dict[Path, Any] = {}
    open_paths: list[tuple[Path, Any]] = [((), data)]
    while open_paths:
        path, value = open_paths.pop()
        found[path] = value
        if isinstance(value, dict | list):
            steps = value.items() if isinstance(value, dict) else enumerate(value)
            open_paths += [((*path, step), inner) for step, inner in steps]
    return found


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
# A written document is hundreds of draws: to shrink a failing one takes minutes, longer than a test may last. Most are
# small, so the first that fails is shown as it is.
unshrunk = settings(relaxed, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@unshrunk
@given(st.data())
def test_every_place_is_where_the_writer_put_it(data: st.DataObject) -> None:
    writer = Writer(data)
    text = writer.document()
    note(f"{text!r}")
    known = paths_of(tomli.loads(text)).keys() - {()}
    assert known == writer.keys.keys() == writer.values.keys()
    positions = Positions(text)
    assert {path: positions.value(path) for path in known} == writer.values
    assert {path: positions.key(path) for path in known} == writer.keys
    assert all(positions.value((*path, "\0no such key")) == writer.values[path] for path in known)


# fmt: off
FRAGMENTS = st.sampled_from([
    "a", "b", "é", "1", "-", "true", "1979-05-27 07:32:00", ".", "=", " = ", ",", "[", "]", "[[", "]]", "{", "}",
    "#", "\\", '"', "'", '"""', "'''", '"\\u0061"', "\\uD800", " ", "\n", "\r\n", "\r", "\n[a]\n", "\n[[a]]\n",
    "\na = 1\n", "\na.b = ", "\x00", "\x0b", "\u2028", "\ufeff",
])
# fmt: on
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=30).map("".join))
PATHS = st.lists(st.one_of(st.sampled_from("ab"), st.text(max_size=2), st.integers(-1, 2)), max_size=4).map(tuple)


def check_against_the_text(text: str, path: Path) -> None:
    """Nothing raises, and every place is inside the text. What tomli accepts is read again, place by place."""
    positions = Positions(text)
    lines = text.split("\n")
    for place in (positions.value(path), positions.key(path)):
        assert 1 <= place.line <= len(lines)
        assert place.length >= 1
        assert place == START or place.column + place.length - 1 <= len(lines[place.line - 1])
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        _, place = syntax_error_position(error, text)
        assert 1 <= place.line <= len(lines)
        assert 1 <= place.column <= len(lines[place.line - 1]) + 1
        return
    for known, value in paths_of(data).items():
        if not known:
            continue
        if isinstance(known[-1], str):
            place = positions.key(known)
            name = lines[place.line - 1][place.column - 1 :][: place.length]
            assert list(tomli.loads(f"{name} = 0")) == [known[-1]]
        if not isinstance(value, dict | list):
            place = positions.value(known)
            first = lines[place.line - 1][place.column - 1 :][: place.length]
            if not first.startswith(('"""', "'''")):
                assert repr(tomli.loads(f"x = {first}")["x"]) == repr(value)


@relaxed
@given(TEXTS, PATHS)
def test_any_text_and_any_path(text: str, path: Path) -> None:
    check_against_the_text(text, path)


@unshrunk
@given(st.data())
def test_a_document_that_was_cut_or_damaged(data: st.DataObject) -> None:
    writer = Writer(data)
    text = writer.document()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    damaged = text[:start] + data.draw(st.one_of(st.just(""), FRAGMENTS)) + text[end:]
    path = data.draw(st.sampled_from([(), *writer.keys]))
    note(f"{damaged!r}")
    check_against_the_text(damaged, path)
