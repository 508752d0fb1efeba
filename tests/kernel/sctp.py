"""SCTP without SCTP sockets: INIT packets made by hand, and an ear that hears them arrive (RFC 9260).

NAT translates the first packet of an association like any other; a raw socket at the receiving end gets it as it left
the input hook, with the port that it was translated to. That needs no kernel module, and there is nothing to poll.
"""

import itertools
import select
import socket
import struct
import time
from typing import Self

from redirector.host.namespaces import Namespace
from tests.kernel.echo import IN6_PKTINFO, PATIENCE, Answered, Silent, family_of

COMMON_HEADER = struct.Struct("!HHI")  # ports, verification tag (0 in an INIT); then the checksum, section 3.1
INIT = 1  # section 3.3.2
# Chunk type, flags, length; initiate tag, receiver window, streams out and in, initial sequence number.
INIT_CHUNK = struct.Struct("!BBHIIHHI")

# Each INIT has a source port of its own: conntrack would take a second one for a repetition of the first.
_source_ports = itertools.count(20000)


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def init_packet(source_port: int, port: int) -> bytes:
    header = COMMON_HEADER.pack(source_port, port, 0)
    chunk = INIT_CHUNK.pack(INIT, 0, INIT_CHUNK.size, 1, 65536, 1, 1, 1)
    return header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk


def send_init(namespace: Namespace, address: str, port: int, source: str | None = None) -> None:
    """Send one INIT to `address` from inside `namespace`. Raises OSError: EPERM without CAP_NET_RAW, ENETUNREACH."""
    source_port = 20000 + next(_source_ports) % 40000
    with namespace.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_SCTP) as raw:
        if source is not None:
            raw.bind((source, 0))
        raw.sendto(init_packet(source_port, port), (address, 0))


class SctpEar:
    """Hears the SCTP packets that reach a namespace's own addresses, both families; open it before the sending."""

    def __init__(self, namespace: Namespace) -> None:
        self._v4 = namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        self._v6 = namespace.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        self._v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def hear(self, patience: float = PATIENCE) -> Answered | Silent:
        """Port, sender and receiving address of the next INIT, as they are after NAT."""
        deadline = time.monotonic() + patience
        while True:
            ready, _, _ = select.select([self._v4, self._v6], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                return Silent()
            if ready[0] is self._v4:
                packet, peer = self._v4.recvfrom(65536)
                header = (packet[0] & 0xF) * 4  # an IPv4 raw socket delivers the IP header, too
                local, sctp = socket.inet_ntop(socket.AF_INET, packet[16:20]), packet[header:]
            else:
                sctp, control, _flags, peer = self._v6.recvmsg(65536, socket.CMSG_SPACE(IN6_PKTINFO.size))
                destination, _interface = IN6_PKTINFO.unpack(control[0][2])
                local = socket.inet_ntop(socket.AF_INET6, destination)
            if sctp[12] == INIT:
                return Answered(struct.unpack_from("!H", sctp, 2)[0], peer[0], local)

    def close(self) -> None:
        self._v4.close()
        self._v6.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
