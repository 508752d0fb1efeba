"""What the kernel holds, against the last applied generation; told in mappings."""

from __future__ import annotations

from collections.abc import Iterable

from redirector import proving
from redirector.backends.base import Backend, Snapshot
from redirector.changes import Change
from redirector.history import History, Record, Unreadable
from redirector.naming import counted
from redirector.plan import Plan, make_plan
from redirector.reconcile import desired_program
from redirector.report import Drift, Status


def status(backend: Backend, history: History, *, waiting: bool = False) -> Status:
    """Compare the kernel with the last applied generation; `waiting` tells that it is still to be confirmed."""
    current = history.current()
    record = current if isinstance(current, Record) else None
    desired = desired_program(record.ruleset, record.purged) if record else None
    backend.suppose(lambda: desired)
    snapshot = backend.observe()
    connections = count_connections(snapshot)
    head, mappings = (proving.head(record), record.ruleset.mappings) if record else (None, None)

    def make(state: str, drift: Iterable[Drift] = (), note: str = "") -> Status:
        told = "pending" if waiting and head and state != "absent" else state
        return Status(told, backend.name, head, tuple(drift), mappings, connections, note)

    if isinstance(current, Unreadable):
        return make("unknown", note=f"generation {current.generation}: {current.reason}; apply the file again")
    if record is None:
        if snapshot.foreign:
            return make("absent", note=f"there is something of our name that is not ours: {snapshot.foreign}")
        if snapshot.program is None:
            return make("absent", note="nothing was applied yet")
        return make("unknown", note="the kernel holds our table, but no generation is recorded here")
    if snapshot.foreign:
        detail = f"something of our name is not ours: {snapshot.foreign}"
        return make("drifted", [Drift("structure", None, detail)])
    if snapshot.program is None and (record.purged or not record.ruleset.enabled):
        return make("absent" if record.purged else "drained")
    plan = make_plan(desired, snapshot.program)
    if plan:
        return make("drifted", drift_of(plan), _elsewhere(backend, record))
    proven = proving.prove(backend, history, record, snapshot.proven, proving.capacities(snapshot))
    return make("in-sync" if record.ruleset.enabled else "drained")._replace(proof=proven)


def _elsewhere(backend: Backend, record: Record) -> str:
    """A hint where the record was made in another namespace of the same boot."""
    boot, _, place = record.identity.partition("/")
    now_boot, _, now_place = backend.identity().partition("/")
    if boot == now_boot and place != now_place:
        return "this state folder was last used in another network namespace"
    return "the machine has been restarted since" if boot != now_boot else ""


def drift_of(plan: Plan) -> list[Drift]:
    """What a plan that leads back to the last generation says of the kernel."""
    gone = [Drift("structure", None, "the table is gone")] if plan and plan.observed is None else []
    return [*gone, *(_drift(change) for change in plan.changes)]


def _drift(found: Change) -> Drift:
    kinds = {"add": "missing", "remove": "extra", "change": "changed"}
    # What apply would take away is extra, and what it would add is missing. Entries without a mapping's name have both.
    kind = "structure" if found.detail and not found.mapping else kinds[found.action]
    return Drift(kind, found.mapping, found.detail, found.gone, found.new, found.serves)


def count_connections(snapshot: Snapshot) -> dict[str, int]:
    """Connections taken by each mapping, since its counter was made or reset."""
    return {counted(name): packets for name, (packets, _) in snapshot.counters.items() if counted(name)}
