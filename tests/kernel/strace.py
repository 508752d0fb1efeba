"""The system calls of a program that matter to what it leaves behind, and faults at each of them, by strace(1).

A clean run is traced once. Each call in it that concerns the kernel's tables or the state folder is a place for a
fault, known by its name and by its number among the calls of that name: that is how strace counts (`when=`). What
Python does to start and to import its modules is not among them. A fault at a call that is killed by a signal comes
before the call takes effect: what lies between two calls is met by the kill at the second.

"always" means: from this call on, everything that writes to the same device fails, as it does where a disk has been
made read-only or the kernel is out of memory. The exception is EINTR, which the kernel returns only where a signal
came: there it is a storm of STORM of them, since Python tries again for as long as it lasts (PEP 475).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

STORM = 50

NETLINK = ("sendto", "recvfrom")
DISK = ("mkdir", "flock", "ftruncate", "pwrite64", "write", "fsync", "rename", "unlink")
# These fail only one at a time: if they always did, Python could not import the next module.
DISK_ONCE = ("openat", "newfstatat", "getdents64", "read", "pread64", "close")
PROCESS = ("pipe2", "vfork", "clone", "clone3", "fork")

_CALL = re.compile(r"(\w+)\((.*)")
_MESSAGE = re.compile(r"nlmsg_type=(?:\w+<<8\|)?(\w+)")
_FILES = {"lock": "lock", "pending.json": "note", "tmp": "temporary file", "json": "record"}


class Call(NamedTuple):
    """The `number`-th call of `name` in a run. `device` is netlink, disk, process, output or end; `about` says more.
    `others` are the numbers that the next calls of the device's other names will have."""

    name: str
    number: int
    device: str
    about: str
    others: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}#{self.number} ({self.about})"


class Fault(NamedTuple):
    """What happens at a call: `what` is a signal or an errno by name, `always` that it goes on from there."""

    call: Call
    what: str
    always: bool = False

    @property
    def signal(self) -> bool:
        return self.what.startswith("SIG")

    def __str__(self) -> str:
        return f"{self.what} {'always from' if self.always else 'at'} {self.call}"

    def arguments(self) -> list[str]:
        """The options of strace that bring it about."""
        effect = f"signal={self.what.removeprefix('SIG')}" if self.signal else f"error={self.what}"
        places = [(self.call.name, str(self.call.number))]
        if self.always:
            numbers = ((self.call.name, self.call.number), *self.call.others)
            places = [(name, f"{n}..{n + STORM - 1}" if self.what == "EINTR" else f"{n}+") for name, n in numbers]
        names = ",".join(name for name, _ in places)
        return ["-e", f"trace={names}", *(o for n, when in places for o in ("-e", f"inject={n}:{effect}:when={when}"))]

    def struck(self, log: str) -> str:
        """The line of the call at which a run's log shows it; "" where it does not."""
        lines = log.splitlines()
        if not self.signal:
            return next((line for line in lines if line.endswith("(INJECTED)") and f" {self.what} " in line), "")
        hit = [i for i, line in enumerate(lines) if self.what in line and line[:3] in ("---", "+++")]
        return next((line for line in reversed(lines[: hit[0]]) if _CALL.match(line)), "") if hit else ""

    def happened(self, log: str, folder: str) -> bool:
        """Whether a run's log shows it, at a call of that name and device."""
        return any((c.name, c.device) == (self.call.name, self.call.device) for c in calls([self.struck(log)], folder))


def numbered(log: Iterable[str]) -> Iterator[tuple[str, str, Counter[str]]]:
    """(name, arguments, how many there were of each name so far) of each call in a log."""
    counts: Counter[str] = Counter()
    for line in log:
        found = _CALL.match(line)
        if found:
            counts[found[1]] += 1
            yield found[1], found[2], counts


def calls(log: Iterable[str], folder: str) -> Iterator[Call]:
    """The calls that matter in a log of `strace -yy`, in their order; `folder` is the state folder."""
    for name, arguments, counts in numbered(log):
        device, about = _classify(name, arguments, folder)
        if device:
            yield Call(name, counts[name], device, about, tuple(_others(device, name, counts)))


def _classify(name: str, arguments: str, folder: str) -> tuple[str, str]:
    """(device, about) of a call, ("", "") of one that does not matter."""
    if name in NETLINK:
        message = _MESSAGE.search(arguments)
        return "netlink", message[1].removeprefix("NFT_MSG_") if message else "?"
    if name == "exit_group":
        return "end", "the end"
    if name in PROCESS:
        return "process", "the watchdog"
    if name in (*DISK, *DISK_ONCE):
        path = re.search(re.escape(folder) + r'([^">]*)[">]', arguments)
        if path:
            base = path[1].rpartition("/")[2]
            return "disk", _FILES.get(base, _FILES.get(base.rpartition(".")[2], "folder"))
        if name == "write":
            return "output", "standard output"
    return "", ""


def _others(device: str, name: str, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    members = NETLINK if device == "netlink" else DISK if device == "disk" else ()
    return ((other, counts[other] + 1) for other in members if other != name)
