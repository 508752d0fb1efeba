"""Who holds a socket, and who started us: read from /proc (proc(5)).

A process holds a socket if a link in its `fd` folder reads `socket:[inode]`. Other users' folders may be closed to us,
and processes end while we look: what cannot be read is passed over, so an absent owner means "not seen" and not "none".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from redirector.records import NamedTuple

INIT = 1
# A process that ended, or that we may not look at.
_UNSEEN = (FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError)


class Process(NamedTuple):
    """A process: `command` is its comm (at most 15 bytes, chosen by the process itself), `uid` its effective user."""

    pid: int
    command: str
    uid: int


def parse_stat(data: bytes) -> tuple[int, str, int] | None:
    """(pid, comm, parent pid) of a /proc/PID/stat; None if that is not what `data` is.

    comm stands in parentheses and may hold spaces and parentheses itself: it ends at the last one.
    """
    before, opened, rest = data.partition(b" (")
    command, closed, fields = rest.rpartition(b") ")
    state_and_parent = fields.split(None, 2)
    if not (opened and closed and len(state_and_parent) >= 2):
        return None
    try:
        return int(before), command.decode("utf-8", "surrogateescape"), int(state_and_parent[1])
    except ValueError:
        return None


def ancestors(proc: str = "/proc") -> list[Process]:
    """The parent of the calling process, its parent, and so on, as far as they can be seen."""
    try:
        own = _read_stat(proc, int(os.readlink(f"{proc}/self")))
    except (*_UNSEEN, ValueError):
        return []
    found: list[Process] = []
    seen: set[int] = set()
    while own and own[2] > 0 and own[2] not in seen:
        parent = own[2]
        seen.add(parent)  # ids are used again: while we read, the chain could close to a ring
        own = _read_stat(proc, parent)
        process = _process(proc, parent)
        if process:
            found.append(process)
    return found


def sockets(pid: int, proc: str = "/proc") -> set[int]:
    """The inodes of the sockets that a process holds; empty if they cannot be seen."""
    return set(_sockets(proc, pid))


def parent(pid: int, proc: str = "/proc") -> int:
    """The parent's process id; 0 where it cannot be seen."""
    stat = _read_stat(proc, pid)
    return stat[2] if stat else 0


def owners(inodes: AbstractSet[int], proc: str = "/proc", *, every: bool = False) -> dict[int, list[Process]]:
    """Processes that hold these sockets, by inode; an inode whose holders cannot be seen is absent.

    The search goes by process id and ends when each inode has a holder, so workers that inherited a socket may be
    missing, unless `every` holder is asked for. Process 1 comes last: it holds the sockets of the services that it
    activates, which are the better answer.
    """
    wanted = {inode for inode in inodes if inode}  # 0 is no inode
    found: dict[int, list[Process]] = {}
    try:
        pids = sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    except _UNSEEN:
        return found
    if INIT in pids:
        pids.remove(INIT)
        pids.append(INIT)
    for pid in pids:
        if len(found) == len(wanted) and not (every and wanted):
            break
        held = wanted.intersection(_sockets(proc, pid))
        process = _process(proc, pid) if held else None
        if process:
            for inode in held:
                found.setdefault(inode, []).append(process)
    return found


def _sockets(proc: str, pid: int) -> Iterator[int]:
    folder = f"{proc}/{pid}/fd"
    try:
        names = os.listdir(folder)
    except _UNSEEN:
        return
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except _UNSEEN:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _process(proc: str, pid: int) -> Process | None:
    stat = _read_stat(proc, pid)
    if not stat:
        return None
    try:
        # The folder belongs to the effective user, also where the files in it are closed to others (proc(5)).
        return Process(pid, stat[1], os.stat(f"{proc}/{pid}").st_uid)
    except _UNSEEN:
        return None


def _read_stat(proc: str, pid: int) -> tuple[int, str, int] | None:
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except _UNSEEN:
        return None
