"""What `apply --confirm` leaves where its watchdog was killed: the change is in force, and only the note tells."""

from collections.abc import Callable

from redirector import pending
from redirector.backends.base import Backend
from redirector.history import History
from redirector.model import Ruleset
from redirector.reconcile import Origin, Outcome, Wish, change


def leave_waiting(backend: Backend, history: History, ruleset: Ruleset, seconds: float) -> Outcome:
    """Apply a ruleset that waits for confirm, for so many seconds; with 0 it is overdue. Raises as `change` does."""

    def arm(generation: int) -> Callable[[], None]:
        pending.arm(history, generation, seconds)
        return lambda: pending.disarm(history)

    with history.locked():
        return change(backend, history, Wish(ruleset, Origin("apply", "a test", "tests"), arm=arm))
