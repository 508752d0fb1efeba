"""systemd as the process that runs the system: whether it does, and services that exist as long as they run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

SECONDS = 10.0  # for a transient service to stand; whoever waits for it holds the lock


def booted() -> bool:
    """Whether systemd runs this system (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def shares_our_network() -> bool:
    """Whether process 1, and so a service that says nothing else, is in our network namespace."""
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:  # without the right to look, or without /proc
        return False


def notify(state: str) -> bool:
    """Tell the service manager, as `sd_notify(3)` does; False where there is none. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    import _socket as socket  # see netlink

    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        out.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    finally:
        out.close()
    return True


def ping_seconds() -> float | None:
    """How often the service manager wants to hear WATCHDOG=1: twice in its time (`sd_watchdog_enabled(3)`); None if it
    does not, or not from this process."""
    time, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (time.isascii() and time.isdigit() and int(time)) or pid not in ("", str(os.getpid())):
        return None
    return int(time) / 2e6


def start_transient(name: str, argv: Sequence[str], properties: Sequence[str], environment: Mapping[str, str]) -> None:
    """Start a service of its own, and wait until it is ready, as its Type= has it (systemd-run(1)).

    Root is all that it takes: systemd-run then talks to process 1 directly, without D-Bus. Raises OSError.
    """
    from redirector.host import children

    options = [f"--property={value}" for value in properties]
    options += [f"--setenv={key}={value}" for key, value in environment.items()]
    command = [argv[0], *(argument.replace("$", "$$") for argument in argv[1:])]  # or systemd takes it for a variable
    told = ["/usr/bin/systemd-run", "--quiet", "--collect", f"--unit={name}", *options, "--", *command]
    done = children.run(told, SECONDS)
    if done.code:
        raise OSError(0, done.complaint.strip())
