"""Where `watch` learns that something has happened: one file per kind, behind the interface `Source`.

A source has a descriptor that becomes readable, and `drain`, which says what that was. It knows nothing of generations,
and decides nothing. To add a kind: a module with a class like these, and a line in `open_sources`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from redirector.errors import printable
from redirector.records import NamedTuple

# What a source asks for. COMPARE: read everything, whatever is known already.
COMPARE, STOP = "compare", "stop"


class Suspect(NamedTuple):
    """Somebody whose change may concern our redirects: program and process, and the genid that it led to (0: unknown).

    The process id is that of the machine, whatever PID namespace we are in.
    """

    program: str
    pid: int
    genid: int = 0

    def __str__(self) -> str:
        return f"{printable(self.program) or 'somebody'} (pid {self.pid})"


def later(one: int, other: int) -> bool:
    """Whether one genid comes after the other: they have 32 bits, and come again."""
    return 0 < (one - other) % 2**32 < 2**31


class Happening(NamedTuple):
    """What has happened since the last time: how many `events`; the `suspects` among them, oldest first; whether events
    were `lost`, so that anything may have happened; and what is `asked` for ("", COMPARE, STOP)."""

    events: int = 0
    suspects: tuple[Suspect, ...] = ()
    lost: bool = False
    asked: str = ""


class Source(Protocol):
    """One way to learn that something has happened. `patient`: it can wait while the watcher rests."""

    name: str
    patient: bool

    def fileno(self) -> int: ...

    def drain(self) -> Happening:
        """What has happened; returns at once, and the descriptor is then readable only if there is more. Raises
        OSError."""

    def close(self) -> None: ...


def open_sources(backend: Callable[[], str]) -> list[Source]:
    """Every kind, for the network namespace of the caller; `backend` tells which one holds redirects of ours ("" is:
    none). From now on nothing is missed. Raises errors.Unavailable, errors.NotPermitted."""
    from redirector.watch.commits import Commits
    from redirector.watch.signals import Signals

    return [Signals(), Commits(backend)]
