"""One line for each change: to the systemd journal, with fields to search by, or to syslog where there is none.

Theory of operation. Both are a datagram to a socket that somebody listens on. The journal takes fields, KEY=value, one
a line (systemd.io/JOURNAL_NATIVE_PROTOCOL); syslog takes text behind a priority and a time (RFC 3164). A change is made
before it is told, so telling must neither fail nor wait: a line that cannot be sent at once is lost, and the history
still has the change.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import os
import time
from collections.abc import Callable, Sequence

from redirector.errors import printable
from redirector.records import NamedTuple

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
IDENTIFIER = "redirector"
# Facility and priorities: sys/syslog.h.
LOG_DAEMON = 3 << 3
LOG_ERR, LOG_NOTICE = 3, 5
# The path of another socket that speaks the journal's protocol; empty: tell nobody (tests, containers).
ENVIRONMENT = "REDIRECTOR_JOURNAL"


class Entry(NamedTuple):
    """What became of one change: `action` as in a record, `author` who, `source` the file or generation that it came
    from, `generation` the current one afterwards (None: none), `summary` in words; `failed`: people should look."""

    action: str
    author: str
    source: str
    generation: int | None
    summary: str
    failed: bool = False

    @property
    def message(self) -> str:
        what = " ".join(word for word in (self.action, self.source) if word)
        where = f"; generation {self.generation}" if self.generation is not None else ""
        return printable(f"{what} by {self.author}: {self.summary}{where}")


def ignore(entry: Entry) -> None:
    """Tell nobody."""


def tell(entry: Entry) -> None:
    """Send an entry to the first of the sockets that takes it."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is None:
        _send(entry, ((JOURNAL, as_journal), (SYSLOG, as_syslog)))
    elif chosen:
        _send(entry, ((chosen, as_journal),))


def is_stream(descriptor: int) -> bool:
    """Whether the journal reads what is written there (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def environment() -> dict[str, str]:
    """What a child needs in its environment to tell the same."""
    return {name: value for name, value in os.environ.items() if name == ENVIRONMENT}


def as_journal(entry: Entry) -> bytes:
    """The journal's native form: no value has a newline in it, since `printable` escapes them."""
    fields = {
        "MESSAGE": entry.message,
        "PRIORITY": LOG_ERR if entry.failed else LOG_NOTICE,
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "REDIRECTOR_ACTION": entry.action,
        "REDIRECTOR_AUTHOR": printable(entry.author),
        "REDIRECTOR_SOURCE": printable(entry.source),
        "REDIRECTOR_GENERATION": "" if entry.generation is None else entry.generation,
    }
    return "".join(f"{key}={value}\n" for key, value in fields.items()).encode("utf-8", "replace")


def as_syslog(entry: Entry) -> bytes:
    """RFC 3164's form, without a host name, as on the local socket."""
    priority = LOG_DAEMON | (LOG_ERR if entry.failed else LOG_NOTICE)
    now = time.strftime("%b %e %H:%M:%S")
    return f"<{priority}>{now} {IDENTIFIER}[{os.getpid()}]: {entry.message}".encode("utf-8", "replace")


def _send(entry: Entry, ways: Sequence[tuple[str, Callable[[Entry], bytes]]]) -> None:
    for path, form in ways:
        try:
            out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError:
            return
        try:
            out.sendto(form(entry), path)
        except OSError:
            continue
        else:
            return
        finally:
            out.close()
