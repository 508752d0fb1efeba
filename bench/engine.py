"""The engine alone: a child of bench.py that measures inside its own process what it is told to, by lines of input.

    engine.py FILE OTHER

Each line of standard input is a job; each is answered by one line of JSON: seconds of the clock, seconds of CPU, and
how many map entries there were. Start-up, parsing and compiling are done before the first. The jobs:

    commit   Program → committed: plan against nothing, encode, send, wait for the kernel, ask for the proof
    encode   the part of it that is no system call: plan and encode
    observe  read the whole table back, rules, maps, counters and all
    change   plan from what is there (observed before, unmeasured) to the other file's Program, and commit that
    send     the part of it that is the transaction: encode, send, wait for the kernel
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable

from redirector import mappings
from redirector.backends.nftables.backend import NftablesBackend
from redirector.backends.nftables.encode import Batch
from redirector.compile import compile_ruleset
from redirector.plan import make_plan
from redirector.program import PORTS, Program


class Engine:
    """Does the jobs; the methods that do return the number of entries, and `timed` measures them."""

    def __init__(self, file: str, other: str) -> None:
        self._backend = NftablesBackend()
        self._programs = [compile_ruleset(mappings.load(path)) for path in (file, other)]

    def jobs(self) -> dict[str, Callable[[], dict[str, float]]]:
        found = (self.commit, self.encode, self.observe, self.change, self.send)
        return {job.__name__: job for job in found}

    def commit(self) -> dict[str, float]:
        """The table must be absent."""
        return timed(lambda: self._carry_out(self._programs[0], None, self._backend.genid()))

    def encode(self) -> dict[str, float]:
        def work() -> int:
            plan = make_plan(self._programs[0], None)
            Batch(plan.steps, 1, 1).committed()
            return entries(plan.desired)

        return timed(work)

    def observe(self) -> dict[str, float]:
        return timed(lambda: entries(self._backend.observe().program))

    def change(self) -> dict[str, float]:
        """The table must hold one of the two Programs; it then holds the other."""
        before = self._backend.observe()
        self._programs.reverse()
        return timed(lambda: self._carry_out(self._programs[0], before.program, before.genid))

    def send(self) -> dict[str, float]:
        """As `change`."""
        before = self._backend.observe()
        self._programs.reverse()
        plan = make_plan(self._programs[0], before.program)

        def work() -> int:
            self._backend.commit(plan.steps, before.genid)
            return entries(plan.desired)

        return timed(work)

    def _carry_out(self, desired: Program, observed: Program | None, genid: int) -> int:
        plan = make_plan(desired, observed)
        self._backend.commit(plan.steps, genid)
        if self._backend.genid() != genid + 1:
            raise SystemExit("somebody else commits in this namespace")
        return entries(desired)


def entries(program: Program | None) -> int:
    """Ports that are redirected. Each has two elements in the kernel: its target, and its counter."""
    return sum(len(found.entries) for found in program.maps.values() if found.kind == PORTS) if program else 0


def timed(work: Callable[[], int]) -> dict[str, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    count = work()
    return {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu, "entries": count}


def main(file: str, other: str) -> None:
    gc.disable()  # as `redirector` does
    jobs = Engine(file, other).jobs()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(jobs[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
