"""When links and IPv6 addresses can be used, by what the kernel announces over rtnetlink.

Theory of operation: an acknowledged request is not yet a usable interface. Three things happen a moment later, and
whoever sends before them loses a packet, and with it a second until the ARP request, neighbour solicitation or SYN
is repeated:

- An end of a veth pair that came up before the other was without carrier then. It sends nothing until the kernel's
  link watch has dealt with the change (linkwatch_do_dev in net/core/link_watch.c); then it is operational (RFC 2863).
- An IPv6 address is answered for only when a work queue has joined its multicast group and added its route
  (addrconf_dad_completed in net/ipv6/addrconf.c), even without duplicate address detection. The address is listed
  before; RTM_NEWADDR is what tells.
- A router solicits the neighbours of what it forwards from its link-local address, and drops the packet while it has
  none that is valid (ndisc_send_ns in net/ipv6/ndisc.c).

So: listen first (`changes`), then change something, then wait for the announcement. TimeoutError after TIMEOUT_SECONDS.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from redirector.host.addresses import RTM_NEWADDR, address_of
from redirector.netlink import NETLINK_ROUTE, RECEIVE_SIZE, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from redirector.host.namespaces import Namespace

RTMGRP_LINK = 1  # linux/rtnetlink.h
RTMGRP_IPV6_IFADDR = 0x100
TIMEOUT_SECONDS = 10.0


def changes(namespace: Namespace) -> socket.socket:
    """A socket that receives a message for each change of a link or an IPv6 address from now on. Raises OSError."""
    made = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    made.bind((0, RTMGRP_LINK | RTMGRP_IPV6_IFADDR))
    made.settimeout(TIMEOUT_SECONDS)
    return made


def await_address(announced: socket.socket, packed: bytes) -> None:
    """Return when an IPv6 address that begins with `packed` (up to 16 bytes) is in use. Raises TimeoutError."""
    while True:
        for message in messages(announced.recv(RECEIVE_SIZE)):
            text = address_of(message.payload) if message.kind == RTM_NEWADDR else None
            if text and ":" in text and socket.inet_pton(socket.AF_INET6, text).startswith(packed):
                return


def await_state(announced: socket.socket, reached: Callable[[], bool]) -> None:
    """Return when `reached()`, asked now and again after each change. Raises TimeoutError."""
    while not reached():
        announced.recv(RECEIVE_SIZE)
