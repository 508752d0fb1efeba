"""Steps → messages → what the kernel dumps → Program: every object is read back as it was meant, and nothing foreign is
taken for ours."""

import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redirector.backends.nftables import decode, wire
from redirector.backends.nftables.encode import CHUNK_BYTES, MARK, Batch
from redirector.backends.nftables.message import header
from redirector.backends.nftables.wire import be32, text
from redirector.netlink import NLM_F_ACK, Message, attr, attributes, messages, nest, table
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
    make_plan,
)
from redirector.program import ADDRESSES, COUNTS, GUARDS, INTERFACES, NAMED, PORTS, Entries, Hook, Program, port_key
from tests.strategies import KEYS, programs, quick, rules

# Message types in words, to tell what a batch holds.
KINDS = {header(getattr(wire, name)): name for name in dir(wire) if name.startswith(("NEW", "DEL")) and name.isupper()}
KINDS |= {wire.BATCH_BEGIN: "BEGIN", wire.BATCH_END: "END"}


def sent(*steps: Step) -> list[Message]:
    """The messages of the steps, without the frame around them; checks the frame on the way."""
    batch = Batch(steps, 4711, 10)
    found = list(messages(batch.committed()))
    assert b"".join(batch.parts) == batch.committed()[: -len(found[-1].payload) - 16]
    assert [(m.kind, m.seq) for m in (found[0], found[-1])] == [
        (wire.BATCH_BEGIN, batch.begin_seq),
        (wire.BATCH_END, batch.end_seq),
    ]
    assert [m.seq for m in found] == list(range(10, 10 + len(found)))
    assert [bool(m.flags & NLM_F_ACK) for m in found] == [False] * (len(found) - 1) + [True]
    assert table(found[0].payload, 4) == {wire.BATCH_GENID: be32(4711)}
    assert {m.payload[:4] for m in (found[0], found[-1])} == {struct.pack(">BBH", 0, 0, 10)}
    return found[1:-1]


def element_of(payload: bytes) -> list[bytes]:
    """The elements of one NEWSETELEM or DELSETELEM."""
    (found,) = (value for kind, value in attributes(payload, 4) if kind == wire.ELEMENTS_LIST)
    return [element for _, element in attributes(found)]


ORDER = (wire.ELEM_KEY, wire.ELEM_DATA, wire.ELEM_OBJREF, wire.ELEM_USERDATA)


def dumped(sent_messages: Iterable[Message]) -> list[Message]:
    """Elements as the kernel dumps them: key, data, object, comment; no attribute marked as nested."""

    def flat(element: bytes) -> bytes:
        parts = table(element)
        return attr(wire.LIST_ELEM, b"".join(attr(number, parts[number]) for number in ORDER if number in parts))

    # It fills its messages as it likes.
    elements = [flat(element) for m in sent_messages for element in element_of(m.payload)]
    parts = (elements[i : i + 200] for i in range(0, len(elements), 200))
    return [Message(0, 0, 1, b"\1\0\0\0" + attr(wire.ELEMENTS_LIST, b"".join(part))) for part in parts]


names = st.sampled_from(("web", "a.b-c_d", "x" * 63))


def values(kind: str) -> st.SearchStrategy[tuple[Any, str]]:
    if kind == PORTS:
        return st.tuples(st.integers(0, 65535), names)
    if kind == COUNTS:
        return st.tuples(st.sampled_from(("taken_web", "taken_" + "x" * 63, "\udcff")), st.just(""))
    if kind in NAMED:
        return st.tuples(st.just(0), names)
    return st.tuples(st.sampled_from(("own", "arriving_from_10.0.0.0/8")), st.just(""))


@st.composite
def maps(draw: st.DrawFn) -> tuple[str, Entries]:
    kind = draw(st.sampled_from(sorted(KEYS)))
    return kind, draw(st.dictionaries(KEYS[kind], values(kind), min_size=1, max_size=20))


@settings(max_examples=200)
@given(maps())
def test_entries_of_every_kind_are_read_back(found: tuple[str, Entries]) -> None:
    kind, entries = found
    assert decode.entries(kind, dumped(sent(AddEntries("m", kind, entries)))) == entries


@pytest.mark.parametrize("values", [(0, 0), (3, 180), (2**64 - 1, 2**64 - 1)])
def test_counters_are_read_back_with_what_they_have_counted(values: tuple[int, int]) -> None:
    made, deleted = sent(AddCounters(("taken_web", "\udcff"))), sent(DeleteCounters(("taken_web", "\udcff")))
    counted = attr(wire.COUNTER_BYTES, wire.BE64.pack(values[1])) + attr(
        wire.COUNTER_PACKETS, wire.BE64.pack(values[0])
    )
    rows = [table(message.payload, 4) | {wire.OBJ_DATA: counted} for message in made]
    assert all(decode.is_counter(row) for row in rows)
    assert dict(decode.counter(row) for row in rows) == {"taken_web": values, "\udcff": values}
    assert [table(m.payload, 4)[wire.OBJ_NAME] for m in deleted] == [row[wire.OBJ_NAME] for row in rows]
    assert decode.ours(rows, wire.OBJ_TABLE) == rows
    # A quota; and what says nothing.
    for row in (rows[0] | {wire.OBJ_TYPE: be32(2)}, {}):
        assert not decode.is_counter(row)
    assert decode.counter({}) == ("", (0, 0))


@quick
@given(maps())
def test_deleted_keys_are_those_that_were_added(found: tuple[str, Entries]) -> None:
    kind, entries = found
    added = [table(e)[wire.ELEM_KEY] for m in sent(AddEntries("m", kind, entries)) for e in element_of(m.payload)]
    deleted = [
        table(e)[wire.ELEM_KEY] for m in sent(DeleteEntries("m", kind, tuple(entries))) for e in element_of(m.payload)
    ]
    assert sorted(added) == sorted(deleted)


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_maps_of_every_kind_are_read_back(kind: str) -> None:
    (message,) = sent(AddMap("m", kind, 128))
    row = table(message.payload, 4)
    assert decode.set_kind(row) == kind
    assert decode.capacity(row) == 128
    assert not decode.anonymous(row)
    # Elements with a counter each are none of ours any more, nor are time-outs, or a map of other objects.
    for odd in (
        {wire.SET_EXPR: attr(1, b"counter\0")},
        {wire.SET_TIMEOUT: bytes(8)},
        {wire.SET_FLAGS: be32(0x10)},
        {wire.SET_KEY_LEN: be32(3)},
        {wire.SET_OBJ_TYPE: be32(2)},
    ):
        assert decode.set_kind(row | odd).startswith("foreign: ")


def test_only_maps_by_interface_tell_nft_of_their_byte_order() -> None:
    for kind in KEYS:
        (message,) = sent(AddMap("m", kind, 64))
        assert (wire.SET_USERDATA in table(message.payload, 4)) == (kind == INTERFACES)


@pytest.mark.parametrize(
    "hook",
    [
        None,
        Hook("nat", "prerouting", -110),
        Hook("nat", "output", 32767),
        Hook("filter", "input", -10),
        Hook("filter", "forward", 0, "drop"),
    ],
)
def test_chains_are_read_back(hook: Hook | None) -> None:
    (message,) = sent(AddChain("c", hook))
    row = table(message.payload, 4)
    assert decode.hook(row) == hook
    assert wire.untext(row[wire.CHAIN_NAME]) == "c"
    assert decode.ours([row], wire.CHAIN_TABLE) == [row]


def test_hooks_that_we_never_use_show() -> None:
    def row(*inner: bytes) -> decode.Attributes:
        return {wire.CHAIN_HOOK: b"".join(inner), wire.CHAIN_TYPE: text("nat\x1b"), wire.CHAIN_POLICY: be32(1)}

    number, priority = attr(wire.HOOK_NUM, be32(9)), attr(wire.HOOK_PRIORITY, be32(-1))
    assert decode.hook(row(number, priority)) == Hook("nat\\x1b", "hook-9", -1)
    ingress = decode.hook(row(attr(wire.HOOK_NUM, be32(0)), priority, attr(wire.HOOK_DEV, text("eth0"))))
    assert ingress is not None
    assert ingress.hook == "prerouting of a device"
    assert decode.hook(row()) == Hook("nat\\x1b", "prerouting", 0)
    # Python writes no number of thousands of digits: what is told stays short, whatever the kernel says.
    vast = decode.hook(row(attr(wire.HOOK_NUM, b"\xff" * 4096), attr(wire.HOOK_PRIORITY, b"\x7f" * 4096)))
    assert len(f"{vast}") < 100


def test_our_table_carries_our_mark() -> None:
    (message,) = sent(AddTable())
    row = table(message.payload, 4)
    assert decode.foreign_reason(row) == ""
    assert wire.parse_comment(row[wire.TABLE_USERDATA]) == MARK
    dormant = row | {wire.TABLE_FLAGS: be32(1)}
    assert decode.foreign_reason(dormant) == ""
    owned = row | {wire.TABLE_FLAGS: be32(2), wire.TABLE_OWNER: be32(4711)}
    assert "netlink port 4711 holds it" in decode.foreign_reason(owned)
    for other in (None, b"", wire.comment("made by redirecto"), wire.comment(MARK + "s"), b"\xff" * 9):
        foreign = row | {wire.TABLE_USERDATA: other or b""}
        assert "does not carry our mark" in decode.foreign_reason(foreign)


def test_rows_of_other_families_and_tables_are_not_ours() -> None:
    place = attr(wire.CHAIN_TABLE, text("redirector"))
    inet, ip = (Message(0, 0, 1, struct.pack(">BBH", family, 0, 0) + place) for family in (1, 2))
    other = Message(0, 0, 1, struct.pack(">BBH", 1, 0, 0) + attr(wire.CHAIN_TABLE, text("redirector2")))
    assert decode.ours(decode.rows([inet, ip, other]), wire.CHAIN_TABLE) == [{wire.CHAIN_TABLE: text("redirector")}]


def odd_element(kind: str, *, key: bytes = b"", more: bytes = b"", without: int = 0) -> Message:
    """One element with something that we would not have written, or `without` an attribute."""
    (message,) = sent(AddEntries("m", kind, {KEY_OF[kind]: (8080 if kind == PORTS else "own", "")}))
    parts = table(element_of(message.payload)[0])
    if key or not kind:
        parts[wire.ELEM_KEY] = wire.data_value(key)
    parts.pop(without, None)
    element = b"".join(attr(number, parts[number]) for number in ORDER if number in parts) + more
    return Message(0, 0, 1, message.payload[:4] + attr(wire.ELEMENTS_LIST, attr(wire.LIST_ELEM, element)))


# An element's own counter, just as the kernel dumps it: what the version before had in each.
COUNTER = attr(
    7,
    attr(wire.EXPR_NAME, b"counter\0")
    + attr(wire.EXPR_DATA, attr(wire.COUNTER_BYTES, bytes(8)) + attr(wire.COUNTER_PACKETS, bytes(8))),
)
KEY_OF: dict[str, Any] = {
    PORTS: port_key(6, 80),
    COUNTS: port_key(6, 80),
    ADDRESSES["ipv4"]: "10.0.0.0",
    INTERFACES: "eth0",
    GUARDS: port_key(6, 1),
}


@pytest.mark.parametrize(
    ("kind", "message", "entries"),
    [
        (PORTS, odd_element(PORTS, more=COUNTER), {port_key(6, 80): (8080, "", "attribute 7")}),
        (PORTS, odd_element(PORTS, more=attr(9, b"c\0")), {port_key(6, 80): (8080, "", "attribute 9")}),
        (COUNTS, odd_element(COUNTS, more=attr(6, wire.comment("x"))), {port_key(6, 80): ("own", "", "attribute 6")}),
        (COUNTS, odd_element(COUNTS, more=attr(4, bytes(8))), {port_key(6, 80): ("own", "", "attribute 4")}),
        (COUNTS, odd_element(COUNTS, without=9), {port_key(6, 80): ("", "", "no counter")}),
        (COUNTS, odd_element(COUNTS, key=b"\x06\0\0\x01\0\x50\0\0"), {"0600000100500000": (None, "", "an odd key")}),
        (PORTS, odd_element(PORTS, more=attr(4, bytes(8))), {port_key(6, 80): (8080, "", "attribute 4")}),
        (PORTS, odd_element(PORTS, more=attr(3, be32(1))), {port_key(6, 80): (8080, "", "attribute 3")}),
        (PORTS, odd_element(PORTS, key=b"\x06\0\0\x01\0\x50\0\0"), {"0600000100500000": (None, "", "an odd key")}),
        (PORTS, odd_element(PORTS, key=b"\x06\0\0\0\0\x50\x01\0"), {"0600000000500100": (None, "", "an odd key")}),
        (PORTS, odd_element(PORTS, key=b"\x06"), {"06": (None, "", "an odd key")}),
        (PORTS, odd_element(PORTS, more=attr(6, wire.comment("\x1b"))), {port_key(6, 80): (8080, "\\x1b")}),
        (
            PORTS,
            odd_element(PORTS, more=attr(2, wire.data_value(b"\0\0\x1f\x90"))),
            {port_key(6, 80): (8080, "", "an odd port")},
        ),
        (
            PORTS,
            odd_element(PORTS, more=attr(2, wire.data_value(b"\xff" * 4096))),
            {port_key(6, 80): (2**64 - 1, "", "an odd port")},
        ),
        (GUARDS, odd_element(GUARDS, key=bytes(7)), {"00" * 7: (None, "", "an odd key")}),
        (INTERFACES, odd_element(INTERFACES, key=b"eth0" + b"\0x" * 6), None),
        (ADDRESSES["ipv4"], odd_element(ADDRESSES["ipv4"], more=attr(6, wire.comment("x"))), None),
        (
            ADDRESSES["ipv4"],
            odd_element(ADDRESSES["ipv4"], more=attr(2, wire.verdict(0))),
            {"10.0.0.0": (None, "", "no jump")},
        ),
    ],
)
def test_elements_that_are_not_as_we_write_them_show(kind: str, message: Message, entries: Entries | None) -> None:
    read = decode.entries(kind, [message])
    if entries is None:
        assert all(len(value) == 3 for value in read.values())
    else:
        assert read == entries


def test_one_odd_element_among_many_does_not_hide_the_others() -> None:
    """The fast way gives up on the whole map, and the slow one reads all of it again."""
    values: dict[str, Callable[[int], tuple[Any, str]]] = {
        PORTS: lambda port: (port, "web"),
        COUNTS: lambda port: ("taken_web", ""),
    }
    for kind, value in values.items():
        plain = {port_key(6, port): value(port) for port in range(1, 100)}
        many = dumped(sent(AddEntries("m", kind, plain)))
        for position in (0, 1):
            found = [*many]
            found.insert(position, odd_element(kind, key=b"\x11\0\0\0\0\x35\0\0", more=COUNTER))
            odd = (8080 if kind == PORTS else "own", "", "attribute 7")
            assert decode.entries(kind, found) == plain | {port_key(17, 53): odd}


@settings(max_examples=200)
@given(st.sampled_from(sorted(KEYS)), st.binary(max_size=100), st.sampled_from((0, 1, 2, 3)))
def test_any_bytes_are_read_as_something(kind: str, data: bytes, depth: int) -> None:
    for wrap in ((wire.ELEMENTS_LIST,), (wire.ELEMENTS_LIST, 1), (wire.ELEMENTS_LIST, 1, wire.ELEM_KEY))[:depth]:
        inner = data
        for number in reversed(wrap):
            inner = nest(number, inner)
        found = [Message(0, 0, 1, bytes(4) + inner)]
        assert all(len(value) in (2, 3) for value in decode.entries(kind, found).values())
        decode.members(found)
    decode.set_kind(table(data))
    decode.counter(table(data))
    decode.hook(table(data))
    decode.foreign_reason(table(data))


def test_members_of_anonymous_sets() -> None:
    plain = [attr(1, attr(wire.ELEM_KEY, attr(wire.DATA_VALUE, bytes((m,))))) for m in (6, 17)]
    odd = attr(1, attr(wire.ELEM_KEY, attr(wire.DATA_VALUE, b"\x84")) + attr(wire.ELEM_TIMEOUT, bytes(8)))
    wide = attr(1, attr(wire.ELEM_KEY, attr(wire.DATA_VALUE, b"\0\x06")))

    def read(*elements: bytes) -> frozenset[int]:
        return decode.members([Message(0, 0, 1, bytes(4) + attr(wire.ELEMENTS_LIST, b"".join(elements)))])

    assert read(*plain) == frozenset({6, 17})
    assert -1 in read(*plain, odd)
    assert -1 in read(*plain, wide)


@quick
@given(programs(), programs())
def test_a_whole_plan_is_one_batch_that_names_everything(one: Program, other: Program) -> None:
    plan = make_plan(other, one)
    if not plan:
        return
    batch = Batch(plan.steps, 1, 1)
    found = list(messages(batch.committed()))
    assert {m.kind for m in found} <= set(KINDS)
    assert set(batch.about) == {m.seq for m in found[:-1]}
    assert all(batch.about.values())
    assert all(len(value) < 65536 for m in found for _, value in attributes(m.payload, 4))
    dry = list(messages(batch.dry()))
    assert [m.seq for m in dry] == [m.seq for m in found[:-1]]  # all but END
    assert [bool(m.flags & NLM_F_ACK) for m in dry] == [False] * (len(dry) - 1) + [True]


def test_each_kind_of_step_is_the_message_that_it_should_be() -> None:
    keys = (port_key(6, 80),)
    for step, kinds in (
        (AddTable(), ["NEWTABLE"]),
        (DeleteTable(), ["DELTABLE"]),
        (AddChain("c", None), ["NEWCHAIN"]),
        (DeleteChain("c"), ["DELCHAIN"]),
        (FlushChain("c"), ["DELRULE"]),
        (AddMap("m", PORTS, 64), ["NEWSET"]),
        (DeleteMap("m"), ["DELSET"]),
        (AddEntries("m", PORTS, {keys[0]: (1, "a")}), ["NEWSETELEM"]),
        (DeleteEntries("m", PORTS, keys), ["DELSETELEM"]),
        (AddEntries("m", COUNTS, {keys[0]: ("taken_a", "")}), ["NEWSETELEM"]),
        (AddCounters(("taken_a", "taken_b")), ["NEWOBJ", "NEWOBJ"]),
        (DeleteCounters(("taken_a",)), ["DELOBJ"]),
    ):
        found = sent(step)
        assert [KINDS[m.kind] for m in found] == kinds
        assert all(m.payload[0] == wire.NFPROTO_INET for m in found)
        assert all(b"redirector\0" in m.payload for m in found)


@quick
@given(st.lists(rules(), min_size=1, max_size=5).map(tuple))
def test_rules_come_in_order_each_after_the_anonymous_sets_that_it_needs(found: tuple[Any, ...]) -> None:
    order = [KINDS[m.kind] for m in sent(AddRules("c", found))]
    assert order.count("NEWRULE") == len(found)
    ids: list[bytes] = []
    for message in sent(AddRules("c", found)):
        row = table(message.payload, 4)
        if KINDS[message.kind] == "NEWSET":
            ids.append(row[wire.SET_ID])
            assert wire.number(row[wire.SET_FLAGS]) == wire.SET_ANONYMOUS | wire.SET_CONSTANT
    assert len(set(ids)) == len(ids)  # one transaction has one numbering


def test_many_elements_go_in_chunks() -> None:
    """A nested attribute holds at most 65,535 bytes."""
    keys = [port_key(p, port) for p in (6, 17) for port in range(1, 10_000)]
    values: dict[str, Entries] = {
        PORTS: {key: (key & 0xFFFF, "x" * 63) for key in keys},
        COUNTS: dict.fromkeys(keys, ("x" * 63, "")),
    }
    for kind, entries in values.items():
        found = sent(AddEntries("m", kind, entries))
        assert len(found) > 10
        sizes = [
            len(value) for m in found for number, value in attributes(m.payload, 4) if number == wire.ELEMENTS_LIST
        ]
        assert max(sizes) <= CHUNK_BYTES
        assert decode.entries(kind, dumped(found)) == entries
        deleted = sent(DeleteEntries("m", kind, tuple(entries)))
        assert sum(len(element_of(m.payload)) for m in deleted) == len(entries)


def test_names_that_others_chose_keep_their_bytes() -> None:
    (message,) = sent(DeleteChain(wire.untext(b"\xff\n\x1b")))
    assert table(message.payload, 4)[wire.CHAIN_NAME] == b"\xff\n\x1b\0"
