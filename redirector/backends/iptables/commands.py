"""iptables-save and iptables-restore, of both variants and both families, run as children.

What they are told comes by standard input, never by the command line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from redirector import store
from redirector.backends.iptables import save
from redirector.backends.iptables.save import Saved
from redirector.errors import Refused, TryAgain, Unavailable, printable
from redirector.host import children, xtables
from redirector.host.children import Child

FOLDERS = children.FOLDERS
LOCK = "/run/xtables.lock"  # XT_LOCK_NAME, iptables/xshared.h
LOCK_SECONDS = 5  # for another's command; ours takes a part of a second
SECONDS = 60.0  # for one child: what takes longer hangs
READINGS = 5
TABLES = ("nat", "filter")
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
    """The path of a program (see `xtables.find`). Raises Unavailable."""
    path = xtables.find(variant, family, verb, FOLDERS)
    if path:
        return path
    message = f"there is no {xtables.name(variant, family, verb)} on this host"
    raise Unavailable(message, "install the package iptables, or choose another backend")


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
        running = {path: stack.enter_context(_child(path, "-c")) for path in programs}
        return {path: _finish(child, path) for path, child in running.items()}


def restore(variant: str, family: str, text: str, *, test: bool = False) -> None:
    """Carry out a text, or see whether it could be. Raises Failed, Unavailable, TryAgain where the lock is held."""
    options = ["--noflush", "--counters", "--wait", str(LOCK_SECONDS), *(["--test"] if test else [])]
    path = find(variant, family, "restore")
    try:
        with _child(path, *options, text=text) as child:
            _finish(child, path)
    except Failed as error:
        holder = _lock_holder() if variant == "legacy" and error.code == RESOURCE else ""
        if holder:
            raise TryAgain(f"{holder} has held the lock of iptables for {LOCK_SECONDS} s", "try again later") from None
        if error.code == VERSION:
            hint = "load the kernel's modules for it, or choose another backend"
            raise Unavailable(
                f"this kernel has no NAT for {xtables.PROGRAMS[family]}-{variant}: {error}", hint
            ) from None
        raise


def _child(path: str, *options: str, text: str = "") -> Child:
    # If we are killed, it may still commit: until it has ended, none of ours may begin.
    return Child([path, *options], text, keep=store.held())


def _finish(child: Child, path: str) -> str:
    """What it has printed. Raises Failed, Refused where it does not end."""
    try:
        done = child.finish(SECONDS)
    except TimeoutError:
        raise Refused(f"{printable(path)} did not end within {SECONDS:.0f} s", "try again") from None
    if done.code:
        raise Failed(path, done.code, printable(" ".join(done.complaint.split())[:300]))
    return done.output


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
