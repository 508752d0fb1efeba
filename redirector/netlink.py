"""A netlink socket and its attributes, as small as the work here needs (linux/netlink.h, RFC 3549).

Theory of operation: netlink messages are a 16-byte header (length, type, flags, sequence, port; host order) and
a payload; attributes inside are (length, type) in host order, padded to 4 bytes. Everything here is either pure
(`attr`, `nest`, `attributes`, `messages`) or one call on one socket. Which attributes mean what is the business of
the modules above: nf_tables in `backends.nftables.codec`, sock_diag and addresses in `host`.

A dump is only as good as its flags: NLM_F_DUMP_INTR says that the kernel's lists changed while they were being
read, and the rows are then worth nothing. `dump` raises `DumpInterrupted`, and the caller reads again, bounded.

`_socket` is what the module `socket` is made of, and all that is needed here and in the other modules on the way of
`apply`: `socket` itself turns hundreds of constants into enums first, which takes longer than most commands of ours.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import errno
import os
import struct
from collections.abc import Iterator

from redirector.records import NamedTuple

# linux/netlink.h
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
SO_RCVBUFFORCE = 33

# The kernel fills dump messages up to 32 KiB (netlink_recvmsg remembers the reader's size up to that).
RECEIVE_SIZE = 65536
RECEIVE_BUFFER = 4 << 20
# The kernel answers while it takes a message: waiting at all is for the unforeseen, and a command may wait three times.
TIMEOUT_SECONDS = 3.0

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")


class DumpInterrupted(Exception):
    """The kernel's lists changed during a dump: what was read must be thrown away."""


class Message(NamedTuple):
    """One netlink message: `kind` (nlmsg_type), `flags`, `seq`, and the payload behind the header."""

    kind: int
    flags: int
    seq: int
    payload: bytes


def attr(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    length = len(value)
    return ATTRIBUTE.pack(length + 4, kind) + value + b"\0" * (-length & 3)


def nest(kind: int, *children: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(children))


def attributes(data: bytes, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute in data[offset:end]; stops at the first that does not fit."""
    end = len(data) if end is None else end
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def table(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes of `data` by type; of several of one type the last."""
    return dict(attributes(data, offset))


def message(kind: int, flags: int, seq: int, payload: bytes) -> bytes:
    """One message, padded to 4 bytes."""
    return HEADER.pack(16 + len(payload), kind, flags, seq, 0) + payload + b"\0" * (-len(payload) & 3)


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; stops at the first that does not fit."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, seq, _port = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            return
        yield Message(kind, flags, seq, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def error_number(reply: Message) -> int:
    """The errno that an NLMSG_ERROR or NLMSG_DONE carries (0 is an acknowledgement)."""
    if len(reply.payload) < 4:
        return 0
    # No errno is beyond 4,095 (MAX_ERRNO); the number that has no opposite in a C int would upset os.strerror.
    return min(-int(struct.unpack_from("=i", reply.payload)[0]), 2**31 - 1)


class NetlinkSocket:
    """A bound AF_NETLINK socket of one protocol, in the network namespace of the calling thread.

    Raises OSError: EPROTONOSUPPORT where the kernel lacks the protocol; `TimeoutError` after TIMEOUT_SECONDS without
    an answer; ENOBUFS when the kernel dropped answers.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self._force(SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._socket.settimeout(TIMEOUT_SECONDS)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise
        self._seq = 0

    def close(self) -> None:
        self._socket.close()

    def next_seq(self) -> int:
        """A sequence number that this socket has not used yet."""
        self._seq += 1
        return self._seq

    def reserve(self, last: int) -> None:
        """Sequence numbers up to `last` were used by a batch."""
        self._seq = max(self._seq, last)

    def option(self, level: int, name: int, size: int) -> bytes:
        """A socket option's bytes, such as SO_NETNS_COOKIE's."""
        return self._socket.getsockopt(level, name, size)

    def send(self, data: bytes) -> None:
        """Send one datagram, whatever its size where privileges allow (EMSGSIZE where they do not)."""
        # The kernel counts its own overhead against the buffer too: twice the size, and room for the headers.
        needed = 2 * len(data) + 65536
        if needed > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
            self._force(SO_SNDBUFFORCE, socket.SO_SNDBUF, needed)
        self._socket.send(data)

    def receive(self) -> list[Message]:
        """The messages of the next datagram."""
        return list(messages(self._socket.recv(RECEIVE_SIZE)))

    def pending(self) -> list[Message]:
        """What has arrived already, without waiting."""
        found: list[Message] = []
        self._socket.settimeout(0)
        try:
            while True:
                found += messages(self._socket.recv(RECEIVE_SIZE))
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(TIMEOUT_SECONDS)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def join(self, group: int) -> None:
        """Hear what the kernel announces to a multicast group from now on. Raises OSError."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def arrived(self) -> Iterator[bytes]:
        """The datagrams that are there already, without waiting. An empty one stands for those that the kernel dropped
        because there was no room (ENOBUFS); it drops all others, too, and says no more of it, until everything that is
        there has been read (netlink_overrun and netlink_rcv_wake in net/netlink/af_netlink.c)."""
        self._socket.settimeout(0)
        try:
            while True:
                try:
                    yield self._socket.recv(RECEIVE_SIZE)
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    yield b""
        finally:
            self._socket.settimeout(TIMEOUT_SECONDS)

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """All rows of a dump request.

        Raises `DumpInterrupted` when the rows are no consistent picture, OSError with the kernel's errno.
        """
        seq = self.next_seq()
        self.send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, payload))
        rows: list[Message] = []
        interrupted = False
        while True:
            for reply in self.receive():
                if reply.seq != seq:
                    continue  # an answer to an earlier request that timed out
                interrupted = interrupted or bool(reply.flags & NLM_F_DUMP_INTR)
                if reply.kind in (NLMSG_DONE, NLMSG_ERROR):
                    number = error_number(reply)
                    if number == errno.EINTR or (not number and interrupted):
                        raise DumpInterrupted
                    if number:
                        raise OSError(number, os.strerror(number))
                    return rows
                rows.append(reply)

    def request(self, kind: int, payload: bytes) -> Message:
        """The one answer to a request; raises OSError with the kernel's errno."""
        seq = self.next_seq()
        self.send(message(kind, NLM_F_REQUEST, seq, payload))
        while True:
            for reply in self.receive():
                if reply.seq != seq:
                    continue
                if reply.kind == NLMSG_ERROR:
                    number = error_number(reply)
                    raise OSError(number, os.strerror(number))
                return reply

    def _force(self, forced: int, plain: int, size: int) -> None:
        """Set a buffer size past the sysctl's limit; within it where a user namespace forbids that."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, plain, min(size, 2**30))
