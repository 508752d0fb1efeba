"""One look at the kernel: what it should hold, what it holds, and the difference healed.

What it should hold is what the last generation says, never a file that is newer: a change that waits for `confirm`
counts while it waits, and one that is overdue is taken back, as by any other command (see `pending`). All of it happens
under the lock, with the history read anew: an `apply` that is under way ends first, and then there is nothing to heal.
Healing is `reconcile.change` to what is recorded already, so it records nothing. What was proven at the kernel's genid
(see `proof`) is not read: a look after a change of our own costs no comparison.

Nothing is healed where nothing was applied or the table was purged; and where the last generation cannot be read,
nobody knows what would be right.
"""

from __future__ import annotations

from redirector import pending, proof, proving
from redirector import status as against
from redirector.backends.base import Backend
from redirector.history import History, Record, Unreadable
from redirector.pending import Pending
from redirector.reconcile import Origin, Wish, change
from redirector.records import NamedTuple
from redirector.report import Drift
from redirector.selection import Open, backend_for
from redirector.status import drift_of

ACTION = "watch"


class Look(NamedTuple):
    """What a look came to. `state` is one of status's, after healing; `drift` what was found, `healed` that it is gone.

    `genid` is where the kernel was seen to hold what it should, after healing, `before` where it was last known to,
    before drift (0: not known); `waiting` the change that waits for confirm, `note` why nothing could be healed.
    """

    state: str
    backend: str = ""
    generation: int | None = None
    drift: tuple[Drift, ...] = ()
    healed: bool = False
    genid: int = 0
    before: int = 0
    waiting: Pending | None = None
    note: str = ""


class Eyes:
    """Looks, with a backend that stays open from one look to the next."""

    def __init__(self, history: History, opener: Open) -> None:
        self._history, self._opener = history, opener
        self._backend: Backend | None = None
        self._occupied = False

    @property
    def backend(self) -> str:
        """The backend that held redirects of ours at the last look; "" if none did."""
        return self._backend.name if self._backend and self._occupied else ""

    def look(self, *, heal: bool = True, compare: bool = False) -> Look:
        """Look, and heal or only tell; `compare` reads everything, whatever is known. Raises what `reconcile.change`
        raises; nothing is healed then."""
        history = self._history
        self._occupied = False
        with history.locked():
            current = history.current()
            if not isinstance(current, Record):
                return _unclear(current)
            backend = self._open()
            waiting = pending.settle(backend, history) if heal else pending.load(history)
            current = history.current()  # which may be another one now
            if not isinstance(current, Record):
                return _unclear(current)
            if current.purged:
                return Look("absent", backend.name, current.generation)
            self._occupied = bool(current.ruleset.enabled)
            found = _heal(backend, history, current, compare) if heal else _tell(backend, history, current, compare)
            if waiting and found.state == "in-sync":
                found = found._replace(state="pending")
            return found._replace(waiting=waiting)

    def _open(self) -> Backend:
        """That of the last generation."""

        def reuse(name: str) -> Backend:
            if self._backend and self._backend.name == name:
                return self._backend
            self.close()
            self._backend = self._opener(name)
            return self._backend

        return backend_for("auto", self._history, reuse)

    def close(self) -> None:
        if self._backend:
            self._backend.close()
            self._backend = None


def _unclear(current: Unreadable | None) -> Look:
    if current is None:
        return Look("absent")
    note = f"generation {current.generation} cannot be read, and nothing is healed: {current.reason}; apply again"
    return Look("unknown", "", current.generation, note=note)


def _heal(backend: Backend, history: History, record: Record, compare: bool) -> Look:
    known = proof.load(history.folder)
    origin = Origin(ACTION, record.origin, ACTION, known.stamp if known else "")  # of the same file still
    outcome = change(backend, history, Wish(record.ruleset, origin, verify=compare))
    drift = tuple(drift_of(outcome.plan))
    state = "in-sync" if record.ruleset.enabled else "drained"
    before = known.genid if known and known.identity == backend.identity() else 0
    return Look(state, backend.name, record.generation, drift, bool(outcome.plan), outcome.genid, before)


def _tell(backend: Backend, history: History, record: Record, compare: bool) -> Look:
    known = None if compare else proving.known(backend, history)
    if known:
        state = "in-sync" if record.ruleset.enabled else "drained"
        return Look(state, backend.name, record.generation, genid=known.genid)
    found = against.status(backend, history)
    genid = found.proof.genid if found.proof else 0
    return Look(found.state, backend.name, record.generation, found.drift, genid=genid, note=found.note)
