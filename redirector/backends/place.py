"""Where a backend is: the network namespace and boot that it works on, and the UDP flows there."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet

from redirector.model import Ruleset
from redirector.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, from Linux 5.14 on


class Place:
    """The network namespace of the thread that makes this. Raises OSError where the kernel has no netlink sockets."""

    def __init__(self) -> None:
        # Both now: whoever calls later may be a thread in another network namespace.
        self.netfilter, self.route = NetlinkSocket(NETLINK_NETFILTER), NetlinkSocket(NETLINK_ROUTE)

    def close(self) -> None:
        self.netfilter.close()
        self.route.close()

    def identity(self) -> str:
        """The namespace and boot as text; equal only for the same one."""
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read().decode().strip()
        try:
            cookie = self.netfilter.option(1, SO_NETNS_COOKIE, 8)  # SOL_SOCKET
            return f"{boot}/{int.from_bytes(cookie, 'little'):x}"
        except OSError:  # before 5.14: inodes recur, but within one boot they are better than nothing
            status = os.stat("/proc/self/ns/net")
            return f"{boot}/inode-{status.st_ino}"

    def restart_flows(self, ruleset: Ruleset, ports: AbstractSet[int], former: AbstractSet[tuple[str, int]]) -> int:
        """Let UDP flows on `ports` that contradict `ruleset` begin anew (see `flows.contradicted`); returns how many.
        Raises OSError."""
        from redirector.flows import contradicted
        from redirector.host.addresses import local_addresses
        from redirector.host.conntrack import forget

        local = local_addresses(self.route)
        return forget(self.netfilter, lambda flows: contradicted(ruleset, flows, ports, local, former))
