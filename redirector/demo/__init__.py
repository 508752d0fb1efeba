"""`redirector demo`: the whole program at work on real packets, and a check of it: what is not as promised ends it.

The story runs the real commands, as child processes, on the host of a private stage (module stage), and asks real
clients before and after each. A promise is the exact text that a client gets to see, or a command's exit status.

Signals that would end the process are only noted while it plays, and obeyed between two lines of the story: so none
comes between the start of something and the note of how to end it. Every wait in here has an end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import redirector
from redirector.errors import BadConfiguration, RedirectorError, Unavailable, printable

if TYPE_CHECKING:
    from redirector.demo.stage import Stage
    from redirector.output import Paint

FOLDER = "mappings"  # in the stage's temporary folder: what the commands get as FILE
DNS = """\
version = 1

[[mapping]]
name = "dns"
listen = 53
to = 5353
protocol = "udp"
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REFUSED = os.strerror(111)  # ECONNREFUSED (asm-generic/errno.h), as clients tell it


class _Broken(Exception):
    """Something did not come out as promised; that has been said already."""


class _Interrupted(Exception):
    """A signal was noted."""


def shipped_rules() -> str:
    """The folder of ready mapping files: in the installed package, or at the top of a checkout. Raises Unavailable."""
    package = os.path.dirname(os.path.abspath(redirector.__file__))
    for folder in (os.path.join(package, "rules"), os.path.join(os.path.dirname(package), "rules")):
        if os.path.isfile(os.path.join(folder, "web.toml")):
            return folder
    raise Unavailable("the mapping files that come with Redirector are missing", "install it again")


def run(web: str = "") -> int:
    """Play the demo, with the mapping file `web` in place of rules/web.toml: 0 if all was as promised, else 1.

    Call it while the process has one thread. Raises Unavailable where private namespaces are forbidden or nftables is
    missing; KeyboardInterrupt or SystemExit, after everything was taken away, for a signal.
    """
    from redirector.output import paint_for

    paint = paint_for(sys.stdout)
    with _noted_signals() as noted:
        try:
            _play(_Teller(paint, noted), web or os.path.join(shipped_rules(), "web.toml"), coloured=paint.enabled)
        except _Broken:
            return 1
        except _Interrupted:
            if noted[0] != signal.SIGINT:
                raise SystemExit(128 + noted[0]) from None  # as a shell tells it
            raise KeyboardInterrupt from None
    return 0
