"""Steps of a plan → the messages of one nf_tables batch. Pure.

A batch is BATCH_BEGIN (with the generation that it was planned against), messages, BATCH_END; all or nothing. Without
BATCH_END the kernel validates everything and commits nothing. A nested attribute holds at most 65,535 bytes, so
elements go in chunks.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from redirector.backends.nftables import wire
from redirector.backends.nftables.message import SUBSYSTEM, header, nfgenmsg
from redirector.backends.nftables.rules import ANONYMOUS, comment_of, encode_expressions, expressions
from redirector.backends.nftables.wire import be32, text
from redirector.naming import TABLE
from redirector.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    attr,
    message,
    nest,
)
from redirector.plan import (
    AddChain,
    AddCounters,
    AddEntries,
    AddMap,
    AddRules,
    AddTable,
    DeleteChain,
    DeleteCounters,
    DeleteEntries,
    DeleteMap,
    DeleteTable,
    FlushChain,
    Step,
)
from redirector.program import COUNTS, INTERFACES, Entries

# The table's comment is the mark by which it is known as ours; it never changes (the kernel ignores updates of it).
MARK = "made by redirector"
CHUNK_BYTES = 60_000
LARGE = 16  # from so many elements on a mapping's are written by themselves
Body = tuple[int, int, bytes, str]  # (message type, flags, payload behind nfgenmsg, what it is about)

_TABLE = text(TABLE)


class Batch:
    """An encoded transaction: `data` to send; `about` tells by sequence number what each message was about."""

    def __init__(self, steps: Iterable[Step], expect: int, first_seq: int) -> None:
        self.about: dict[int, str] = {first_seq: "begin"}
        self._seq = first_seq
        self._set_id = 0
        self.parts = [self._begin(expect)]
        for step in steps:
            for kind, flags, payload, about in self._bodies(step):
                self._seq += 1
                self.about[self._seq] = about
                self.parts.append(message(header(kind), NLM_F_REQUEST | flags, self._seq, nfgenmsg() + payload))
        self.begin_seq = first_seq
        self.last_seq = self._seq

    def committed(self) -> bytes:
        """The batch with its END, which alone is acknowledged."""
        end = message(wire.BATCH_END, NLM_F_REQUEST | NLM_F_ACK, self._seq + 1, nfgenmsg(0, SUBSYSTEM))
        return b"".join((*self.parts, end))

    @property
    def end_seq(self) -> int:
        return self._seq + 1

    def dry(self) -> bytes:
        """The batch without END; its last message asks for an acknowledgement."""
        last = bytearray(self.parts[-1])
        flags = struct.unpack_from("=H", last, 6)[0]
        struct.pack_into("=H", last, 6, flags | NLM_F_ACK)
        return b"".join((*self.parts[:-1], bytes(last)))

    def _begin(self, expect: int) -> bytes:
        payload = nfgenmsg(0, SUBSYSTEM) + attr(wire.BATCH_GENID, be32(expect))
        return message(wire.BATCH_BEGIN, NLM_F_REQUEST, self._seq, payload)

    def _bodies(self, step: Step) -> Iterator[Body]:
        match step:
            case AddTable():
                userdata = attr(wire.TABLE_USERDATA, wire.comment(MARK))
                flags = attr(wire.TABLE_FLAGS, be32(0))
                yield wire.NEWTABLE, NLM_F_CREATE, attr(wire.TABLE_NAME, _TABLE) + flags + userdata, "the table"
            case DeleteTable():
                yield wire.DELTABLE, 0, attr(wire.TABLE_NAME, _TABLE), "the table"
            case AddChain(name, hook):
                payload = attr(wire.CHAIN_TABLE, _TABLE) + attr(wire.CHAIN_NAME, text(name))
                if hook:
                    place = attr(wire.HOOK_NUM, be32(wire.HOOKS[hook.hook]))
                    payload += nest(wire.CHAIN_HOOK, place, attr(wire.HOOK_PRIORITY, be32(hook.priority)))
                    payload += attr(wire.CHAIN_POLICY, be32(wire.NFT_ACCEPT if hook.policy == "accept" else 0))
                    payload += attr(wire.CHAIN_TYPE, text(hook.type))
                yield wire.NEWCHAIN, NLM_F_CREATE, payload, f"chain {name}"
            case DeleteChain(name):
                payload = attr(wire.CHAIN_TABLE, _TABLE) + attr(wire.CHAIN_NAME, text(name))
                yield wire.DELCHAIN, 0, payload, f"chain {name}"
            case FlushChain(name):
                payload = attr(wire.RULE_TABLE, _TABLE) + attr(wire.RULE_CHAIN, text(name))
                yield wire.DELRULE, 0, payload, f"the rules of chain {name}"
            case AddRules(name, rules):
                for rule in rules:
                    found = expressions(rule)
                    ids = []
                    for members in (e.members for e in found if e.members):
                        self._set_id += 1
                        ids.append(self._set_id)
                        yield from _anonymous(members, self._set_id)
                    payload = attr(wire.RULE_TABLE, _TABLE) + attr(wire.RULE_CHAIN, text(name))
                    payload += encode_expressions(found, ids)
                    if comment_of(rule):
                        payload += attr(wire.RULE_USERDATA, wire.comment(comment_of(rule)))
                    yield wire.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, payload, f"a rule of chain {name}"
            case AddMap(name, kind, capacity):
                self._set_id += 1
                yield wire.NEWSET, NLM_F_CREATE, _new_map(name, kind, capacity, self._set_id), f"map {name}"
            case DeleteMap(name):
                payload = attr(wire.SET_TABLE, _TABLE) + attr(wire.SET_NAME, text(name))
                yield wire.DELSET, 0, payload, f"map {name}"
            case AddEntries(name, kind, entries):
                yield from _chunked(wire.NEWSETELEM, NLM_F_CREATE, name, _elements(kind, entries))
            case DeleteEntries(name, kind, keys) if kind in wire.BY_PORT:
                yield from _chunked(wire.DELSETELEM, 0, name, _strided(keys, b""))
            case DeleteEntries(name, kind, keys):
                raw = (wire.data_value(wire.key_bytes(kind, key)) for key in keys)
                doomed = (nest(wire.LIST_ELEM, nest(wire.ELEM_KEY, value)) for value in raw)
                yield from _chunked(wire.DELSETELEM, 0, name, doomed)
            case AddCounters(names):
                for name in names:
                    yield wire.NEWOBJ, NLM_F_CREATE, _counter(name) + _COUNTED, f"counter {name}"
            case DeleteCounters(names):
                for name in names:
                    yield wire.DELOBJ, 0, _counter(name), f"counter {name}"


_OF_TABLE = attr(wire.OBJ_TABLE, _TABLE)
_IS_COUNTER = attr(wire.OBJ_TYPE, be32(wire.OBJECT_COUNTER))
_COUNTED = nest(wire.OBJ_DATA)


def _counter(name: str) -> bytes:
    return _OF_TABLE + attr(wire.OBJ_NAME, text(name)) + _IS_COUNTER


def _new_map(name: str, kind: str, capacity: int, set_id: int) -> bytes:
    shape = wire.SET_TYPES[kind]
    payload = attr(wire.SET_TABLE, _TABLE) + attr(wire.SET_NAME, text(name)) + attr(wire.SET_FLAGS, be32(shape.flags))
    payload += attr(wire.SET_KEY_TYPE, be32(shape.key_type)) + attr(wire.SET_KEY_LEN, be32(shape.key_len))
    if shape.data_type:
        payload += attr(wire.SET_DATA_TYPE, be32(shape.data_type)) + attr(wire.SET_DATA_LEN, be32(shape.data_len))
    if shape.object_type:
        payload += attr(wire.SET_OBJ_TYPE, be32(shape.object_type))
    # A fixed size makes it a fixed hash: exact dumps, and half the time to fill (a resizable one loses rows in dumps).
    payload += nest(wire.SET_DESC, attr(wire.DESC_SIZE, be32(capacity))) + attr(wire.SET_ID, be32(set_id))
    if kind == INTERFACES:
        payload += attr(wire.SET_USERDATA, wire.HOST_ORDER_KEYS)
    return payload


def _anonymous(members: frozenset[int], set_id: int) -> Iterator[Body]:
    """A constant set of protocols, which lives and dies with the rule that looks into it."""
    payload = attr(wire.SET_TABLE, _TABLE) + attr(wire.SET_NAME, text(ANONYMOUS))
    payload += attr(wire.SET_FLAGS, be32(wire.SET_ANONYMOUS | wire.SET_CONSTANT))
    payload += attr(wire.SET_KEY_TYPE, be32(wire.TYPE_PROTOCOL)) + attr(wire.SET_KEY_LEN, be32(1))
    payload += nest(wire.SET_DESC, attr(wire.DESC_SIZE, be32(len(members)))) + attr(wire.SET_ID, be32(set_id))
    yield wire.NEWSET, NLM_F_CREATE, payload, "a set of protocols"
    keys = (nest(wire.LIST_ELEM, nest(wire.ELEM_KEY, wire.data_value(bytes((m,))))) for m in sorted(members))
    place = attr(wire.ELEMENTS_TABLE, _TABLE) + attr(wire.ELEMENTS_SET, text(ANONYMOUS))
    place += attr(wire.ELEMENTS_SET_ID, be32(set_id))
    yield wire.NEWSETELEM, NLM_F_CREATE, place + nest(wire.ELEMENTS_LIST, *keys), "a set of protocols"


def _chunked(kind: int, flags: int, name: str, elements: Iterator[bytes]) -> Iterator[Body]:
    """Messages of at most CHUNK_BYTES of elements each."""
    place = attr(wire.ELEMENTS_TABLE, _TABLE) + attr(wire.ELEMENTS_SET, text(name))
    chunk: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > CHUNK_BYTES:
            yield kind, flags, place + nest(wire.ELEMENTS_LIST, *chunk), f"map {name}"
            chunk, size = [], 0
        chunk.append(element)
        size += len(element)
    if chunk:
        yield kind, flags, place + nest(wire.ELEMENTS_LIST, *chunk), f"map {name}"


def _elements(kind: str, entries: Entries) -> Iterator[bytes]:
    """Each entry as NFTA_LIST_ELEM; of ports and counts, pieces of many."""
    if kind in wire.BY_PORT:
        yield from _port_elements(kind, entries)
        return
    shape = wire.SET_TYPES[kind]
    for key, (value, mapping, *_) in entries.items():
        parts = [nest(wire.ELEM_KEY, wire.data_value(wire.key_bytes(kind, key)))]
        if shape.data_type:
            parts.append(nest(wire.ELEM_DATA, wire.verdict(wire.NFT_JUMP, value)))
        if mapping:
            parts.append(attr(wire.ELEM_USERDATA, wire.comment(mapping)))
        yield nest(wire.LIST_ELEM, *parts)


def _port_elements(kind: str, entries: Entries) -> Iterator[bytes]:
    """The common case, at the speed of memory: elements of names that are equally long differ in numbers and that name
    only. So those of large mappings go by name, and those of small ones, together, by its length."""
    owner = 0 if kind == COUNTS else 1  # the mapping, or its counter
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for key, value in entries.items():
        groups[value[owner]].append(key)
    small: defaultdict[int, tuple[list[int], list[bytes]]] = defaultdict(lambda: ([], []))  # keys and names by length
    for name, keys in groups.items():
        raw = text(name)[:-1]
        if len(keys) >= LARGE:
            yield from _strided(keys, _rest(kind, raw), _targets(kind, entries, keys))
            continue
        pooled, names = small[len(raw)]
        pooled += keys
        names += [raw] * len(keys)
    for length, (keys, names) in small.items():
        yield from _strided(keys, _rest(kind, bytes(length)), _targets(kind, entries, keys), names)


def _targets(kind: str, entries: Entries, keys: list[int]) -> list[bytes]:
    """For each byte of a target, that byte of every one of them."""
    if kind == COUNTS:
        return []
    width = wire.TARGET_BYTES[kind]
    if width == 2:
        raw = struct.pack(f">{len(keys)}H", *[entries[key][0] for key in keys])
    else:
        raw = b"".join([entries[key][0].to_bytes(width, "big") for key in keys])
    return [raw[i::width] for i in range(width)]


def _rest(kind: str, name: bytes) -> bytes:
    """What follows the key in an element: the target and the mapping's name, or its counter's."""
    if kind == COUNTS:
        return attr(wire.ELEM_OBJREF, name + b"\0")
    target = nest(wire.ELEM_DATA, wire.data_value(bytes(wire.SET_TYPES[kind].data_len)))
    return target + attr(wire.ELEM_USERDATA, wire.comment_of(name)) if name else target


# An element's key by port, with zeros for the numbers; and where those stand in an element: behind the headers of list,
# key and value. And where the target does: behind those of data and value.
_KEY = nest(wire.ELEM_KEY, wire.data_value(bytes(8)))
_PROTOCOL_AT = 4 + 4 + 4
_PORT_AT = _PROTOCOL_AT + 4
_TARGET_AT = _PORT_AT + 4 + 4 + 4
_COUNTER_AT = _PORT_AT + 4 + 4


def _strided(
    keys: Sequence[int], rest: bytes, targets: Sequence[bytes] = (), names: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """Elements that are alike but for their numbers, and names of one length: one template, repeated, into which those
    are written by stride.

    `rest` is what follows the key, with `targets` (see `_targets`) beginning by the room for one, and with room for
    `names` if there are any. Yields pieces of many elements, each of at most CHUNK_BYTES.
    """
    template = nest(wire.LIST_ELEM, _KEY, rest)
    size = len(template)
    step = CHUNK_BYTES // size
    # A comment stands behind its attribute's header and its own; a counter's name at once behind the header.
    first = _COUNTER_AT if not targets else _TARGET_AT + _data_size(len(targets)) + 4 + 2
    for start in range(0, len(keys), step):
        some = array("I", keys[start : start + step])
        piece = bytearray(template * len(some))
        if sys.byteorder == "little":
            some.byteswap()
        raw = some.tobytes()  # each key: 0, protocol, port in network order
        piece[_PROTOCOL_AT::size] = raw[1::4]
        piece[_PORT_AT::size], piece[_PORT_AT + 1 :: size] = raw[2::4], raw[3::4]
        for i, column in enumerate(targets):
            piece[_TARGET_AT + i :: size] = column[start : start + step]
        if names:
            raw, length = b"".join(names[start : start + step]), len(names[0])
            for i in range(length):
                piece[first + i :: size] = raw[i::length]
        yield bytes(piece)


def _data_size(width: int) -> int:
    """The bytes that a target of `width` takes, filled up to 4."""
    return (width + 3) & ~3
