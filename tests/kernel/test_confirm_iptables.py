"""Commit-confirm on the iptables backends: the watchdog, and who comes after it, work on the backend of the change."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from redirector import pending
from redirector.history import Record
from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping
from tests.kernel.watchdogs import watchdogs

OLD = mapping("web", 80, 8080)
NEW = mapping("web", 80, 8081)


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def product(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Product]:
    with Product(lab, request.param) as made:
        for port in (8080, 8081):
            lab.host.serve("tcp", HOST[0], port)
        yield made
    # Whatever the test came to: without a note no watchdog has anything to do, and the namespace can go.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(lab.state_dir, pending.NOTE))
    for watchdog in watchdogs(lab.state_dir):
        with watchdog:
            watchdog.await_end()


def await_watchdogs(lab: Lab, kill: bool = False) -> int:
    """Until they have ended; how many there were."""
    found = watchdogs(lab.state_dir)
    for watchdog in found:
        with watchdog:
            if kill:
                watchdog.send(signal.SIGKILL)
            watchdog.await_end()
    return len(found)


def is_back(lab: Lab, product: Product) -> None:
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
    assert product.json("status")["state"] == "in-sync"
    record = product.history.current()
    assert isinstance(record, Record)
    assert (record.action, record.confirmed, record.backend) == ("cancel", True, product.backend.name)


def test_at_the_deadline(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(OLD))
    product.run("apply", "--confirm=1", product.file(NEW))
    await_watchdogs(lab)
    is_back(lab, product)


def test_the_first_apply_of_all_is_drained(lab: Lab, product: Product) -> None:
    """The watchdog comes before the first generation does: nothing there tells it where the mappings will be."""
    product.run("apply", "--confirm=1", product.file(NEW))
    await_watchdogs(lab)
    assert lab.client.ask_tcp(HOST[0], 80) == Refused()
    assert product.json("status", code=3)["state"] == "drained"


def test_by_cancel_and_by_a_failed_probe(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(OLD))
    product.run("apply", "--confirm", product.file(NEW))
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8081, CLIENT[0], HOST[0])
    product.run("cancel")
    is_back(lab, product)
    product.run("apply", "--confirm", product.file(NEW), "--probe", "false", code=5)
    is_back(lab, product)


def test_without_a_watchdog_the_next_command_does_it(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(OLD))
    product.run("apply", "--confirm=60", product.file(NEW))
    assert await_watchdogs(lab, kill=True) == 1
    note = pending.load(product.history)
    assert note is not None
    pending._write(product.history, note._replace(deadline=0.0))
    product.run("status")
    is_back(lab, product)
