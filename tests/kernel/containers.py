"""Containers of the lab's host: namespaces behind a bridge, with the host as their router, as an engine makes them.

host                            containers
bridge0 10.88.0.1/16            web 10.88.0.5, fd00:88::5    db 10.88.0.6, fd00:88::6
fd00:88::1/64
"""

import contextlib
import os
from typing import Self

from redirector.host import namespaces
from tests.kernel.lab import SYSCTLS, Lab, Machine

BRIDGE = "bridge0"
GATEWAY = ("10.88.0.1", "fd00:88::1")
WEB = ("10.88.0.5", "fd00:88::5")
DB = ("10.88.0.6", "fd00:88::6")
NETWORKS = ("10.88.0.0/16", "fd00:88::/64")


class Containers:
    """`web` and `db`, of one lab; a context manager."""

    def __init__(self, lab: Lab) -> None:
        with contextlib.ExitStack() as undo:
            host = lab.host.namespace
            self.filtered(lab, "0")
            namespaces.bridge(host, BRIDGE)
            self.web = self._container(lab, "web", WEB, undo)
            self.db = self._container(lab, "db", DB, undo)
            # Addresses last: a bridge without ports has no carrier, and IPv6 addresses wait for one.
            namespaces.address(host, BRIDGE, f"{GATEWAY[0]}/16")
            namespaces.address(host, BRIDGE, f"{GATEWAY[1]}/64")
            for machine in (self.web, self.db):
                for gateway in GATEWAY:
                    namespaces.route(machine.namespace, "default", gateway)
            self._undo = undo.pop_all()

    @staticmethod
    def filtered(lab: Lab, value: str) -> bool:
        """Whether what bridges pass on goes through netfilter as if it were routed, as `value` says; False where the
        kernel cannot do that (module br_netfilter)."""
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            if os.path.exists(f"/proc/sys/net/bridge/{name}"):
                lab.host.sysctl(f"net/bridge/{name}", value)
        return os.path.exists("/proc/sys/net/bridge")

    def _container(self, lab: Lab, label: str, addresses: tuple[str, str], undo: contextlib.ExitStack) -> Machine:
        machine = lab.machine(label)
        undo.callback(machine.namespace.close)
        for name, value in SYSCTLS.items():
            machine.sysctl(name, value)
        namespaces.link_up(machine.namespace, "lo")
        namespaces.connect(lab.host.namespace, f"veth-{label}", machine.namespace, "eth0")
        lab.host.run("ip", "link", "set", f"veth-{label}", "master", BRIDGE)
        for address, length in zip(addresses, (16, 64), strict=True):
            namespaces.address(machine.namespace, "eth0", f"{address}/{length}")
        return machine

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
