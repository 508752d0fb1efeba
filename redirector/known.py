"""Planning without a reading: what the kernel holds is known (see `proof`), and so is every difference to it. Pure.

Theory of operation. The ports and the counter of a mapping follow from that mapping alone; the frame of chains and
verdict maps, the guards, and what is masqueraded, from all of them. So the way from one ruleset to another is that
between two Programs which have those of all, and the ports of only those mappings that differ: what both have in common
need not even be compiled. Where a map would become too full for its place in the kernel, the whole Programs are
compared, and it is made anew, larger; counters are objects of their own, and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from redirector import naming
from redirector.backends.base import Snapshot
from redirector.changes import Change, changes
from redirector.compile import compile_ruleset, sizes
from redirector.model import Ruleset
from redirector.plan import Plan, make_plan
from redirector.program import Program


class Known(Snapshot):
    """A snapshot of which nothing was read: the kernel holds `ruleset`, in maps of these `capacities` (by name).

    `program` is compiled when somebody asks.
    """

    ruleset: Ruleset
    capacities: Mapping[str, int]

    @classmethod
    def of(cls, ruleset: Ruleset, capacities: Mapping[str, int], genid: int) -> Known:
        known = cls(None, genid)
        known.ruleset, known.capacities = ruleset, capacities
        return known

    @cached_property
    def program(self) -> Program:
        return self._with(compile_ruleset(self.ruleset), self.capacities)

    @property
    def occupied(self) -> bool:
        return bool(self.ruleset.enabled)

    def part(self, names: frozenset[str]) -> Program:
        """As `program`, with the ports of these mappings only; a map's capacity is what the others leave of it."""
        others = sizes(mapping for mapping in self.ruleset.enabled if mapping.name not in names)
        room = {name: max(size - others[name], 0) for name, size in self.capacities.items()}
        return self._with(compile_ruleset(self.ruleset, names), room)

    @staticmethod
    def _with(program: Program, capacities: Mapping[str, int]) -> Program:
        maps = {name: found._replace(capacity=capacities.get(name, 0)) for name, found in program.maps.items()}
        return program._replace(maps=maps)


class Difference(Plan):
    """A plan of which the steps and what is told come from the mappings that differ alone; the whole Programs are
    compiled when somebody asks."""

    known: Known
    wanted: Ruleset
    parts: tuple[Program, Program]  # desired, observed

    @cached_property
    def desired(self) -> Program:
        return compile_ruleset(self.wanted)

    @cached_property
    def observed(self) -> Program:
        return self.known.program

    def _told(self) -> tuple[Change, ...]:
        return tuple(changes(*self.parts))


def plan_from(known: Known, wanted: Ruleset) -> Plan:
    """The plan that leads from what is known to the ruleset that is wanted."""
    if known.ruleset.settings.priority != wanted.settings.priority:  # which concerns every mapping
        return make_plan(compile_ruleset(wanted), known.program)
    names = differing(known.ruleset, wanted)
    desired, observed = compile_ruleset(wanted, names), known.part(names)
    for name in desired.maps | observed.maps:
        want, held = desired.maps.get(name), observed.maps.get(name)
        full = want and held and len(want.entries) > held.capacity
        # One mapping's guards (and entries for hairpins) may come or go with what another does.
        if full or (naming.of_all(name) and want != held):
            return make_plan(compile_ruleset(wanted), known.program)
    found = Difference(None, None, make_plan(desired, observed).steps)
    found.known, found.wanted, found.parts = known, wanted, (desired, observed)
    return found


def differing(one: Ruleset, other: Ruleset) -> frozenset[str]:
    """The names of the mappings that are not in both, or not the same in both."""
    before, after = ({m.name: m for m in ruleset.enabled} for ruleset in (one, other))
    changed = (name for name, mapping in before.items() if after.get(name) != mapping)
    return frozenset([*changed, *(name for name in after if name not in before)])
