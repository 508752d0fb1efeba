"""One transaction and the proof that it happened, or its undoing.

An acknowledged commit and a genid of exactly one more is proof. Anything else is read back: what is told is what was
found, never what was hoped.
"""

from __future__ import annotations

import contextlib

from redirector.backends.base import Backend, OutcomeDoubtful, Overtaken, Snapshot
from redirector.errors import OutcomeUnknown, RedirectorError, Refused, RolledBack, printable
from redirector.plan import Plan, make_plan

ATTEMPTS = 1000
READINGS = 3  # after a commit, where the kernel's answers are lost
GENID_LIMIT = 2**32


class Overwritten(Overtaken):
    """Ours was committed, and then somebody else's: plan again from what is there now."""


def commit(backend: Backend, plan: Plan, snapshot: Snapshot, verify: bool) -> int:
    """One transaction, if there is anything to do, and the proof that it happened: the genid at which what was wanted
    is in force. Raises Overtaken, Refused, OutcomeUnknown."""
    if not plan:
        return snapshot.proven
    doubt = ""
    try:
        backend.commit(plan.steps, snapshot.genid)
    except (OutcomeDoubtful, OSError) as error:
        doubt = getattr(error, "strerror", None) or str(error) or "no answer"
    else:
        with contextlib.suppress(RedirectorError, OSError):  # where the genid cannot be asked, everything is read back
            if not verify and backend.genid() == _after(snapshot.genid):
                return _after(snapshot.genid)
    found = _read_back(backend)
    if not make_plan(plan.desired, found.program) and not found.foreign:
        return found.proven
    if doubt and found.program == snapshot.program:
        raise Refused(f"the kernel did not take the transaction ({printable(doubt)}); nothing was changed", "try again")
    raise Overwritten


def _read_back(backend: Backend) -> Snapshot:
    """What the kernel holds after a commit; an answer that was lost is asked for again. Raises OutcomeUnknown."""
    for attempt in range(READINGS):
        try:
            return backend.observe()
        except (RedirectorError, OSError) as error:
            if attempt == READINGS - 1 or isinstance(error, TimeoutError):
                message = f"the transaction was sent, and then the kernel could not be read ({printable(str(error))})"
                raise OutcomeUnknown(message, "see: redirector status") from None
    raise AssertionError


def _after(genid: int) -> int:
    """The genid that one commit leads to; the kernel skips 0."""
    return (genid + 1) % GENID_LIMIT or 1


def undo(backend: Backend, before: Snapshot, reason: str) -> None:
    """Put the kernel back as `before` was. Always raises: RolledBack, or OutcomeUnknown where that failed too."""
    if before.foreign:
        raise OutcomeUnknown(f"{reason}, and the table that was replaced cannot be brought back", "apply again")
    for _ in range(ATTEMPTS):
        try:
            now = backend.observe()
            plan = make_plan(before.program, now.program)
            if not plan:
                raise RolledBack(f"{reason}; the redirects were put back as they were")
            backend.commit(plan.steps, now.genid)
        except Overtaken:
            continue
        except (RedirectorError, OSError, OutcomeDoubtful) as error:
            if isinstance(error, RolledBack):
                raise
            raise OutcomeUnknown(f"{reason}, and undoing it failed: {printable(str(error))}") from None
    raise OutcomeUnknown(f"{reason}, and others kept the undo from happening", "see: redirector status")
