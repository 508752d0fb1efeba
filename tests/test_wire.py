"""Numbers and keys of nf_tables: fixed vectors, and round trips that nobody's bytes can break."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.backends.nftables import wire
from redirector.netlink import attr, nest
from redirector.program import ADDRESSES, GUARDS, GUARDS_AT, INTERFACES, PORTS, port_key
from tests.strategies import KEYS


@pytest.mark.parametrize(
    ("kind", "key", "raw"),
    [
        (PORTS, port_key(6, 80), b"\x06\0\0\0\0\x50\0\0"),
        (GUARDS, port_key(132, 65535), b"\x84\0\0\0\xff\xff\0\0"),
        (GUARDS_AT["ipv4"], ("192.0.2.1", port_key(17, 53)), b"\xc0\0\x02\x01\x11\0\0\0\0\x35\0\0"),
        (GUARDS_AT["ipv6"], ("::1", port_key(6, 1)), bytes(15) + b"\x01\x06\0\0\0\0\x01\0\0"),
        (ADDRESSES["ipv4"], "10.0.0.0", b"\x0a\0\0\0"),
        (ADDRESSES["ipv6"], "fd00::", b"\xfd" + bytes(15)),
        (INTERFACES, "eth0", b"eth0" + bytes(12)),
        (INTERFACES, "fifteen-letters", b"fifteen-letters\0"),
    ],
)
def test_keys_as_the_kernel_has_them(kind: str, key: object, raw: bytes) -> None:
    """Each part of a concatenation padded to four bytes, ports and addresses in network order."""
    assert wire.key_bytes(kind, key) == raw
    assert wire.parse_key(kind, raw) == key
    assert len(raw) == wire.SET_TYPES[kind].key_len


@given(st.sampled_from(sorted(KEYS)).flatmap(lambda kind: st.tuples(st.just(kind), KEYS[kind])))
def test_parsing_inverts_keys(pair: tuple[str, object]) -> None:
    kind, key = pair
    raw = wire.key_bytes(kind, key)
    assert len(raw) == wire.SET_TYPES[kind].key_len
    assert wire.parse_key(kind, raw) == key


@given(st.sampled_from(sorted(KEYS)), st.binary(max_size=30))
def test_any_bytes_are_a_key_or_refused(kind: str, raw: bytes) -> None:
    """Bytes of the right length are always a key; that it is packed to the same ones `decode.entries` makes sure."""
    try:
        wire.parse_key(kind, raw)
    except (ValueError, struct.error):
        assert len(raw) != wire.SET_TYPES[kind].key_len


@given(st.sampled_from(sorted(KEYS)), st.data())
def test_different_keys_have_different_bytes(kind: str, data: st.DataObject) -> None:
    one, other = data.draw(KEYS[kind]), data.draw(KEYS[kind])
    assert (wire.key_bytes(kind, one) == wire.key_bytes(kind, other)) == (one == other)


def test_concatenated_types_are_six_bits_a_part() -> None:
    assert wire.concatenated(wire.TYPE_PROTOCOL, wire.TYPE_PORT) == 12 << 6 | 13
    assert wire.concatenated(wire.TYPE_IPV4, 12, 13) == (7 << 6 | 12) << 6 | 13


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@given(names)
def test_parsing_inverts_text_and_comments(value: str) -> None:
    assert wire.untext(wire.text(value)) == value
    if len(wire.text(value)) < 256:
        assert wire.parse_comment(wire.comment(value)) == value


@given(st.binary(max_size=40))
def test_foreign_names_keep_their_bytes(raw: bytes) -> None:
    assert wire.text(wire.untext(raw)) == raw.split(b"\0", 1)[0] + b"\0"


@given(st.one_of(st.none(), st.binary(max_size=40)))
def test_foreign_userdata_is_tolerated(userdata: bytes | None) -> None:
    found = wire.parse_comment(userdata)
    assert found is None or "\0" not in found


def test_comments_among_other_userdata() -> None:
    other = bytes((7, 3)) + b"abc"
    assert wire.parse_comment(other + wire.comment("web")) == "web"
    assert wire.parse_comment(other) is None
    assert wire.comment("web") == b"\0\x04web\0"  # libnftnl: type, length, text with its NUL


def test_jumps_are_told_from_other_verdicts() -> None:
    assert wire.jump_target(wire.verdict(wire.NFT_JUMP, "own")) == "own"
    for code in (0, 1, wire.NFT_JUMP - 1, wire.NFT_JUMP + 1):  # drop, accept, goto, break
        assert wire.jump_target(wire.verdict(code, "own")) is None
    assert wire.jump_target(wire.verdict(wire.NFT_JUMP)) is None
    assert wire.jump_target(wire.data_value(b"\0\x50")) is None


@given(st.binary(max_size=40))
def test_any_data_is_a_jump_or_not(data: bytes) -> None:
    for found in (data, nest(wire.DATA_VERDICT, data), attr(wire.DATA_VERDICT, data)):
        assert wire.jump_target(found) is None or isinstance(wire.jump_target(found), str)


def test_numbers_of_any_width() -> None:
    assert [wire.number(raw) for raw in (None, b"", b"\x01", b"\x01\0", b"\0\0\0\0\0\0\x01\0")] == [0, 0, 1, 256, 256]
    assert wire.be32(-110) == b"\xff\xff\xff\x92"
