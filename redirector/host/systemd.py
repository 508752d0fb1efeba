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
