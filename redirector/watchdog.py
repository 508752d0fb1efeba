"""What takes an unconfirmed change back when its time is over, whatever became of the command that made it.

Theory of operation. It is a process that looks at the note twice a second, ends as soon as that is gone, and takes the
change back within a second of its deadline. What it will need then, modules and a socket, it has before it tells
"ready"; and only then does `apply` commit. The note on the disk is the one truth: should there be two of these
processes, or none, then whoever comes first to an overdue note settles it under the lock, and the next finds nothing.

Where systemd runs the system it is a transient service. A process that we merely detached would have a session of its
own and no terminal, so that neither a hang-up nor the end of an ssh session reached it; but it would stay in the cgroup
of its caller, and be killed with it: by logind's KillUserProcesses=, or when the unit that ran `apply` is stopped. A
service has its own, and is started anew if it is killed itself.

It is a service and not a timer (--on-active=) because a timer would have to find everything at the deadline: Python and
our modules on the disk, memory, the network namespace. And a timer counts CLOCK_MONOTONIC, which stands still while the
machine sleeps.

Without systemd or its rights, in a network namespace without a name (a service could not find it again), or if anything
else is in the way, it is the detached process. Which state folder and which network it is in, the process checks for
itself before it is ready: a service may see other mounts than its caller.
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
from redirector.host import systemd

TICK_SECONDS = 0.5
RETRY_SECONDS = 60.0
READY = b"ready\n"
MISPLACED = 3  # exit code: not here, not this note; to start anew would not help

# systemd.unit(5), systemd.service(5), systemd.kill(5). Of the defaults we have none, for they would make it wait for
# basic.target, and so for a unit that calls us earlier. At shutdown it has nothing more to do than to be gone: the note
# of another boot is overdue.
PROPERTIES = (
    "Description=Takes a change of the port redirects back unless it is confirmed",
    "DefaultDependencies=no",
    "Conflicts=shutdown.target",
    "Before=shutdown.target",
    "IgnoreOnIsolate=yes",
    "Type=notify",
    f"TimeoutStartSec={systemd.SECONDS:.0f}s",
    "KillSignal=SIGKILL",
    "Restart=on-failure",
    f"RestartPreventExitStatus={MISPLACED}",
)


def start(history: History, token: str, backend: str, netns: str = "") -> None:
    """Start a watchdog for the note with this token, in the network namespace of the caller (whose name is `netns`, if
    it has one), on the backend of this name, and wait until it stands. Raises OSError if it does not."""
    import redirector

    # -I: nothing in the caller's environment or folder reaches it; so the way to this package is told outright.
    home = os.path.dirname(os.path.dirname(os.path.abspath(redirector.__file__)))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from redirector.watchdog import main; main()"
    argv = [sys.executable, "-I", "-c", code, home, history.folder, token, _network(), backend]
    if systemd.booted() and not os.geteuid() and (netns or systemd.shares_our_network()):
        place = []
        if netns:
            from redirector.host.namespaces import NAMED

            place = [f"NetworkNamespacePath={NAMED}/{netns}"]
        with contextlib.suppress(OSError):  # then systemd's journal says why
            name = f"redirector-confirm-{token}.service"
            systemd.start_transient(name, argv, [*PROPERTIES, *place], journal.environment())
            return
    _detach(argv)


def _network() -> str:
    """The network namespace of this process, as a number that no other has as long as it lives."""
    return str(os.stat("/proc/self/ns/net").st_ino)


def _detach(argv: list[str]) -> None:
    import subprocess

    with open(os.devnull, "rb") as nothing:
        process = subprocess.Popen(
            argv,
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
    """The watchdog's own life: arguments are the package's home, the state folder, the token, the network, and the
    backend's name."""
    from redirector.backends.opening import open_backend

    _, folder, token, network, name = sys.argv[1:6]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    history = History(folder, journal.tell)
    found = pending.read(history)
    if found is None or found.token not in (token, "") or network != _network():
        sys.exit(MISPLACED)
    backend = open_backend(name)
    pending.boot_id()
    _tell_ready()
    _watch(backend, history, token)


def _tell_ready() -> None:
    """To systemd (sd_notify(3)) or, through standard output, to the command that waits for it."""
    if systemd.notify("READY=1"):
        return
    with open(os.devnull, "wb") as nothing:
        os.write(1, READY)
        os.dup2(nothing.fileno(), 1)


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
