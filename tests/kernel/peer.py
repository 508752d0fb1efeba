"""A server and a client for the systemd box, where there is nothing but a Python of the system's own: standard library.

`peer.py serve PORT…` listens on every address and tells each client the port that it reached; it is in the background,
and listening, when the command returns. `peer.py ask ADDRESS PORT` prints what a client is told, or what befell it.
"""

import os
import select
import socket
import sys

PATIENCE = 5.0


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


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve([int(port) for port in sys.argv[2:]])
    sys.stdout.write(ask(sys.argv[2], int(sys.argv[3])) + "\n")
