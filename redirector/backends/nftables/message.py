"""The head of a message to nf_tables, and the request that needs no more than that. Pure but for one question.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct

from redirector.netlink import NetlinkSocket, table

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NFPROTO_INET = 1
GETGEN = 16  # NFT_MSG_GETGEN
GEN_ID = 1  # NFTA_GEN_ID, big-endian


def header(kind: int) -> int:
    return SUBSYSTEM << 8 | kind


def nfgenmsg(family: int = NFPROTO_INET, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def genid(netlink: NetlinkSocket) -> int:
    """The generation number of the socket's network namespace now. Raises OSError."""
    reply = netlink.request(header(GETGEN), nfgenmsg(0))
    return int.from_bytes(table(reply.payload, 4).get(GEN_ID, b"")[:4], "big")
