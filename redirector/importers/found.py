"""What importers find, before it is mappings: rules in the order in which a packet meets them.

An importer reads one text and gives `Findings`. `order` then settles which rule takes what, and `merge` makes mappings.
"""

from __future__ import annotations

from redirector.model import Ports, Ruleset, Scope
from redirector.records import NamedTuple

EVERY_PORT = (Ports(1, 65535),)
FOREVER = 1 << 62


class Text(NamedTuple):
    """One input: its name for people, its text, and the family that it is for ("" where the text has to tell)."""

    name: str
    text: str
    family: str = ""


class Place(NamedTuple):
    """Where something stood: `line` counts from 1; 0 where there are no lines (a word of the command line)."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}" if self.line else self.text

    def beside(self, other: Place) -> str:
        """In words, for somebody who looks at another place."""
        return str(self) if self.file == other.file else f"{self.file} {self}"


class Leftover(NamedTuple):
    """Something that the mapping file does not say, and why."""

    place: Place
    why: str


class Target(NamedTuple):
    """Where ports go: all to `first` (`shift` False), or each port p to p + `first` (one to one; `first` is then the
    distance, and may be negative). `rewrite` as in a mapping; `address` is that of another machine, "" for this one."""

    rewrite: str
    first: int
    shift: bool = False
    address: str = ""


class Entry(NamedTuple):
    """One rule on one side (ARRIVING or OWN), for one family and protocol: `ports` within `scope` go to `target`.

    `target` None: they go somewhere that a mapping cannot say, and no later rule sees them; that ends before entry
    number `until` (what returns from a chain passes the rest of that chain only). `name` is the comment that the rule
    had, "" without. `transit` tells that it takes connections to other hosts as well. Entries of equal `group` are one
    mapping if they can be.
    """

    place: Place
    side: str
    family: str
    protocol: str
    ports: tuple[Ports, ...]
    target: Target | None
    scope: Scope = Scope()
    name: str = ""
    transit: bool = False
    until: int = FOREVER
    group: tuple[object, ...] = ()


class Findings(NamedTuple):
    """`exclusive` holds the names of mappings whose targets are guarded, each with the family that it is for."""

    entries: list[Entry]
    left: list[Leftover]
    hints: list[str]
    exclusive: set[tuple[str, str]]

    @classmethod
    def none(cls) -> Findings:
        return cls([], [], [], set())

    def add(self, more: Findings) -> None:
        """Take in what was found after this."""
        self.entries.extend(more.entries)
        self.left.extend(more.left)
        self.hints.extend(more.hints)
        self.exclusive.update(more.exclusive)


class Imported(NamedTuple):
    """The outcome: mappings that do the same, what they do not say, and what people should know of them."""

    ruleset: Ruleset
    left: tuple[Leftover, ...]
    hints: tuple[str, ...]


class Beyond(Exception):
    """What a mapping cannot say; the text is the reason."""
