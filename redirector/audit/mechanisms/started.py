"""Programs that units start by authbind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from redirector.audit.executables import Executable, chain, find
from redirector.audit.facts import Where
from redirector.audit.tree import Tree
from redirector.records import NamedTuple


class Started(NamedTuple):
    """`by` (a unit) starts `file`, behind scripts and `env` the program that runs in the end, through authbind."""

    file: Executable
    by: str
    where: Where


def started(tree: Tree, by: str, commands: Iterable[tuple[list[str], Where]]) -> Iterator[Started]:
    """What the commands of a unit start through authbind."""
    for words, where in commands:
        program = behind_authbind(words)
        files = chain(tree, find(tree, program)) if program else []
        if files:
            yield Started(files[-1], by, where)


def behind_authbind(words: list[str]) -> str:
    """The program of `authbind [--deep | --depth N] PROGRAM …`; "" where that is not what it is."""
    if not words or os.path.basename(words[0]) != "authbind":
        return ""
    left = words[1:]
    while left and left[0].startswith("--"):
        left = left[2 if left[0] == "--depth" else 1 :]
    return left[0] if left else ""
