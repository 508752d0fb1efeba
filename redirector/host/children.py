"""Programs of the system, run as children: by absolute path, in an environment of ours, for a bounded time.

What they are told and tell is in files in memory: pipes take half a kilobyte a turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Self

from redirector.records import NamedTuple

FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
LARGEST = 256 << 20  # bytes of output that are read at all: two million rules of iptables


class Done(NamedTuple):
    """How a child ended (as subprocess has it: below 0 by a signal), and what it told."""

    code: int
    output: str
    complaint: str


def find(name: str, folders: Iterable[str] = FOLDERS) -> str:
    """The path of a program, "" where there is none."""
    return next((path for folder in folders if os.access(path := f"{folder}/{name}", os.X_OK)), "")


def run(argv: Sequence[str], seconds: float) -> Done:
    """Run a program to its end. Raises as Child and its `finish` do."""
    with Child(argv) as child:
        return child.finish(seconds)


class Child:
    """A program that runs. `keep` are descriptors that it has open, too. Raises OSError where it cannot be started."""

    def __init__(self, argv: Sequence[str], text: str = "", keep: Sequence[int] = ()) -> None:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(os.memfd_create(name), "w+b")) for name in ("in", "out", "error")]
            told, self._output, self._complaint = files
            told.write(text.encode("utf-8", "surrogateescape"))
            told.seek(0)
            self._process = subprocess.Popen(
                argv, stdin=told, stdout=self._output, stderr=self._complaint, env=ENVIRONMENT, cwd="/", pass_fds=keep
            )
            self._files = stack.pop_all()

    def finish(self, seconds: float) -> Done:
        """What became of it. Raises TimeoutError where it does not end, OSError (EFBIG) where it tells too much."""
        if not self._ended(seconds):
            raise TimeoutError
        return Done(self._process.wait(), _content(self._output), _content(self._complaint))

    def _ended(self, seconds: float) -> bool:
        # Not wait() with a time, where it can be helped: that asks again and again, up to 50 ms apart.
        try:
            descriptor = os.pidfd_open(self._process.pid)
        except OSError:  # before Linux 5.3
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.returncode is not None
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """One that still runs is ended: nobody would hear what it has to say."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._files.close()


def _content(file: BinaryIO) -> str:
    if os.fstat(file.fileno()).st_size > LARGEST:
        raise OSError(errno.EFBIG, f"it tells more than {LARGEST >> 20} MiB")
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")
