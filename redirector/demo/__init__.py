"""`redirector demo`: the whole program at work on real packets, and a check of it: what is not as promised ends it.

`story` runs the real commands, as child processes, on the host of a private `stage`, where an unprivileged `server`
listens, and asks real clients before and after each.

Signals that would end the process are only noted while the demo plays, and obeyed between two lines of the story: so
none comes between the start of something and the note of how to end it. Every wait in here has an end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import redirector
from redirector.errors import Unavailable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    missing, OSError where `web` cannot be read, and for a signal, after everything was taken away, KeyboardInterrupt
    or SystemExit.
    """
    from redirector.demo.story import Broken, Interrupted, Teller, play
    from redirector.terminal import paint_for, say

    with _noted() as signals:
        teller = Teller(paint_for(sys.stdout), signals)
        try:
            play(teller, web or os.path.join(shipped_rules(), "web.toml"), terminal=sys.stdout.isatty())
        except Broken:
            return 1
        except Interrupted:
            say("\nInterrupted; everything that the demo made is gone again.", sys.stderr)
            if signals[0] == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + signals[0]) from None  # as a shell tells it
    return 0


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """A list to which SIGNALS add themselves, in place of what they would do; ignored ones (nohup) stay so."""
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
