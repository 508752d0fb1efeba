"""`redirector watch` on a real kernel: others change the tables, and packets flow again; whole processes.

On the nftables backend, whose table is what is tampered with; what is different with iptables is in `test_iptables`.
"""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector import pending
from redirector.watch.commits import Commits
from redirector.watch.sources import Happening
from tests.kernel.echo import Answered
from tests.kernel.lab import HOST, PATH, Lab
from tests.kernel.product import Product, mapping
from tests.kernel.watchdogs import watchdogs
from tests.kernel.watching import Watch, watching

pytestmark = pytest.mark.backends("nftables")

WEB = mapping("web", 80, 8080)
OTHER = mapping("web", 80, 8081)
TABLE = "inet redirector"
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
    for address in HOST:
        lab.host.serve("tcp", address, 8080)
        lab.host.serve("tcp", address, 8081)
    with Product(lab) as made:
        made.apply(WEB)
        yield made


def served(lab: Lab, port: int = 8080) -> bool:
    """Whether a client from outside is led there, over IPv4 and IPv6."""
    answers = [lab.client.ask_tcp(address, 80) for address in HOST]
    return all(isinstance(answer, Answered) and answer.port == port for answer in answers)


def started(watch: Watch) -> None:
    assert watch.line().startswith("watching: ")


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
            lab.host.nft(f"add table inet other{number}; add chain inet other{number} redirector")
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


def test_our_own_changes_are_not_fought(lab: Lab, product: Product) -> None:
    with watching(product) as watch:
        started(watch)
        for number in range(10):
            product.apply(mapping("web", 80, (8080, 8081)[number % 2]) + mapping("more", 1000 + number, 8080))
        product.run("rollback")
        product.run("apply", product.file(WEB), "--confirm=1h")
        product.run("cancel")
        product.run("remove")
        product.run("apply", product.file(OTHER))
        product.run("migrate-backend", "iptables-nft")
        product.run("migrate-backend", "nftables")
        watch.until_status("generation 18" if len(product.history.numbers()) == 18 else "never")
        assert served(lab, 8081)
        lines = watch.end()
    assert not [line for line in lines if not line.startswith("now: ")], lines


def test_readiness_watchdog_and_status(lab: Lab, product: Product) -> None:
    with watching(product, env={"WATCHDOG_USEC": "200000"}) as watch:
        assert watch.notified() == {"WATCHDOG": "1"}
        lab.host.nft("flush ruleset")
        watch.until("healed")
        assert watch.notified() == {"WATCHDOG": "1"}
        product.run("remove")
        watch.until_status("drained: no redirects (nftables); generation 2")
        watch.send(signal.SIGTERM)
        while watch.notified() != {"STOPPING": "1"}:
            pass


def test_what_happened_while_it_was_dead(lab: Lab, product: Product) -> None:
    with watching(product) as watch:
        started(watch)
        watch.send(signal.SIGKILL)
        watch.process.wait()
    lab.host.nft("flush ruleset")
    with watching(product) as watch:
        assert "; while nobody watched; generation 1" in watch.healed()
        started(watch)
        assert served(lab)


def test_drained_and_applied_again(lab: Lab, product: Product) -> None:
    product.run("remove", "--purge")
    with watching(product) as watch:
        assert watch.line() == "watching: nothing is applied (nftables); generation 2"
        lab.host.nft("flush ruleset")
        product.run("apply", product.file(OTHER))
        assert watch.line() == "now: in sync (nftables); generation 3"
        product.run("remove")
        assert watch.line() == "now: drained: no redirects (nftables); generation 4"
        lab.host.nft("flush ruleset")
        product.run("apply", product.file(WEB))
        assert watch.line() == "now: in sync (nftables); generation 5"
        lab.host.nft("flush ruleset")
        watch.healed()
        assert served(lab)


def test_nothing_was_ever_applied(lab: Lab) -> None:
    with Product(lab) as product, watching(product) as watch:
        assert watch.line() == "watching: nothing is applied"
        lab.host.nft("add table inet other")
        product.run("apply", product.file(WEB))
        assert watch.line() == "now: in sync (nftables); generation 1"


def test_a_change_that_waits(lab: Lab, product: Product) -> None:
    """It is what is in force as long as it waits; and when its watchdog is dead, it is taken back all the same."""
    with watching(product) as watch:
        started(watch)
        product.run("apply", product.file(OTHER), "--confirm=1h")
        assert watch.line() == "now: waits for confirm (nftables); generation 2"
        lab.host.nft("flush ruleset")
        watch.healed()
        assert served(lab, 8081)
        assert pending.load(product.history)
        product.run("cancel")
        assert watch.line() == "now: in sync (nftables); generation 3"
        for dog in watchdogs(lab.state_dir):
            with dog:
                dog.await_end()
        product.run("apply", product.file(OTHER), "--confirm=1")
        (dog,) = watchdogs(lab.state_dir)
        with dog:
            dog.send(signal.SIGKILL)
        assert watch.line() == "now: waits for confirm (nftables); generation 4"
        assert watch.line() == "now: in sync (nftables); generation 5"
        assert served(lab)


def test_a_table_of_our_name_that_is_not_ours(lab: Lab, product: Product) -> None:
    with watching(product) as watch:
        started(watch)
        lab.host.nft(f"delete table {TABLE}; add table {TABLE}; add chain {TABLE} theirs")
        assert "is not ours" in watch.line()
        assert "chain theirs" in lab.host.nft_list(f"table {TABLE}")
        lab.host.nft(f"delete table {TABLE}")
        assert "the table is gone" in watch.healed()
        assert watch.line() == "now: in sync (nftables); generation 1"
        assert served(lab)


def test_only_told(lab: Lab, product: Product) -> None:
    with watching(product, "--dry-run") as watch:
        started(watch)
        lab.host.nft(f"delete element {TABLE} ports {{ tcp . 80 }}")
        told = re.sub(r"pid \d+", "pid N", watch.line())
        words = "missing web: lacks tcp 80 → 8080; by nft (pid N); nothing is healed (--dry-run); generation 1"
        assert told == words
        assert watch.line() == "now: drifted (nftables); generation 1"
        assert product.status().state == "drifted"
        product.apply(WEB)
        assert watch.line() == "now: in sync (nftables); generation 1"


def test_once(lab: Lab, product: Product) -> None:
    assert product.run("watch", "--once") == "in sync (nftables); generation 1\n"
    lab.host.nft("flush ruleset")
    told = product.json("watch", "--once", "--dry-run", code=2)
    assert (told["state"], told["healed"], told["generation"]) == ("drifted", False, 1)
    assert [found["mapping"] for found in told["drift"]] == [None, "web"]
    assert "healed: structure (table): the table is gone" in product.run("watch", "--once")
    assert served(lab)
    product.run("remove", "--purge")
    assert product.run("watch", "--once", code=3) == "nothing is applied (nftables); generation 2\n"
    product.run("watch", "--once", "--interval=5", code=64)
    product.run("watch", "--json", code=64)
    product.run("watch", "--metrics", "/nowhere/watch.prom", code=1)


def test_a_generation_that_cannot_be_read(lab: Lab, product: Product) -> None:
    Path(lab.state_dir, "generations", "000002.json").write_text("damaged")
    with watching(product) as watch:
        assert watch.line().startswith("watching: unknown; generation 2 cannot be read, and nothing is healed")
        lab.host.nft("flush ruleset")
        product.run("rollback", "1")
        assert watch.line() == "now: in sync (nftables); generation 3"
        assert served(lab)


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_iptables(lab: Lab, backend: str) -> None:
    """The nft variant is heard of as nftables is. Of the legacy one nobody hears: SIGHUP, or --interval."""
    for address in HOST:
        lab.host.serve("tcp", address, 8080)
    flush = [
        [f"{program}{backend.removeprefix('iptables')}", "-t", "nat", "-F"] for program in ("iptables", "ip6tables")
    ]
    heard = backend == "iptables-nft"
    with Product(lab, backend) as product:
        product.apply(f'[settings]\nbackend = "{backend}"\n{WEB}')
        with watching(product) as watch:
            assert watch.line() == f"watching: in sync ({backend}); generation 1"
            for argv in flush:
                lab.host.run(*argv)
                if not heard:
                    watch.send(signal.SIGHUP)
                assert (re.search(r"; by iptables|; by ip6tables", watch.healed()) is not None) == heard
            assert served(lab)
            assert watch.end() == []
        if not heard:
            with watching(product, "--interval=1") as watch:
                started(watch)
                lab.host.run(*flush[0])
                watch.healed()
                assert served(lab)


def test_redirects_that_move_to_another_backend_are_followed(lab: Lab, product: Product) -> None:
    """Wherever they were, and also where there were none any more."""
    with watching(product) as watch:
        started(watch)
        number = 1
        for backend in ("iptables-legacy", "iptables-nft", "iptables-legacy", "nftables", "iptables-nft"):
            number += 1
            product.run("migrate-backend", backend)
            assert watch.line() == f"now: in sync ({backend}); generation {number}"
        product.run("remove")
        assert watch.line() == "now: drained: no redirects (iptables-nft); generation 7"
        product.run("apply", product.file(WEB), "--backend=nftables")
        assert watch.line() == "now: in sync (nftables); generation 8"
        product.run("remove")
        assert watch.line() == "now: drained: no redirects (nftables); generation 9"
        product.run("apply", product.file(WEB), "--backend=iptables-nft")
        assert watch.line() == "now: in sync (iptables-nft); generation 10"
        lab.host.run("iptables-nft", "-t", "nat", "-F")
        assert "by iptables" in watch.healed()
        assert served(lab)


def test_metrics(lab: Lab, product: Product, tmp_path: Path) -> None:
    path = tmp_path / "watch.prom"
    with watching(product, "--metrics", str(path)) as watch:
        started(watch)
        assert path.stat().st_mode & 0o777 == 0o644
        lab.host.nft("flush ruleset")
        watch.healed()
        assert watch.end() == []
    values = dict(line.rsplit(" ", 1) for line in path.read_text().splitlines() if not line.startswith("#"))
    assert values['redirector_state{state="in-sync"}'] == "1"
    assert values['redirector_state{state="drifted"}'] == "0"
    assert values["redirector_generation"] == "1"
    assert values["redirector_watch_heals_total"] == "1"
    assert float(values["redirector_watch_last_drift_timestamp_seconds"]) > 1e9
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_the_journal(lab: Lab, product: Product, tmp_path: Path) -> None:
    """One line for a healing, with fields."""
    path = str(tmp_path / "j")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path)
        with watching(product, env={"REDIRECTOR_JOURNAL": path}) as watch:
            lab.host.nft("flush ruleset")
            told = watch.until("healed")[-1]
            assert watch.end() == []
        heard.setblocking(False)
        entries = [dict(line.split("=", 1) for line in heard.recv(65536).decode().splitlines()) for _ in range(3)]
        with pytest.raises(BlockingIOError):
            heard.recv(65536)
    assert [found["MESSAGE"] for found in entries] == [
        "watch by watch: watching: in sync (nftables); generation 1",
        f"watch by watch: {told}",
        "watch by watch: ended; the redirects stay as they are",
    ]
    assert (entries[1]["REDIRECTOR_GENERATION"], entries[1]["PRIORITY"]) == ("1", "5")
