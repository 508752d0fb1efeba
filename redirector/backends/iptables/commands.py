"""iptables-save and iptables-restore, of both variants and both families, run as children.

By absolute path, with a fixed environment, in bounded time. What they are told comes by standard input, never by the
command line.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Callable, Iterable
from typing import BinaryIO, Self, TypeVar

from redirector import store
from redirector.backends.iptables import save
from redirector.backends.iptables.save import Saved
from redirector.errors import Refused, TryAgain, Unavailable, printable

FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
LOCK = "/run/xtables.lock"  # XT_LOCK_NAME, iptables/xshared.h
LOCK_SECONDS = 5  # for another's command; ours takes a part of a second
SECONDS = 60.0  # for one child: what takes longer hangs
READINGS = 5
TABLES = ("nat", "filter")
PROGRAMS = {"ipv4": "iptables", "ipv6": "ip6tables"}
# Tables that the legacy variant has loaded; listing any other would load it.
LOADED = {"ipv4": "ip_tables_names", "ipv6": "ip6_tables_names"}
# Exit codes, include/xtables.h: RESOURCE_PROBLEM (in the legacy variant also: the lock is held), VERSION_PROBLEM (the
# kernel lacks what is needed).
RESOURCE, VERSION = 4, 3

Found = TypeVar("Found")


class Failed(Exception):
    """A command ended with `code`, and said `words`: the table that it was at is as it was."""

    def __init__(self, program: str, code: int, words: str) -> None:
        super().__init__(f"{os.path.basename(program)}: {words or f'exit {code}'}")
        self.code = code


def find(variant: str, family: str, verb: str) -> str:
    """The path of a program; `variant` is "nft" or "legacy", `verb` "save" or "restore". Raises Unavailable."""
    name = f"{PROGRAMS[family]}-{variant}-{verb}"
    for folder in FOLDERS:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise Unavailable(f"there is no {name} on this host", "install the package iptables, or choose another backend")


def read(variant: str, families: Iterable[str]) -> Saved:
    """The nat and filter tables of each family, with counters. Raises as `compare` does."""
    return compare(variant, families, lambda _: None)[0]


def compare(
    variant: str, families: Iterable[str], supposed: Callable[[Saved], Found | None]
) -> tuple[Saved, Found | None]:
    """The nat and filter tables of each family, with counters; and what they are `supposed` to be, None where they are
    nothing of that kind. Raises Failed, Unavailable, save.Unparsable, TryAgain.

    Where the kernel refuses it an answer, iptables-nft-save prints less, and tells of no error (seen with 1.8.9). So it
    is asked again until it prints as many lines twice; but where it has printed everything that is `supposed`.
    """
    programs = {family: find(variant, family, "save") for family in families}
    before: dict[str, int] = {}
    for _ in range(READINGS):
        texts = _saved(programs[family] for family in programs if variant != "legacy" or _loaded(family))
        found = {f: save.parse(texts[path].split("\n")) if path in texts else {} for f, path in programs.items()}
        lines = {path: text.count("\n") for path, text in texts.items()}
        known = supposed(found)
        if known is not None or lines == before or variant == "legacy":
            return found, known
        before = lines
    raise TryAgain("others keep changing the rules while they are read", "try again in a moment")


def _saved(programs: Iterable[str]) -> dict[str, str]:
    """What each of them prints; they run at the same time."""
    with contextlib.ExitStack() as stack:
        children = {path: stack.enter_context(_Child([path, "-c"])) for path in programs}
        return {path: child.finish() for path, child in children.items()}


def restore(variant: str, family: str, text: str, *, test: bool = False) -> None:
    """Carry out a text, or see whether it could be. Raises Failed, Unavailable, TryAgain where the lock is held."""
    options = ["--noflush", "--counters", "--wait", str(LOCK_SECONDS), *(["--test"] if test else [])]
    path = find(variant, family, "restore")
    try:
        with _Child([path, *options], text) as child:
            child.finish()
    except Failed as error:
        holder = _lock_holder() if variant == "legacy" and error.code == RESOURCE else ""
        if holder:
            raise TryAgain(f"{holder} has held the lock of iptables for {LOCK_SECONDS} s", "try again later") from None
        if error.code == VERSION:
            hint = "load the kernel's modules for it, or choose another backend"
            raise Unavailable(f"this kernel has no NAT for {PROGRAMS[family]}-{variant}: {error}", hint) from None
        raise


class _Child:
    """A program that runs. What it is told and tells is in files in memory: pipes take half a kilobyte a turn."""

    def __init__(self, argv: list[str], text: str = "") -> None:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(os.memfd_create(name), "w+b")) for name in ("in", "out", "error")]
            told, self._out, self._error = files
            told.write(text.encode("utf-8", "surrogateescape"))
            told.seek(0)
            self._argv = argv
            self._process = subprocess.Popen(
                argv,
                stdin=told,
                stdout=self._out,
                stderr=self._error,
                env=ENVIRONMENT,
                cwd="/",
                # If we are killed, it may still commit: until it has ended, none of ours may begin.
                pass_fds=store.held(),
            )
            self._files = stack.pop_all()

    def finish(self) -> str:
        """What it has printed. Raises Failed, Refused where it does not end."""
        # Not wait() with a time: that asks again and again, up to 50 ms apart.
        descriptor = os.pidfd_open(self._process.pid)
        try:
            if not select.select([descriptor], [], [], SECONDS)[0]:
                raise Refused(f"{printable(self._argv[0])} did not end within {SECONDS:.0f} s", "try again")
        finally:
            os.close(descriptor)
        code = self._process.wait()
        if code:
            raise Failed(self._argv[0], code, printable(" ".join(_content(self._error).split())[:300]))
        return _content(self._out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """One that still runs is ended: nobody would hear what it has to say."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._files.close()


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")


def _loaded(family: str) -> bool:
    """Whether the legacy variant has tables of ours loaded in this network namespace."""
    try:
        with open(f"/proc/thread-self/net/{LOADED[family]}", "rb") as file:
            names = file.read().decode().split()
    except FileNotFoundError:
        return False
    return any(name in TABLES for name in names)


def _lock_holder() -> str:
    """Who holds the lock of the legacy variant, in words; "" where nobody does (proc_locks(5))."""
    try:
        status = os.stat(LOCK)
        with open("/proc/locks", "rb") as file:
            rows = [line.decode().split() for line in file]
    except OSError:
        return ""
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for row in rows:
        if "->" not in row and place in row:
            with contextlib.suppress(OSError), open(f"/proc/{row[4]}/comm", "rb") as file:
                return f"process {row[4]} ({printable(file.read().decode(errors='replace').strip())})"
            return f"process {row[4]}"
    return ""
