"""Where in a TOML text each key and each value stands: the second pass, made only after something was found wrong.

Theory of operation. tomli tells what a text means but not where. This scanner is its complement: it is given text
that tomli has accepted, so it need not judge anything, only find the boundaries of keys and values. It reads the
text once from left to right and grows a tree of the same shape as tomli's result, whose nodes hold offsets into the
text. Between tokens it skips blanks, line ends, comments and commas alike, wherever they are; that is more than TOML
allows, so it takes TOML 1.1's line ends inside inline tables too.

- An open array or inline table is one entry of an explicit stack, never a Python call: nesting costs no recursion.
- Each character is looked at a bounded number of times, and each pattern is free of backtracking: linear time.
- A scalar in an array is a plain integer (its offset) instead of a node: a long list of ports stays small.
- Only where things start is kept. Their lengths are read again from the text for the few that somebody asks for.

Text that tomli refuses may stop the scan at some point; what was found until then remains. Lines end with a line feed
only: tomli refuses every carriage return that no line feed follows, and the other separators that
`str.splitlines` knows are ordinary characters to TOML.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass

import tomli

Path = tuple[str | int, ...]

_GAP = re.compile(r"(?:[ \t\r\n,]++|#[^\n]*+)*+")
_BLANK = re.compile(r"[ \t]*+")
_EQUALS = re.compile(r"=[ \t]*+")
_WORD = re.compile(r"[A-Za-z0-9_-]++")
# A date may be followed by one space and a time; every other number, date, time or boolean is without a space.
_PLAIN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9A-Za-z:.+-]*+|[0-9A-Za-z_:.+-]++")
# What ends a string, or must be stepped over on the way there. Up to two quotes more than the closing three belong to
# the content of a multi-line string (TOML 1.0, String).
_STRING_STOPS = {
    '"': re.compile(r'\\.|"'),
    "'": re.compile(r"'"),
    '"""': re.compile(r'\\.|"{3,5}'),
    "'''": re.compile(r"'{3,5}"),
}


@dataclass(frozen=True, slots=True)
class Position:
    """A place on one line: `line` and `column` count from 1, `column` and `length` are in characters (code points)."""

    line: int
    column: int
    length: int


class _Node:
    """What stands at one path: the offsets of its key and of its value, and what is inside (None for a scalar)."""

    __slots__ = ("children", "key", "value")

    def __init__(self, key: int, value: int, children: _Table | _Array | None = None) -> None:
        self.key = key
        self.value = value
        self.children = children


_Table = dict[str, _Node]
_Array = list[_Node | int]


class _InvalidText(Exception):
    """The text is not TOML."""


class Positions:
    """The places of all keys and values of a TOML text that tomli accepts.

    A path has a str for each key and an int, from 0, for each array item, like subscripts of tomli's result; it is
    not a subscript of the text. For a path that is not there, the longest part of it that is there answers; for the
    empty path, the start of the text. Nothing here raises.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._root: _Table = {}
        self._line_feeds = array("I", (match.start() for match in re.finditer("\n", text)))
        with suppress(_InvalidText, tomli.TOMLDecodeError):
            self._scan()

    def value(self, path: Path) -> Position:
        """Where a value is: all of a scalar, to the end of its first line; the opening bracket of an inline one.

        A table or array of tables is where its (first) header has its name, dots included. A table that only dotted
        keys or longer headers imply is where the first of them names it.
        """
        node, _ = self._find(path)
        return self._value_position(node) if node else Position(1, 1, 1)

    def key(self, path: Path) -> Position:
        """Where a key is, of a dotted key only its last part; for an array item the same as `value`."""
        node, item = self._find(path)
        if node is None:
            return Position(1, 1, 1)
        return self._value_position(node) if item else self._position(node.key, self._key_end(node.key))

    def _find(self, path: Path) -> tuple[_Node | None, bool]:
        """The node of the longest known part of `path`, and whether it is an array item."""
        found, item = None, False
        inside: _Table | _Array | None = self._root
        for part in path:
            if isinstance(inside, dict) and isinstance(part, str) and part in inside:
                found, item = inside[part], False
            elif isinstance(inside, list) and isinstance(part, int) and 0 <= part < len(inside):
                entry = inside[part]
                found, item = _Node(entry, entry) if isinstance(entry, int) else entry, True
            else:
                break
            inside = found.children
        return found, item

    def _value_position(self, node: _Node) -> Position:
        if node.children is None:
            end = self._scalar_end(node.value)
        elif self._text[node.value] in "[{":
            end = node.value + 1
        else:  # a header's name, which ends with its last part; or the key that implies a table
            end = self._key_end(node.key)
        return self._position(node.value, end)

    def _position(self, start: int, end: int) -> Position:
        feeds = self._line_feeds
        line = bisect_left(feeds, start)
        line_start = feeds[line - 1] + 1 if line else 0
        line_end = feeds[line] if line < len(feeds) else len(self._text)
        if self._text.endswith("\r", start, line_end):
            line_end -= 1
        return Position(line + 1, start - line_start + 1, min(end, line_end) - start)

    def _scan(self) -> None:
        text = self._text
        inside: _Table | _Array = self._root
        enclosing: list[_Table | _Array] = []  # empty: at the level of statements
        at = _end(_GAP, text, 0)
        while at < len(text):
            if enclosing and text[at] in "]}":
                inside = enclosing.pop()
                at += 1
            elif not enclosing and text[at] == "[":
                inside, at = self._header(at)
            else:
                node = None
                if isinstance(inside, dict):
                    node, at = self._pair(inside, at)
                children: _Table | _Array | None = None
                if text.startswith(("[", "{"), at):
                    children, end = [] if text[at] == "[" else {}, at + 1
                else:
                    end = self._scalar_end(at)
                if node:
                    node.value, node.children = at, children
                elif isinstance(inside, list):
                    inside.append(at if children is None else _Node(at, at, children))
                if children is not None:
                    enclosing.append(inside)
                    inside = children
                at = end
            at = _end(_GAP, text, at)

    def _pair(self, table: _Table, at: int) -> tuple[_Node, int]:
        """A new node for the key at this offset, and the offset of the value."""
        table, name, start, at = self._name(table, at)
        if name in table:
            raise _InvalidText
        node = table[name] = _Node(start, start)
        return node, _end(_EQUALS, self._text, at)

    def _header(self, at: int) -> tuple[_Table, int]:
        """The table that the header at this offset opens, and the offset behind the header."""
        brackets = 2 if self._text.startswith("[[", at) else 1
        start = _end(_BLANK, self._text, at + brackets)
        table, name, key, at = self._name(self._root, start)
        opened: _Table = {}
        node = table.get(name)
        if brackets == 2:
            if node is None:
                node = table[name] = _Node(key, start, [])
            if not isinstance(node.children, list):
                raise _InvalidText
            node.children.append(_Node(key, start, opened))
        elif node is None:
            table[name] = _Node(key, start, opened)
        elif isinstance(node.children, dict):  # implied before, by the header of a table inside it
            node.key, node.value, opened = key, start, node.children
        else:
            raise _InvalidText
        return opened, at + brackets

    def _name(self, table: _Table, at: int) -> tuple[_Table, str, int, int]:
        """Follow a dotted key from `table`: the table of its last part, that part, its offset, the offset behind it."""
        text = self._text
        while True:
            start = _end(_BLANK, text, at)
            end = self._key_end(start)
            if text[start] in "\"'":
                name = text[start + 1 : end - 1]
                if text[start] == '"' and "\\" in name:
                    name = tomli.loads(f"x = {text[start:end]}")["x"]  # with tomli's escapes
            else:
                name = text[start:end]
            at = _end(_BLANK, text, end)
            if not text.startswith(".", at):
                return table, name, start, at
            at += 1
            if name not in table:
                table[name] = _Node(start, start, {})
            inner = table[name].children
            if isinstance(inner, list) and inner and isinstance(inner[-1], _Node):
                inner = inner[-1].children  # [[x]] … [x.y]: of the last element
            if not isinstance(inner, dict):
                raise _InvalidText
            table = inner

    def _key_end(self, start: int) -> int:
        return self._string_end(start) if self._text.startswith(('"', "'"), start) else _end(_WORD, self._text, start)

    def _scalar_end(self, start: int) -> int:
        return self._string_end(start) if self._text.startswith(('"', "'"), start) else _end(_PLAIN, self._text, start)

    def _string_end(self, start: int) -> int:
        quote = self._text[start]
        delimiter = quote * 3 if self._text.startswith(quote * 3, start) else quote
        for stop in _STRING_STOPS[delimiter].finditer(self._text, start + len(delimiter)):
            if stop[0][0] == quote:
                return stop.end()
        raise _InvalidText


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    if match is None:
        raise _InvalidText
    return match.end()


def syntax_error_position(error: tomli.TOMLDecodeError, text: str) -> tuple[str, Position]:
    """What tomli found wrong in `text`, and where.

    tomli counts lines and columns from 1, columns in characters, after it has turned CRLF into LF, which moves no
    column. It may point one behind the end of a line, or of the text; further out is brought back to there.
    """
    lines = text.split("\n")
    line = min(error.lineno, len(lines))
    return error.msg, Position(line, min(error.colno, len(lines[line - 1]) + 1), 1)
