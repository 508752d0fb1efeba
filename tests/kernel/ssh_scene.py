"""Processes that look like an ssh session, for test_host: a server that calls itself sshd, and below it who asks.

`python -m tests.kernel.ssh_scene serve WHERE`, run inside a network namespace, listens on 127.0.0.1:2222 and
[::1]:2022, prints a line, accepts one connection and starts `ask WHERE`, which prints what ssh_ports says as JSON.
WHERE is "here", or "elsewhere" for a network namespace of its own.
"""

import json
import os
import socket
import subprocess
import sys

from redirector.host.listeners import listeners
from redirector.host.namespaces import Namespace
from redirector.host.ssh import SshUse, ssh_ports

PORT = 2222
OTHER_PORT = 2022


def ask() -> list[SshUse]:
    return ssh_ports(os.environ, listeners(["tcp"]), {PORT, OTHER_PORT}, unit_folders=())


def serve(where: str) -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("sshd")
    with socket.create_server(("127.0.0.1", PORT)) as server, socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", OTHER_PORT))
        other.listen()
        print("listening", flush=True)  # noqa: T201 - what the test waits for
        connection, _client = server.accept()
        with connection:
            subprocess.run([sys.executable, "-m", __spec__.name, "ask", where], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif sys.argv[2] == "here":
        json.dump(ask(), sys.stdout)
    else:
        with Namespace.create("elsewhere") as elsewhere:
            json.dump(elsewhere.call(ask), sys.stdout)
