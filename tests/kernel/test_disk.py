"""A disk that takes nothing: a small tmpfs that is full, and one that is read-only, in a private mount namespace.

On each backend; but for the watchdog's own part, for which the test awaits the kernel's word of each commit: with the
iptables backends there are several, or none.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector.compile import compile_ruleset
from redirector.netlink import NETLINK_NETFILTER
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_nftables, ruleset
from tests.kernel.running import Commands
from tests.kernel.watchdogs import PATIENCE, watchdogs

MOUNT = 'mount -t tmpfs -o mode=700,size=128k tmpfs "$0"; exec "$@"'
NFTABLES_GROUP = 1 << 7 - 1  # NFNLGRP_NFTABLES, as bind(2) takes it
OLD, NEW = mapping("web", 80, 8080), mapping("web", 80, 8081)


class Disk:
    """The state folder of a lab as a disk of its own, seen from outside by the process that the commands run in."""

    def __init__(self, lab: Lab) -> None:
        os.mkdir(lab.state_dir, mode=0o700)
        way = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", MOUNT, lab.state_dir]
        self.lab, self.commands = lab, Commands(lab, way)
        self.folder = Path(f"/proc/{self.commands.process.pid}/root{lab.state_dir}")

    def spoil(self, how: str) -> None:
        if how == "full":
            with (self.folder / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:  # the last page is written in part, or not at all
                    if not os.statvfs(self.folder).f_bfree:
                        break
        else:
            self._remount("ro")

    def mend(self, how: str) -> None:
        if how == "full":
            (self.folder / "filler").unlink()
        else:
            self._remount("rw")

    def _remount(self, option: str) -> None:
        place = ["--mount", "--target", str(self.commands.process.pid)]
        self.lab.host.run("nsenter", *place, "mount", "-o", f"remount,{option}", self.lab.state_dir)

    def names(self) -> set[str]:
        """Every file there but what makes it full."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")} - {"filler"}


def end_watchdogs(lab: Lab) -> None:
    for watchdog in watchdogs(lab.state_dir):
        with watchdog:
            watchdog.send(signal.SIGKILL)
            watchdog.await_end()


@pytest.fixture
def disk(lab: Lab) -> Iterator[Disk]:
    made = Disk(lab)
    with made.commands:
        yield made
        end_watchdogs(lab)


spoilt = pytest.mark.parametrize("how", ["full", "ro"])
WORDS = {"full": "No space left on device", "ro": "Read-only file system"}


@spoilt
def test_nothing_is_changed_that_could_not_be_recorded(product: Product, disk: Disk, how: str) -> None:
    old, new = product.file(OLD, "old.toml"), product.file(NEW)
    redirector = disk.commands
    for file in (old, new):
        assert redirector("apply", file).code == 0
    disk.spoil(how)
    before, names = product.admin.sees(), disk.names()
    for words in (["apply", old], ["apply", old, "--confirm"], ["rollback"], ["rollback", "1"], ["remove"]):
        ended = redirector(*words)
        assert ended.code == 1, (words, ended)
        assert WORDS[how] in ended.complaints
        assert "nothing was changed" in ended.complaints
    assert (product.admin.sees(), disk.names()) == (before, names)
    for words, code in ((["confirm"], 7), (["cancel"], 7), (["status"], 0), (["history"], 0), (["apply", new], 0)):
        assert redirector(*words).code == code, words
    # What is recorded already can be brought back, by hand and at boot.
    for words in (["apply", new], ["boot", new]):
        product.admin.flushes()
        assert redirector("status").code == 2
        assert redirector(*words).code == 0
        assert redirector("status").code == 0
    disk.mend(how)
    assert redirector("rollback").code == 0
    assert redirector("status").code == 0


@spoilt
@pytest.mark.parametrize("command", ["cancel", "overdue", "boot"])
def test_what_is_not_confirmed_goes_all_the_same(product: Product, disk: Disk, how: str, command: str) -> None:
    """Whoever is locked out must not stay so because of a full disk. It is recorded as soon as that is possible."""
    old, new = product.file(OLD, "old.toml"), product.file(NEW)
    redirector = disk.commands
    assert redirector("apply", old).code == 0
    assert redirector("apply", new, "--confirm").code == 0
    end_watchdogs(product.lab)
    if command != "cancel":
        note = disk.folder / "pending.json"
        note.write_bytes(note.read_bytes()[:-1])  # a damaged note is overdue
    disk.spoil(how)
    if command == "cancel":
        assert redirector("confirm").code == 1  # it cannot be kept, which must not look as if it were
    assert held(product) == NEW
    words = {"cancel": ["cancel"], "overdue": ["status"], "boot": ["boot", old]}[command]
    ended = redirector(*words)
    assert ended.code == (0 if command == "boot" else 5), ended
    assert "taken back" in ended.complaints
    assert WORDS[how] in ended.complaints
    assert held(product) == OLD
    disk.mend(how)
    ended = redirector("cancel" if command == "cancel" else "status")
    assert ended.code == 0, ended
    told = json.loads(redirector("history", "--json").output)
    assert [(one["generation"], one["action"], one["confirmed"]) for one in told] == [
        (1, "apply", True),
        (2, "apply", False),
        (3, "cancel", True),
    ]
    assert redirector("status").code == 0
    assert "pending.json" not in disk.names()


def held(product: Product) -> str:
    """Which of the two files the kernel holds."""
    program = product.backend.observe().program
    return next(text for text in (OLD, NEW) if compile_ruleset(ruleset(text)) == program)


@on_nftables
@spoilt
def test_the_watchdog_does_it_too(product: Product, disk: Disk, how: str) -> None:
    redirector = disk.commands
    assert redirector("apply", product.file(OLD, "old.toml")).code == 0
    with product.lab.host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as announced:
        announced.bind((0, NFTABLES_GROUP))
        announced.settimeout(PATIENCE)
        assert redirector("apply", product.file(NEW), "--confirm=2").code == 0
        disk.spoil(how)
        while held(product) == NEW:
            assert announced.recv(65536)  # until somebody commits
    assert held(product) == OLD
    assert {"pending.json", "generations/000002.json"} <= disk.names()  # it was not recorded
