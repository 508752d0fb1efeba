"""The engine of an iptables backend alone: a child of bench.py; see engine.py, which is the same for nftables.

    engine_iptables.py FILE BACKEND

The jobs, of which each expects that nothing of ours is there:

    commit   Program → committed: plan against nothing, write the rules, iptables-restore, read everything back; each
             for both families; children's CPU time counts
    write    the part of it that is ours alone: plan, and the text for iptables-restore
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable

from engine import entries

from redirector import mappings
from redirector.backends.iptables import rules
from redirector.backends.iptables.script import script
from redirector.backends.opening import open_backend
from redirector.compile import compile_ruleset
from redirector.model import FAMILIES
from redirector.plan import make_plan


class Engine:
    """Does the jobs; see `timed` for what they return."""

    def __init__(self, file: str, backend: str) -> None:
        self._backend = open_backend(backend)
        self._program = compile_ruleset(mappings.load(file))

    def jobs(self) -> dict[str, Callable[[], dict[str, float]]]:
        return {"commit": self.commit, "write": self.write}

    def commit(self) -> dict[str, float]:
        before = self._backend.observe()

        def work() -> int:
            plan = make_plan(self._program, before.program)
            self._backend.commit(plan.steps, before.genid)
            found = self._backend.observe().program
            return 0 if make_plan(plan.desired, found) else entries(found)

        return timed(work)

    def write(self) -> dict[str, float]:
        def work() -> int:
            plan = make_plan(self._program, None)
            wanted = rules.encoded(plan.desired, FAMILIES)
            texts = [script({}, {"nat": {}, "filter": {}}, wanted[family]) for family in FAMILIES]
            return entries(plan.desired) if all(texts) else 0

        return timed(work)


def timed(work: Callable[[], int]) -> dict[str, float]:
    cpu, clock = _cpu(), time.perf_counter()
    count = work()
    return {"seconds": time.perf_counter() - clock, "cpu": _cpu() - cpu, "entries": count}


def _cpu() -> float:
    """Seconds of CPU of this process and of children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(file: str, backend: str) -> None:
    gc.disable()  # as `redirector` does
    jobs = Engine(file, backend).jobs()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(jobs[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
