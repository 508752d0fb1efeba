"""The process that takes an unconfirmed change back when its time is over, whatever became of the one that made it.

It has a session of its own and no terminal, so neither a hang-up nor the end of an ssh session reaches it; it looks at
the note twice a second, ends as soon as that is gone, and takes the change back within a second of its deadline. What
it will need then, modules and a socket, it has before it tells "ready" through its standard output; and only then does
`apply` commit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from redirector import journal, pending
from redirector.backends.base import Backend
from redirector.errors import RedirectorError
from redirector.history import History

TICK_SECONDS = 0.5
RETRY_SECONDS = 60.0
READY = b"ready\n"


def start(history: History, token: str) -> None:
    """Start a watchdog for the note with this token, in the network namespace of the caller, and wait until it stands.

    Raises OSError if it does not.
    """
    import subprocess

    import redirector

    # -I: nothing in the caller's environment or folder reaches it; so the way to this package is told outright.
    home = os.path.dirname(os.path.dirname(os.path.abspath(redirector.__file__)))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from redirector.watchdog import main; main()"
    with open(os.devnull, "rb") as nothing:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, home, history.folder, token],
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **journal.environment()},
            start_new_session=True,
        )
    with process.stdout or open(os.devnull, "rb") as answer:
        if answer.readline() != READY:
            process.kill()
            process.wait()
            raise OSError(0, "the watchdog did not start")
    process.returncode = 0  # it outlives us: nobody is to wait for it


def main() -> None:
    """The watchdog's own life: arguments are the package's home, the state folder, and the token."""
    from redirector.backends.nftables.backend import NftablesBackend

    _, folder, token = sys.argv[1:4]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    history, backend = History(folder, journal.tell), NftablesBackend()
    pending.boot_id()
    with open(os.devnull, "wb") as nothing:
        os.write(1, READY)
        os.dup2(nothing.fileno(), 1)
    _watch(backend, history, token)


def _watch(backend: Backend, history: History, token: str) -> None:
    """Until the note is gone, or another's; after its deadline for RETRY_SECONDS, as others may hold the lock or change
    the tables. A note without a token cannot be read: whose it is tells the lock's holder."""
    overdue_since = None
    while overdue_since is None or time.monotonic() < overdue_since + RETRY_SECONDS:
        found = pending.read(history)
        if found is None or found.token not in (token, ""):
            return
        if not found.seconds_left:
            overdue_since = overdue_since or time.monotonic()
            with contextlib.suppress(RedirectorError, OSError), history.locked():
                if pending.settle(backend, history) is None:
                    return
        time.sleep(min(TICK_SECONDS, found.seconds_left or TICK_SECONDS))


if __name__ == "__main__":
    main()
