"""A backend without a kernel, for tests, ours and others': what the real ones promise, in a few lines.

It keeps a Program and a generation number, applies steps by `plan.perform`, and can be told to be interfered with:
`touch` is a foreign commit; `fail` makes the next commit raise what it is given, before or after taking effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import count

from redirector.backends.base import Overtaken, Snapshot, Supposed
from redirector.model import Ruleset
from redirector.plan import DeleteTable, Step, perform
from redirector.program import Program

_numbers = count()


class MemoryBackend:
    """Holds `program`; every effective commit moves `generation` by one."""

    name = "memory"

    def __init__(self, program: Program | None = None) -> None:
        self._program = program
        self.generation = 1
        self._name = f"memory/{next(_numbers)}"
        self.commits: list[tuple[Step, ...]] = []
        self.foreign = ""
        self.restarted: list[set[int]] = []
        self._failure: tuple[Exception, bool] | None = None
        self._touches = 0

    @property
    def program(self) -> Program | None:
        """What it holds; to put something else there is a foreign commit."""
        return self._program

    @program.setter
    def program(self, program: Program | None) -> None:
        self._program = program
        self.generation += 1

    def touch(self, times: int = 1) -> None:
        """Somebody else commits before each of the next `times` commits of ours."""
        self._touches = times

    def fail(self, error: Exception, *, after: bool = False) -> None:
        """Let the next commit raise `error`: before it takes effect, or after."""
        self._failure = (error, after)

    def suppose(self, *programs: Supposed) -> None:
        pass

    def observe(self) -> Snapshot:
        return Snapshot(self.program, self.generation, self.foreign)

    def check(self, steps: Iterable[Step]) -> None:
        perform(self.program, steps)

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        if self._touches:
            self._touches -= 1
            self.generation += 1
        if expect != self.generation:
            raise Overtaken
        failure, self._failure = self._failure, None
        if failure and not failure[1]:
            raise failure[0]
        steps = tuple(steps)
        self._program = perform(self.program, steps)
        if DeleteTable() in steps:
            self.foreign = ""
        self.generation += 1
        self.commits.append(steps)
        if failure:
            raise failure[0]

    def genid(self) -> int:
        return self.generation

    def identity(self) -> str:
        return self._name

    def restart_flows(self, ruleset: Ruleset, ports: AbstractSet[int], former: AbstractSet[tuple[str, int]]) -> int:
        self.restarted.append(set(ports))
        return 0

    def close(self) -> None:
        """Nothing to close."""
