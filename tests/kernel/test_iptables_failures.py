"""The iptables backends where a command fails, is missing, waits for the lock of another, or outlives us."""

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redirector import errors
from redirector import status as against
from redirector.backends.iptables import commands
from redirector.compile import compile_ruleset
from redirector.model import FAMILIES
from redirector.program import Program
from tests.kernel.iptables import Programs, both, iptables, saved
from tests.kernel.lab import COMMAND_TIMEOUT, Lab
from tests.kernel.product import Product, mapping, on_iptables, opened, ruleset

pytestmark = on_iptables


OLD = mapping("web", 80, 8080, exclusive=True) + mapping("staff", 80, 8090, source=["192.0.2.0/24", "2001:db8:1::/64"])
NEW = mapping("web", 80, 8081) + mapping("ssl", 443, 8443, exclusive=True)
NEXT = mapping("web", 80, 8082)
# Process 1 of nothing, but with a /run of its own, and in it the lock of the legacy variant.
KEEPER = "mount -t tmpfs tmpfs /run; : > /run/xtables.lock; echo ready; exec cat"

# `redirector`, which waits for that lock for 1 s.
HURRIED = (
    "from redirector.backends.iptables import commands; commands.LOCK_SECONDS = 1; import redirector.cli as c; c.main()"
)


class TestTheSecondFamily:
    """What was done to IPv4 is undone where IPv6 fails."""

    def test_a_chain_of_ours_that_others_hold_on_to(self, lab: Lab, product: Product) -> None:
        backend = product.backend.name
        product.apply(OLD)
        lines = saved(lab.host, backend, "ipv6", table="nat")
        held = next(line.split()[-1] for line in lines if line.startswith("-A REDIRECTOR-IN -s "))
        iptables(lab.host, backend, "ipv6", "-t nat -N THEIRS", f"-t nat -A THEIRS -p tcp -j {held}")
        before = both(lab.host, backend)
        assert "nothing was changed" in product.run("apply", product.file(NEW), code=1)
        assert both(lab.host, backend) == before
        assert product.history.numbers() == [1]
        assert product.status().state == "in-sync"

    @pytest.mark.parametrize("text", ["#!/bin/sh\necho no luck >&2\nexit 1\n", "no program", "#!/bin/sh\nkill -9 $$\n"])
    def test_a_program_that_fails(self, lab: Lab, product: Product, programs: Programs, text: str) -> None:
        product.apply(OLD)
        before = both(lab.host, product.backend.name)
        programs.replace("ipv6", "restore", text)
        with pytest.raises(errors.Refused) as raised:
            product.apply(NEW)
        assert "nothing was changed" in raised.value.message
        assert ("no luck" in raised.value.message) is ("no luck" in text)
        assert both(lab.host, product.backend.name) == before
        assert product.history.numbers() == [1]

    def test_one_that_did_its_work_and_tells_a_failure(self, lab: Lab, product: Product, programs: Programs) -> None:
        product.apply(OLD)
        before = both(lab.host, product.backend.name)
        programs.replace("ipv6", "restore", '#!/bin/sh\n$REAL "$@"\nexit 1\n')
        with pytest.raises(errors.Refused):  # so does the undo
            product.apply(NEW)
        assert both(lab.host, product.backend.name) == before

    def test_the_undo_fails_as_well(self, product: Product, programs: Programs, tmp_path: Path) -> None:
        product.apply(OLD)
        programs.replace("ipv6", "restore", "#!/bin/sh\nexit 1\n")
        programs.replace("ipv4", "restore", f'#!/bin/sh\nmkdir {tmp_path}/once || exit 1\n$REAL "$@"\n')
        with pytest.raises(errors.OutcomeUnknown) as raised:
            product.apply(NEW)
        assert raised.value.exit_code == 6
        assert product.history.numbers() == [1]
        assert product.status().state == "drifted"
        programs.bring_back()
        product.apply(OLD)
        assert product.status().state == "in-sync"


@contextlib.contextmanager
def lock_held(lab: Lab) -> Iterator[tuple[list[str], int]]:
    """Hold the lock of the legacy variant, in a /run apart from the machine's; what a command is to be started by in
    order to be there, too, and the descriptor: to close it frees the lock."""
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", KEEPER]
    with lab.host.namespace.popen(argv, stdin=-1, stdout=-1) as keeper:
        assert keeper.stdin
        assert keeper.stdout
        assert keeper.stdout.readline() == b"ready\n"
        with open(f"/proc/{keeper.pid}/root/run/xtables.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--"], lock.fileno()
        keeper.stdin.close()


def test_the_lock_of_the_legacy_variant_is_held(lab: Lab, product: Product) -> None:
    product.apply(OLD)
    before = both(lab.host, product.backend.name)
    with lock_held(lab) as (entering, _):
        argv = [*entering, sys.executable, "-c", HURRIED, "apply", product.file(NEW)]
        done = lab.host.namespace.run(argv, env=lab.environment(), text=True, timeout=COMMAND_TIMEOUT)
    if product.backend.name == "iptables-nft":
        assert done.returncode == 0, done.stderr
        assert product.history.numbers() == [1, 2]
        return
    assert done.returncode == 75, done.stderr
    assert f"process {os.getpid()} (" in done.stderr
    assert both(lab.host, product.backend.name) == before
    assert product.history.numbers() == [1]


class TestReading:
    """iptables-nft-save leaves out what the kernel refuses to tell it, and ends with 0 (seen with 1.8.9)."""

    def less(self, programs: Programs, family: str, once: str) -> None:
        less = "$REAL -c | sed '/^[^ ]* -A REDIRECTOR-IN/d'"
        programs.replace(family, "save", f"#!/bin/sh\nif {once}; then {less}; else exec $REAL -c; fi\n")

    @pytest.mark.backends("iptables-nft")
    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_is_left_out_once(self, product: Product, programs: Programs, family: str, tmp_path: Path) -> None:
        product.apply(OLD)
        self.less(programs, family, f"mkdir {tmp_path}/once")
        assert product.status().state == "in-sync"
        assert (tmp_path / "once").exists()
        (tmp_path / "once").rmdir()
        product.remove(purge=True)
        assert product.status().state == "absent"

    @pytest.mark.backends("iptables-nft")
    def test_what_never_comes_twice_alike(self, product: Product, programs: Programs, tmp_path: Path) -> None:
        product.apply(OLD)
        choose = f"if mkdir {tmp_path}/odd; then chain=IN; else rmdir {tmp_path}/odd; chain=ALL; fi"
        text = f'#!/bin/sh\n{choose}\n$REAL -c | sed "/^[^ ]* -A REDIRECTOR-$chain/d"\n'
        programs.replace("ipv6", "save", text)
        with pytest.raises(errors.TryAgain):
            product.status()


class TestSupposing:
    """What is as it was supposed is read once, and not decoded; anything else is read as ever."""

    @pytest.fixture
    def readings(self, programs: Programs, tmp_path: Path) -> Callable[[], int]:
        """How often iptables-save ran since this was called last, for both families together."""
        log = tmp_path / "readings"
        for family in FAMILIES:
            programs.replace(family, "save", f"#!/bin/sh\necho >>{log}\nexec $REAL -c\n")

        def readings() -> int:
            count = log.read_text().count("\n")
            log.unlink()
            return count

        return readings

    def test_how_often_it_is_read(self, lab: Lab, product: Product, readings: Callable[[], int]) -> None:
        known = len(FAMILIES)
        unknown = known * (2 if product.backend.name == "iptables-nft" else 1)
        product.apply(OLD)
        readings()
        with contextlib.closing(opened(lab.host.namespace, product.backend.name)) as fresh:
            assert against.status(fresh, product.history).state == "in-sync"
            assert readings() == known
        with contextlib.closing(opened(lab.host.namespace, product.backend.name)) as fresh:
            product.apply(NEW, backend=fresh)
            assert readings() == known + known  # what was there, and what came of it
            assert not product.apply(NEW, backend=fresh).plan
            assert readings() == known
        iptables(lab.host, product.backend.name, "ipv6", "-t nat -A REDIRECTOR-ALL -p tcp --dport 9 -j ACCEPT")
        assert product.status().state == "drifted"
        assert readings() == unknown

    def test_what_is_not_there(self, lab: Lab, product: Product) -> None:
        product.apply(OLD)
        held = product.backend.observe().program
        with contextlib.closing(opened(lab.host.namespace, product.backend.name)) as fresh:
            elsewhere = compile_ruleset(ruleset("[settings]\npriority = -90\n" + OLD))  # reads the same
            other = compile_ruleset(ruleset(NEW))
            for supposed in (lambda: other, lambda: elsewhere, lambda: None, lambda: Program({}, {})):
                fresh.suppose(supposed)
                assert fresh.observe().program == held


class TestTheOrphan:
    """The command is killed while its last child has yet to write. Until that has ended nobody else writes."""

    def test_it_keeps_the_lock(self, lab: Lab) -> None:
        with Product(lab, "iptables-legacy") as product, lock_held(lab) as (entering, lock):
            product.apply(OLD)
            argv = [*entering, *lab.command("apply", product.file(NEW))]
            with lab.host.namespace.popen(argv, env=lab.environment()) as command:
                child = await_waiting(command.pid)
                orphan = os.pidfd_open(child)
                command.kill()
            assert taken(product)
            assert not select.select([orphan], [], [], 0)[0]
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert select.select([orphan], [], [], 30)[0]
            os.close(orphan)
            assert not taken(product)
            # It did write: IPv4 alone.
            assert product.status().state == "drifted"
            product.apply(NEXT)
            assert product.status().state == "in-sync"


def await_waiting(number: int) -> int:
    """The child of a process that has the lock of the legacy variant open, hence has been told what to do."""
    end = os.pidfd_open(number)
    try:
        while not select.select([end], [], [], 0.01)[0]:
            with open(f"/proc/{number}/task/{number}/children", encoding="ascii") as file:
                children = file.read().split()
            for child in children:
                with contextlib.suppress(OSError):
                    found = [os.readlink(f"/proc/{child}/fd/{name}") for name in os.listdir(f"/proc/{child}/fd")]
                    if commands.LOCK in found:
                        return int(child)
    finally:
        os.close(end)
    raise AssertionError("it has ended without such a child")


def taken(product: Product) -> bool:
    """Whether the lock of the state folder is held."""
    with open(f"{product.history.folder}/lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
