"""iptables-save and iptables-restore, of both variants and both families, run as children.

By absolute path, with a fixed environment, in bounded time. What they are told comes by standard input, never by the
command line. A child that writes inherits the descriptors that are meant to be inherited: the lock of the state folder
(see `store`). So where this process is killed, nobody else writes before its last child has ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable

from redirector.backends.iptables import save
from redirector.backends.iptables.save import SavedTable
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


def read(variant: str, families: Iterable[str]) -> dict[str, dict[str, SavedTable]]:
    """The nat and filter tables of each family, with counters. Raises Failed, Unavailable, save.Unparsable, TryAgain.

    Where the kernel refuses it an answer, iptables-nft-save prints less, and tells of no error (seen with 1.8.9). So it
    is asked twice, and has to print as many lines both times.
    """
    programs = {family: find(variant, family, "save") for family in families}
    asked = [f for f in programs if variant != "legacy" or _loaded(f)] * (2 if variant == "nft" else 1)
    for _ in range(READINGS):
        with contextlib.ExitStack() as stack:
            children = [(family, stack.enter_context(_child([programs[family], "-c"]))) for family in asked]
            told = [(family, _finish(child)) for family, child in children]
        lines = {(family, text.count("\n")) for family, text in told}
        if len(lines) <= len(programs):
            texts = dict(told)
            return {f: save.parse(texts[f].split("\n")) if f in texts else {} for f in programs}
    raise TryAgain("others keep changing the rules while they are read", "try again in a moment")


def restore(variant: str, family: str, text: str, *, test: bool = False) -> None:
    """Carry out a text, or see whether it could be. Raises Failed, Unavailable, TryAgain where the lock is held."""
    options = ["--noflush", "--counters", "--wait", str(LOCK_SECONDS), *(["--test"] if test else [])]
    path = find(variant, family, "restore")
    try:
        with _child([path, *options], heir=True) as child:
            _finish(child, text)
    except Failed as error:
        holder = _lock_holder() if variant == "legacy" and error.code == RESOURCE else ""
        if holder:
            raise TryAgain(f"{holder} has held the lock of iptables for {LOCK_SECONDS} s", "try again later") from None
        if error.code == VERSION:
            hint = "load the kernel's modules for it, or choose another backend"
            raise Unavailable(f"this kernel has no NAT for {PROGRAMS[family]}-{variant}: {error}", hint) from None
        raise


def _child(argv: list[str], *, heir: bool = False) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        argv,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=ENVIRONMENT,
        cwd="/",
        encoding="utf-8",
        errors="surrogateescape",
        close_fds=not heir,
    )


def _finish(child: subprocess.Popen[str], text: str = "") -> str:
    try:
        told, complaint = child.communicate(text, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        raise Refused(f"{printable(str(child.args))} did not end within {SECONDS:.0f} s", "try again") from None
    if child.returncode:
        raise Failed(str(child.args[0]), child.returncode, printable(" ".join(complaint.split())[:300]))  # type: ignore[index]
    return told


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
