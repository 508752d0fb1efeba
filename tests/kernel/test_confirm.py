"""A change that waits for `confirm`: kept, taken back, and what it survives. Real commands, real watchdogs.

That it is taken back, by whomever, is promised on each backend. What the note says, who may do what while it is there,
and what a watchdog survives, comes before a backend has a say.
"""

import contextlib
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redirector import mappings, pending
from redirector.history import Record
from redirector.netlink import NETLINK_NETFILTER, RECEIVE_SIZE, messages
from redirector.program import Program
from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping, on_each, on_nftables, ruleset
from tests.kernel.watchdogs import PATIENCE, Watchdog, watchdogs
from tests.waiting import leave_waiting

pytestmark = on_nftables

OLD = mapping("web", 80, 8080)
NEW = mapping("web", 80, 8081)
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
PROMPT_SECONDS = 1.0  # after its deadline, at the latest, a change has been taken back: issue and manual say so


@pytest.fixture
def product(lab: Lab, product: Product) -> Iterator[Product]:
    yield product
    # Whatever the test came to: without a note no watchdog has anything to do, and the namespace can go.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(lab.state_dir, pending.NOTE))
    await_watchdogs(lab.state_dir)


def await_watchdogs(folder: str) -> None:
    """Until those that look after this state folder have ended."""
    for watchdog in watchdogs(folder):
        with watchdog:
            watchdog.await_end()


class Files:
    """The two mapping files of these tests, and what the kernel holds with each."""

    def __init__(self, product: Product) -> None:
        self.old, self.new = product.file(OLD, "old.toml"), product.file(NEW, "new.toml")
        self._product = product

    def apply_old(self) -> Program | None:
        self._product.run("apply", self.old)
        return self.held()

    def held(self) -> Program | None:
        return self._product.backend.observe().program


@pytest.fixture
def files(product: Product) -> Files:
    return Files(product)


@contextlib.contextmanager
def commits(lab: Lab) -> Iterator[Callable[[], float]]:
    """A function that returns when the next nftables commit has happened, with its time (CLOCK_BOOTTIME)."""
    with lab.host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as events:
        events.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        events.settimeout(PATIENCE)

        def ends() -> Iterator[float]:
            while True:
                told = list(messages(events.recv(RECEIVE_SIZE)))
                at = pending.now()
                yield from (at for message in told if message.kind == NEWGEN)  # the last that is told of a commit

        yield ends().__next__


def the_watchdog(lab: Lab) -> Watchdog:
    (found,) = watchdogs(lab.state_dir)
    return found


def note(product: Product) -> pending.Pending:
    found = pending.read(product.history)
    assert found is not None
    return found


def wait(product: Product, seconds: float) -> None:
    """NEW in force and waiting, for so many seconds, with nobody watching: as if its watchdog had been killed."""
    leave_waiting(product.backend, product.history, ruleset(NEW), seconds)


def time_is_over(product: Product) -> None:
    """Bring the deadline forward to now, which is quicker than to wait for it; test_at_the_deadline does wait."""
    pending._write(product.history, note(product)._replace(deadline=pending.now()))


def current(product: Product) -> Record:
    found = product.history.current()
    assert isinstance(found, Record)
    return found


class TestKept:
    def test_by_confirm(self, lab: Lab, product: Product, files: Files) -> None:
        files.apply_old()
        told = product.json("apply", "--confirm=60", files.new)
        assert told["pending"]["generation"] == 2
        assert not current(product).confirmed
        with the_watchdog(lab) as watchdog:
            deadline = note(product).deadline
            product.run("confirm")
            watchdog.await_end()
        assert pending.now() < deadline  # it had no reason to wait for it
        assert current(product) == current(product)._replace(generation=2, confirmed=True, ruleset=ruleset(NEW))
        assert product.json("status")["state"] == "in-sync"
        assert product.json("status")["pending"] is None
        lab.host.serve("tcp", HOST[0], 8081)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8081, CLIENT[0], HOST[0])

    def test_through_the_deadline(self, lab: Lab, product: Product, files: Files) -> None:
        """Confirmed, and only the note is still there: as after a crash of `confirm` halfway."""
        files.apply_old()
        wait(product, 0.0)
        new = files.held()
        found = current(product)._replace(confirmed=True)
        product.history.prepare(found).keep()
        assert product.json("status")["state"] == "in-sync"
        product.run("cancel", code=7)
        product.run("confirm", code=7)
        product.run("apply", files.new)
        assert (files.held(), current(product)) == (new, found)
        assert not os.path.exists(os.path.join(lab.state_dir, pending.NOTE))

    @pytest.mark.parametrize("command", ["confirm", "cancel"])
    def test_nothing_waits(self, product: Product, files: Files, command: str) -> None:
        product.run(command, code=7)
        files.apply_old()
        product.run(command, code=7)
        product.run("apply", "--confirm", files.new)
        product.run("confirm")
        product.run(command, code=7)

    def test_nothing_changes_so_nothing_waits(self, lab: Lab, product: Product, files: Files) -> None:
        files.apply_old()
        assert product.json("apply", "--confirm", files.old)["pending"] is None
        assert watchdogs(lab.state_dir) == []
        product.run("apply", files.new)


def is_back(lab: Lab, product: Product, files: Files, old: Program | None) -> None:
    """OLD is in force again, and recorded as what it is, on the backend of the change."""
    assert files.held() == old
    lab.host.serve("tcp", HOST[0], 8080)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
    record = current(product)
    assert (record.generation, record.action, record.confirmed) == (3, "cancel", True)
    assert (record.backend, record.ruleset) == (product.backend.name, mappings.load(files.old))
    assert product.json("status")["state"] == "in-sync"


class TestTakenBack:
    @on_each
    def test_at_the_deadline(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        before = pending.now()
        product.run("apply", "--confirm=1", files.new)
        assert files.held() != old
        await_watchdogs(lab.state_dir)
        assert pending.now() >= before + 1
        is_back(lab, product, files, old)
        product.run("confirm", code=7)

    def test_within_a_second_of_the_deadline(self, lab: Lab, product: Product, files: Files) -> None:
        files.apply_old()
        product.run("apply", "--confirm=60", files.new)
        with commits(lab) as following:
            deadline = pending.now() + 2
            pending._write(product.history, note(product)._replace(deadline=deadline))
            assert deadline <= following() < deadline + PROMPT_SECONDS

    @on_each
    def test_by_cancel(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm", files.new)
        with the_watchdog(lab) as watchdog:
            product.run("cancel")
            watchdog.await_end()
        is_back(lab, product, files, old)
        product.run("cancel", code=7)

    @on_each
    def test_the_first_apply_is_drained(self, lab: Lab, product: Product, files: Files) -> None:
        """The watchdog comes before the first generation does: nothing there tells it where the mappings will be."""
        product.run("apply", "--confirm=1", files.new)
        await_watchdogs(lab.state_dir)
        lab.host.serve("tcp", HOST[0], 8081)
        assert lab.client.ask_tcp(HOST[0], 80) == Refused()
        assert product.json("status", code=3)["state"] == "drained"
        assert not product.status().connections
        product.run("apply", files.new)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8081, CLIENT[0], HOST[0])

    @on_each
    def test_to_what_was_confirmed_not_to_what_came_last(self, product: Product, files: Files) -> None:
        """And what was removed stays removed."""
        files.apply_old()
        product.run("remove", "--purge")
        product.run("apply", "--confirm", files.new)
        product.run("cancel")
        assert files.held() is None
        assert product.json("status", code=3)["state"] == "absent"

    def test_in_a_named_namespace(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        where: dict[str, Any] = {"machine": lab.client, "names": {"box": lab.host}}
        product.run("apply", "--netns", "box", files.old, **where)
        with commits(lab) as following:
            product.run("apply", "--netns", "box", "--confirm=1", files.new, **where)
            following()
            following()
        await_watchdogs(os.path.join(lab.state_dir, "netns", "box"))
        assert files.held() == old


class TestWhileItWaits:
    def test_others_are_refused_and_told_how_long(self, product: Product, files: Files) -> None:
        files.apply_old()
        product.run("apply", "--confirm=2m", files.new)
        new, numbers = files.held(), product.history.numbers()
        for command in (("apply", files.old), ("apply", "--confirm", files.old), ("rollback",), ("remove",)):
            told = re.search(r"generation 2 waits for confirm, for another (\d+) s", product.run(*command, code=75))
            assert told
            assert 60 < int(told[1]) <= 120
        assert (files.held(), product.history.numbers()) == (new, numbers)
        product.run("plan", files.new)
        product.run("plan", files.old, code=2)
        product.run("confirm")
        product.run("rollback")

    @on_each
    def test_status_tells(self, product: Product, files: Files) -> None:
        files.apply_old()
        product.run("apply", "--confirm", files.new)
        told = product.json("status")
        assert told["state"] == "pending"
        assert told["pending"]["generation"] == 2
        assert 0 < told["pending"]["seconds_left"] <= 60
        product.admin.turns(80, 8081, 8080)
        told = product.json("status", code=2)
        assert told["state"] == "pending"
        assert [drift["mapping"] for drift in told["drift"]] == ["web"]

    @pytest.mark.parametrize("wrong", ["0", "-1", "1.5", "m", "1d", "1441m", "²", "9" * 5000])
    def test_times_that_are_none(self, product: Product, files: Files, wrong: str) -> None:
        product.run("apply", f"--confirm={wrong}", files.new, code=64)
        assert product.history.numbers() == []


class TestProbe:
    def test_it_sees_the_change_and_is_content(self, product: Product, files: Files) -> None:
        files.apply_old()
        probe = "sh -c 'nft list map inet redirector ports | grep -q 8081'"
        product.run("apply", "--confirm", "--probe", probe, files.new)
        assert product.json("status")["state"] == "pending"

    @on_each
    def test_it_fails(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm", "--probe", "false", files.new, code=5)
        is_back(lab, product, files, old)

    @pytest.mark.parametrize("probe", ["/no/such/command", "sh -c 'kill -9 $$'", "'", " "])
    def test_it_cannot_be_content(self, product: Product, files: Files, probe: str) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm", "--probe", probe, files.new, code=5)
        assert files.held() == old
        assert product.json("status")["state"] == "in-sync"

    def test_it_does_not_end(self, product: Product, files: Files) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm=1", "--probe", "sleep 1000", files.new, code=5)
        assert files.held() == old

    def test_it_fails_while_somebody_holds_the_lock(self, lab: Lab, product: Product, files: Files) -> None:
        """Then the change is still in force: that nothing was changed would be a lie."""
        old = files.apply_old()
        lock = os.path.join(lab.state_dir, "lock")
        hold = f"sh -c 'flock {lock} sleep 60 <&- >&- 2>&- & while flock -n {lock} true; do :; done; false'"
        told = product.run("apply", "--confirm=30", "--probe", hold, files.new, code=6)
        assert "still in force" in told
        assert files.held() != old

    def test_it_may_confirm(self, lab: Lab, product: Product, files: Files) -> None:
        probe = f"{sys.executable} -m redirector confirm"
        product.run("apply", "--confirm", "--probe", probe, files.new)
        assert product.json("status")["state"] == "in-sync"
        assert current(product).confirmed

    def test_it_goes_with_confirm_only(self, product: Product, files: Files) -> None:
        product.run("apply", "--probe", "true", files.new, code=64)
        assert files.held() is None


class TestWhatTheWatchdogSurvives:
    @pytest.mark.parametrize(
        ("injected", "recorded"), [(["-e", "inject=rename:signal=KILL:when=2"], False), ([], True)]
    )
    def test_the_end_of_the_command(
        self, lab: Lab, product: Product, files: Files, injected: list[str], recorded: bool
    ) -> None:
        """Killed between the commit and the record of it (the note is renamed first), or right afterwards."""
        old = files.apply_old()
        probe = "sh -c 'kill -9 $PPID'"
        command = lab.command("apply", "--confirm=60", "--probe", probe, files.new)
        argv = ["strace", "-o", os.devnull, *injected, *command] if injected else command
        done = lab.host.namespace.run(argv, env=lab.environment(), timeout=PATIENCE)
        assert done.returncode == -signal.SIGKILL
        assert product.history.numbers() == ([1, 2] if recorded else [1])
        assert files.held() != old
        assert product.json("status", code=0 if recorded else 2)["state"] == "pending"
        self.it_goes_on(lab, product, files, old)

    def it_goes_on(self, lab: Lab, product: Product, files: Files, old: Program | None) -> None:
        with the_watchdog(lab) as watchdog:
            time_is_over(product)
            watchdog.await_end()
        assert files.held() == old
        assert product.json("status")["state"] == "in-sync"

    def test_the_end_of_the_terminal(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        ours, theirs = os.openpty()
        script = '"$@" && exec cat'  # a session that goes on, as a shell does
        argv = ["setsid", "--ctty", "sh", "-c", script, "sh", *lab.command("apply", "--confirm=60", files.new)]
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        with lab.host.namespace.popen(argv, env=lab.environment(), **streams) as session:
            os.close(theirs)
            with open(ours, "rb", buffering=0) as terminal:
                told = b""
                while b"to be confirmed" not in told:
                    assert select.select([terminal], [], [], PATIENCE)[0]
                    told += terminal.read(4096)
                with the_watchdog(lab) as watchdog:
                    _, _, group, own_session, its_terminal = watchdog.fields()
                    assert (group, own_session, its_terminal) == (str(watchdog.number), str(watchdog.number), "0")
            assert session.wait(PATIENCE) == -signal.SIGHUP
        self.it_goes_on(lab, product, files, old)

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE])
    def test_signals(self, lab: Lab, product: Product, files: Files, number: signal.Signals) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm=60", files.new)
        with the_watchdog(lab) as watchdog:
            watchdog.send(number)
        self.it_goes_on(lab, product, files, old)

    def test_who_holds_the_lock_at_the_deadline(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm=60", files.new)
        with the_watchdog(lab) as watchdog:
            with product.history.locked():
                time_is_over(product)
                watchdog.await_open(os.path.join(lab.state_dir, "lock"))
                assert files.held() != old
            watchdog.await_end()
        assert files.held() == old


class TestWithoutAWatchdog:
    @on_each
    def test_it_was_killed(self, lab: Lab, product: Product, files: Files) -> None:
        old = files.apply_old()
        product.run("apply", "--confirm=60", files.new)
        with the_watchdog(lab) as watchdog:
            watchdog.send(signal.SIGKILL)
            watchdog.await_end()
        time_is_over(product)
        assert files.held() != old
        assert product.json("status")["state"] == "in-sync"
        is_back(lab, product, files, old)

    @pytest.mark.parametrize(
        ("command", "code", "left"),
        [
            (("status",), 0, OLD),
            (("plan", "{old}"), 0, OLD),
            (("plan", "{new}"), 2, OLD),
            (("apply", "{old}"), 0, OLD),
            (("apply", "{new}"), 0, NEW),
            (("confirm",), 7, OLD),
            (("cancel",), 0, OLD),
        ],
    )
    def test_the_next_command_takes_back_what_is_overdue(
        self, product: Product, files: Files, command: tuple[str, ...], code: int, left: str
    ) -> None:
        files.apply_old()
        wait(product, 0.0)
        product.run(*(part.format(old=files.old, new=files.new) for part in command), code=code)
        assert current(product).ruleset == ruleset(left)
        assert current(product).confirmed
        assert product.json("status")["state"] == "in-sync"

    @pytest.mark.parametrize("command", ["rollback", "remove"])
    def test_and_then_does_its_own_work(self, product: Product, files: Files, command: str) -> None:
        product.run("apply", product.file(mapping("first", 81, 8081), "first.toml"))
        files.apply_old()
        wait(product, 0.0)
        product.run(command)
        names = [found.name for found in current(product).ruleset.mappings]
        assert names == {"rollback": ["first"], "remove": []}[command]

    @pytest.mark.parametrize("command", [("status",), ("apply", "{old}")])
    @pytest.mark.parametrize("kept", [0, 1, 60, -1])
    def test_a_damaged_note_is_overdue(
        self, product: Product, files: Files, command: tuple[str, ...], kept: int
    ) -> None:
        """Cut off after so many bytes; test_pending damages each."""
        old = files.apply_old()
        wait(product, 3600.0)
        path = os.path.join(product.history.folder, pending.NOTE)
        with open(path, "rb") as file:
            whole = file.read()
        with open(path, "wb") as file:
            file.write(whole[:kept])
        product.run(*(part.format(old=files.old) for part in command))
        assert files.held() == old
        assert not os.path.exists(path)

    def test_another_boot_is_overdue(self, product: Product, files: Files) -> None:
        old = files.apply_old()
        wait(product, 3600.0)
        found = note(product)._replace(boot="11111111-2222-3333-4444-555555555555")
        pending._write(product.history, found)
        assert product.json("status")["state"] == "in-sync"
        assert files.held() == old


class TestClocks:
    """Only CLOCK_BOOTTIME counts. The machine's time cannot be set by a test; a time namespace (time_namespaces(7)) can
    shift the other two clocks that there are."""

    def test_the_deadline_is_in_boot_time(self, product: Product, files: Files) -> None:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        product.run("apply", "--confirm=2m", files.new)
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert before + 120 <= note(product).deadline <= after + 120

    @pytest.mark.parametrize(("clock", "over"), [("--boottime", True), ("--monotonic", False)])
    def test_which_clock_it_is(self, lab: Lab, product: Product, files: Files, clock: str, over: bool) -> None:
        files.apply_old()
        wait(product, 3600.0)
        argv = ["unshare", "--time", clock, "7200", *lab.command("status")]
        lab.host.run(*argv, env=lab.environment())
        assert current(product).ruleset == ruleset(OLD if over else NEW)
