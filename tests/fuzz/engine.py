"""Fuzzing with seeds: cases that can be made again from a number, each bounded, shared out among processes.

Theory of operation. A `Target` makes a case from a random generator, and runs it. The generator of case N is seeded by
(seed, target, N) alone, so a case is the same whatever was run before it, and by how many processes. What a case may do
is said by `run`: it handles what is documented, and lets everything else out; that is a failure. So is a case that
takes more than SECONDS of CPU time (not of the clock: the machine has other work), or more than MEMORY.

A failing case is written to a file, whole, as JSON: it is replayed from there, without seed or generator.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Array, c_longlong
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol

Case = list[tuple[str, bytes]]  # parts: what each is (the target knows), and its bytes

SECONDS = 10.0  # of CPU time, for one case; the largest take about one
STUCK_SECONDS = 120.0  # of the clock: then not even the signal that ends a case was heeded
MEMORY = 1 << 30  # of address space, for one process
FAILURES = 6  # after so many a process has seen enough: each may have taken SECONDS


class Target(Protocol):
    """`name` has letters and dashes only; `make` uses no chance but `dice`."""

    name: str

    def make(self, dice: random.Random) -> Case: ...

    def run(self, case: Case) -> None:
        """Raises what is not documented, AssertionError for what is wrong otherwise."""


class Failure(NamedTuple):
    """What went wrong, in the words of a traceback; `number` is -1 for a case that was replayed."""

    target: str
    number: int
    case: Case
    what: str


class Hang(BaseException):
    """A case takes too long. No Exception: the program might handle it."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise Hang inside after so many seconds of CPU time. In the main thread only."""

    def end(_number: int, _frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def made(target: Target, seed: str, number: int) -> Case:
    return target.make(random.Random(f"{seed}/{target.name}/{number}"))


def tried(target: Target, case: Case, seconds: float = SECONDS) -> str:
    """What is wrong with how the target takes a case; "" if nothing."""
    try:
        with bounded(seconds):
            target.run(case)
    except Hang as hang:
        place = traceback.extract_tb(hang.__traceback__)[-2]  # the last is the signal's handler
        return f"no end after {seconds:g} s of CPU time, at {place.filename}:{place.lineno}"
    except Exception:  # noqa: BLE001 - whatever is not documented is what is looked for
        return traceback.format_exc()
    return ""


def failures(target: Target, seed: str, numbers: Iterator[int]) -> Iterator[Failure]:
    """The failing ones of these cases."""
    for number in numbers:
        case = made(target, seed, number)
        what = tried(target, case)
        if what:
            yield Failure(target.name, number, case, what)


class _Worker:
    """A process that runs a share of the cases, and tells its failures; `place` is (target's index, number)."""

    def __init__(self, targets: list[Target], seed: str, numbers: range) -> None:
        context = multiprocessing.get_context("fork")  # targets need not be picklable
        self.failures, telling = context.Pipe(duplex=False)
        self.place = context.RawArray("q", 2)
        self.process = context.Process(target=_work, args=(telling, self.place, targets, seed, numbers))
        self.process.start()
        telling.close()
        self._seen = ((-1, -1), time.monotonic())

    def stuck(self) -> bool:
        """Whether it has been at the same place for too long, since somebody asked first."""
        place = (self.place[0], self.place[1])
        if place != self._seen[0]:
            self._seen = (place, time.monotonic())
        return time.monotonic() > self._seen[1] + STUCK_SECONDS


def campaign(targets: list[Target], seed: str, cases: int, jobs: int) -> list[Failure]:
    """The failures among the first `cases` cases of each target, run in `jobs` processes."""
    found: list[Failure] = []
    workers = [_Worker(targets, seed, range(job, cases, jobs)) for job in range(jobs)]
    while workers:
        ready = wait([worker.failures for worker in workers], timeout=1.0)
        for worker in list(workers):
            lost = ""
            if worker.failures in ready:
                try:
                    found.append(worker.failures.recv())
                    continue
                except EOFError:
                    worker.process.join()
                    lost = f"the process ended with {worker.process.exitcode}" if worker.process.exitcode else ""
            elif worker.stuck():
                worker.process.kill()
                worker.process.join()
                lost = f"stuck for {STUCK_SECONDS:.0f} s"
            else:
                continue
            workers.remove(worker)
            if lost:
                target, number = targets[worker.place[0]], worker.place[1]
                found.append(Failure(target.name, number, made(target, seed, number), lost))
    return sorted(found, key=lambda failure: (failure.target, failure.number))


def _work(telling: Connection, place: "Array[c_longlong]", targets: list[Target], seed: str, numbers: range) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seen, parent = 0, os.getppid()
    for index, target in enumerate(targets):

        def announced(index: int = index) -> Iterator[int]:
            for number in numbers:
                if os.getppid() != parent:
                    return  # nobody is there to be told
                place[0], place[1] = index, number
                yield number

        for failure in failures(target, seed, announced()):
            telling.send(failure)
            seen += 1
            if seen == FAILURES:
                return


def save(failure: Failure, folder: str) -> str:
    """Write a failing case down; returns the path."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{failure.target}-{failure.number}.json")
    content = {"target": failure.target, "case": [(label, data.hex()) for label, data in failure.case]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content | {"what": failure.what}, file, indent=1)
    return path


def load(path: str) -> tuple[str, Case]:
    """(target's name, case) of a file that `save` wrote."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    return content["target"], [(label, bytes.fromhex(data)) for label, data in content["case"]]
