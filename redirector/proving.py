"""Where the proof of what the kernel holds (see `proof`) is made, and where it stands in for a reading."""

from __future__ import annotations

from collections.abc import Mapping

from redirector import layout, proof
from redirector.backends.base import Backend, Snapshot
from redirector.errors import RedirectorError
from redirector.history import History, Record
from redirector.known import Known
from redirector.plan import Plan, capacities_after
from redirector.proof import Head, Proof


def known(backend: Backend, history: History) -> Known | None:
    """What the kernel still holds since it was last proven; None where that is not certain, and has to be read."""
    found = proof.load(history.folder, whole=True)
    if found is None or found.backend != backend.name:
        return None
    try:
        current = history.current()
        genid = backend.genid()
        if not found.holds(backend.identity(), genid):
            return None
    except (RedirectorError, OSError):  # which the reading will tell
        return None
    if not isinstance(current, Record) or current.generation != found.head.generation or current.purged:
        return None
    return Known.of(current.ruleset, found.capacities, genid)


def head(record: Record) -> Head:
    ruleset = record.ruleset
    about = record.generation, record.action, record.applied_at, record.author, record.origin
    return Head(*about, len(ruleset.mappings), len(ruleset.enabled))


def prove(
    backend: Backend, history: History, record: Record, genid: int, capacities: Mapping[str, int], stamp: str = ""
) -> Proof | None:
    """That the kernel holds the record at `genid`; None where that proves nothing. It is not saved."""
    if not genid or record.purged:
        return None
    try:
        key = layout.record_key(history.folder, record.generation)
        return Proof(head(record), backend.name, backend.identity(), genid, proof.now(), key, stamp, capacities)
    except OSError:
        return None


def after(
    backend: Backend, history: History, record: Record, plan: Plan, snapshot: Snapshot, genid: int, stamp: str
) -> None:
    """Write down what a plan that was carried out has led to; `genid` is where it was seen in force, 0 is nowhere."""
    if isinstance(snapshot, Known) and not plan:
        return  # as it was
    found = prove(backend, history, record, genid, capacities_after(capacities(snapshot), plan.steps), stamp)
    if found:
        proof.save(history.folder, found)


def capacities(snapshot: Snapshot) -> Mapping[str, int]:
    """How many entries each map can take, by name."""
    if isinstance(snapshot, Known):
        return snapshot.capacities
    return {name: found.capacity for name, found in snapshot.program.maps.items()} if snapshot.program else {}
