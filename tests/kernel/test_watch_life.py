"""What happens around a watch: our own commands, its service manager, its death, other backends; whole processes."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector import pending
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping
from tests.kernel.watchdogs import watchdogs
from tests.kernel.watching import OTHER, TABLE, WEB, serve, served, started, watching

pytestmark = pytest.mark.backends("nftables")


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    """With a server, and a mapping that leads to it."""
    serve(lab)
    with Product(lab) as made:
        made.apply(WEB)
        yield made


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
    serve(lab)
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
