"""A change that waits for `confirm`: the note on disk about it, and how it is kept or taken back.

Theory of operation. `apply --confirm` writes the note and starts a watchdog *before* it commits, so that there is no
moment in which the change is in force and nobody will take it back. The note says which generation waits, to which
one to go back, and until when, on CLOCK_BOOTTIME: a clock that no setting of the time moves and that goes on while the
machine sleeps. A note of another boot is overdue by definition.

Whoever finds an overdue note takes the change back: the watchdog, or, if it was killed, the next command. Going back
is `reconcile.change` to the last confirmed generation, read back afterwards, recorded as a generation of its own; only
then is the note removed. A crash at any moment leaves the note, and the work is done again by the next to come.

A note is void once its generation, or a later one, is recorded as confirmed: what it was about is settled, and only the
removal of the file was still to come. One that is damaged counts as overdue: better taken back than kept.
"""

from __future__ import annotations

import functools
import json
import os
import time
import zlib
from typing import Any

from redirector import layout, store
from redirector.backends.base import Backend
from redirector.errors import (
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    RedirectorError,
    Refused,
    RolledBack,
    TryAgain,
)
from redirector.history import History, Record, Settled
from redirector.journal import Entry
from redirector.model import Ruleset
from redirector.plan import make_plan
from redirector.reconcile import Origin, Outcome, Wish, change
from redirector.records import NamedTuple

NOTE = layout.NOTE


class Pending(NamedTuple):
    """`generation` waits until `deadline` (seconds of CLOCK_BOOTTIME of the boot `boot`); `token` tells one wait from
    the next."""

    generation: int
    deadline: float
    boot: str
    token: str

    @property
    def seconds_left(self) -> float:
        """0 if it is overdue."""
        if self.boot != boot_id():
            return 0.0
        return max(0.0, self.deadline - now())


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


def load(history: History) -> Pending | None:
    """What waits for confirm, or is overdue; None if nothing does."""
    found = read(history)
    return None if found is None or _void(history, found) else found


def read(history: History) -> Pending | None:
    """The note as it is on the disk, None if there is none; one that is damaged, or cannot be read, is overdue."""
    try:
        content = json.loads(store.read(os.path.join(history.folder, NOTE)))
        found = Pending(**{name: content[name] for name in Pending._fields})
        if content["checksum"] == _checksum(found._asdict()):
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return Pending(0, 0.0, "", "")


def _checksum(content: dict[str, Any]) -> int:
    """Against accidents, as that of a record."""
    return zlib.crc32(json.dumps(content).encode())


def _void(history: History, found: Pending) -> bool:
    try:
        current = history.current()
    except (RedirectorError, OSError):  # it cannot be read: then whatever comes next has to tell
        return False
    return isinstance(current, Record) and current.confirmed and current.generation >= found.generation


def arm(history: History, generation: int, seconds: float) -> Pending:
    """Write the note; the lock of `history` must be held. Raises Refused or NotPermitted where it cannot be written."""
    # To the millisecond: of a number with more digits than a float has, not every damage would be one.
    found = Pending(generation, round(now() + seconds, 3), boot_id(), os.urandom(8).hex())
    _write(history, found)
    return found


def _write(history: History, found: Pending) -> None:
    content = found._asdict()
    note = json.dumps(content | {"checksum": _checksum(content)}).encode()
    prepared = store.prepare(os.path.join(history.folder, NOTE), note)
    try:
        prepared.keep()
    except store.Unsynced:
        pass  # a power cut that undoes it undoes the change as well
    except OSError as error:
        prepared.discard()
        raise store.unwritable(history.folder, error) from None


def disarm(history: History) -> None:
    """Remove the note. Raises Refused or NotPermitted where it stays; a void one may, for nobody heeds it."""
    try:
        os.unlink(os.path.join(history.folder, NOTE))
        store.sync_folder(history.folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if load(history):
            raise store.unwritable(history.folder, error) from None


def last_confirmed(history: History, before: int) -> Record | None:
    """The latest readable generation before `before` (0: of all) that was confirmed; None if there is none."""
    for number in reversed(history.numbers()):
        if number < before or not before:
            record = history.read(number)
            if isinstance(record, Record) and record.confirmed:
                return record
    return None


def take_back(backend: Backend, history: History, pending: Pending, author: str) -> Outcome:
    """Go back to the last confirmed generation, and read it back. The lock must be held; raises as `change` does.

    On a disk that takes nothing the kernel goes back all the same, or whoever is locked out would stay so; then raises
    RolledBack, and the note stays until a record can be written.
    """
    if _void(history, pending):
        disarm(history)
        return Outcome(make_plan(None, None), None, recorded=False)
    target = last_confirmed(history, pending.generation)
    origin = Origin("cancel", f"generation {pending.generation}", author)
    wish = Wish(target.ruleset if target else Ruleset(), origin, purge=bool(target and target.purged), verify=True)
    try:
        outcome = change(backend, history, wish)
    except (Refused, NotPermitted):
        outcome = _without_record(backend, history, pending, target, wish)
    disarm(history)
    return outcome


def _without_record(backend: Backend, history: History, pending: Pending, target: Record | None, wish: Wish) -> Outcome:
    """The kernel first, and then the record once more, for which there may be room by now. Raises RolledBack where
    there is none; where it was not the disk that refused, as `change` does."""
    record = target or Record(0, "cancel", "", "", "", "", "", Ruleset())
    restored = change(backend, Settled(history, record), wish)
    try:
        recorded = change(backend, history, wish)
    except (Refused, NotPermitted) as error:
        what = f"generation {pending.generation} is taken back, but the record of that has to wait"
        raise RolledBack(f"{what}: {error.message.removesuffix('; nothing was changed')}", error.hint) from None
    return recorded._replace(plan=restored.plan, flows=restored.flows)


def cancel(backend: Backend, history: History, author: str) -> Outcome:
    """Take back, now, what waits. The lock must be held. Raises NotFound if nothing does."""
    found = load(history)
    if found is None:
        raise NotFound("nothing waits for confirm", "see: redirector status")
    return take_back(backend, history, found, author)


def settle(backend: Backend, history: History) -> Pending | None:
    """Take an overdue change back; returns one that still waits. The lock must be held."""
    found = read(history)
    if found and found.seconds_left > 0 and not _void(history, found):
        return found
    if found:
        take_back(backend, history, found, "its deadline")
    return None


def require_none(backend: Backend, history: History) -> None:
    """Raises TryAgain while a change waits for `confirm`, and says how long."""
    found = settle(backend, history)
    if found:
        message = f"generation {found.generation} waits for confirm, for another {found.seconds_left:.0f} s"
        raise TryAgain(message, "redirector confirm keeps it, redirector cancel takes it back")


def keep(backend: Backend, history: History, author: str) -> int:
    """Confirm what waits; returns its generation. The lock must be held. Raises NotFound if nothing does."""
    overdue = load(history)
    found = settle(backend, history)
    if found is None:
        if overdue:
            raise NotFound("nothing waits for confirm: the time was over, and the change was taken back", "apply again")
        raise NotFound("nothing waits for confirm", "see: redirector status")
    record = history.read(found.generation)
    if not isinstance(record, Record):
        raise NotFound(f"generation {found.generation} cannot be read, and so not confirmed", "see: redirector history")
    confirmed = history.prepare(record._replace(confirmed=True))
    try:
        confirmed.keep()
    except store.Unsynced as error:
        message = f"generation {found.generation} is confirmed, but the disk may lose that ({error.strerror})"
        raise OutcomeUnknown(message, "see to the disk, or its restart takes the change back") from None
    except OSError as error:
        confirmed.discard()
        raise store.unwritable(history.folder, error) from None
    disarm(history)
    history.tell(Entry("confirm", author, "", found.generation, "kept"))
    return found.generation
