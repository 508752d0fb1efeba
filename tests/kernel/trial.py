"""What the fault harnesses have in common (`faults`, `faults_children`): a command run to its end, aimed at again where
the fault missed it, and every fault of every scenario, tried and told."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from redirector import pending
from redirector.errors import RedirectorError
from redirector.host.privileges import become_user_namespace_root
from tests.kernel.lab import Lab
from tests.kernel.product import Product

AIMS = 3

# Exit codes, and what they promise.
UNCHANGED = (1, 7, 64, 69, 75, 77, 78)
PUT_BACK = 5
UNKNOWN = 6

F = TypeVar("F")


class Ended(NamedTuple):
    """How a command ended: `code` as subprocess has it, None where it had to be killed after its time."""

    code: int | None
    told: str


class Titled(Protocol):
    @property
    def title(self) -> str: ...


def run_out(lab: Lab, argv: Sequence[str], seconds: float) -> Ended:
    """Run a command on the host to its end, within bounds."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        # A group of its own, to be killed as a whole: what strace has let go of would run on, unharmed.
        streams = {"stdin": subprocess.DEVNULL, "stdout": told, "stderr": told, "process_group": 0}
        with lab.host.namespace.popen(argv, env=lab.environment(), **streams) as child:
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(child.pid, signal.SIGKILL)
        told.seek(0)
        return Ended(code, told.read())


def aimed(once: Callable[[], tuple[Ended, bool]]) -> tuple[Ended, list[str]]:
    """How the command ended in which a fault happened, and what is wrong with that so far.

    A call is known by its number, and on a busy machine that may shift (a lock is asked for once more): what missed its
    place is tried again, within bounds.
    """
    ended, happened = once()
    for _ in range(AIMS - 1):
        if not happened:
            ended, happened = once()
    return ended, [] if happened else ["the fault did not happen where it was meant to"]


def afterwards(product: Product) -> list[str]:
    """What is wrong after the next `apply`: it is in sync, and nothing is left that another one would stumble over."""
    try:
        state = product.status().state
    except RedirectorError as error:
        state = error.message
    left = [name for _, _, names in os.walk(product.lab.state_dir) for name in names]
    stale = [f"{name} is left" for name in left if name.endswith(".tmp") or name == pending.NOTE]
    return [*([f"and then it is {state}, not in sync"] if state != "in-sync" else []), *stale]


S = TypeVar("S", bound=Titled)


class Rig(Protocol[F]):
    """One scenario, ready to be run again and again."""

    faults: list[F]

    def try_fault(self, fault: F) -> list[str]: ...

    def close(self) -> list[str]: ...


def try_all(build: Callable[[Lab], Rig[F]], kind: Callable[[F], str]) -> tuple[Counter[str], list[str]]:
    """Every fault of a scenario: how many there were of each kind, and what was wrong."""
    with tempfile.TemporaryDirectory() as folder, Lab(os.path.join(folder, "state")) as lab:
        rig = build(lab)
        wrong = [message for fault in rig.faults for message in rig.try_fault(fault)]
        wrong += rig.close()
        return Counter(kind(fault) for fault in rig.faults), wrong


def try_every(scenarios: Sequence[S], build: Callable[[Lab, S], Rig[F]], kind: Callable[[F], str]) -> None:
    """Every fault of every scenario, as the whole of a program; it ends with 1 where something was wrong."""
    if os.geteuid():
        become_user_namespace_root()
    wrong: list[str] = []
    total: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda scenario: try_all(lambda lab: build(lab, scenario), kind), scenarios)
        for scenario, (tried, found) in zip(scenarios, runs, strict=True):
            print(f"{scenario.title}: {_figures(tried)}", *found, sep="\n  ", flush=True)  # noqa: T201
            total += tried
            wrong += found
    print(f"{_figures(total)}; {len(wrong)} wrong")  # noqa: T201
    sys.exit(1 if wrong else 0)


def _figures(tried: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
    return f"{tried.total()} faults ({kinds})"
