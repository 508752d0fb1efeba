"""Many at once: a sample of what `make stress` does in full, and who never gives way.

More of the subject: the lock in tests/test_store.py; commits of others at a chosen moment in test_atomic.py; a table
that is held with the owner flag in test_foreign.py.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.kernel import stress
from tests.kernel.foreign_writer import TABLE, writing
from tests.kernel.lab import COMMAND_TIMEOUT, Lab
from tests.kernel.product import Product, handles, insist
from tests.kernel.stress import ONE, OTHER, PARALLEL
from tests.kernel.test_foreign import OTHERS, others

# So long each message to the kernel takes on its way: time enough for the other to commit, however busy the machine.
DELAY_MICROSECONDS = 20_000
ROUNDS = 10


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    with Product(lab) as made:
        yield made


def test_parallel_applies_of_two_files(product: Product) -> None:
    found = stress.parallel(product, 1)
    assert found["exit 0"] + found["exit 75"] == PARALLEL
    assert found["generations"] > 1  # they took turns


def test_no_commit_is_lost_beside_a_busy_writer(lab: Lab, product: Product) -> None:
    lab.host.nft(OTHERS)
    before = others(lab)
    found: Counter[str] = Counter()
    for _ in range(ROUNDS):  # who is faster is chance
        found += stress.beside_a_writer(product, 4, 1)
        if found["overtaken"] and found["taken"]:
            break
        lab.host.nft(f"delete table inet {TABLE}")
    assert found["overtaken"]
    assert found["taken"]
    assert [text for text in others(lab) if TABLE not in text] == before


def test_no_drift_is_invented_beside_a_busy_writer(product: Product) -> None:
    assert stress.statuses(product, 148, 2)["statuses"] == 150


def test_75_beside_a_writer_that_is_always_faster(lab: Lab, product: Product) -> None:
    product.apply(ONE)
    before, numbers = handles(lab.host), product.history.numbers()
    slow = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject=sendto:delay_enter={DELAY_MICROSECONDS}"]
    argv = [*slow, *lab.command("apply", product.file(OTHER), *insist())]
    with writing(lab):  # that it ends at all is what the time-out asserts: how soon, only a quiet machine can tell
        done = lab.host.namespace.run(argv, env=lab.environment(), text=True, timeout=COMMAND_TIMEOUT)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "nothing was changed" in done.stderr
    assert (handles(lab.host), product.history.numbers()) == (before, numbers)
    product.run("apply", product.file(OTHER))  # and then it is quiet
