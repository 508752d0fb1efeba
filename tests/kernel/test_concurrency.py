"""Many at once: a sample of what `make stress` does in full, and who never gives way.

That others are overtaken by, or overtake, is told by the kernel's generation number, which nftables alone has: so what
is asked of that runs there. On the iptables backends somebody else's commands go on in between.

More of the subject: the lock in tests/test_store.py; commits of others at a chosen moment in test_atomic.py; a table
that is held with the owner flag in test_foreign.py.
"""

import os
import subprocess
from collections import Counter
from pathlib import Path

from tests.kernel import stress
from tests.kernel.foreign_writer import TABLE, writing
from tests.kernel.iptables import program, saved
from tests.kernel.lab import COMMAND_TIMEOUT, Lab
from tests.kernel.product import Product, handles, insist, on_each, on_iptables, on_nftables
from tests.kernel.stress import ONE, OTHER, PARALLEL

# So long each message to the kernel takes on its way: time enough for the other to commit, however busy the machine.
DELAY_MICROSECONDS = 20_000
ROUNDS = 10
# Adds rules, one after the other, until there is a file of this name (or very many rules); then tells how many. With a
# pause: iptables-nft-restore begins anew whenever somebody was faster, and beside one who never rests it may never end.
ADDING = """
"$1" -w -t nat -N THEIRS
echo adding
number=0
while [ ! -e "$2" ] && [ $number -lt 2000 ]; do
    number=$((number + 1))
    "$1" -w -t nat -A THEIRS -p tcp --dport $number -j RETURN
    sleep 0.03
done
echo $number
"""

pytestmark = on_nftables


@on_each
def test_parallel_applies_of_two_files(product: Product) -> None:
    found = stress.parallel(product, 1)
    assert found["exit 0"] + found["exit 75"] == PARALLEL
    assert found["generations"] > 1  # they took turns


def test_no_commit_is_lost_beside_a_busy_writer(lab: Lab, product: Product) -> None:
    product.admin.has_much_else()
    before = product.admin.sees_others()
    found: Counter[str] = Counter()
    for _ in range(ROUNDS):  # who is faster is chance
        found += stress.beside_a_writer(product, 4, 1)
        if found["overtaken"] and found["taken"]:
            break
        lab.host.nft(f"delete table inet {TABLE}")
    assert found["overtaken"]
    assert found["taken"]
    lab.host.nft(f"delete table inet {TABLE}")
    assert product.admin.sees_others() == before


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


@on_iptables
def test_nothing_of_others_is_lost_beside_their_commands(lab: Lab, product: Product, tmp_path: Path) -> None:
    end, tool = tmp_path / "end", program(product.backend.name, "ipv4")
    argv = ["sh", "-euc", ADDING, "sh", tool, str(end)]
    pipe = subprocess.PIPE
    env = lab.environment()
    with lab.host.namespace.popen(argv, stdout=pipe, stderr=pipe, text=True, env=env) as adder:
        assert adder.stdout
        assert adder.stdout.readline() == "adding\n"
        for number in range(ROUNDS):
            product.apply((ONE, OTHER)[number % 2])
            assert product.status().state == "in-sync"
        end.touch()
        told, complaints = adder.communicate(timeout=COMMAND_TIMEOUT)
    assert adder.returncode == 0, complaints
    theirs = [line for line in saved(lab.host, product.backend.name, "ipv4") if line.startswith("-A THEIRS")]
    assert int(told) > ROUNDS
    assert len(theirs) == int(told)
    assert product.status().state == "in-sync"
