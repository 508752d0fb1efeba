"""Applies that change little, one after the other, and a backend that notes what they cost the kernel."""

import random
from collections.abc import Iterable

from redirector.backends.base import Snapshot
from redirector.backends.nftables.backend import NftablesBackend
from redirector.backends.nftables.encode import Batch
from redirector.compile import compile_ruleset
from redirector.model import Mapping, Ruleset, ruleset_problems
from redirector.plan import Step
from tests.kernel.product import Product
from tests.strategies import mapping


class Noting(NftablesBackend):
    """Notes how often the table is read, and how large each transaction is: elements, and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0
        self.sent: list[tuple[int, int]] = []

    def observe(self) -> Snapshot:
        self.readings += 1
        return super().observe()

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        steps = tuple(steps)
        elements = sum(len(getattr(step, "entries", getattr(step, "keys", ()))) for step in steps)
        self.sent.append((elements, len(Batch(steps, expect, 1).committed())))
        super().commit(steps, expect)


def edited(mappings: list[Mapping], chance: random.Random) -> list[Mapping]:
    """The list with one mapping more, less, or another."""
    found = list(mappings)
    what = chance.choice(("add", "add", "change", "remove"))
    if found and what != "add":
        found.pop(chance.randrange(len(found)))
    if what != "remove":
        first = chance.randrange(1, 60000)
        last = first + chance.choice((0, 0, 1, 30, 300))
        scope = chance.choice(({}, {}, {"source": ("10.0.0.0/8",)}, {"address": ("192.0.2.1",)}, {"exclusive": True}))
        one = mapping(f"m{chance.randrange(10**6)}", f"{first}-{last}", str(chance.randrange(1, 65535)), **scope)
        if not ruleset_problems([*found, one]):
            found.append(one)
    return found


def edits_end_where_a_fresh_apply_does(product: Product, counting: Noting, count: int) -> None:
    """`count` applies, each of a ruleset that one mapping tells from the one before; hardly any reads the kernel."""
    chance = random.Random(7)
    mappings: list[Mapping] = []
    for _ in range(count):
        mappings = edited(mappings, chance)
        product.apply(Ruleset(tuple(mappings)), backend=counting)
    assert counting.readings <= 2
    assert len(mappings) > 10
    edits = counting.observe()
    assert edits.program == compile_ruleset(Ruleset(tuple(mappings)))
    product.lab.host.nft("delete table inet redirector")
    product.apply(Ruleset(tuple(mappings)), backend=counting)
    assert counting.observe().program == edits.program
