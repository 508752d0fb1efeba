"""How long a connection takes: a child of bench.py, inside the network namespace that it measures.

    connects.py TARGET PORT [PROXY]

Clients connect to PORT, which leads to a server on TARGET. Each line of standard input is a job and a number; each is
answered by one line of JSON, seconds of the clock and of CPU for one connection:

    latency N   N connections, one after the other: the medians for connect(2) and close(2). On loopback all that the
                kernel does for a connection, NAT too, is done within these calls, and within this thread
    first N     N connections, one after the other: the median of the time until the first byte of the server
    rate N      N connections, OUTSTANDING at once: all of the time until all have had their first byte, divided by N

For the last two the server is a process of its own, and its CPU time is counted with this one's. A proxy answers before
it has reached the server: so only the first byte tells how long a client waits. PROXY is the port that a proxy listens
on: nothing starts before it has passed on a connection.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable

# Closing sends a reset: no connection is left over for a minute in TIME_WAIT, and local ports don't run out.
RESET = struct.pack("=ii", 1, 0)  # struct linger
OUTSTANDING = 16
BACKLOG = 512
HERE = "127.0.0.1"
PATIENCE = 20  # seconds that a connection may take


def client() -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return found


def latency(listener: socket.socket, port: int, count: int) -> dict[str, float]:
    found = []
    for _ in range(count):
        with client() as one:
            clock, cpu = time.perf_counter_ns(), time.thread_time_ns()
            one.connect((HERE, port))
            one.close()
            found.append((time.perf_counter_ns() - clock, time.thread_time_ns() - cpu))
        listener.accept()[0].close()
    seconds, cpu_seconds = (statistics.median(values) / 1e9 for values in zip(*found, strict=True))
    return {"seconds": seconds, "cpu": cpu_seconds}


def first(listener: socket.socket, port: int, count: int) -> dict[str, float]:
    def work() -> float:
        found = []
        for _ in range(count):
            with client() as one:
                one.settimeout(PATIENCE)
                clock = time.perf_counter_ns()
                one.connect((HERE, port))
                byte = one.recv(1)
                found.append(time.perf_counter_ns() - clock)
            if not byte:
                raise ConnectionError("a connection ended without a byte")
        return statistics.median(found) / 1e9

    return served(listener, count, work)


def rate(listener: socket.socket, port: int, count: int) -> dict[str, float]:
    def work() -> float:
        clock = time.perf_counter()
        with select.epoll() as poll:
            live: dict[int, socket.socket] = {}
            started = 0
            while started < count or live:
                while started < count and len(live) < OUTSTANDING:
                    one = client()
                    one.setblocking(False)
                    one.connect_ex((HERE, port))
                    live[one.fileno()] = one
                    poll.register(one, select.EPOLLIN)
                    started += 1
                ready = poll.poll(PATIENCE)
                for number, _ in ready:
                    with live.pop(number) as one:
                        if not one.recv(1):
                            raise ConnectionError("a connection ended without a byte")
                if not ready:
                    raise TimeoutError("no connection was answered")
        return (time.perf_counter() - clock) / count

    return served(listener, count, work)


def served(listener: socket.socket, count: int, work: Callable[[], float]) -> dict[str, float]:
    """What `work` says of the clock, with the CPU for one connection, while a server answers `count` of them."""
    cpu = time.process_time()
    server = os.fork()
    if not server:
        try:
            serve(listener, count)
        finally:
            os._exit(0)
    seconds = work()
    _, _, usage = os.wait4(server, 0)
    spent = time.process_time() - cpu + usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": spent / count}


def serve(listener: socket.socket, count: int) -> None:
    """A byte for each connection; none is closed before its client has closed it."""
    held: deque[socket.socket] = deque()
    for _ in range(count):
        one, _ = listener.accept()
        one.send(b"\n")
        held.append(one)
        if len(held) > 4 * OUTSTANDING:
            finish(held.popleft())
    while held:
        finish(held.popleft())


def finish(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.settimeout(PATIENCE)
    with one:
        try:
            one.recv(1)
        except OSError:
            return  # a reset is an end, too


def await_proxy(listener: socket.socket, port: int) -> None:
    """Returns when it has passed on a connection. Raises TimeoutError, ConnectionError.

    One connection at a time is tried, and it may take its time: some proxies end when their first client is gone.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with socket.socket() as one:
            if not one.connect_ex((HERE, port)):
                listener.settimeout(PATIENCE)
                listener.accept()[0].close()
                listener.settimeout(None)
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def main(target: int, port: int, proxy: int = 0) -> None:
    jobs = {"latency": latency, "first": first, "rate": rate}
    with socket.create_server((HERE, target), backlog=BACKLOG) as listener:
        if proxy:
            await_proxy(listener, proxy)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            job, count = line.split()
            print(json.dumps(jobs[job](listener, port, int(count))), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
