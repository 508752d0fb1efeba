"""`redirector watch`: from somebody's commit that takes our table away to ours that brings it back."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import files
from measure import Failed, Place, Sample, Samples
from report import Comparison, Section
from workshop import Workshop

from redirector.backends.nftables.message import header
from redirector.backends.nftables.wire import NEWGEN
from redirector.backends.opening import open_backend
from redirector.netlink import NETLINK_NETFILTER, NetlinkSocket, messages
from redirector.plan import DeleteTable
from redirector.watch.commits import GROUP
from redirector.watch.patience import AT_ONCE

LIMIT_MILLISECONDS = 100
PATIENCE = 30.0  # seconds until a healing counts as failed


def healing(shop: Workshop) -> Section:
    """Of one mapping, the median and the worst; and of many ports."""
    times, few, count = shop.size(5, 200), shop.size(3, 40), shop.size(400, 10_000)
    found = {}
    for what, runs, file in (
        ("1 mapping", times, files.mappings(shop, 1)),
        (f"{count:,} ports", few, files.ranges(shop, count).file),
    ):
        with shop.place(f"healing-{runs}") as here:
            here.run(shop.apply(here, file))
            found[what] = Samples.of(list(_healings(shop, here, runs)))
    section = Section("healing", "Healing: our table is deleted, and `redirector watch` brings it back", found)
    for what, spent in found.items():
        cpu = 1000 * spent.cpu.median
        least, median, worst = (1000 * value for value in spent.seconds)
        limit = LIMIT_MILLISECONDS if what == "1 mapping" else None
        heals = f"from tamper to healed, {what}, {spent.runs} times"
        section.comparisons += [
            Comparison(heals, median, least, cpu, unit="ms", limit=limit),
            Comparison(f"{heals}: the worst", worst, worst, unit="ms", limit=limit),
        ]
    section.notes.append(
        "From right before a foreign commit is sent until the kernel announces the watcher's own. CPU time is the "
        "watcher's until then."
    )
    return section


def _healings(shop: Workshop, here: Place, times: int) -> Iterator[Sample]:
    """The watcher is started anew before it could take us for somebody who fights it."""
    backend = here.inside(lambda: open_backend("nftables"))
    heard = here.inside(lambda: NetlinkSocket(NETLINK_NETFILTER))
    heard.join(GROUP)
    with contextlib.closing(backend), contextlib.closing(heard):
        for begin in range(0, times, AT_ONCE - 1):
            with _watcher(shop, here) as pid:
                for _ in range(min(AT_ONCE - 1, times - begin)):
                    _await_sleep(pid)
                    _commits(heard)
                    genid, used, begun = backend.genid(), _used(pid), time.perf_counter()
                    backend.commit([DeleteTable()], genid)
                    seen = 0
                    while seen < 2:  # the foreign one, and the watcher's
                        if not select.select([heard], [], [], PATIENCE)[0]:
                            raise Failed(f"nothing was healed: {here.said()}")
                        seen += _commits(heard)
                    yield Sample(time.perf_counter() - begun, _used(pid) - used)


@contextlib.contextmanager
def _watcher(shop: Workshop, here: Place) -> Iterator[int]:
    """The process, once it is ready."""
    path = os.path.join(here.folder, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        try:
            with here.daemon(shop.command(here, "watch"), {"NOTIFY_SOCKET": path}) as child:
                if not manager.recv(4096).startswith(b"READY=1"):
                    raise Failed(f"the watcher did not become ready: {here.said()}")
                yield child.pid
        finally:
            os.unlink(path)


def _commits(heard: NetlinkSocket) -> int:
    """How many have been announced since the last time."""
    return sum(found.kind == header(NEWGEN) for data in heard.arrived() for found in messages(data))


def _used(pid: int) -> float:
    """Seconds of CPU time, from nanoseconds (/proc/PID/schedstat; /proc/PID/stat has hundredths only)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _await_sleep(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "S":
        pass
