"""The listening sockets, and everything about the processes that hold them that tells how they got there."""

from __future__ import annotations

import os
from collections.abc import Callable

from redirector.audit.facts import Holder, Socket
from redirector.host.listeners import listeners
from redirector.host.processes import Process, owners, parent

PROTOCOLS = ("tcp", "udp", "sctp")


def gather(matters: Callable[[int], bool], proc: str = "/proc") -> list[Socket]:
    """Sockets on the ports that matter, in the caller's network namespace. Raises OSError as `listeners` does."""
    found = [one for one in listeners(PROTOCOLS) if matters(one.port)]
    held = owners({one.inode for one in found}, proc, every=True)
    known: dict[int, Holder] = {}
    for processes in held.values():
        for process in processes:
            if process.pid not in known:
                known[process.pid] = holder(process, proc)
    return [Socket(one, tuple(known[p.pid] for p in held.get(one.inode, []))) for one in found]


def holder(process: Process, proc: str = "/proc") -> Holder:
    """All that can be seen of a process; what cannot stays at its default."""
    folder = f"{proc}/{process.pid}"
    masks = {key: int(value, 16) for key, value in status(_read(f"{folder}/status")).items() if key.startswith("Cap")}
    return Holder(
        process.pid,
        process.command,
        process.uid,
        parent(process.pid, proc),
        _link(f"{folder}/exe").removesuffix(" (deleted)"),
        masks.get("CapPrm", 0),
        masks.get("CapEff", 0),
        masks.get("CapAmb", 0),
        unit_of(_read(f"{folder}/cgroup")),
        "/libauthbind.so" in _read(f"{folder}/maps"),
    )


def status(text: str) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    pairs = (line.partition(":") for line in text.split("\n") if ":" in line)
    return {key: value.strip() for key, _, value in pairs}


def unit_of(cgroup: str) -> str:
    """The systemd unit that a /proc/PID/cgroup names: its innermost service; "" for none."""
    for line in cgroup.split("\n"):
        for part in reversed(line.rpartition(":")[2].split("/")):
            if part.endswith(".service"):
                return part
    return ""


def bounding(proc: str = "/proc") -> int | None:
    """The capabilities that this process, and what it starts, can have at all."""
    text = status(_read(f"{proc}/self/status")).get("CapBnd", "")
    return int(text, 16) if text else None


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
