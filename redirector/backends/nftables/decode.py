"""Dumps of nf_tables → Program. Pure, and safe on whatever others put there: nothing here trusts a name or a byte.

What we could have made comes back as what it was made from; anything else becomes visible as a kind, an entry or a
rule that no compiled Program has, and so as drift.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import Any

from redirector.backends.nftables import wire
from redirector.backends.nftables.encode import MARK
from redirector.errors import printable
from redirector.naming import TABLE
from redirector.netlink import Message, attr, attributes, table
from redirector.program import COUNTED, PORTS, SETS, Entries, Hook

Attributes = dict[int, bytes]
COUNTER = b"counter\0"


def rows(messages: Iterable[Message]) -> list[Attributes]:
    """The attributes of dump rows of the inet family (4 bytes of nfgenmsg go first)."""
    return [table(m.payload, 4) for m in messages if m.payload[:1] == bytes((wire.NFPROTO_INET,))]


def ours(found: list[Attributes], attribute: int) -> list[Attributes]:
    """The rows that belong to the table of our name."""
    return [row for row in found if wire.untext(row.get(attribute, b"")) == TABLE]


def foreign_reason(row: Attributes) -> str:
    """Why a table of our name is not ours, in words; "" if it is."""
    flags = wire.number(row.get(wire.TABLE_FLAGS))
    if flags & wire.TABLE_OWNER_FLAG:
        owner = wire.number(row.get(wire.TABLE_OWNER))
        return f"the process behind netlink port {owner} holds it with the owner flag"
    mark = wire.parse_comment(row.get(wire.TABLE_USERDATA))
    return "" if mark == MARK else "it does not carry our mark: somebody else made it"


def hook(row: Attributes) -> Hook | None:
    """Where a chain is attached; a device or a hook that we never use shows in the hook's name."""
    nested = row.get(wire.CHAIN_HOOK)
    if nested is None:
        return None
    inner = table(nested)
    number = wire.number(inner.get(wire.HOOK_NUM))
    name = next((hook for hook, known in wire.HOOKS.items() if known == number), f"hook-{number}")
    if wire.HOOK_DEV in inner or wire.HOOK_DEVS in inner:
        name += " of a device"
    priority = int.from_bytes(inner.get(wire.HOOK_PRIORITY, b"")[:4], "big", signed=True)
    policy = "accept" if wire.number(row.get(wire.CHAIN_POLICY)) == wire.NFT_ACCEPT else "drop"
    return Hook(printable(wire.untext(row.get(wire.CHAIN_TYPE, b""))), name, priority, policy)


def chain_name(row: Attributes, attribute: int) -> str:
    return wire.untext(row.get(attribute, b""))


def set_kind(row: Attributes) -> str:
    """The kind of map that a set is, or words for one that is none of ours."""
    flags = wire.number(row.get(wire.SET_FLAGS))
    data_type = wire.number(row[wire.SET_DATA_TYPE]) if wire.SET_DATA_TYPE in row else None
    key = wire.number(row.get(wire.SET_KEY_TYPE)), wire.number(row.get(wire.SET_KEY_LEN))
    counted = [wire.SET_EXPR] if table(row.get(wire.SET_EXPR, b"")).get(wire.EXPR_NAME) == COUNTER else []
    for kind, shape in wire.SET_TYPES.items():
        if (
            (shape.key_type, shape.key_len) == key
            and shape.data_type == data_type
            and flags == (wire.SET_MAP if data_type is not None else 0)
            and bool(counted) == shape.counted
            and not any(odd in row for odd in (wire.SET_TIMEOUT, wire.SET_OBJ_TYPE, wire.SET_EXPRESSIONS))
        ):
            return kind
    return f"foreign: key type {key[0]:#x} of {key[1]} bytes, flags {flags:#x}"


def capacity(row: Attributes) -> int:
    return wire.number(table(row.get(wire.SET_DESC, b"")).get(wire.DESC_SIZE))


def anonymous(row: Attributes) -> bool:
    return bool(wire.number(row.get(wire.SET_FLAGS)) & wire.SET_ANONYMOUS)


def members(messages: Iterable[Message]) -> frozenset[int]:
    """The one-byte keys of an anonymous set; a member with more to it than its key makes the set unrecognisable."""
    found = set()
    for element in _elements(messages):
        parts = table(element)
        value = table(parts.get(wire.ELEM_KEY, b"")).get(wire.DATA_VALUE, b"")
        found.add(value[0] if len(value) == 1 and set(parts) == {wire.ELEM_KEY} else -1)
    return frozenset(found)


def _elements(messages: Iterable[Message]) -> Iterable[bytes]:
    for reply in messages:
        for kind, value in attributes(reply.payload, 4):
            if kind == wire.ELEMENTS_LIST:
                for _, element in attributes(value):
                    yield element


def entries(kind: str, messages: Iterable[Message]) -> tuple[Entries, dict[Any, tuple[int, int]]]:
    """(entries, counters by key, none for zero) of a map. An element that we could not have written has a third part in
    its value: words for what is odd about it."""
    found: Entries = {}
    counters: dict[Any, tuple[int, int]] = {}
    messages = list(messages)
    if kind == PORTS and _port_entries(messages, found, counters):
        return found, counters
    found.clear()
    counters.clear()
    for element in _elements(messages):
        parts = table(element)
        raw = table(parts.get(wire.ELEM_KEY, b"")).get(wire.DATA_VALUE, b"")
        try:
            key = wire.parse_key(kind, raw)
            if wire.key_bytes(kind, key) != raw:
                raise ValueError
        except (ValueError, OSError, struct.error):
            found[raw.hex()] = (None, "", "an odd key")  # type: ignore[assignment]
            continue
        found[key] = _entry_value(kind, parts)
        if kind in COUNTED:
            counter = table(table(parts.get(wire.ELEM_EXPR, b"")).get(wire.EXPR_DATA, b""))
            packets = wire.number(counter.get(wire.COUNTER_PACKETS))
            if packets:
                counters[key] = packets, wire.number(counter.get(wire.COUNTER_BYTES))
    return found, counters


_EXPECTED = {wire.ELEM_KEY, wire.ELEM_DATA, wire.ELEM_USERDATA, wire.ELEM_EXPR}


def _entry_value(kind: str, parts: Attributes) -> tuple[Any, str]:
    odd = [f"attribute {number}" for number in parts if number not in _EXPECTED]
    value: Any = 0
    data = parts.get(wire.ELEM_DATA, b"")
    if kind == PORTS:
        port = table(data).get(wire.DATA_VALUE, b"")
        value = wire.number(port)
        if len(port) != 2:
            odd.append("an odd port")
    elif kind not in SETS:
        value = wire.jump_target(data)
        if value is None:
            odd.append("no jump")
    if kind in COUNTED and table(parts.get(wire.ELEM_EXPR, b"")).get(wire.EXPR_NAME) != COUNTER:
        odd.append("no counter")
    mapping = wire.parse_comment(parts.get(wire.ELEM_USERDATA)) or ""
    if kind not in COUNTED and mapping:
        odd.append("a comment")
    found = (value, printable(mapping))
    return (*found, ", ".join(odd)) if odd else found  # type: ignore[return-value]


# An element of ours as the kernel dumps it, in network order: list header; key (two headers, protocol, port); data (two
# headers, port); counter expression (headers and name, bytes, header, packets). What follows is its comment.
_ELEMENT = struct.Struct(">2s2s8sB3sH2s8sH2s24sQ4sQ")
_EXPRESSION = attr(wire.EXPR_NAME, COUNTER)


def _frame() -> tuple[bytes, ...]:
    """The parts of `_ELEMENT` that are the same for all elements."""
    octets = attr(wire.COUNTER_BYTES, bytes(8))
    data = attr(wire.EXPR_DATA, octets + attr(wire.COUNTER_PACKETS, bytes(8)))
    expression = attr(wire.ELEM_EXPR, _EXPRESSION + data)
    key = attr(wire.ELEM_KEY, attr(wire.DATA_VALUE, bytes(8)))
    value = attr(wire.ELEM_DATA, attr(wire.DATA_VALUE, bytes(2)))
    return (
        attr(wire.LIST_ELEM, b"")[2:4],
        key[:8],
        bytes(3),
        bytes(2),
        value[:8],
        bytes(2),
        expression[:24],
        data[16:20],
    )


def _port_entries(messages: list[Message], found: Entries, counters: dict[Any, tuple[int, int]]) -> bool:
    """Elements exactly as the kernel dumps ours, unpacked at once: this loop runs 60,000 times.

    False as soon as one is anything else; what was found until then is worth nothing, and is to be read slowly.
    """
    frame = _frame()
    names: dict[bytes, str] = {}
    unpack, size = _ELEMENT.unpack_from, _ELEMENT.size
    for reply in messages:
        for kind, value in attributes(reply.payload, 4):
            if kind != wire.ELEMENTS_LIST:
                continue
            offset, end = 0, len(value)
            while offset < end:
                if offset + size > end:
                    return False
                raw, a, b, protocol, c, port, d, e, target, f, g, octets, h, packets = unpack(value, offset)
                length = int.from_bytes(raw, sys.byteorder)
                if (a, b, c, d, e, f, g, h) != frame or length < size or offset + length > end:
                    return False
                comment = value[offset + size : offset + length]
                name = names.get(comment)
                if name is None:
                    parts = table(comment)
                    if comment and set(parts) != {wire.ELEM_USERDATA}:
                        return False
                    name = names[comment] = printable(wire.parse_comment(parts.get(wire.ELEM_USERDATA)) or "")
                key = protocol << 16 | port
                found[key] = target, name
                if packets:
                    counters[key] = packets, octets
                offset += (length + 3) & ~3
    return True
