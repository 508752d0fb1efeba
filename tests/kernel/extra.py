"""A fourth machine, cabled to the host of a lab for the length of a `with`."""

import contextlib
from collections.abc import Iterator

from redirector.host import namespaces
from tests.kernel.lab import Lab, Machine

HOST_C = ("203.0.113.1", "2001:db8:3::1")  # the host as the fourth machine sees it
FOURTH = ("203.0.113.100", "2001:db8:3::100")


@contextlib.contextmanager
def fourth(lab: Lab, link: str) -> Iterator[Machine]:
    """A machine at FOURTH, behind the host's interface `link`, which the host has from now on, with HOST_C on it.

    At the end the lab is reset, because servers end before their namespace does.
    """
    machine = Machine("fourth", lab._servers)
    try:
        namespaces.connect(lab.host.namespace, link, machine.namespace, "eth0")
        for here, name, pair in ((lab.host, link, HOST_C), (machine, "eth0", FOURTH)):
            for text, length in zip(pair, (24, 64), strict=True):
                namespaces.address(here.namespace, name, f"{text}/{length}")
        for router in HOST_C:
            namespaces.route(machine.namespace, "default", router)
        yield machine
    finally:
        lab.reset()
        machine.namespace.close()
