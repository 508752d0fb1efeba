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
from redirector.backends.nftables.message import NFPROTO_INET
from redirector.errors import printable
from redirector.naming import TABLE
from redirector.netlink import Message, attr, attributes, table
from redirector.program import COUNTS, NAMED, PORTS, TRANSLATIONS, VERDICTS, Entries, Hook

Attributes = dict[int, bytes]


def rows(messages: Iterable[Message]) -> list[Attributes]:
    """The attributes of dump rows of the inet family (4 bytes of nfgenmsg go first)."""
    return [table(m.payload, 4) for m in messages if m.payload[:1] == bytes((NFPROTO_INET,))]


def ours(found: list[Attributes], attribute: int) -> list[Attributes]:
    """The rows that belong to the table of our name."""
    return [row for row in found if wire.untext(row.get(attribute, b"")) == TABLE]


def foreign_reason(row: Attributes) -> str:
    """Why a table of our name is not ours, in words; "" if it is."""
    flags = wire.number(row.get(wire.TABLE_FLAGS))
    if flags & wire.TABLE_OWNER_FLAG:
        owner = wire.number(row.get(wire.TABLE_OWNER))
        return f"table inet redirector: the process behind netlink port {owner} holds it with the owner flag"
    mark = wire.parse_comment(row.get(wire.TABLE_USERDATA))
    return "" if mark == MARK else "table inet redirector: it does not carry our mark: somebody else made it"


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
    asked = wire.SET_KEY_TYPE, wire.SET_KEY_LEN, wire.SET_FLAGS, wire.SET_DATA_TYPE, wire.SET_OBJ_TYPE
    found = wire.SetType(*(wire.number(row.get(attribute)) for attribute in asked))
    more = any(odd in row for odd in (wire.SET_TIMEOUT, wire.SET_EXPR, wire.SET_EXPRESSIONS))
    for kind, shape in wire.SET_TYPES.items():
        # (The length of the data follows from its type; that of a verdict depends on the machine.)
        if shape._replace(data_len=0) == found and not more:
            return kind
    words = f"foreign: key type {found.key_type:#x} of {found.key_len} bytes, flags {found.flags:#x}"
    return words + (", each element with a counter, a timeout or the like" if more else "")


def is_counter(row: Attributes) -> bool:
    return wire.number(row.get(wire.OBJ_TYPE)) == wire.OBJECT_COUNTER


def counter(row: Attributes) -> tuple[str, tuple[int, int]]:
    """(name, (packets, bytes)) of a counter."""
    data = table(row.get(wire.OBJ_DATA, b""))
    values = wire.number(data.get(wire.COUNTER_PACKETS)), wire.number(data.get(wire.COUNTER_BYTES))
    return wire.untext(row.get(wire.OBJ_NAME, b"")), values


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


def entries(kind: str, messages: Iterable[Message]) -> Entries:
    """The entries of a map. An element that we could not have written has a third part in its value: words for what is
    odd about it."""
    found: Entries = {}
    messages = list(messages)
    if kind in wire.BY_PORT and _port_entries(kind, messages, found):
        return found
    found.clear()
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
    return found


def _entry_value(kind: str, parts: Attributes) -> tuple[Any, str]:
    expected = {wire.ELEM_KEY}
    value: Any = 0
    mapping, fault = "", ""
    if kind in NAMED:
        expected.add(wire.ELEM_USERDATA)
        mapping = printable(wire.parse_comment(parts.get(wire.ELEM_USERDATA)) or "")
    if kind in TRANSLATIONS:
        expected.add(wire.ELEM_DATA)
        raw = table(parts.get(wire.ELEM_DATA, b"")).get(wire.DATA_VALUE, b"")
        width = wire.TARGET_BYTES[kind]
        value = wire.number(raw) if kind == PORTS else int.from_bytes(raw[:width], "big")
        odd_data = len(raw) < width or raw[width:] != bytes(wire.SET_TYPES[kind].data_len - width)
        fault = "" if not odd_data else "an odd port" if kind == PORTS else "an odd target"
    elif kind == COUNTS:
        expected.add(wire.ELEM_OBJREF)
        value = wire.untext(parts.get(wire.ELEM_OBJREF, b""))
        fault = "" if value else "no counter"
    elif kind in VERDICTS:
        expected.add(wire.ELEM_DATA)
        value = wire.jump_target(parts.get(wire.ELEM_DATA, b""))
        fault = "" if value else "no jump"
    odd = [f"attribute {number}" for number in parts if number not in expected]
    words = ", ".join([*odd, fault] if fault else odd)
    return (value, mapping, words) if words else (value, mapping)  # type: ignore[return-value]


def _port_entries(kind: str, messages: list[Message], found: Entries) -> bool:
    """Elements exactly as the kernel dumps ours, unpacked at once: this loop runs 120,000 times.

    An element of ours is, in network order: list header, key (two headers, protocol, port), where there are targets the
    data (two headers, target, and what fills it up to 4 bytes), and a last attribute that is the same for all of a
    mapping, its comment or its counter. False as soon as one is anything else; what was found until then is worth
    nothing, and is to be read slowly.
    """
    headers = attr(wire.LIST_ELEM, b"")[2:4] + attr(wire.ELEM_KEY, attr(wire.DATA_VALUE, bytes(8)))[:8]
    zeros, gap, end_gap, last, layout = bytes(3), bytes(2), b"", wire.ELEM_OBJREF, ">2s10sB3sH2s0s0s"
    wide = kind in TRANSLATIONS and kind != PORTS
    if kind in TRANSLATIONS:
        gap += attr(wire.ELEM_DATA, attr(wire.DATA_VALUE, bytes(wire.SET_TYPES[kind].data_len)))[:8]
        end_gap, last = bytes(2), wire.ELEM_USERDATA
        layout = f">2s10sB3sH10s{wire.TARGET_BYTES[kind]}s2s" if wide else ">2s10sB3sH10sH2s"
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)
    lengths: dict[bytes, int] = {}  # in the machine's order
    known: dict[bytes, Any] = {}  # what the last attribute stands for: a mapping, or all of a counting entry
    for reply in messages:
        for attribute, value in attributes(reply.payload, 4):
            if attribute != wire.ELEMENTS_LIST:
                continue
            offset, end = 0, len(value)
            while offset < end:
                if offset + size > end:
                    return False
                raw, a, protocol, b, port, c, target, d = unpack(value, offset)
                if raw not in lengths:
                    lengths[raw] = int.from_bytes(raw, sys.byteorder)
                after = offset + lengths[raw]
                if a != headers or b != zeros or c != gap or d != end_gap or not offset + size <= after <= end:
                    return False
                rest = value[offset + size : after]
                if rest not in known:
                    parts = table(rest)
                    if set(parts) != {last} and (rest or kind == COUNTS):
                        return False
                    about = wire.untext(parts[last]) if kind == COUNTS else wire.parse_comment(parts.get(last)) or ""
                    known[rest] = (about, "") if kind == COUNTS else printable(about)
                if wide:
                    target = int.from_bytes(target, "big")
                found[protocol << 16 | port] = known[rest] if kind == COUNTS else (target, known[rest])
                offset = (after + 3) & ~3
    return True
