"""The mappings that are in force, moved from one backend to another, with no gap.

First they are loaded into the new backend, and recorded; only then they are taken out of the old one. In between both
hold them, which does no harm: NAT acts once on a connection, and both would do the same. Whoever is stopped in between
says it again.
"""

from __future__ import annotations

import contextlib

from redirector import pending
from redirector.backends.base import Backend, OutcomeDoubtful, Overtaken
from redirector.backends.opening import NAMES, open_backend
from redirector.errors import NotFound, OutcomeUnknown, RedirectorError, Unavailable, printable
from redirector.history import History, Record, Unreadable
from redirector.plan import make_plan
from redirector.reconcile import Origin, Outcome, Wish, change
from redirector.records import NamedTuple
from redirector.selection import Open

ATTEMPTS = 20


class Moved(NamedTuple):
    """What a move came to: `left` names the backends that were emptied, `file_names` the one that the applied file
    asked for ("": none in particular, or the new one)."""

    outcome: Outcome
    left: tuple[str, ...]
    file_names: str


def migrate(
    history: History, target: str, origin: Origin, *, verify: bool = False, opener: Open = open_backend
) -> Moved:
    """Move the last generation to `target`. Raises NotFound where there is none, OutcomeUnknown where it is in the new
    backend and could not be taken out of the old one, and what `reconcile.change` raises."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(history.locked())
        new = stack.enter_context(contextlib.closing(opener(target)))
        pending.require_none(new, history)
        record = history.current()
        if record is None or isinstance(record, Unreadable):
            reason = record.reason if record else "nothing was applied yet"
            raise NotFound(f"there is nothing to move: {reason}", "see: redirector history")
        outcome = change(new, history, _wish(record, target, origin, verify=verify))
        left = tuple(name for name in NAMES if name != target and _empty(name, target, opener))
    asked = record.ruleset.settings.backend
    return Moved(outcome, left, asked if asked not in ("auto", target) else "")


def _wish(record: Record, target: str, origin: Origin, *, verify: bool) -> Wish:
    """A generation that names its backend names the new one from now on; else boot would go back to the old."""
    settings = record.ruleset.settings
    if settings.backend != "auto":
        settings = settings._replace(backend=target)
    ruleset = record.ruleset._replace(settings=settings)
    return Wish(ruleset, origin, purge=record.purged, verify=verify, moves=True)


def _empty(name: str, target: str, opener: Open) -> bool:
    """Take everything of ours out of a backend; whether there was anything."""
    try:
        backend = opener(name)
    except Unavailable:
        return False  # what is not here holds nothing
    with contextlib.closing(backend):
        try:
            return _purge(backend)
        except (RedirectorError, OSError, OutcomeDoubtful) as error:
            message = f"the mappings are in force in {target}, and in {name}, too: {printable(str(error))}"
            raise OutcomeUnknown(message, f"again: redirector migrate-backend {target}") from None


def _purge(backend: Backend) -> bool:
    for _ in range(ATTEMPTS):
        snapshot = backend.observe()
        plan = make_plan(None, snapshot.program)
        if snapshot.foreign or not plan:
            return False
        with contextlib.suppress(Overtaken):
            backend.commit(plan.steps, snapshot.genid)
            return True
    raise OutcomeUnknown("others keep changing the kernel's tables")
