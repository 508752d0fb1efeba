"""Whether this host can pass packets on to other machines: sysctls and routes of the caller's network namespace.

Sources: linux/rtnetlink.h (struct rtmsg); Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import errno
import struct
from collections.abc import Iterable

from redirector.model import family_of
from redirector.netlink import NETLINK_ROUTE, NetlinkSocket, attr
from redirector.records import NamedTuple

SYSCTLS = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
RTM_GETROUTE = 26
RTA_DST = 1
RTN_LOCAL = 2
# family, lengths of destination and source, TOS, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
TYPE_AT = 7
# What the kernel says where nothing leads, or a route that refuses (fib_props, net/ipv4/fib_semantics.c).
NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENONET)


class Forwarding(NamedTuple):
    """Of the targets that were asked for: `off` the families that the host does not pass on, `unreachable` the
    addresses to which no route leads. Those of the host itself need neither."""

    off: frozenset[str] = frozenset()
    unreachable: frozenset[str] = frozenset()


def gather(targets: Iterable[str]) -> Forwarding:
    """Raises OSError."""
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        routes = {address: _route(netlink, address) for address in targets}
    finally:
        netlink.close()
    families = {family_of(address) for address, kind in routes.items() if kind != RTN_LOCAL}
    off = frozenset(family for family in families if not _enabled(SYSCTLS[family]))
    return Forwarding(off, frozenset(address for address, kind in routes.items() if kind is None))


def _route(netlink: NetlinkSocket, address: str) -> int | None:
    """The type of the route to an address (RTN_…); None where there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    request = RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attr(RTA_DST, packed)
    try:
        return netlink.request(RTM_GETROUTE, request).payload[TYPE_AT]
    except OSError as error:
        if error.errno in NOWHERE:
            return None
        raise


def _enabled(sysctl: str) -> bool:
    """Whether a sysctl is on; False where the kernel does not have it."""
    try:
        with open(f"/proc/sys/{sysctl.replace('.', '/')}", "rb") as file:
            return file.read().strip() != b"0"
    except FileNotFoundError:
        return False
