"""What a child process costs, and what a series of such costs comes to.

Theory of operation. A time alone says more about the machine than about the program: so every measurement here is one
of a pair (or a few) of cases that take turns, A B A B …, and what counts is their ratio. A load that comes or goes
meets both. Of each series the least, the median and the greatest are kept: the median is what a user gets, the least
is the cost with the least disturbance, and the distance between them tells how far to trust either.

A child is started, waited for and accounted by wait4(2): wall-clock time from before fork to after exit; CPU time, user
and system; and the peak of its resident memory. The kernel lets a process inherit the peak that its memory had before
exec, which is that of the process that forked it (setmax_mm_hiwater_rss in fs/exec.c): so what is measured here must
be larger than the process that measures, and `Samples.peak` of anything small means nothing. See `own_peak`.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from redirector.host.namespaces import Namespace

# Takes the table away, whether there is one or not: adding one that exists is no error.
Result = TypeVar("Result")
CLEAN = "table inet redirector\ndelete table inet redirector\n"


class Failed(Exception):
    """Something did not run, or did not do what is measured; the text says what."""


class Sample(NamedTuple):
    """The cost of one run: `seconds` of the clock, `cpu` seconds of user and system, `peak` resident memory in bytes
    (0 where it was not measured)."""

    seconds: float
    cpu: float
    peak: int = 0


class Spread(NamedTuple):
    """The least, the median and the greatest of a series."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))


class Samples(NamedTuple):
    """A series of runs of one case."""

    seconds: Spread
    cpu: Spread
    peak: Spread
    runs: int

    @classmethod
    def of(cls, series: Sequence[Sample]) -> Samples:
        seconds, cpu, peak = (Spread.of(values) for values in zip(*series, strict=True))
        return cls(seconds, cpu, peak, len(series))


class Case(NamedTuple):
    """Something to measure: `run` is, `before` each run is not."""

    run: Callable[[], Sample]
    before: Callable[[], object] = lambda: None


def take_turns(cases: dict[str, Case], rounds: int) -> dict[str, Samples]:
    """Each case once per round, in turns; one more round goes before, unmeasured, to fill caches. Raises Failed."""
    series: dict[str, list[Sample]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            case.before()
            sample = case.run()
            if turn:
                series[name].append(sample)
    return {name: Samples.of(found) for name, found in series.items()}


def own_peak() -> int:
    """The peak of this process's resident memory, in bytes: smaller peaks of children cannot be told."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Place:
    """A fresh network namespace to run children in, with files of its own; made by `place`."""

    def __init__(self, namespace: Namespace, folder: str, environ: dict[str, str]) -> None:
        self._namespace = namespace
        self._complaints = os.path.join(folder, "stderr")
        self._environ = environ
        self.state = os.path.join(folder, "state")
        self.folder = folder

    def run(
        self,
        argv: Sequence[str],
        output: str = os.devnull,
        expect: int = 0,
        environ: dict[str, str] | None = None,
    ) -> Sample:
        """Run a command to its end; its output goes to the file `output`, `environ` is put over our environment.

        Raises Failed for another exit status.
        """
        with open(output, "wb") as out, open(self._complaints, "wb") as complaints:
            before = time.perf_counter()
            child = self._namespace.popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=complaints, env=self._environ | (environ or {})
            )
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - before
        child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would want to wait for it
        if child.returncode != expect:
            said = self.complaints().strip().splitlines()[-1:]  # a traceback ends with what matters
            raise Failed(f"{' '.join(argv)}: exit status {child.returncode}, not {expect}: {' '.join(said)}")
        return Sample(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def complaints(self) -> str:
        """What the last command wrote to its standard error."""
        with open(self._complaints, encoding="utf-8", errors="replace") as file:
            return file.read()

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """A child to talk with, line by line; it should end when its standard input does."""
        pipe = subprocess.PIPE
        return self._namespace.popen(argv, stdin=pipe, stdout=pipe, env=self._environ, text=True)

    @contextmanager
    def daemon(self, argv: Sequence[str], environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A process that runs as long as the block; what it says goes to the file `daemon` in our folder."""
        with open(os.path.join(self.folder, "daemon"), "ab") as said:
            child = self._namespace.popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._environ | (environ or {}),
                start_new_session=True,
            )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def said(self) -> str:
        """The last line of what our daemons said."""
        with open(os.path.join(self.folder, "daemon"), encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-1:]).strip()

    def inside(self, function: Callable[[], Result]) -> Result:
        """What a function returns that is called in our network namespace."""
        return self._namespace.call(function)

    def listen(self, port: int) -> socket.socket:
        """Something that listens there, on every address."""
        found = self._namespace.socket(socket.AF_INET6, socket.SOCK_STREAM)
        found.bind(("::", port))
        found.listen()
        return found

    def fingerprint(self) -> tuple[int, int]:
        """(words, hash) of everything that nft lists of our table, in whatever order: a hash map has none.

        It goes line by line, because this process must stay small: see `own_peak`.
        """
        path = os.path.join(self.folder, "listing")
        self.run(["nft", "--stateless", "list", "table", "inet", "redirector"], path)
        with open(path, encoding="utf-8") as file:
            count = total = 0
            for line in file:
                parts = [part for part in map(str.strip, re.split("[,{}]", line)) if part]
                count += len(parts)
                total += sum(map(hash, parts))
        return count, total

    def clean(self) -> None:
        """Take our table away. nft's exit waits until the kernel has freed it (nft_rcv_nl_event frees what is doomed
        when a netlink socket closes), so that no later measurement pays for it."""
        self._namespace.run(["nft", "-f", "-"], input=CLEAN.encode(), env=self._environ, check=True)


@contextmanager
def place(label: str, folder: str, environ: dict[str, str]) -> Iterator[Place]:
    """A Place with a new folder inside `folder`; the namespace ends with the block."""
    inside = os.path.join(folder, label)
    os.mkdir(inside, 0o700)
    with Namespace.create(label) as namespace:
        yield Place(namespace, inside, environ)
