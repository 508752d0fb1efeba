"""The addresses and interfaces of this host, in the network namespace of the calling thread."""

from __future__ import annotations

import _socket as socket  # see netlink
import struct

from redirector.host.dumps import steadily
from redirector.netlink import NETLINK_ROUTE, NetlinkSocket, table

# linux/rtnetlink.h
RTM_NEWADDR = 20
RTM_GETADDR = 22
# linux/if_addr.h
IFA_ADDRESS = 1
IFA_LOCAL = 2

IFADDRMSG = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, interface index

_SIZES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


def address_of(row: bytes) -> str | None:
    """The canonical text (RFC 5952) of the local address in an RTM_NEWADDR payload; None for other families.

    On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL is ours; IPv6 has IFA_LOCAL there only.
    """
    if len(row) < IFADDRMSG.size:
        return None
    family = row[0]
    attributes = table(row, IFADDRMSG.size)
    packed = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS, b""))
    if len(packed) != _SIZES.get(family):
        return None
    return socket.inet_ntop(family, packed)


def local_addresses(route: NetlinkSocket | None = None) -> set[str]:
    """Every address of every interface, up or down, IPv4 and IPv6, as canonical text without zone or prefix.

    Of the network namespace of `route`, a socket of NETLINK_ROUTE; without one, of the caller's. Raises OSError: EBUSY
    if the addresses kept changing while they were read.
    """
    found = (address_of(row) for row in _rows(route))
    return {address for address in found if address is not None}


def connected_networks() -> set[str]:
    """The networks that the interfaces of the caller's network namespace are in, up or down, as canonical text with
    the prefix length. Raises OSError, as `local_addresses`."""
    found = (network_in(row) for row in _rows())
    return {network for network in found if network is not None}


def network_in(row: bytes) -> str | None:
    """The network of an RTM_NEWADDR payload: its prefix belongs to IFA_ADDRESS, which on a point-to-point link is the
    other end."""
    if len(row) < IFADDRMSG.size:
        return None
    family, length = row[0], row[1]
    packed = table(row, IFADDRMSG.size).get(IFA_ADDRESS, b"")
    bits = len(packed) * 8
    if len(packed) != _SIZES.get(family) or not 0 < length <= bits:
        return None
    base = int.from_bytes(packed, "big") >> bits - length << bits - length
    return f"{socket.inet_ntop(family, base.to_bytes(len(packed), 'big'))}/{length}"


def _rows(route: NetlinkSocket | None = None) -> list[bytes]:
    """The RTM_NEWADDR payloads of the network namespace of `route`, or of the caller's."""
    netlink = route or NetlinkSocket(NETLINK_ROUTE)
    try:
        rows = steadily(lambda: netlink.dump(RTM_GETADDR, IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    finally:
        if netlink is not route:
            netlink.close()
    return [row.payload for row in rows if row.kind == RTM_NEWADDR]


def interfaces() -> set[str]:
    """The names of every interface, up or down. Raises OSError."""
    return {name for _index, name in socket.if_nameindex()}
