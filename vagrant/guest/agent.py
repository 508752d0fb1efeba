"""The boot test's hands in the virtual machine, at the other end of a serial port: `agent.py DEVICE`.

One JSON object a line. The first says that it is ready; from then on each that comes is answered, one after another:

    {"run": script of bash, "seconds": N}                  {"status": exit status, "out": what it printed}
    {"ask": port, "at": [addresses], "from": namespace}    {"pages": [what a web client gets there, or why nothing]}

It is the client itself: under software emulation a process of Python would take longer to start than its question.
`from` is a named network namespace, "" for the machine's own.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import tty
from typing import Any

PATIENCE = 15.0  # far beyond what an answer takes; a packet that was lost is sent again within it
CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns comes with Python 3.12


def main() -> None:
    port = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    with open(port, "rb", buffering=0, closefd=False) as questions, open(port, "wb", buffering=0) as answers:
        answers.write(b'\n{"ready": true}\n')
        unread = b""
        while chunk := questions.read(4096):
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                answers.write(json.dumps(ask(asked) if "ask" in asked else run(asked)).encode() + b"\n")


def run(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", asked["run"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=asked["seconds"],
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {"status": 124, "out": (error.stdout or b"").decode("utf-8", "replace")}
    return {"status": done.returncode, "out": done.stdout.decode("utf-8", "replace")}


def ask(asked: dict[str, Any]) -> dict[str, Any]:
    """In a thread of its own, which alone changes its namespace, and ends."""
    pages: list[str] = []

    def clients() -> None:
        if asked["from"]:
            with open(f"/run/netns/{asked['from']}", "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
        pages.extend(page(address, asked["ask"]) for address in asked["at"])

    thread = threading.Thread(target=clients)
    thread.start()
    thread.join()
    return {"pages": pages}


def page(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), PATIENCE) as one:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := one.recv(65536):
                answer += data
    except OSError as error:
        return error.strerror or str(error)
    head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    return body if " 200 " in head.partition("\r\n")[0] else head


if __name__ == "__main__":
    main()
