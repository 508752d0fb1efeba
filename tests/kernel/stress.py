"""Many at once: our own writers against each other, and all of them beside somebody else's.

    make stress        25 rounds of 20 parallel applies; 500 applies, and 500 statuses, beside a busy writer; 1,000
                       applies that each change one mapping

The tests in test_concurrency run the same functions with smaller numbers. Each raises AssertionError for what is wrong,
and returns what happened.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

from redirector import mappings, pending
from redirector.backends.base import Overtaken
from redirector.backends.nftables.backend import NftablesBackend
from redirector.compile import compile_ruleset
from redirector.errors import TryAgain
from redirector.history import Record
from redirector.host.privileges import become_user_namespace_root
from redirector.plan import Step
from redirector.program import Program
from tests.kernel.edits import Noting, edits_end_where_a_fresh_apply_does
from tests.kernel.foreign_writer import chains_before_ours, holds, writing
from tests.kernel.lab import HOST_SECONDARY, Lab
from tests.kernel.product import Product, insist, mapping, ruleset

PARALLEL = 20
ROUNDS = 25
BESIDE = 500  # applies, and statuses, beside a busy writer
WHOLE = 25  # of each, by real processes
EDITS = 1000

ONE = mapping("web", 80, 8080) + mapping("dns", 53, 5353, protocol=["tcp", "udp"])
OTHER = mapping("web", 80, 8081) + mapping(
    "dns", 53, 5353, protocol="udp", address=list(HOST_SECONDARY), exclusive=True
)

PAUSE = 0.002  # without any, nobody could read at all
GATE_SECONDS = 3.0  # less than anybody waits for the lock
COMMAND_SECONDS = 60.0


def current(product: Product) -> Record:
    found = product.history.current()
    assert isinstance(found, Record), found
    return found


def parallel(product: Product, rounds: int) -> Counter[str]:
    """`rounds` times PARALLEL real applies of two files at once: always exactly one of the two is in force."""
    programs = {text: compile_ruleset(ruleset(text)) for text in (ONE, OTHER)}
    files = {text: product.file(text, f"{i}.toml") for i, text in enumerate((ONE, OTHER))}
    product.run("apply", files[ONE])
    found: Counter[str] = Counter()
    # With iptables a change is several transactions, and what is between them can be seen.
    one_transaction = product.backend.name == "nftables"
    with _watched(product, list(programs.values())) if one_transaction else nullcontext(lambda: 0) as looks:
        for _ in range(rounds):
            found += _round(product, files)
            now = product.backend.observe().program
            assert now == programs[ONE if current(product).ruleset == mappings.load(files[ONE]) else OTHER]
            assert product.status().state == "in-sync"
            left = [name for _, _, names in os.walk(product.history.folder) for name in names]
            assert not [name for name in left if name.endswith(".tmp") or name == pending.NOTE]
    found["looks in between"] = looks()
    return found


def _round(product: Product, files: dict[str, str]) -> Counter[str]:
    """PARALLEL applies; what each tells must be so."""
    last = current(product).generation
    children = []
    # All of them stand before the lock when it is freed: so they run into each other, however slow the machine is.
    with product.history.locked():
        for number in range(PARALLEL):
            text = (ONE, OTHER)[number % 2]
            argv = product.lab.command("apply", files[text], "--json", *insist())
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            children.append((text, product.lab.host.namespace.popen(argv, env=product.lab.environment(), **streams)))
        await_open([child for _, child in children], os.path.join(product.history.folder, "lock"))
    found: Counter[str] = Counter()
    recorded = {}
    for text, child in children:
        with child:
            told, complaints = child.communicate(timeout=COMMAND_SECONDS)
        assert child.returncode in (0, 75), f"exit {child.returncode}: {told}{complaints}"
        found[f"exit {child.returncode}"] += 1
        if child.returncode == 75:
            assert "has been changing the mappings" in complaints
            continue
        outcome = json.loads(told)
        record = product.history.read(outcome["generation"])
        assert isinstance(record, Record), record
        assert record.ruleset == mappings.load(files[text]), "the generation that it told of is another file's"
        if outcome["recorded"]:
            assert outcome["generation"] not in recorded, "two applies recorded one generation"
            recorded[outcome["generation"]] = text
    # None is missing, none is left over, and two in a row are never the same: that would have been nothing to do.
    numbers = product.history.numbers()
    assert sorted(recorded) == list(range(last + 1, numbers[-1] + 1))
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert all(isinstance(record, Record) for record in product.history.all())
    assert all(recorded[n] != recorded[n + 1] for n in sorted(recorded)[:-1])
    found["generations"] += len(recorded)
    return found


def await_open(children: "list[subprocess.Popen[str]]", path: str) -> None:
    """Return when all of them have a file open, or have ended, or after GATE_SECONDS."""
    deadline = time.monotonic() + GATE_SECONDS
    waiting = list(children)
    while waiting and time.monotonic() < deadline:
        waiting = [child for child in waiting if child.poll() is None and path not in _open_files(child.pid)]


def _open_files(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


@contextlib.contextmanager
def _watched(product: Product, allowed: list[Program]) -> Iterator[Callable[[], int]]:
    """While the block runs, the kernel never holds anything but these. Gives a count of how often that was seen."""
    end = threading.Event()
    looks, wrong = [0], []

    def look() -> None:
        backend = product.lab.host.namespace.call(NftablesBackend)
        with contextlib.closing(backend):
            while not end.wait(0.005):  # the others want to get on, too
                program = backend.observe().program
                if program not in allowed:
                    wrong.append(program)
                    return
                looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield lambda: looks[0]
    finally:
        end.set()
        watcher.join()
    assert wrong == []
    assert looks[0]


class Counting(NftablesBackend):
    """The real backend; `overtaken` is how often somebody else was faster."""

    overtaken = 0
    taken = 0

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        try:
            super().commit(steps, expect)
        except Overtaken:
            self.overtaken += 1
            raise
        self.taken += 1


def beside_a_writer(product: Product, applies: int, whole: int) -> Counter[str]:
    """Applies beside a foreign writer that commits all the time: all of its commits and all of ours are in the end
    there, whoever was faster. `whole` of them are real processes."""
    texts = (ONE, OTHER)
    product.apply(OTHER)
    genid = product.genid()
    found: Counter[str] = Counter()
    backend = product.lab.host.namespace.call(Counting)
    files = [product.file(text, f"{i}.toml") for i, text in enumerate(texts)]
    with contextlib.closing(backend), writing(product.lab, PAUSE) as writer:
        for number in range(applies):
            try:
                product.apply(texts[number % 2], backend=backend)
                wanted = texts[number % 2]
                assert current(product).ruleset == ruleset(wanted)
            except TryAgain:  # bounded, and told so
                found["tried in vain"] += 1
        for number in range(whole):
            before = current(product)
            done = product.lab.redirector("apply", files[number % 2], "--json", *insist())
            assert done.returncode in (0, 75), done.stderr
            found[f"exit {done.returncode}"] += 1
            told = json.loads(done.stdout)
            assert current(product) == before if done.returncode else told["generation"] == current(product).generation
            found["taken from processes"] += bool(not done.returncode and told["changed"])
    found.update({"overtaken": backend.overtaken, "taken": backend.taken, "foreign commits": writer.commits})
    # Every commit moves the genid by one, ours, theirs, and no other: none was lost, and none was made twice.
    moved = found["taken"] + found["taken from processes"] + writer.commits
    assert (product.genid() - genid) % 2**32 == moved
    assert holds(product.lab.host, writer.commits)
    assert product.status().state == "in-sync"
    return found


def statuses(product: Product, count: int, whole: int) -> Counter[str]:
    """Statuses beside a foreign writer: none tells of drift. `whole` of them are real processes."""
    chains = chains_before_ours(product.lab)
    with writing(product.lab, PAUSE, chains):
        pass  # its table is there before ours, and is dumped before it
    product.apply(ONE + mapping("lan", 81, 8081, source=[f"10.{i}.0.0/16" for i in range(16)]))  # a chain for each
    found: Counter[str] = Counter()
    with writing(product.lab, PAUSE, chains) as writer:
        for _ in range(count):
            status = product.status()
            assert (status.state, status.drift) == ("in-sync", ()), status
        for _ in range(whole):
            assert product.json("status")["drift"] == []
    found.update({"statuses": count + whole, "foreign commits": writer.commits})
    return found


def edits(product: Product, count: int) -> Counter[str]:
    """Applies that each change one mapping, planned against what is known of the kernel."""
    with contextlib.closing(product.lab.host.namespace.call(Noting)) as counting:
        edits_end_where_a_fresh_apply_does(product, counting, count)
        return Counter({"applies": count, "readings": counting.readings})


def main() -> None:
    """Everything in full; ends with a traceback where something is wrong."""
    if os.geteuid():
        become_user_namespace_root()
    cases: tuple[tuple[str, Callable[[Product], Counter[str]]], ...] = (
        (f"{ROUNDS} rounds of {PARALLEL} parallel applies", lambda product: parallel(product, ROUNDS)),
        (f"{BESIDE} applies beside a writer", lambda product: beside_a_writer(product, BESIDE - WHOLE, WHOLE)),
        (f"{EDITS} changes of one mapping", lambda product: edits(product, EDITS)),
        (f"{BESIDE} statuses beside a writer", lambda product: statuses(product, BESIDE - WHOLE, WHOLE)),
    )
    for name, run in cases:
        with tempfile.TemporaryDirectory() as folder, Lab(f"{folder}/state") as lab, Product(lab) as product:
            began = time.monotonic()
            figures = ", ".join(f"{what} {count:,}" for what, count in sorted(run(product).items()))
            print(f"{name}: {figures}; {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
