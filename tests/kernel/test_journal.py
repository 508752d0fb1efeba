"""Each change, whoever makes it, tells the journal one line; whole commands, and the watchdog.

Who tells it knows a backend by nothing but its outcome, so one is enough.
"""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_nftables
from tests.kernel.watchdogs import PATIENCE, watchdogs

pytestmark = on_nftables

OLD = mapping("web", 80, 8080)
NEW = mapping("web", 80, 8081) + mapping("ssl", 443, 8443)


@pytest.fixture
def heard(lab: Lab) -> Iterator[socket.socket]:
    path = os.path.join(os.path.dirname(lab.state_dir), "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(path)
        made.settimeout(PATIENCE)
        yield made
    os.unlink(path)


def line(heard: socket.socket) -> str:
    """The next line, which comes at once or, from a watchdog, soon."""
    return heard.recv(65536).decode().partition("\n")[0].removeprefix("MESSAGE=")


def test_who_from_where_and_what(product: Product, heard: socket.socket) -> None:
    old, new = product.file(OLD, "old.toml"), product.file(NEW, "new.toml")
    env = {"REDIRECTOR_JOURNAL": str(heard.getsockname()), "SUDO_USER": "anna"}

    def run(*args: str) -> None:
        product.run(*args, env=env)

    run("apply", old)
    assert line(heard) == f"apply {old} by anna (sudo): 1 added; generation 1"
    run("apply", old)  # nothing to do
    run("apply", new, "--confirm=1h")
    assert line(heard) == f"apply {new} by anna (sudo): 1 added, 1 changed; to be confirmed; generation 2"
    run("confirm")
    assert line(heard) == "confirm by anna (sudo): kept; generation 2"
    run("rollback")
    assert line(heard) == "rollback generation 1 by anna (sudo): 1 changed, 1 removed; generation 3"
    run("apply", new, "--confirm=1h")
    assert line(heard).endswith("to be confirmed; generation 4")
    run("cancel")
    assert line(heard) == "cancel generation 4 by anna (sudo): 1 changed, 1 removed; generation 5"
    run("remove", "--purge")
    assert line(heard).startswith("remove --purge by anna (sudo): ")
    heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        line(heard)


def test_the_watchdog(product: Product, heard: socket.socket) -> None:
    product.run("apply", product.file(OLD), "--confirm=1", env={"REDIRECTOR_JOURNAL": str(heard.getsockname())})
    line(heard)
    assert line(heard) == "cancel generation 1 by its deadline: 1 removed; generation 2"
    for watchdog in watchdogs(product.lab.state_dir):
        with watchdog:
            watchdog.await_end()
