"""Loading the redirects when the machine starts, before there is a network.

Theory of operation. What people have confirmed is in the history, as the Ruleset that it was: so boot loads the last
confirmed generation and not the file, which somebody may be in the middle of editing. The file counts where there is no
generation yet, as on a machine made from an image. It is read in any case, *after* the redirects stand: one that is
broken is told now, and not at the next apply.

A change that waited for `confirm` when the power went is overdue (see `pending`) and taken back. One that still waits,
when only the rules were flushed and the unit started anew, is what was in force: it is put back and goes on waiting.

Nothing here asks guards, users, interfaces, D-Bus or DNS: at this hour there is nobody to answer, and a redirect that
does not load is worse than one that a guard would have wanted to talk about. Loading a generation records nothing, so
that it needs neither room on the disk nor a folder that can be written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from redirector import mappings, pending, source, store
from redirector.backends.base import Backend
from redirector.errors import BadConfiguration, NotPermitted, RedirectorError, Refused
from redirector.history import History, Record, Settled, Unreadable
from redirector.journal import Entry
from redirector.reconcile import Origin, Outcome, Wish, change
from redirector.records import NamedTuple

AUTHOR = "boot"  # a name from the user database could mean asking the network for it
# The backend of a ruleset's settings.
BackendFor = Callable[[str], Backend]


class Booted(NamedTuple):
    """What boot came to: `loaded` says what is in force; `fault` what has to be mended although something was loaded;
    `notes` what else they should know."""

    outcome: Outcome
    loaded: str
    fault: BadConfiguration | None
    notes: list[str]


def boot(backend_for: BackendFor, history: History, path: str) -> Booted:
    """Load the last confirmed generation or, where there is none, the file at `path`.

    Raises BadConfiguration where there is neither, Refused where nothing was ever confirmed, and whatever
    `reconcile.change` raises.
    """
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        writable = _lock(stack, history, notes)
        waiting = pending.load(history)
        if waiting and not waiting.seconds_left:
            _take_back(backend_for, history, waiting, writable, notes)
            waiting = None
        current = history.current()
        record = _in_force(history, current, waiting)
        if record is None:
            return _load_file(backend_for, history, path, notes)
        outcome = change(backend_for(record.ruleset.settings.backend), Settled(history, record), _wish(record))
    fault = _damage(current) or _fault_of(path, notes)
    if fault:
        history.tell(Entry("boot", AUTHOR, f"generation {record.generation}", None, fault.message, failed=True))
    return Booted(outcome, f"generation {record.generation}", fault, notes)


def _lock(stack: contextlib.ExitStack, history: History, notes: list[str]) -> bool:
    """Hold the lock where that is possible; False on a disk that takes nothing. Raises TryAgain, Refused."""
    try:
        stack.enter_context(history.locked())
    except (Refused, NotPermitted) as error:
        if not store.is_private(history.folder):
            raise
        notes.append(error.message.removesuffix("; nothing was changed"))
        return False
    return True


def _take_back(
    backend_for: BackendFor, history: History, overdue: pending.Pending, writable: bool, notes: list[str]
) -> None:
    """Record that an unconfirmed change is taken back. Where that fails, it is left to the next command to record."""
    what = f"generation {overdue.generation} was not confirmed in time: it is taken back"
    if not writable:
        notes.append(f"{what}, which could not be recorded yet")
        return
    target = pending.last_confirmed(history, overdue.generation)
    try:
        pending.take_back(backend_for(target.ruleset.settings.backend if target else "auto"), history, overdue, AUTHOR)
    except (RedirectorError, OSError) as error:
        notes.append(f"{what}, which could not be recorded yet: {error}")
    else:
        notes.append(what)


def _in_force(history: History, current: Record | Unreadable | None, waiting: pending.Pending | None) -> Record | None:
    """The generation to load: the one that waits for confirm, else the last confirmed one; None on the first boot.

    Raises Refused where there are others: a file that nobody confirmed is not to be loaded as if it were the first.
    """
    if waiting and isinstance(current, Record):
        return current  # the one that waits; or, if the commit was never recorded, the last confirmed one
    confirmed = pending.last_confirmed(history, 0)
    if confirmed is None and any(isinstance(found, Record) for found in history.all()):
        raise Refused("no generation was ever confirmed; nothing was loaded", "see: redirector history")
    return confirmed


def _damage(current: Record | Unreadable | None) -> BadConfiguration | None:
    if not isinstance(current, Unreadable):
        return None
    message = f"generation {current.generation}, the last one, cannot be read: {current.reason}"
    return BadConfiguration(message, "apply the file again")


def _wish(record: Record) -> Wish:
    return Wish(record.ruleset, Origin("boot", f"generation {record.generation}", AUTHOR), purge=record.purged)


def _load_file(backend_for: BackendFor, history: History, path: str, notes: list[str]) -> Booted:
    ruleset = mappings.parse(source.read(path, insist=False))
    wish = Wish(ruleset, Origin("apply", path, AUTHOR))
    outcome = change(backend_for(ruleset.settings.backend), history, wish)
    return Booted(outcome, path, None, notes)


def _fault_of(path: str, notes: list[str]) -> BadConfiguration | None:
    """What is wrong with the file. One that is gone is not broken: everything may have been applied from elsewhere."""
    try:
        mappings.parse(source.read(path, insist=False))
    except BadConfiguration as error:
        if not os.path.lexists(path):
            notes.append(error.message)
            return None
        return error
    return None
