"""The watchdogs of `apply --confirm`, seen from outside: they outlive the command, so nobody has them as children."""

import contextlib
import os
import select
import signal
from typing import Self

PATIENCE = 30.0


class Watchdog:
    """A running one, by a descriptor that means this process and no later one of the same number. Close it."""

    def __init__(self, number: int) -> None:
        """Raises ProcessLookupError where it has ended."""
        self.number = number
        self._descriptor = os.pidfd_open(number)

    def await_end(self) -> None:
        """Return when it has ended. Raises AssertionError after PATIENCE seconds."""
        assert select.select([self._descriptor], [], [], PATIENCE)[0], f"the watchdog {self.number} goes on"

    def await_open(self, path: str) -> None:
        """Return when it has a file open. Raises AssertionError where it ends before."""
        while path not in self._open_files():
            assert not select.select([self._descriptor], [], [], 0.01)[0], f"the watchdog {self.number} has ended"

    def _open_files(self) -> list[str]:
        found = []
        for name in os.listdir(f"/proc/{self.number}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{self.number}/fd/{name}"))
        return found

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def fields(self) -> list[str]:
        """Of /proc/PID/stat, from the third field on (proc_pid_stat(5)): state, parent, group, session, terminal."""
        with open(f"/proc/{self.number}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:5]

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watchdogs(folder: str) -> list[Watchdog]:
    """Those that look after this state folder; close each."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{number}/cmdline", "rb") as file:
                arguments = file.read().split(b"\0")
            if b"-I" in arguments and os.fsencode(folder) in arguments:
                found.append(Watchdog(int(number)))
    return found
