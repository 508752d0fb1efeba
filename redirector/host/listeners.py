"""The sockets that wait for clients, as the kernel's sock_diag tells them (linux/sock_diag.h, linux/inet_diag.h).

Theory of operation: one SOCK_DIAG_BY_FAMILY dump per (family, protocol), in the network namespace of the calling
thread, needs no privileges and tells address, port, user, inode and IPV6_V6ONLY of each socket; the kernel selects by
state, so that a TCP dump of listeners never walks the connections. Who holds a socket is not in the answer: that is
`processes`, which looks the inode up.

What counts as listening: TCP and SCTP sockets in the state LISTEN, and UDP sockets that have a local port and no peer.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import errno
import struct
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from redirector.host.dumps import steadily
from redirector.model import PROTOCOLS
from redirector.netlink import NETLINK_SOCK_DIAG, Message, NetlinkSocket, attributes
from redirector.records import NamedTuple

SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h

# include/net/tcp_states.h; SCTP and UDP report themselves in the same numbers.
TCP_ESTABLISHED = 1
TCP_CLOSE = 7
TCP_LISTEN = 10

# linux/inet_diag.h
INET_DIAG_SKV6ONLY = 11  # u8; since Linux 4.3, for IPv6 sockets in the states LISTEN and CLOSE
INET_DIAG_LOCALS = 12  # SCTP: an array of struct sockaddr_storage, every bound address

# struct inet_diag_req_v2: family, protocol, extensions, pad, states; then an empty struct inet_diag_sockid.
REQUEST = struct.Struct("=BBBBI48x")
# struct inet_diag_msg: family, state, timer, retransmissions; inet_diag_sockid (source and destination port and
# address in network order, interface index, cookie); expiry, both queues, uid, inode.
ROW = struct.Struct("=BB2x2s2s16s16sI8x12xII")
SOCKADDR_STORAGE = 128  # linux/socket.h, _K_SS_MAXSIZE

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound
WAITING = {"tcp": TCP_LISTEN, "udp": TCP_CLOSE, "sctp": TCP_LISTEN}

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, IPv4 addresses in IPv6 form (RFC 4291, 2.5.5.2)


class Listener(NamedTuple):
    """One socket that waits for clients on one address.

    `family` and `address` (canonical text) are those that clients use: an IPv6 socket bound to ::ffff:192.0.2.1 is
    "ipv4", "192.0.2.1". `interface` is the index that the socket is bound to, 0 for any. `v6only` is None for IPv4,
    and where the kernel does not say. `inode` is 0 for sockets that no process holds.
    """

    protocol: str
    family: str
    address: str
    port: int
    uid: int
    inode: int
    interface: int
    v6only: bool | None

    @property
    def wildcard(self) -> bool:
        """Whether it listens on every address."""
        return self.address in WILDCARDS

    @property
    def loopback(self) -> bool:
        """Whether it listens on 127.0.0.0/8 or ::1, which clients from outside never reach."""
        return self.address == "::1" if self.family == "ipv6" else self.address.startswith("127.")

    def accepts(self, family: str) -> bool:
        """Whether clients over `family` ("ipv4", "ipv6") reach it: [::] serves IPv4 too, unless it is IPv6 only."""
        if self.family == family:
            return True
        return family == "ipv4" and self.address == "::" and not self.v6only


class Connection(NamedTuple):
    """Our end of an established TCP connection: local address (canonical text) and port, and the socket's inode."""

    address: str
    port: int
    inode: int


def request(family: str, protocol: str, state: int) -> bytes:
    """The payload of a SOCK_DIAG_BY_FAMILY dump of sockets in one state."""
    return REQUEST.pack(FAMILIES[family], PROTOCOLS[protocol], 0, 0, 1 << state)


def listener_rows(protocol: str, payload: bytes) -> Iterator[Listener]:
    """The listeners that one inet_diag_msg tells: none if it does not wait for clients, for SCTP one per address."""
    if len(payload) < ROW.size:
        return
    family, state, sport, _dport, source, _destination, interface, uid, inode = ROW.unpack_from(payload)
    port = int.from_bytes(sport, "big")
    if state != WAITING[protocol] or not port:
        return
    v6only: bool | None = None
    bound: list[tuple[int, bytes]] = []
    for kind, value in attributes(payload, ROW.size):
        if kind == INET_DIAG_SKV6ONLY and value:
            v6only = bool(value[0])
        elif kind == INET_DIAG_LOCALS:
            bound.extend(_socket_addresses(value))
    for one_family, packed in bound or [(family, source)]:
        text = _address(one_family, packed)
        name = "ipv6" if ":" in text else "ipv4"
        yield Listener(protocol, name, text, port, uid, inode, interface, v6only if name == "ipv6" else None)


def connection_row(payload: bytes, inodes: AbstractSet[int]) -> Connection | None:
    """The connection that one inet_diag_msg tells, if its inode is among `inodes`."""
    if len(payload) < ROW.size:
        return None
    family, state, sport, _dport, source, _destination, _interface, _uid, inode = ROW.unpack_from(payload)
    if inode not in inodes or state != TCP_ESTABLISHED:
        return None
    return Connection(_address(family, source), int.from_bytes(sport, "big"), inode)


def listeners(protocols: Iterable[str]) -> list[Listener]:
    """Everything that waits for clients over `protocols` ("tcp", "udp", "sctp"), IPv4 and IPv6.

    A kernel without SCTP has no SCTP listeners. Raises OSError: ENOENT where the kernel cannot list TCP or UDP
    (tcp_diag, udp_diag), EBUSY if the lists kept changing while they were read; KeyError for other protocols.
    """
    found: list[Listener] = []
    diag = NetlinkSocket(NETLINK_SOCK_DIAG)
    try:
        for protocol in dict.fromkeys(protocols):
            for family in FAMILIES:
                try:
                    rows = _dump(diag, request(family, protocol, WAITING[protocol]))
                except OSError as error:
                    if protocol == "sctp" and error.errno == errno.ENOENT:
                        continue
                    raise
                for row in rows:
                    found.extend(listener_rows(protocol, row.payload))
    finally:
        diag.close()
    return found


def connections_of(inodes: AbstractSet[int]) -> list[Connection]:
    """The established TCP connections whose sockets are `inodes`. Raises OSError as `listeners` does."""
    if not inodes:
        return []
    found: list[Connection] = []
    diag = NetlinkSocket(NETLINK_SOCK_DIAG)
    try:
        for family in FAMILIES:
            for row in _dump(diag, request(family, "tcp", TCP_ESTABLISHED)):
                connection = connection_row(row.payload, inodes)
                if connection:
                    found.append(connection)
    finally:
        diag.close()
    return found


def _dump(diag: NetlinkSocket, payload: bytes) -> list[Message]:
    rows = steadily(lambda: diag.dump(SOCK_DIAG_BY_FAMILY, payload))
    return [row for row in rows if row.kind == SOCK_DIAG_BY_FAMILY]


def _address(family: int, packed: bytes) -> str:
    """Canonical text; `packed` may be longer than the family's addresses."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:16])
    return socket.inet_ntop(socket.AF_INET6, packed[:16])


def _socket_addresses(value: bytes) -> Iterator[tuple[int, bytes]]:
    """(family, packed address) of each struct sockaddr_storage that is IPv4 (linux/in.h) or IPv6 (linux/in6.h)."""
    for offset in range(0, len(value) - SOCKADDR_STORAGE + 1, SOCKADDR_STORAGE):
        family = int(struct.unpack_from("=H", value, offset)[0])
        start = offset + 4  # behind family and port
        if family == socket.AF_INET:
            yield family, value[start : start + 4]
        elif family == socket.AF_INET6:
            yield family, value[start + 4 : start + 20]  # behind sin6_flowinfo
