"""The story: observe, diff, guard, commit, verify, record, undo. Every command is one path through here.

What holds throughout:
- What is committed is what was planned against: the kernel compares the genid. Overtaken means observe and plan again,
  bounded in number and time.
- An acknowledged commit and a genid of exactly one more is proof. Anything else, and `verify` always, reads
  everything back; the exit status tells what was found, never what was hoped.
- A generation is written to disk before the commit and renamed after it, so that a full disk refuses and does not
  surprise. If even the rename fails, the kernel is put back.
- Nothing to do writes nothing, to the kernel or to the disk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import cache

from redirector import proving
from redirector.backends.base import Backend, Overtaken, Snapshot, Supposed
from redirector.committing import ATTEMPTS, Overwritten, commit, undo
from redirector.compile import compile_ruleset
from redirector.errors import NotFound, OutcomeUnknown, RedirectorError, Refused, RolledBack, TryAgain
from redirector.history import History, Record, Unreadable
from redirector.journal import Entry
from redirector.known import Known, plan_from
from redirector.model import Ruleset
from redirector.plan import Plan, changed_udp_ports, former_udp_targets, make_plan, program_digest
from redirector.program import Program
from redirector.records import NamedTuple
from redirector.store import Unsynced

SECONDS = 5.0
TABLE_OWNER = 0x2  # NFT_TABLE_F_OWNER, linux/netfilter/nf_tables.h

Judge = Callable[[Ruleset, Plan, Snapshot], None]
# Called with the new generation's number before the commit; what it returns is called if nothing was changed after all.
Arm = Callable[[int], Callable[[], None]]


class Origin(NamedTuple):
    """Where a change comes from: the command, the file or generation, and who; `stamp` is the file's (see
    `source.stamp`)."""

    action: str
    source: str
    author: str
    stamp: str = ""


class Outcome(NamedTuple):
    """What a change came to. `generation` is the current one afterwards; `recorded` whether it is a new one; `flows`
    how many UDP flows begin anew, None where that could not be seen to; `genid` is where the kernel was seen to hold
    what was wanted, 0 where that is not known."""

    plan: Plan
    generation: int | None
    recorded: bool
    flows: int | None = 0
    genid: int = 0


class Wish(NamedTuple):
    """What is wanted: `ruleset`, or with `purge` no table at all. `replace_foreign` takes away a table that is not
    ours; `verify` reads back even after proof; `expected` is the observed Program's digest that a saved plan holds;
    with `arm` the generation is recorded as not confirmed; with `moves` that it is in another backend now is worth a
    generation."""

    ruleset: Ruleset
    origin: Origin
    purge: bool = False
    replace_foreign: bool = False
    verify: bool = False
    expected: str = ""
    arm: Arm | None = None
    moves: bool = False
    judge: Judge = lambda ruleset, plan, snapshot: None


def desired_program(ruleset: Ruleset, purge: bool = False) -> Program | None:
    return None if purge else compile_ruleset(ruleset)


def _recorded(current: Record | Unreadable | None) -> Program | None:
    return desired_program(current.ruleset, current.purged) if isinstance(current, Record) else None


def plan_for(
    ruleset: Ruleset,
    snapshot: Snapshot,
    *,
    purge: bool = False,
    replace_foreign: bool = False,
    compiled: Supposed | None = None,
) -> Plan:
    """What would lead from the snapshot to the ruleset; `compiled` gives the Program of that, where it is needed
    elsewhere, too. Raises Refused for a table that is not ours."""
    if isinstance(snapshot, Known) and not purge:
        return plan_from(snapshot, ruleset)
    observed = snapshot.program
    if snapshot.foreign:
        held = observed is not None and observed.flags & TABLE_OWNER
        if held or not replace_foreign:
            message = f"the kernel has something of our name that is not ours: {snapshot.foreign}"
            hint = "end that process: the kernel lets nobody else change its table, and it goes with it"
            raise Refused(message, hint if held else "rename or remove it, or insist with --replace-foreign")
        observed = Program({}, {}, 0, ("what somebody else made of the table",))
    desired = compiled() if compiled else desired_program(ruleset, purge)
    if desired is not None and not ruleset.enabled and observed is None:
        desired = None  # nothing to drain: no table is as good as an empty one
    return make_plan(desired, observed)


def look(
    backend: Backend, history: History, ruleset: Ruleset, *, replace_foreign: bool = False
) -> tuple[Snapshot, Plan]:
    """Observe, where what the kernel holds is not known, and plan for that. Raises Refused for a table that is not
    ours."""
    compiled = cache(lambda: desired_program(ruleset))
    backend.suppose(compiled)
    snapshot = proving.known(backend, history) or backend.observe()
    return snapshot, plan_for(ruleset, snapshot, replace_foreign=replace_foreign, compiled=compiled)


def change(backend: Backend, history: History, wish: Wish) -> Outcome:
    """Make it so, record it, and tell the journal. The lock of `history` must be held."""
    disarm: list[Callable[[], None]] = []
    try:
        outcome = _change(backend, history, wish, disarm)
    except RedirectorError as error:
        if isinstance(error, OutcomeUnknown | RolledBack):
            history.tell(Entry(*_told_of(wish), None, error.message, failed=True))
        # An unknown outcome leaves the watchdog, which goes back to the last confirmed generation; so does what ends
        # this process or has no name.
        if disarm and not isinstance(error, OutcomeUnknown):
            with contextlib.suppress(RedirectorError):  # a watchdog that stays finds nothing to do
                disarm[0]()
        raise
    if outcome.plan or outcome.recorded:
        history.tell(Entry(*_told_of(wish), outcome.generation, _summary(outcome, wish)))
    return outcome


def _told_of(wish: Wish) -> tuple[str, str, str]:
    return wish.origin.action, wish.origin.author, wish.origin.source


def _summary(outcome: Outcome, wish: Wish) -> str:
    from redirector.changes import summary

    words = summary(outcome.plan.changes, done=True) if outcome.plan else "the kernel had it already"
    if not outcome.recorded:  # nothing has drifted where nothing was loaded yet
        return words if wish.origin.action == "boot" else f"{words}; drift mended"
    return f"{words}; to be confirmed" if wish.arm else words


def _change(backend: Backend, history: History, wish: Wish, disarm: list[Callable[[], None]]) -> Outcome:
    """As `change`; what undoes `wish.arm` is added to `disarm`. It is armed once, before the first attempt."""
    current = history.current()
    deadline = time.monotonic() + SECONDS
    overwritten = False
    known = None if wish.verify else proving.known(backend, history)
    compiled = cache(lambda: desired_program(wish.ruleset, wish.purge))
    backend.suppose(compiled, lambda: _recorded(current))
    for _ in range(ATTEMPTS):
        try:
            snapshot = known or backend.observe()
        except TryAgain:
            if time.monotonic() > deadline:
                break
            continue
        except (RedirectorError, OSError):
            if overwritten:
                break
            raise
        if wish.expected and not overwritten and program_digest(snapshot.program) != wish.expected:
            raise TryAgain("the kernel's redirects have changed since this plan was made", "plan again")
        plan = plan_for(
            wish.ruleset, snapshot, purge=wish.purge, replace_foreign=wish.replace_foreign, compiled=compiled
        )
        known, trusted = None, known is not None
        if plan or not wish.ruleset.enabled:
            wish.judge(wish.ruleset, plan, snapshot)
        try:
            outcome = _carry_out(backend, history, wish, plan, snapshot, current, disarm)
            return outcome._replace(flows=_restart_flows(backend, wish.ruleset, plan))
        except Overtaken as error:
            overwritten = overwritten or isinstance(error, Overwritten)
            if time.monotonic() > deadline:
                break
        except Refused:
            if not trusted:
                raise  # else it may be that what was taken for known is not so, and is read
    if overwritten:
        raise OutcomeUnknown(
            "the change was made, and others keep changing it right afterwards", "see: redirector status"
        )
    raise TryAgain("others keep changing the kernel's tables in between; nothing was changed", "try again in a moment")


def _carry_out(
    backend: Backend,
    history: History,
    wish: Wish,
    plan: Plan,
    snapshot: Snapshot,
    current: Record | Unreadable | None,
    disarm: list[Callable[[], None]],
) -> Outcome:
    """Commit one plan and record it. Raises Overtaken where somebody else was faster."""
    known = current if isinstance(current, Record) else None
    # Without a table it is all the same which backend has none.
    same = (
        known is not None
        and (wish.ruleset, wish.purge) == (known.ruleset, known.purged)
        and (wish.purge or backend.name == known.backend)
    )
    nothing_ever = current is None and plan.desired is None and not plan
    if same or nothing_ever:
        # Healing drift, or nothing at all: the record stands.
        genid = commit(backend, plan, snapshot, wish.verify)
        if known:
            stamp = wish.origin.stamp if wish.origin.source == known.origin else ""
            proving.after(backend, history, known, plan, snapshot, genid, stamp)
        return Outcome(plan, known.generation if known else None, False, genid=genid)
    record = Record(
        generation=history.next_number(),
        action=wish.origin.action,
        applied_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        origin=wish.origin.source,
        author=wish.origin.author,
        identity=backend.identity(),
        backend=backend.name,
        ruleset=wish.ruleset,
        purged=wish.purge,
        confirmed=wish.arm is None,
    )
    prepared = history.prepare(record)
    try:
        if wish.arm and not disarm:
            disarm.append(wish.arm(record.generation))
        genid = commit(backend, plan, snapshot, wish.verify)
    except BaseException:
        # An unknown outcome leaves no record either: status then compares with the last certain one.
        prepared.discard()
        raise
    try:
        prepared.keep()
    except Unsynced as error:
        message = f"the change is in force, but the disk may lose the record of it ({error.strerror})"
        raise OutcomeUnknown(message, "see: redirector status; and see to the disk") from None
    except OSError as error:
        prepared.discard()
        undo(backend, snapshot, f"the generation could not be recorded ({error.strerror})")
    proving.after(backend, history, record, plan, snapshot, genid, wish.origin.stamp)
    with contextlib.suppress(RedirectorError, OSError):  # the next one will do it
        history.prune()
    return Outcome(plan, record.generation, True, genid=genid)


def _restart_flows(backend: Backend, ruleset: Ruleset, plan: Plan) -> int | None:
    """UDP flows that contradict what was committed; it is committed whatever becomes of them."""
    ports = changed_udp_ports(plan)
    try:
        return backend.restart_flows(ruleset, ports, former_udp_targets(plan)) if ports else 0
    except (RedirectorError, OSError):
        return None


def rollback_target(history: History, number: int | None) -> Record:
    """The generation to go back to. Raises NotFound where there is none, or it cannot be read."""
    record = history.read(history.previous() if number is None else number)
    if isinstance(record, Unreadable):
        message = f"generation {record.generation} cannot be gone back to: {record.reason}"
        raise NotFound(message, "choose another: redirector history")
    return record
