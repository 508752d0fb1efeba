"""What `status` comes to: plain data, for `output` to tell. `status` finds it by comparing, or `proof` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redirector.proof import Head, Proof
from redirector.records import NamedTuple

if TYPE_CHECKING:  # a proof knows neither mappings nor routes, and `status` by it imports neither
    from redirector.model import Mapping
    from redirector.program import Route


class Drift(NamedTuple):
    """One difference between the kernel and the last applied generation, in mappings where it can be told so.

    `kind`: missing, extra or changed (of a mapping's routes, or how they are counted), or structure (chains, rules,
    maps, counters, the table). What is not of routes is told in `detail`. `extra` are routes that the kernel has and
    should not, `missing` those that it lacks. `serves` names the mappings whose packets may go elsewhere because of it.
    """

    kind: str
    mapping: str | None
    detail: str
    extra: tuple[Route, ...] = ()
    missing: tuple[Route, ...] = ()
    serves: tuple[str, ...] = ()


class Status(NamedTuple):
    """What the kernel holds against the last applied generation.

    `head` is that generation, None if it is unknown. `mappings` are its mappings, and `connections` those that each has
    taken, by name; both None where they were not looked at. `proof` is what tells that the kernel is in sync, or None;
    `compared` that everything was read for this, and not only the kernel's genid.
    """

    state: str
    backend: str
    head: Head | None
    drift: tuple[Drift, ...] = ()
    mappings: tuple[Mapping, ...] | None = None
    connections: dict[str, int] | None = None
    note: str = ""
    proof: Proof | None = None
    compared: bool = True

    @property
    def drifted(self) -> set[str]:
        """The mappings that drift concerns."""
        return {name for drift in self.drift for name in (drift.mapping, *drift.serves) if name}


def by_proof(proof: Proof) -> Status:
    """What a proof that still holds tells."""
    state = "in-sync" if proof.head.enabled else "drained"
    return Status(state, proof.backend, proof.head, proof=proof, compared=False)
