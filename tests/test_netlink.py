"""Messages and attributes: what is packed is unpacked again, and what others send is never believed past its end."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.netlink import (
    NETLINK_ROUTE,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    DumpInterrupted,
    Message,
    NetlinkSocket,
    attr,
    attributes,
    error_number,
    message,
    messages,
    nest,
    table,
)

RTM_GETLINK, RTM_NEWLINK, RTM_GETNSID = 18, 16, 90  # linux/rtnetlink.h
kinds = st.integers(0, 0x3FFF)


def test_an_attribute_as_the_kernel_has_it() -> None:
    """linux/netlink.h: length (with header) and type in host order, padded to four bytes."""
    assert attr(2, b"abcde") == struct.pack("=HH", 9, 2) + b"abcde\0\0\0"
    assert attr(1, b"") == struct.pack("=HH", 4, 1)
    assert nest(3, attr(1, b"x")) == struct.pack("=HH", 12, 3 | NLA_F_NESTED) + attr(1, b"x")


def test_a_message_as_the_kernel_has_it() -> None:
    assert message(16, 5, 7, b"abc") == struct.pack("=IHHII", 19, 16, 5, 7, 0) + b"abc\0"


@given(st.lists(st.tuples(kinds, st.binary(max_size=20))))
def test_attributes_are_unpacked_as_they_were_packed(found: list[tuple[int, bytes]]) -> None:
    data = b"".join(attr(kind, value) for kind, value in found)
    assert list(attributes(data)) == found
    assert list(attributes(b"head" + data, 4)) == found
    assert table(data) == dict(found)
    assert next(attributes(nest(1, data))) == (1, data)  # the nested flag is not part of the type


@given(st.lists(st.builds(Message, kinds, kinds, st.integers(0, 2**32 - 1), st.binary(max_size=20))))
def test_messages_are_unpacked_as_they_were_packed(found: list[Message]) -> None:
    assert list(messages(b"".join(message(*each) for each in found))) == found


@given(st.binary(max_size=60), st.integers(0, 8))
def test_any_bytes_end(data: bytes, offset: int) -> None:
    for _, value in attributes(data, offset):
        assert len(value) <= len(data)
    for found in messages(data):
        assert len(found.payload) <= len(data)
        error_number(found)


@given(st.lists(st.tuples(kinds, st.binary(max_size=9)), min_size=1, max_size=4), st.integers(1, 12))
def test_what_is_cut_off_is_left_out(found: list[tuple[int, bytes]], cut: int) -> None:
    data = b"".join(attr(kind, value) for kind, value in found)
    kept = list(attributes(data[:-cut]))
    assert kept == found[: len(kept)]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_length_that_does_not_move_on_ends_it(length: int) -> None:
    assert list(attributes(struct.pack("=HH", length, 1) * 3)) == []
    assert list(messages(struct.pack("=IHHII", length, 1, 0, 0, 0) * 3)) == []


def test_error_numbers() -> None:
    assert error_number(Message(NLMSG_ERROR, 0, 1, struct.pack("=i", -errno.EPERM) + bytes(16))) == errno.EPERM
    assert error_number(Message(NLMSG_ERROR, 0, 1, struct.pack("=i", 0))) == 0
    assert error_number(Message(NLMSG_DONE, 0, 1, b"")) == 0
    # Whatever comes, there are words for it.
    for number in (-(2**31), -4095, 4095, 2**31 - 1):
        assert os.strerror(error_number(Message(NLMSG_ERROR, 0, 1, struct.pack("=i", number))))


class Kernel:
    """The other end of a socket pair, in place of the kernel: says what a test lets it say."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self._end.send(datagram)

    def heard(self) -> list[Message]:
        return list(messages(self._end.recv(1 << 20)))


@contextmanager
def talk() -> Iterator[tuple[NetlinkSocket, Kernel]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found = NetlinkSocket(NETLINK_ROUTE)
    found.close()
    found._socket = ours
    ours.settimeout(0.2)
    with ours, theirs:
        yield found, Kernel(theirs)


def row(seq: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return message(RTM_NEWLINK, flags, seq, payload)


def done(seq: int, number: int = 0, flags: int = 0) -> bytes:
    return message(NLMSG_DONE, flags, seq, struct.pack("=i", -number))


def failure(seq: int, number: int) -> bytes:
    return message(NLMSG_ERROR, 0, seq, struct.pack("=i", -number) + bytes(16))


def test_a_dump_is_all_rows_up_to_done() -> None:
    with talk() as (ours, kernel):
        kernel.say(row(1, b"aaaa") + row(1, b"bbbb"), row(1, b"cccc") + done(1))
        assert [found.payload for found in ours.dump(RTM_GETLINK, b"")] == [b"aaaa", b"bbbb", b"cccc"]
        (heard,) = kernel.heard()
        assert (heard.kind, heard.flags & NLM_F_REQUEST, heard.seq) == (RTM_GETLINK, NLM_F_REQUEST, 1)


def test_answers_to_earlier_questions_are_passed_over() -> None:
    with talk() as (ours, kernel):
        ours.next_seq()
        kernel.say(row(1, b"late") + done(1), row(2, b"good") + done(2))
        assert [found.payload for found in ours.dump(RTM_GETLINK, b"")] == [b"good"]
        kernel.say(failure(2, errno.EPERM), row(3, b"good"))
        assert ours.request(RTM_GETLINK, b"").payload == b"good"


@pytest.mark.parametrize(
    "datagram",
    [
        row(1, b"aaaa", NLM_F_DUMP_INTR) + done(1),
        row(1, b"aaaa") + done(1, flags=NLM_F_DUMP_INTR),
        row(1, b"aaaa") + done(1, errno.EINTR),
    ],
)
def test_a_dump_that_was_interrupted_is_worth_nothing(datagram: bytes) -> None:
    with talk() as (ours, kernel):
        kernel.say(datagram)
        with pytest.raises(DumpInterrupted):
            ours.dump(RTM_GETLINK, b"")


@pytest.mark.parametrize("answer", [failure(1, errno.ENOENT), done(1, errno.ENOENT), row(1) + failure(1, errno.ENOENT)])
def test_errors_are_raised_with_their_number(answer: bytes) -> None:
    with talk() as (ours, kernel):
        kernel.say(answer)
        with pytest.raises(FileNotFoundError):
            ours.dump(RTM_GETLINK, b"")
    with talk() as (ours, kernel):
        kernel.say(failure(1, errno.EPERM))
        with pytest.raises(PermissionError):
            ours.request(RTM_GETLINK, b"")


def test_no_answer_is_a_timeout() -> None:
    with talk() as (ours, kernel):
        for ask in (ours.dump, ours.request):
            with pytest.raises(TimeoutError):
                ask(RTM_GETLINK, b"")
        kernel.say(row(3, b"aaaa"))  # no more rows, no end
        with pytest.raises(TimeoutError):
            ours.dump(RTM_GETLINK, b"")


def test_what_is_pending_is_all_that_has_arrived() -> None:
    with talk() as (ours, kernel):
        assert ours.pending() == []
        kernel.say(row(1) + row(2), row(3))
        assert [found.seq for found in ours.pending()] == [1, 2, 3]
        assert ours.pending() == []


def test_sequence_numbers_are_never_used_twice() -> None:
    with talk() as (ours, _):
        assert [ours.next_seq(), ours.next_seq()] == [1, 2]
        ours.reserve(10)
        ours.reserve(5)
        assert ours.next_seq() == 11


def test_the_kernel_answers_a_real_request() -> None:
    """The loopback interface, which every network namespace has, and whose list everybody may read."""
    real = NetlinkSocket(NETLINK_ROUTE)
    try:
        rows = real.dump(RTM_GETLINK, bytes(16))
        assert b"lo\0" in {table(found.payload, 16).get(3) for found in rows}  # IFLA_IFNAME
        with pytest.raises(OSError, match="No such device"):
            real.request(RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0x7FFFFFF0, 0, 0))
        assert len(real.option(socket.SOL_SOCKET, socket.SO_SNDBUF, 4)) == 4
    finally:
        real.close()


def test_large_datagrams_are_sent_whole() -> None:
    real = NetlinkSocket(NETLINK_ROUTE)
    try:
        real.send(message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, bytes(16 + 200_000)))
        assert {found.seq for found in real.receive()} == {1}
    finally:
        real.close()


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(OSError, match="Protocol not supported"):
        NetlinkSocket(31)
