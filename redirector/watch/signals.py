"""Signals as a source of events: SIGTERM and SIGINT end the watch, SIGHUP asks for a comparison.

Python writes the number of each signal into a pipe (signal.set_wakeup_fd), and does nothing else about it: whatever is
under way, such as a commit, goes on to its end.
"""

from __future__ import annotations

import os
import signal

from redirector.watch.sources import COMPARE, STOP, Happening

ASKED = {signal.SIGTERM: STOP, signal.SIGINT: STOP, signal.SIGHUP: COMPARE}


class Signals:
    """For the main thread only, and one at a time: a process has its signals once."""

    name = "signals"
    patient = False

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former = {number: signal.signal(number, lambda *_: None) for number in ASKED}
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        return self._read

    def drain(self) -> Happening:
        numbers = os.read(self._read, 4096)
        asked = {ASKED[signal.Signals(number)] for number in numbers if number in ASKED}
        return Happening(len(numbers), asked=STOP if STOP in asked else COMPARE if asked else "")

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, former in self._former.items():
            signal.signal(number, former)
        os.close(self._read)
        os.close(self._write)
