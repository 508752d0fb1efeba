"""A server, a client and an ear for the systemd box, where there is nothing but a Python of the system's own.

`peer.py serve PORT…` listens on every address and tells each client the port that it reached. `peer.py hear FILE`
writes a line to FILE for each nftables commit in its network namespace, with its time (seconds of CLOCK_BOOTTIME). Both
are in the background, and ready, when the command returns. `peer.py ask ADDRESS PORT` prints what a client is told, or
what befell it.
"""

import os
import select
import socket
import struct
import sys
import time

PATIENCE = 5.0
NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN: the last that is told of a commit


def serve(ports: list[int]) -> None:
    servers = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in ports]
    if os.fork():
        os._exit(0)
    while True:
        for server in select.select(servers, [], [])[0]:
            with server.accept()[0] as client:
                client.sendall(str(server.getsockname()[1]).encode())


def ask(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), PATIENCE) as client:
            return client.recv(16).decode()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"


def hear(path: str) -> None:
    with (
        open(path, "w", encoding="ascii") as file,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as ear,
    ):
        ear.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        if os.fork():
            os._exit(0)
        while True:
            told = ear.recv(1 << 16)
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            while told:
                length, kind = struct.unpack_from("=IH", told)
                told = told[(length + 3) & ~3 :]
                if kind == NEWGEN:
                    file.write(f"{now}\n")
                    file.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve([int(port) for port in sys.argv[2:]])
    if sys.argv[1] == "hear":
        hear(sys.argv[2])
    sys.stdout.write(ask(sys.argv[2], int(sys.argv[3])) + "\n")
