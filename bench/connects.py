"""How long a connection takes: a child of bench.py, inside the network namespace that it measures.

    connects.py TARGET PORT

It serves TCP port TARGET on 127.0.0.1 itself. Each line of standard input is a number of connections to make to PORT,
one after the other; each is answered by one line of JSON: the medians of seconds of the clock and of this thread's CPU
for connect(2) and close(2). On loopback all that the kernel does for a connection, NAT too, is done within these calls.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import time

# Closing sends a reset: no connection is left over for a minute in TIME_WAIT, and local ports don't run out.
RESET = struct.pack("=ii", 1, 0)  # struct linger


def connection(listener: socket.socket, port: int) -> tuple[int, int]:
    """(clock, CPU) of one, in nanoseconds."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        clock, cpu = time.perf_counter_ns(), time.thread_time_ns()
        client.connect(("127.0.0.1", port))
        client.close()
        cpu, clock = time.thread_time_ns() - cpu, time.perf_counter_ns() - clock
    listener.accept()[0].close()
    return clock, cpu


def main(target: int, port: int) -> None:
    with socket.create_server(("127.0.0.1", target)) as listener:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            found = [connection(listener, port) for _ in range(int(line))]
            seconds, cpu = (statistics.median(values) / 1e9 for values in zip(*found, strict=True))
            print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
