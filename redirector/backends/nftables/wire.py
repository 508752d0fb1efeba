"""Numbers of nf_tables and nfnetlink, and the encodings of map keys. Pure.

Sources: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, libnftnl's udata.h (comments), nftables' datatype.h
(the data type numbers that `nft` stores with a set, which the kernel only hands back).
"""

from __future__ import annotations

import _socket as socket  # see netlink
import struct
from typing import Any

from redirector.backends.nftables import message
from redirector.netlink import attr, nest, table
from redirector.program import ADDRESSES, COUNTS, FORWARDS, GUARDS, GUARDS_AT, INTERFACES, PORTS, TRANSLATIONS
from redirector.records import NamedTuple

SUBSYSTEM, NFPROTO_INET = message.SUBSYSTEM, message.NFPROTO_INET
BATCH_BEGIN = 16  # NFNL_MSG_BATCH_BEGIN
BATCH_END = 17  # NFNL_MSG_BATCH_END
BATCH_GENID = 1  # NFNL_BATCH_GENID
NFPROTO = {"ipv4": 2, "ipv6": 10}
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}  # NF_INET_*

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN, GETGEN = 15, message.GETGEN
NEWOBJ, GETOBJ, DELOBJ = 18, 19, 20
GETFLOWTABLE = 23

TABLE_NAME, TABLE_FLAGS, TABLE_USERDATA = 1, 2, 6
TABLE_OWNER_FLAG = 0x2  # NFT_TABLE_F_OWNER
TABLE_OWNER = 7
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, CHAIN_FLAGS = 1, 3, 4, 5, 7, 10
HOOK_NUM, HOOK_PRIORITY, HOOK_DEV, HOOK_DEVS = 1, 2, 3, 4
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 4, 7
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DATA_TYPE, SET_DATA_LEN = 1, 2, 3, 4, 5, 6, 7
SET_DESC, SET_ID, SET_TIMEOUT, SET_GC, SET_USERDATA, SET_OBJ_TYPE, SET_EXPR, SET_EXPRESSIONS = (
    9,
    10,
    11,
    12,
    13,
    15,
    17,
    18,
)
DESC_SIZE = 1
ELEMENTS_TABLE, ELEMENTS_SET, ELEMENTS_LIST, ELEMENTS_SET_ID = 1, 2, 3, 4
ELEM_KEY, ELEM_DATA, ELEM_FLAGS, ELEM_TIMEOUT, ELEM_USERDATA, ELEM_OBJREF, ELEM_KEY_END = 1, 2, 3, 4, 6, 9, 10
LIST_ELEM = 1
EXPR_NAME, EXPR_DATA = 1, 2
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
COUNTER_BYTES, COUNTER_PACKETS = 1, 2
OBJ_TABLE, OBJ_NAME, OBJ_TYPE, OBJ_DATA = 1, 2, 3, 4
OBJECT_COUNTER = 1  # NFT_OBJECT_COUNTER
FLOWTABLE_TABLE, FLOWTABLE_NAME = 1, 2
GEN_ID, GEN_PROC_PID, GEN_PROC_NAME = message.GEN_ID, 2, 3

NFT_ACCEPT = 1  # NF_ACCEPT
NFT_JUMP = -3 & 0xFFFFFFFF
NFT_RETURN = -5 & 0xFFFFFFFF
SET_ANONYMOUS, SET_CONSTANT, SET_MAP, SET_OBJECT = 0x1, 0x2, 0x8, 0x40
TYPE_VERDICT = 0xFFFFFF00  # NFT_DATA_VERDICT
# nftables' enum datatypes
TYPE_IPV4, TYPE_IPV6, TYPE_PROTOCOL, TYPE_PORT, TYPE_IFNAME = 7, 8, 12, 13, 41

COMMENT = 0  # NFTNL_UDATA_{RULE,SET_ELEM}_COMMENT
# NFTNL_UDATA_SET_KEYBYTEORDER = BYTEORDER_HOST_ENDIAN: without it nft lists interface names as empty.
HOST_ORDER_KEYS = struct.pack("=BBI", 0, 4, 1)


def concatenated(*types: int) -> int:
    """nft's number for a concatenation: six bits for each part."""
    number = 0
    for kind in types:
        number = number << 6 | kind
    return number


class SetType(NamedTuple):
    """What the kernel knows of a kind of map: types and lengths (bytes) of key and data, or the type of its objects;
    `flags` tell one with data from one with objects, and from a set."""

    key_type: int
    key_len: int
    flags: int = 0
    data_type: int = 0
    object_type: int = 0
    data_len: int = 0


_PORT_KEY = (TYPE_PROTOCOL, TYPE_PORT)
SET_TYPES: dict[str, SetType] = {
    PORTS: SetType(concatenated(*_PORT_KEY), 8, SET_MAP, TYPE_PORT, data_len=2),
    FORWARDS["ipv4"]: SetType(concatenated(*_PORT_KEY), 8, SET_MAP, concatenated(TYPE_IPV4, TYPE_PORT), data_len=8),
    FORWARDS["ipv6"]: SetType(concatenated(*_PORT_KEY), 8, SET_MAP, concatenated(TYPE_IPV6, TYPE_PORT), data_len=20),
    COUNTS: SetType(concatenated(*_PORT_KEY), 8, SET_OBJECT, object_type=OBJECT_COUNTER),
    GUARDS: SetType(concatenated(*_PORT_KEY), 8),
    GUARDS_AT["ipv4"]: SetType(concatenated(TYPE_IPV4, *_PORT_KEY), 12),
    GUARDS_AT["ipv6"]: SetType(concatenated(TYPE_IPV6, *_PORT_KEY), 24),
    ADDRESSES["ipv4"]: SetType(TYPE_IPV4, 4, SET_MAP, TYPE_VERDICT, data_len=16),
    ADDRESSES["ipv6"]: SetType(TYPE_IPV6, 16, SET_MAP, TYPE_VERDICT, data_len=16),
    INTERFACES: SetType(TYPE_IFNAME, 16, SET_MAP, TYPE_VERDICT, data_len=16),
}
BY_PORT = TRANSLATIONS | {COUNTS}  # what may have very many elements, alike in form
# How many bytes of a target count, in what has targets: the rest of its data is padding.
TARGET_BYTES = {PORTS: 2, FORWARDS["ipv4"]: 6, FORWARDS["ipv6"]: 18}

# A part of a concatenated key is padded to 4 bytes: protocol (1 byte), port (2 bytes, network order).
PORT_KEY = struct.Struct(">B3xH2x")
BE32 = struct.Struct(">I")
BE64 = struct.Struct(">Q")


def be32(number: int) -> bytes:
    return BE32.pack(number & 0xFFFFFFFF)


def text(value: str) -> bytes:
    """A NUL-terminated string."""
    return value.encode("utf-8", "surrogateescape") + b"\0"


def untext(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def number(value: bytes | None) -> int:
    """A big-endian attribute; 0 where it is absent. None of ours has more than 8 bytes: the rest is left out, since
    Python writes no number of thousands of digits."""
    return int.from_bytes(value[:8], "big") if value else 0


def data_value(raw: bytes) -> bytes:
    return attr(DATA_VALUE, raw)


def verdict(code: int, chain: str = "") -> bytes:
    target = attr(VERDICT_CHAIN, text(chain)) if chain else b""
    return nest(DATA_VERDICT, attr(VERDICT_CODE, be32(code)), target)


def jump_target(data: bytes) -> str | None:
    """The chain of a jump verdict inside a data attribute; None for anything else."""
    inner = table(table(data).get(DATA_VERDICT, b""))
    if number(inner.get(VERDICT_CODE)) != NFT_JUMP or VERDICT_CHAIN not in inner:
        return None
    return untext(inner[VERDICT_CHAIN])


def comment(value: str) -> bytes:
    """libnftnl's userdata for a comment: type, length, NUL-terminated text (nft 1.0.6 crashes without the NUL)."""
    return comment_of(text(value)[:-1])


def comment_of(raw: bytes) -> bytes:
    """As `comment`, of encoded text."""
    return bytes((COMMENT, len(raw) + 1)) + raw + b"\0"


def parse_comment(userdata: bytes | None) -> str | None:
    """The comment in any userdata, ours or not; None where there is none, or one that is cut off or has no NUL: neither
    we nor nft write such a thing."""
    offset = 0
    while userdata and offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == COMMENT:
            raw = userdata[offset + 2 : offset + 2 + length]
            return untext(raw) if len(raw) == length and raw.endswith(b"\0") else None
        offset += 2 + length
    return None


def key_bytes(kind: str, key: Any) -> bytes:
    """A Program's map key as the kernel holds it."""
    if kind in BY_PORT or kind == GUARDS:
        return PORT_KEY.pack(key >> 16, key & 0xFFFF)
    if kind in GUARDS_AT.values():
        return address_bytes(key[0]) + PORT_KEY.pack(key[1] >> 16, key[1] & 0xFFFF)
    if kind == INTERFACES:
        return text(key).ljust(16, b"\0")
    return address_bytes(key)


def parse_key(kind: str, raw: bytes) -> Any:
    """Inverts `key_bytes`. Raises ValueError or struct.error for bytes of the wrong length."""
    if kind in BY_PORT or kind == GUARDS:
        protocol, port = PORT_KEY.unpack(raw)
        return protocol << 16 | port
    if kind in GUARDS_AT.values():
        protocol, port = PORT_KEY.unpack(raw[-8:])
        return parse_address(raw[:-8]), protocol << 16 | port
    if kind == INTERFACES:
        return untext(raw)
    return parse_address(raw)


def address_bytes(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def parse_address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)
