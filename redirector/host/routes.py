"""Which way lies an address: the kernel's own answer (linux/rtnetlink.h, RTM_GETROUTE)."""

from __future__ import annotations

import _socket as socket  # see netlink
import struct

from redirector.host.addresses import IFADDRMSG, RTM_GETADDR, RTM_NEWADDR, address_of
from redirector.host.dumps import steadily
from redirector.netlink import NETLINK_ROUTE, NetlinkSocket, attr, table
from redirector.records import NamedTuple

# linux/rtnetlink.h
RTM_GETROUTE = 26
RTA_DST = 1
RTA_OIF = 4
RTA_PREFSRC = 7
RTN_LOCAL = 2
RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths of dst and src, tos, table, protocol, scope, type, flags


class Way(NamedTuple):
    """`interface` and its `number` towards an address, "" and 0 where that is this host's own; `source`: the address
    that this host uses there, which is the one that clients there know it by; `primary`: the interface's first one of
    that family, to which REDIRECT sends what arrives."""

    interface: str
    number: int
    source: str
    primary: str = ""


def towards(address: str) -> Way:
    """The way to a canonical address, in the network namespace of the calling thread. Raises OSError: ENETUNREACH and
    the like where there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        asked = RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attr(RTA_DST, packed)
        reply = netlink.request(RTM_GETROUTE, asked).payload
        found = table(reply, RTMSG.size)
        index = int(struct.unpack("=I", found.get(RTA_OIF, bytes(4)))[0])
        source = found.get(RTA_PREFSRC, b"")
        ours = socket.inet_ntop(family, source) if len(source) == len(packed) else ""
        if RTMSG.unpack_from(reply)[7] == RTN_LOCAL:
            return Way("", 0, address)
        return Way(socket.if_indextoname(index), index, ours, _primary(netlink, index, family))
    finally:
        netlink.close()


def outward() -> list[Way]:
    """For each family the first interface with an address that others can have heard of, and that address."""
    found: dict[bool, Way] = {}
    for way in addresses():
        found.setdefault(":" in way.source, way)
    return list(found.values())


def addresses() -> list[Way]:
    """Each address of this host that others can have heard of: link-local ones and those of lo are left out."""
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        found: list[Way] = []
        primary: dict[tuple[int, int], str] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for index, address in _addresses(netlink, family):
                name = socket.if_indextoname(index)
                if name != "lo":
                    found.append(Way(name, index, address, primary.setdefault((family, index), address)))
        return found
    finally:
        netlink.close()


def _primary(netlink: NetlinkSocket, wanted: int, family: int) -> str:
    """The first address of an interface that is not link-local."""
    return next((address for index, address in _addresses(netlink, family) if index == wanted), "")


def _addresses(netlink: NetlinkSocket, family: int) -> list[tuple[int, str]]:
    """(interface index, address) of one family in the kernel's order, link-local ones left out."""
    rows = steadily(lambda: netlink.dump(RTM_GETADDR, IFADDRMSG.pack(family, 0, 0, 0, 0)))
    pairs = [(IFADDRMSG.unpack_from(r.payload)[4], address_of(r.payload)) for r in rows if r.kind == RTM_NEWADDR]
    return [(index, found) for index, found in pairs if found and not found.startswith("fe80:")]
