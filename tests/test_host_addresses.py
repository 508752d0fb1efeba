"""Decoding of RTM_NEWADDR payloads, and dumps that are read again."""

import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.host.addresses import IFADDRMSG, address_of, network_in
from redirector.host.dumps import ATTEMPTS, steadily
from redirector.netlink import DumpInterrupted, attr

# As Linux 6.18 sent it for `ip addr add 192.0.2.1 peer 192.0.2.9/32 dev v0`.
KERNEL_PEER = bytes.fromhex(
    "022080000300000008000100c000020908000200c00002010700030076300000080008008000000014000600ffffffffffffffff"
    "ad7d0300ad7d0300"
)
KERNEL_LOOPBACK = bytes.fromhex(
    "0a8080fe01000000140001000000000000000000000000000000000114000600ffffffffffffffffad7d0300ad7d030008000800"
    "8000000005000b0001000000"
)
IFA_ADDRESS, IFA_LOCAL = 1, 2


def row(family: int, *attributes: bytes) -> bytes:
    return IFADDRMSG.pack(family, 24, 0, 0, 3) + b"".join(attributes)


def test_rows_of_a_real_kernel() -> None:
    assert address_of(KERNEL_PEER) == "192.0.2.1"
    assert address_of(KERNEL_LOOPBACK) == "::1"


def test_networks() -> None:
    """That of a point-to-point link is the other end's."""
    assert network_in(KERNEL_PEER) == "192.0.2.9/32"
    assert network_in(KERNEL_LOOPBACK) == "::1/128"
    own = attr(IFA_LOCAL, bytes([192, 0, 2, 1])) + attr(IFA_ADDRESS, bytes([192, 0, 2, 1]))
    assert network_in(row(socket.AF_INET, own)) == "192.0.2.0/24"
    assert network_in(row(socket.AF_UNIX, own)) is None
    assert network_in(IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 3) + own) is None
    assert network_in(IFADDRMSG.pack(socket.AF_INET, 33, 0, 0, 3) + own) is None


def test_the_local_end_is_preferred_whatever_the_order() -> None:
    near, far = attr(IFA_LOCAL, bytes([192, 0, 2, 1])), attr(IFA_ADDRESS, bytes([192, 0, 2, 9]))
    assert address_of(row(socket.AF_INET, near, far)) == address_of(row(socket.AF_INET, far, near)) == "192.0.2.1"
    assert address_of(row(socket.AF_INET, far)) == "192.0.2.9"


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_text_is_canonical(address: IPv4Address | IPv6Address) -> None:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    assert address_of(row(family, attr(IFA_ADDRESS, address.packed))) == socket.inet_ntop(family, address.packed)


def test_other_families_and_wrong_lengths_are_nothing() -> None:
    assert address_of(row(socket.AF_PACKET, attr(IFA_ADDRESS, bytes(6)))) is None
    assert address_of(row(socket.AF_INET, attr(IFA_ADDRESS, bytes(16)))) is None
    assert address_of(row(socket.AF_INET)) is None


@given(st.binary(max_size=120))
def test_rubbish_never_raises(payload: bytes) -> None:
    address_of(payload)


def interrupted(times: int) -> Callable[[], int]:
    """A dump that is interrupted so many times before it succeeds."""
    calls: list[None] = []

    def dump() -> int:
        calls.append(None)
        if len(calls) <= times:
            raise DumpInterrupted
        return len(calls)

    return dump


def test_an_interrupted_dump_is_read_again() -> None:
    assert steadily(interrupted(0)) == 1
    assert steadily(interrupted(ATTEMPTS - 1)) == ATTEMPTS


def test_a_dump_that_never_succeeds_ends_as_busy() -> None:
    with pytest.raises(OSError, match="changed") as caught:
        steadily(interrupted(ATTEMPTS))
    assert caught.value.errno == errno.EBUSY


def test_other_errors_are_not_tried_again() -> None:
    calls: list[None] = []

    def dump() -> None:
        calls.append(None)
        raise PermissionError(errno.EPERM, "no")

    with pytest.raises(PermissionError):
        steadily(dump)
    assert len(calls) == 1
