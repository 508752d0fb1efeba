"""The kernel's table of UDP flows: read it, and forget single entries.

Sources: linux/netfilter/nfnetlink_conntrack.h, nfnetlink.h. A dump gives every entry of the namespace; there is no
need to be quick about it, it is read only after a commit that changed UDP mappings.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from redirector.flows import Flow
from redirector.host.dumps import steadily
from redirector.model import PROTOCOLS
from redirector.netlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NetlinkSocket,
    attr,
    error_number,
    message,
    nest,
    table,
)

SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
GET, DELETE = SUBSYSTEM | 1, SUBSYSTEM | 2  # IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
TUPLE_ORIGINAL, TUPLE_REPLY, IDENTIFIER, ZONE = 1, 2, 12, 18  # CTA_*
TUPLE_IP, TUPLE_PROTOCOL = 1, 2  # CTA_TUPLE_*
FILTER, FILTER_ORIGINAL_FLAGS, FILTER_BY_PROTOCOL = 25, 1, 1 << 3  # CTA_FILTER, CTA_FILTER_ORIG_FLAGS, CTA_PROTO_NUM
PROTOCOL_NUMBER, SOURCE_PORT, DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
# By family, where a tuple has source and destination: CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST.
ADDRESSES: dict[int, tuple[int, int]] = {socket.AF_INET: (1, 2), socket.AF_INET6: (3, 4)}


def flow(payload: bytes) -> Flow | None:
    """The flow of one dump row (struct nfgenmsg, attributes); None for another protocol or family."""
    family = payload[0] if payload else 0
    if family not in ADDRESSES:
        return None
    parts = table(payload, 4)
    original, reply = (table(parts.get(kind, b"")) for kind in (TUPLE_ORIGINAL, TUPLE_REPLY))
    protocol = table(original.get(TUPLE_PROTOCOL, b""))
    if protocol.get(PROTOCOL_NUMBER) != bytes((PROTOCOLS["udp"],)):
        return None
    source, destination = (table(original.get(TUPLE_IP, b"")).get(kind, b"") for kind in ADDRESSES[family])
    answering = table(reply.get(TUPLE_IP, b"")).get(ADDRESSES[family][0], b"")
    ports = protocol.get(DESTINATION_PORT, b""), table(reply.get(TUPLE_PROTOCOL, b"")).get(SOURCE_PORT, b"")
    size = 16 if family == socket.AF_INET6 else 4
    if any(len(raw) != size for raw in (source, destination, answering)) or any(len(raw) != 2 for raw in ports):
        return None
    ident = nest(TUPLE_ORIGINAL, parts[TUPLE_ORIGINAL])
    ident += b"".join(attr(kind, parts[kind]) for kind in (IDENTIFIER, ZONE) if kind in parts)
    addresses = [socket.inet_ntop(family, raw) for raw in (source, destination, answering)]
    used, target = (int.from_bytes(raw, "big") for raw in ports)
    return Flow(addresses[0], addresses[1], used, addresses[2], target, bytes((family,)) + ident)


def forget(netlink: NetlinkSocket, choose: Callable[[Iterator[Flow]], Iterable[Flow]]) -> int:
    """Delete the UDP flows that `choose` picks, in the network namespace of `netlink` (of NETLINK_NETFILTER).

    A busy server has very many flows, most of them alike but for the client's port. `choose` sees one of those that are
    alike, and picks for all of them. Returns how many were deleted. Raises OSError; EBUSY for a table never at rest.
    """
    alike: dict[bytes, list[bytes]] = {}
    for family in ADDRESSES:
        for row in steadily(partial(netlink.dump, GET, _udp_only(family))):
            alike.setdefault(_without_source_port(row.payload), []).append(row.payload)
    first = {found: payloads for payloads in alike.values() if (found := flow(payloads[0]))}
    chosen = [flow(payload) for found in choose(iter(first)) for payload in first[found]]
    return sum(_delete(netlink, found) for found in chosen if found)


def _udp_only(family: int) -> bytes:
    """A dump request that the kernel answers with UDP flows of one family only (CTA_FILTER, from Linux 5.8 on)."""
    wanted = nest(TUPLE_ORIGINAL, nest(TUPLE_PROTOCOL, attr(PROTOCOL_NUMBER, bytes((PROTOCOLS["udp"],)))))
    compared = attr(FILTER_ORIGINAL_FLAGS, struct.pack("=I", FILTER_BY_PROTOCOL))
    return bytes((family, 0, 0, 0)) + wanted + nest(FILTER, compared)


# Where the original tuple's source port begins, behind addresses of 4 or 16 bytes, and where the reply's one ends.
_PLACES: dict[int, tuple[int, int]] = {socket.AF_INET: (44, 98), socket.AF_INET6: (68, 146)}
_SOURCE_PORT_HEADER = attr(SOURCE_PORT, bytes(2))[:4]


def _without_source_port(payload: bytes) -> bytes:
    """What rows have in common that differ in the client's port only; the whole row where it is laid out otherwise."""
    at, end = _PLACES.get(payload[0] if payload else 0, (0, 0))
    if not at or payload[at - 4 : at] != _SOURCE_PORT_HEADER:
        return payload
    return payload[:at] + payload[at + 2 : end]


def _delete(netlink: NetlinkSocket, found: Flow) -> bool:
    seq = netlink.next_seq()
    payload = found.ident[:1] + bytes(3) + found.ident[1:]
    netlink.send(message(DELETE, NLM_F_REQUEST | NLM_F_ACK, seq, payload))
    while True:
        for reply in netlink.receive():
            if reply.seq == seq and reply.kind == NLMSG_ERROR:
                number = error_number(reply)
                if number not in (0, errno.ENOENT):  # it may have ended by itself
                    raise OSError(number, os.strerror(number))
                return not number
