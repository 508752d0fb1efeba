"""The whole boundary to the kernel: observe, check, commit.

A backend turns a Plan's steps into its own form, and the kernel's state into a Program. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Protocol

from redirector.model import Ruleset
from redirector.plan import Step
from redirector.program import NAMED, Program
from redirector.records import NamedTuple

Counters = Mapping[str, tuple[int, int]]  # (packets, bytes) by counter


class Overtaken(Exception):
    """Somebody else committed since the snapshot: nothing was changed; observe and plan again."""


class OutcomeDoubtful(Exception):
    """The transaction was sent, and no answer tells what became of it: read back."""


Supposed = Callable[[], Program | None]  # made where it is needed


_NONE: Counters = MappingProxyType({})


class Snapshot(NamedTuple):
    """What was observed: `program` is None where our table is absent.

    `genid` is the kernel's generation number at which it was true. `foreign` says in words what has our name and why
    it is not ours ("" where it is, or there is none). `counters` is (packets, bytes) by counter. `seen` is the
    generation number of nf_tables all through the reading, where that is nothing to commit against; 0 is unknown.
    """

    program: Program | None
    genid: int
    foreign: str = ""
    counters: Counters = _NONE
    seen: int = 0

    @property
    def proven(self) -> int:
        """The generation number at which this is so, as a proof has it; 0 where nothing tells."""
        return self.genid or self.seen

    @property
    def occupied(self) -> bool:
        """Whether there is any port that is redirected or guarded."""
        return self.program is not None and any(m.entries for m in self.program.maps.values() if m.kind in NAMED)


class Backend(Protocol):
    """One of several ways into the kernel. Raises errors.Unavailable, errors.NotPermitted; OSError for the rest."""

    name: str

    def suppose(self, *programs: Supposed) -> None:
        """What the kernel may well hold, the likeliest first. Where it does, to the letter, a backend may observe in
        less time; anything else is read as ever."""

    def observe(self) -> Snapshot:
        """The state of our table, consistent within one generation."""

    def check(self, steps: Iterable[Step]) -> None:
        """Let the kernel validate the steps and commit nothing; raises errors.Refused with what it says."""

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        """Send the steps as one transaction, valid only at genid `expect`.

        Raises Overtaken (nothing changed), errors.Refused (nothing changed), OutcomeDoubtful (read back).
        """

    def genid(self) -> int:
        """The kernel's generation number now."""

    def identity(self) -> str:
        """The network namespace and boot that this backend speaks to, as text; equal only for the same one."""

    def restart_flows(self, ruleset: Ruleset, ports: AbstractSet[int], former: AbstractSet[tuple[str, int]]) -> int:
        """Let UDP flows on `ports` that contradict `ruleset` begin anew; returns how many. Raises OSError."""

    def close(self) -> None: ...
