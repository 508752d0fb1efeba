"""`redirector watch` on a real kernel: others change the tables, and packets flow again; whole processes.

On the nftables backend, whose table is what is tampered with; what is different with iptables is in `test_iptables`.
"""

import contextlib
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector.watch.commits import Commits
from redirector.watch.sources import Happening
from tests.kernel.lab import PATH, Lab
from tests.kernel.product import Product, mapping
from tests.kernel.watching import OTHER, TABLE, WEB, serve, served, started, watching

pytestmark = pytest.mark.backends("nftables")

LIMIT = 40 * 1024  # KiB

# What is done by nft, and what the line must say of it.
TAMPERED = {
    "element deleted": (f"delete element {TABLE} ports {{ tcp . 80 }}", "missing web: lacks tcp 80 → 8080"),
    "table flushed": (f"flush table {TABLE}", "structure (table): chain prerouting lacks a rule"),
    "ruleset flushed": ("flush ruleset", "the table is gone"),
    "table deleted": (f"delete table {TABLE}", "the table is gone"),
    "rule inserted": (f"insert rule {TABLE} prerouting tcp dport 80 accept", "a rule that is not ours"),
    "priority changed": (
        f"""delete chain {TABLE} prerouting
        add chain {TABLE} prerouting {{ type nat hook prerouting priority -90; }}
        add rule {TABLE} prerouting fib daddr type local jump arriving""",
        "priority -90, not nat at prerouting, priority -110",
    ),
    "element of another target": (
        f'delete element {TABLE} ports {{ tcp . 80 }}; add element {TABLE} ports {{ tcp . 80 comment "web" : 8099 }}',
        "has tcp 80 → 8099; lacks tcp 80 → 8080",
    ),
    "dormant": (f"add table {TABLE} {{ flags dormant; }}", "the table is dormant"),
}


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    """With a server, and a mapping that leads to it."""
    serve(lab)
    with Product(lab) as made:
        made.apply(WEB)
        yield made


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_healed_and_told(lab: Lab, product: Product, what: str) -> None:
    text, words = TAMPERED[what]
    with watching(product) as watch:
        started(watch)
        lab.host.nft(text)
        told = watch.healed()
        assert words in told
        assert re.search(r"; by nft \(pid \d+\); generation 1$", told), told
        assert served(lab)
        assert product.status().state == "in-sync"
        assert watch.end() == []
    assert [record.generation for record in product.history.all()] == [1]


def test_the_culprit_is_whom_the_kernel_names(lab: Lab, product: Product) -> None:
    """As `nft monitor` tells it; and nobody is named for what he did elsewhere."""
    monitor = lab.host.namespace.popen(["nft", "monitor"], stdout=subprocess.PIPE, env={"PATH": PATH}, text=True)
    with monitor, watching(product) as watch:
        try:
            assert monitor.stdout
            started(watch)
            while not select.select([monitor.stdout], [], [], 0)[0]:
                lab.host.nft("add table inet other")
            lab.host.nft("flush ruleset")
            program, number = re.findall(r"by (\S+) \(pid (\d+)\); generation 1$", watch.healed())[0]
            lab.host.nft("add table inet last")
            line = ""
            while "delete table inet redirector" not in line:
                line = monitor.stdout.readline()
            while "new generation" not in line:
                line = monitor.stdout.readline()
            assert re.search(rf"by process {number} \({program}\)", line), line
        finally:
            monitor.kill()


def test_what_others_do_elsewhere_is_none_of_our_business(lab: Lab, product: Product, tmp_path: Path) -> None:
    """It is heard, and nothing is read, not even under the lock; nor for a change of our own."""
    log = tmp_path / "log"
    with watching(product, wrapper=traced(log)) as watch:
        started(watch)
        for number in range(20):
            lab.host.nft(f"add table ip nat; add chain ip nat redirector{number}")  # which iptables' backend heeds
        product.apply(OTHER)
        watch.until_status("generation 2")
        assert watch.end() == ["now: in sync (nftables); generation 2"]
    calls = finished(log)
    looks = [call for call in calls if call.startswith("flock") and call.endswith("= 0")]
    readings = [call for call in calls if "NFT_MSG_GETTABLE" in call]
    assert len(looks) == 2, looks  # the first one, and after the apply
    assert not readings, readings  # in both the proof of an apply holds


def traced(log: Path) -> list[str]:
    """strace(1) as a grandchild: the process itself stays ours. `finished` reads the log."""
    return ["strace", "-D", "-s", "256", "-o", str(log), "-e", "trace=flock,sendto,poll,ppoll"]


def finished(log: Path) -> list[str]:
    """The system calls, once the log is whole."""
    text = ""
    while "+++" not in text:
        text = log.read_text(errors="replace")
    return text.splitlines()


def test_idle(lab: Lab, product: Product, tmp_path: Path) -> None:
    """Nothing wakes it but events: it waits without a timeout, while connections are redirected all the time."""
    log = tmp_path / "log"
    with watching(product, wrapper=traced(log)) as watch:
        started(watch)
        lab.host.nft("flush ruleset")
        watch.healed()
        assert watch.end() == []
    # Its own are of two descriptors; a netlink socket that waits for an answer to a question is alone.
    polls = [re.search(r"\], 2, ([^,)]+)", call) for call in finished(log)]
    timeouts = {found[1] for found in polls if found}
    assert timeouts - {"0", "NULL"} == {"-1"} or timeouts == {"0", "NULL"}, timeouts

    with watching(product) as watch:
        started(watch)
        lab.host.nft("flush ruleset")
        watch.healed()
        watch.asleep()
        before = watch.switches()
        assert all(served(lab) for _ in range(50))
        assert watch.switches() == before
        assert watch.resident() < LIMIT


def test_memory_after_healing_ten_thousand_ports(lab: Lab, product: Product) -> None:
    product.apply(mapping("many", "10000-19999", "20000-29999"))
    with watching(product) as watch:
        started(watch)
        lab.host.nft("flush ruleset")
        assert "lacks tcp 10000-19999 → 20000-29999" in watch.healed()
        assert watch.resident() < LIMIT


def test_events_that_are_lost(lab: Lab, product: Product) -> None:
    """While it does not listen, others commit more than its buffer holds: what follows is not even announced."""
    with watching(product) as watch:
        started(watch)
        watch.asleep()
        watch.send(signal.SIGSTOP)
        elements = ", ".join(map(str, range(200_000)))
        assert len(elements) > 1_000_000
        lab.host.nft(f"add table inet big; add set inet big numbers {{ type mark; elements = {{ {elements} }}; }}")
        lab.host.nft(f"delete element {TABLE} ports {{ tcp . 80 }}")
        watch.send(signal.SIGCONT)
        told = watch.healed()
        assert told == "missing web: lacks tcp 80 → 8080; by somebody (the kernel had to drop events); generation 1"
        assert served(lab)
        lab.host.nft(f"delete element {TABLE} ports {{ tcp . 80 }}")  # and it hears again
        assert "by nft (pid " in watch.healed()
        assert served(lab)


def test_a_drain_after_a_loss_reads_everything(lab: Lab, product: Product) -> None:
    """Or the kernel would go on to drop what is announced, and say no more of it."""
    with contextlib.closing(lab.host.namespace.call(Commits, lambda: "nftables")) as source:
        elements = ", ".join(map(str, range(200_000)))
        lab.host.nft(f"add table inet big; add set inet big numbers {{ type mark; elements = {{ {elements} }}; }}")
        assert source.drain() == Happening(0, (), lost=True)
        lab.host.nft("add table inet other; add chain inet other redirector")
        lab.host.nft(f"delete element {TABLE} ports {{ tcp . 80 }}")
        found = source.drain()
        assert (found.events, found.lost, [each.program for each in found.suspects]) == (2, False, ["nft"])
        assert source.drain() == Happening()


@contextlib.contextmanager
def fighter(lab: Lab) -> Iterator["subprocess.Popen[bytes]"]:
    """Somebody who deletes our table as soon as it is there."""
    argv = [sys.executable, "-m", "tests.kernel.fighter"]
    with lab.host.namespace.popen(argv, env=lab.environment(), stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"fighting\n"
            yield child
        finally:
            child.kill()


def test_somebody_who_fights_back(lab: Lab, product: Product, tmp_path: Path) -> None:
    """Ten healings at once, then one after each rest; when he gives up, the redirects are back for good."""
    metrics = tmp_path / "watch.prom"
    with watching(product, "--metrics", str(metrics)) as watch:
        started(watch)
        with fighter(lab):
            lines = watch.until("looking again in 4 s")
        healings = [line for line in lines if line.startswith("healed")]
        assert len(healings) == 12, lines
        rests = [line for line in lines if not line.startswith("healed")]
        assert [re.sub(r"\d+\)", "N)", line) for line in rests] == [
            f"undone {times} times in a row, at last by python (pid N): healing rests; looking again in {seconds} s"
            for times, seconds in ((10, 1), (11, 2), (12, 4))
        ]
        assert "redirector_watch_resting 1\n" in metrics.read_text()
        assert "the table is gone" in watch.healed()
        assert served(lab)
        watch.until("looking again in 8 s")  # nobody knows yet that he has given up
        assert watch.end() == []
