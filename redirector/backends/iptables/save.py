"""The text that iptables-save writes and iptables-restore reads, taken apart. Pure.

    *nat                                      a table begins
    :PREROUTING ACCEPT [0:0]                  a chain: its policy ("-" for one that is only jumped to), and counters
    [3:180] -A PREROUTING -j REDIRECTOR       a rule; the counters ([packets:bytes]) only where they were asked for
    COMMIT                                    the table ends

Both variants and both families write the same form (seen with iptables 1.8.9). Rules stay text until somebody asks for
their words: there may be tens of thousands, and most are not ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from redirector.errors import printable
from redirector.records import NamedTuple


class Unparsable(ValueError):
    """Text that is not what iptables-save writes: `line` is its number (from 1), `text` what stands there."""

    def __init__(self, line: int, text: str, reason: str) -> None:
        super().__init__(f"line {line}: {reason}: {printable(text[:200])}")
        self.line, self.text, self.reason = line, text, reason


class SavedRule(NamedTuple):
    """One rule: its text after "-A CHAIN ", the line it stands on (from 1), and its counters (0 where not told)."""

    text: str
    line: int
    packets: int = 0
    bytes: int = 0


class SavedTable(NamedTuple):
    """`policies` by chain, "-" for a user's chain, in the order of the text; `rules` by chain."""

    policies: dict[str, str]
    rules: dict[str, list[SavedRule]]


Saved = dict[str, dict[str, SavedTable]]  # tables by name, by family


def parse(lines: Iterable[str]) -> dict[str, SavedTable]:
    """The tables of a text, by name. Raises Unparsable."""
    tables: dict[str, SavedTable] = {}
    table: SavedTable | None = None
    rules: dict[str, list[SavedRule]] = {}
    # How the line begins that is of the chain of the one before and counted nothing, as nearly all of a large table do.
    same = ""
    new = tuple.__new__  # half the price of SavedRule's own
    here: list[SavedRule] | None = None
    number = 0
    for number, raw in enumerate(lines, 1):
        if here is not None and raw.startswith(same):
            here.append(new(SavedRule, (raw[len(same) :].rstrip("\n"), number, 0, 0)))
            continue
        here = None
        line = raw.rstrip("\n")
        first = line[:1]
        if table is not None and first in ("-", "["):
            packets = size = 0
            if first == "[":
                counted, _, line = line.partition("] ")
                packets, size = _counters(counted + "]", number, raw)
            # "-A CHAIN rest"; a rule may be empty.
            chain, _, rest = line[3:].partition(" ")
            if line[:3] != "-A " or chain not in rules:
                raise Unparsable(number, raw.rstrip("\n"), "no rule of a chain that was named before")
            same, here = f"[0:0] -A {chain} ", rules[chain]
            here.append(SavedRule(rest, number, packets, size))
        elif first == ":" and table is not None:
            parts = line[1:].split(" ")
            if len(parts) not in (2, 3):
                raise Unparsable(number, line, "no chain")
            table.policies[parts[0]] = parts[1]
            rules[parts[0]] = []
        elif first == "*" and table is None:
            table = tables.setdefault(line[1:], SavedTable({}, {}))
            rules = table.rules
        elif line == "COMMIT" and table is not None:
            table = None
        elif line.strip() and first != "#":
            raise Unparsable(number, line, "not what iptables-save writes")
    if table is not None:
        raise Unparsable(number, "", "the text ends within a table: COMMIT is missing")
    return tables


def _counters(text: str, number: int, line: str) -> tuple[int, int]:
    packets, colon, size = text[1:-1].partition(":")
    if not (colon and packets.isascii() and packets.isdigit() and size.isascii() and size.isdigit()):
        raise Unparsable(number, line.rstrip("\n"), "no counters")
    return int(packets), int(size)


def words(text: str) -> tuple[str, ...]:
    """The words of a rule. Quoted ones lose their quotes, and the backslashes before what is escaped there.

    Raises ValueError where a quote is not closed. (Not shlex: that keeps a backslash before an apostrophe, which
    iptables-save writes; see xtables_save_string in libxtables/xtables.c.)
    """
    if '"' not in text:
        return tuple(text.split())
    found: list[str] = []
    word: str | None = None
    quoted = escaped = False
    for char in text:
        if escaped:
            word, escaped = (word or "") + char, False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted, word = not quoted, word or ""
        elif char.isspace() and not quoted:
            if word is not None:
                found.append(word)
            word = None
        else:
            word = (word or "") + char
    if quoted or escaped:
        raise ValueError("a quote is not closed")
    if word is not None:
        found.append(word)
    return tuple(found)
