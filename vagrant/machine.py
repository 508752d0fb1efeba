"""A virtual machine: qemu, switched on and off, and what is asked of the agent inside.

Theory of operation. Two channels, each a Unix socket that we listen on before qemu starts and connects: the serial port
of the agent (guest/agent.py), and qemu's own control (QMP). Every wait is for a line on one of them or for the end of
the process, with a bound; a channel that ends means that the machine did, and is told at once. The console goes into
a file, for people. qemu dies with us, however we do (PR_SET_PDEATHSIG).
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Self

from vagrant.image import Image

COMMAND_SECONDS = 60.0
SHUTDOWN_SECONDS = 120.0
GRACE_SECONDS = 15.0  # for what is only a message
# A kernel that panics ends the machine at once. An emulated processor says that it can do what KVM needs, and an
# emulation takes seconds for loading that. (A processor without it, "max,svm=off", is one on which Linux 6.1 fails.)
KERNEL_ARGUMENTS = "root=/dev/vda ro console=ttyS0 panic=-1 module_blacklist=kvm_amd,kvm_intel"
# The card leads to us and nowhere else: a port of this machine's loopback to port 80, as the Vagrantfile forwards one.
CARD = "user,id=card,restrict=on,hostfwd=tcp:127.0.0.1:0-:80"


class Lost(Exception):
    """The machine ended, or did not answer in time."""


class Channel:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connected: socket.socket, name: str) -> None:
        self._socket, self._name, self._unread = connected, name, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Lost(f"{self._name}: {error.strerror}") from None

    def receive(self, key: str, seconds: float) -> dict[str, Any]:
        """The next object that has this key. Raises Lost."""
        deadline = time.monotonic() + seconds
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                message = json.loads(line) if line.startswith(b"{") else {}
                if key in message:
                    return message
                continue
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._socket.recv(65536)
            except TimeoutError:
                raise Lost(f"{self._name}: nothing within {seconds:.0f} s") from None
            except OSError as error:
                raise Lost(f"{self._name}: {error.strerror}") from None
            if not received:
                raise Lost(f"{self._name}: the machine ended")
            self._unread += received


class Machine:
    """A machine that has booted up to its agent; leaving the context is a power cut. Raises Lost.

    `accelerator` is qemu's: "kvm", or "tcg", which emulates in software. `boot_seconds` is how long it took;
    `forwarded_port` the port of our loopback that leads, through the network card, to port 80 of the machine.
    """

    def __init__(self, image: Image, disk: str, accelerator: str, console: str, seconds: float) -> None:
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="boot-test-"))  # a short path: sun_path
            started = time.monotonic()
            ears, argv = [], _qemu(image, disk, accelerator, console)
            for name in ("agent", "control"):
                ears.append(undo.enter_context(socket.socket(socket.AF_UNIX)))
                ears[-1].bind(f"{folder}/{name}")
                ears[-1].listen()
                argv += ["-chardev", f"socket,id={name},path={folder}/{name}"]
            self._complaints = undo.enter_context(tempfile.TemporaryFile("w+"))
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._complaints
            )
            undo.callback(self.cut_power)
            self._agent, self._control = (undo.enter_context(self._accept(ear)) for ear in ears)
            try:
                self._agent.receive("ready", seconds)
            except Lost as error:
                raise Lost(f"{error}; {self._complained()}") from None
            self.boot_seconds = time.monotonic() - started
            self.forwarded_port = self._forwarded_port()
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, script: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """Exit status of a script of bash in the machine, run by root, and what it printed. Raises Lost."""
        self._agent.send({"run": script, "seconds": seconds})
        answer = self._agent.receive("status", seconds + GRACE_SECONDS)
        return answer["status"], answer["out"]

    def told(self, script: str) -> str:
        """What a script printed, without white space around it. Raises Lost where it fails."""
        status, out = self.run(script)
        if status:
            raise Lost(f"{script}: exit {status}: {out.strip()}")
        return out.strip()

    def pages(self, port: int, addresses: Sequence[str], namespace: str = "") -> list[str]:
        """What web clients get at these addresses, or why they get nothing; in a named namespace of the machine."""
        self._agent.send({"ask": port, "at": addresses, "from": namespace})
        pages: list[str] = self._agent.receive("pages", COMMAND_SECONDS)["pages"]
        if len(pages) != len(addresses):
            raise Lost(f"no clients in namespace {namespace!r}")
        return pages

    def cut_power(self) -> None:
        """SIGKILL for qemu: nothing in the machine is told, and what it had not flushed is gone. May be repeated."""
        self._process.kill()
        self._process.wait()

    def shut_down(self) -> None:
        """In an orderly way, as by `systemctl poweroff`. Raises Lost."""
        self._agent.send({"run": "systemctl poweroff", "seconds": COMMAND_SECONDS})
        try:
            self._process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            raise Lost(f"no end within {SHUTDOWN_SECONDS:.0f} s of systemctl poweroff") from None

    def _accept(self, ear: socket.socket) -> Channel:
        exited = os.pidfd_open(self._process.pid)
        try:
            ready, _, _ = select.select([ear.fileno(), exited], [], [], GRACE_SECONDS)
        finally:
            os.close(exited)
        if ear.fileno() not in ready:
            raise Lost(f"qemu did not start: {self._complained()}")
        return Channel(ear.accept()[0], os.path.basename(ear.getsockname()))

    def _forwarded_port(self) -> int:
        self._control.send({"execute": "qmp_capabilities"})
        self._control.receive("return", GRACE_SECONDS)
        asked = {"command-line": "info usernet"}
        self._control.send({"execute": "human-monitor-command", "arguments": asked})
        table = self._control.receive("return", GRACE_SECONDS)["return"]
        row = next(line.split() for line in table.splitlines() if "HOST_FORWARD" in line)
        return int(row[3])  # protocol and state, descriptor, source address, source port, …

    def _complained(self) -> str:
        self._complaints.seek(0)
        return f"qemu said: {self._complaints.read().strip() or 'nothing'}"


def _qemu(image: Image, disk: str, accelerator: str, console: str) -> list[str]:
    return [
        *("setpriv", "--pdeathsig=KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-accel", accelerator, "-cpu", "max", "-m", "512", "-smp", "2"),
        *("-kernel", image.kernel, "-initrd", image.initrd, "-append", KERNEL_ARGUMENTS),
        *("-drive", f"file={disk},format=qcow2,if=virtio,cache=writeback"),
        *("-netdev", CARD, "-device", "virtio-net-pci,netdev=card,romfile="),
        *("-serial", f"file:{console}", "-serial", "chardev:agent", "-mon", "chardev=control,mode=control"),
    ]
