"""Decoding of inet_diag messages: what a kernel sent, what a kernel with SCTP would send, and rubbish."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.host.listeners import Connection, Listener, connection_row, listener_rows, request
from redirector.netlink import attr

# Two rows as Linux 6.18 sent them: 127.0.0.2:53, and [::1]:8443 with IPV6_V6ONLY.
KERNEL_IPV4 = bytes.fromhex(
    "020a0000003500007f00000200000000000000000000000000000000000000000000000000000000000000000110000000000000"
    "00000000000000008000000000000000e66c0000050008000000000008000f00000000000c001500010000000000000006001600"
    "52000000"
)
KERNEL_IPV6 = bytes.fromhex(
    "0a0a000020fb00000000000000000000000000000000000100000000000000000000000000000000000000000210000000000000"
    "00000000000000008000000000000000e56c0000050008000000000005000b000100000008000f00000000000c00150001000000"
    "000000000600160012000000"
)
V6ONLY = 11
LOCALS = 12
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10


def row(state: int, address: str, port: int, *extra: bytes, uid: int = 0, inode: int = 77, interface: int = 0) -> bytes:
    """A struct inet_diag_msg, field by field in the order of linux/inet_diag.h, and attributes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockid = struct.pack(">HH", port, 0) + socket.inet_pton(family, address).ljust(16, b"\0") + bytes(16)
    sockid += struct.pack("=III", interface, 1, 2)
    timers_and_queues = struct.pack("=III", 5, 6, 7)
    head = struct.pack("=BBBB", family, state, 3, 4)
    return head + sockid + timers_and_queues + struct.pack("=II", uid, inode) + b"".join(extra)


def one(protocol: str, payload: bytes) -> Listener:
    (found,) = listener_rows(protocol, payload)
    return found


def sockaddr(address: str, port: int) -> bytes:
    """A struct sockaddr_storage."""
    if ":" in address:
        data = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0x01020304)
        data += socket.inet_pton(socket.AF_INET6, address)
    else:
        data = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_pton(socket.AF_INET, address)
    return data.ljust(128, b"\0")


def test_rows_of_a_real_kernel() -> None:
    assert one("tcp", KERNEL_IPV4) == Listener("tcp", "ipv4", "127.0.0.2", 53, 0, 0x6CE6, 0, None)
    assert one("tcp", KERNEL_IPV6) == Listener("tcp", "ipv6", "::1", 8443, 0, 0x6CE5, 0, True)


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(1, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**31 - 1),
)
def test_every_field_survives(
    address: IPv4Address | IPv6Address, port: int, uid: int, inode: int, interface: int
) -> None:
    found = one("tcp", row(LISTEN, str(address), port, uid=uid, inode=inode, interface=interface))
    assert (found.port, found.uid, found.inode, found.interface) == (port, uid, inode, interface)
    expected = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    family = socket.AF_INET6 if expected.version == 6 else socket.AF_INET
    assert found.family == f"ipv{expected.version}"
    assert found.address == socket.inet_ntop(family, expected.packed)


@given(st.binary(max_size=300))
def test_rubbish_never_raises(payload: bytes) -> None:
    for protocol in ("tcp", "udp", "sctp"):
        list(listener_rows(protocol, payload))
    connection_row(payload, {0})


@pytest.mark.parametrize("cut", [0, 4, 16, 71])
def test_truncated_rows_are_nothing(cut: int) -> None:
    assert list(listener_rows("tcp", row(LISTEN, "0.0.0.0", 80)[:cut])) == []
    assert connection_row(row(ESTABLISHED, "0.0.0.0", 80)[:cut], {77}) is None


def test_only_waiting_sockets_count() -> None:
    assert list(listener_rows("tcp", row(ESTABLISHED, "192.0.2.1", 80))) == []
    assert list(listener_rows("tcp", row(CLOSE, "192.0.2.1", 80))) == []
    assert list(listener_rows("udp", row(ESTABLISHED, "192.0.2.1", 53))) == []
    assert list(listener_rows("udp", row(CLOSE, "192.0.2.1", 0))) == []
    assert list(listener_rows("sctp", row(CLOSE, "192.0.2.1", 36412))) == []
    assert one("udp", row(CLOSE, "192.0.2.1", 53)).port == 53
    assert one("sctp", row(LISTEN, "192.0.2.1", 36412)).port == 36412


@pytest.mark.parametrize(
    ("address", "v6only", "reached"),
    [
        ("0.0.0.0", None, {"ipv4"}),
        ("192.0.2.1", None, {"ipv4"}),
        ("::", False, {"ipv4", "ipv6"}),
        ("::", None, {"ipv4", "ipv6"}),
        ("::", True, {"ipv6"}),
        ("2001:db8::1", False, {"ipv6"}),
        ("::ffff:192.0.2.1", False, {"ipv4"}),
    ],
)
def test_accepts(address: str, v6only: bool | None, reached: set[str]) -> None:
    attribute = b"" if v6only is None else attr(V6ONLY, bytes([v6only]))
    found = one("tcp", row(LISTEN, address, 80, attribute))
    assert {family for family in ("ipv4", "ipv6") if found.accepts(family)} == reached


def test_wildcard_and_loopback() -> None:
    found = {a: one("tcp", row(LISTEN, a, 80)) for a in ("0.0.0.0", "::", "127.0.0.1", "127.9.9.9", "::1", "192.0.2.1")}
    found["mapped"] = one("tcp", row(LISTEN, "::ffff:127.0.0.1", 80))
    assert {a for a in found if found[a].wildcard} == {"0.0.0.0", "::"}
    assert {a for a in found if found[a].loopback} == {"127.0.0.1", "127.9.9.9", "::1", "mapped"}


def test_sctp_tells_every_bound_address() -> None:
    bound = sockaddr("192.0.2.1", 36412) + sockaddr("2001:db8::1", 36412)
    found = list(listener_rows("sctp", row(LISTEN, "::", 36412, attr(V6ONLY, b"\0"), attr(LOCALS, bound))))
    assert [(each.family, each.address, each.port, each.v6only) for each in found] == [
        ("ipv4", "192.0.2.1", 36412, None),
        ("ipv6", "2001:db8::1", 36412, False),
    ]


def test_connections_by_inode() -> None:
    found = connection_row(row(ESTABLISHED, "::ffff:192.0.2.1", 22, inode=9), {8, 9})
    assert found == Connection("192.0.2.1", 22, 9)
    assert connection_row(row(ESTABLISHED, "192.0.2.1", 22, inode=7), {8, 9}) is None
    assert connection_row(row(LISTEN, "192.0.2.1", 22, inode=9), {8, 9}) is None


def test_request_is_an_inet_diag_req_v2() -> None:
    assert request("ipv6", "udp", CLOSE) == struct.pack("=BBBBI", socket.AF_INET6, 17, 0, 0, 1 << CLOSE) + bytes(48)
