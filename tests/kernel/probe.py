"""Packets as a property test wants them: of any protocol, from any source, over any interface; and where they arrive.

Theory of operation. A `Field` is a host with many interfaces, each a cable to one other namespace, the world. What is
to arrive over an interface is a whole Ethernet frame, put on the world's end of that cable: so its source may be any
address, the host's own included. What the host sends to itself goes through a raw socket bound to its source.

Where a packet ends up is heard by raw sockets: they get everything that passed the input hook and is delivered, as it
is after NAT, whether or not a server listens. That a packet is *not* delivered must be no matter of time either: each
probe is followed on the same way by a fence, a packet that nothing translates or refuses. The kernel works its queue
in order (one per CPU, and the sending thread is tied to one), so once the fence has come, the probe has been heard or
never will be.
"""

import itertools
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from redirector.decide import Packet
from redirector.host import namespaces
from redirector.host.namespaces import Namespace
from redirector.model import PROTOCOLS
from tests.kernel.echo import IN6_PKTINFO, PATIENCE, family_of
from tests.kernel.lab import LOOPBACK, SYSCTLS
from tests.kernel.sctp import init_packet

FENCE = 253  # an IP protocol for experiments (RFC 3692): no mapping knows it, and no other ear hears it
ETHERTYPES = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}  # linux/if_ether.h
SYN = 0x02  # RFC 9293, section 3.1

# Packets from and to the host's own addresses may arrive from outside, for the sake of the test.
OPEN = SYSCTLS | {"net/ipv4/conf/all/accept_local": "1", "net/ipv4/conf/all/route_localnet": "1"}


@dataclass(frozen=True, slots=True)
class Heard:
    """A packet that was delivered: to `port` at `address`, from `source`."""

    port: int
    address: str
    source: str


class Field:
    """The host, with `addresses` on its loopback interface and one cable for each of `interfaces`, and the world."""

    def __init__(self, interfaces: Iterable[str], addresses: Iterable[str]) -> None:
        self.host, self.world = Namespace.create("host"), Namespace.create("world")
        self._source_ports = itertools.count(30000)
        self._cables: dict[str, tuple[socket.socket, bytes]] = {}
        for name, value in OPEN.items():
            namespaces.sysctl(self.host, name, value)
        namespaces.link_up(self.host, "lo")
        for text in addresses:
            if text not in LOOPBACK:
                namespaces.address(self.host, "lo", f"{text}/{128 if ':' in text else 32}")
        # The main addresses of each interface, which a redirect takes.
        self.main = {name: (f"100.64.{i}.1", f"fd99:{i}::1") for i, name in enumerate(interfaces, start=1)}
        for name, (v4, v6) in self.main.items():
            namespaces.connect(self.host, name, self.world, name)
            namespaces.address(self.host, name, f"{v4}/24")
            namespaces.address(self.host, name, f"{v6}/64")
            with self.host.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
                end.bind((name, 0))
                hardware = end.getsockname()[4]
            cable = self.world.socket(socket.AF_PACKET, socket.SOCK_RAW)
            cable.bind((name, 0))
            self._cables[name] = cable, hardware + cable.getsockname()[4]
        self._ears = {(p, f): self._ear(number, f) for p, number in PROTOCOLS.items() for f in ETHERTYPES}
        self._fence = self.host.socket(socket.AF_INET, socket.SOCK_RAW, FENCE)
        self._fence.settimeout(PATIENCE)
        cpu = min(os.sched_getaffinity(0))
        for namespace in (self.host, self.world):
            namespace.call(os.sched_setaffinity, 0, {cpu})  # of the thread in there

    def send(self, packet: Packet) -> Heard | None:
        """Where the packet was delivered; None if it was not."""
        source_port = next(self._source_ports)
        ends = packet.interface, packet.source, packet.address
        self._put(*ends, PROTOCOLS[packet.protocol], _segment(packet, source_port))
        here = self.main.get(packet.interface, LOOPBACK)[0]
        self._put(packet.interface, here, here, FENCE, struct.pack("!I", source_port))
        assert self._fence.recv(100)[-4:] == struct.pack("!I", source_port)
        return self._heard(self._ears[packet.protocol, family_of(packet.address)], source_port)

    def _put(self, interface: str, source: str, address: str, protocol: int, segment: bytes) -> None:
        family = family_of(address)
        if interface:
            cable, hardware = self._cables[interface]
            header = _network_header(source, address, protocol, len(segment))
            self.world.call(cable.send, hardware + struct.pack("!H", ETHERTYPES[family]) + header + segment)
            return

        def own() -> None:
            with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
                raw.bind((source, 0))
                raw.sendto(segment, (address, 0))

        self.host.call(own)

    def _ear(self, protocol: int, family: int) -> socket.socket:
        ear = self.host.socket(family, socket.SOCK_RAW, protocol)
        ear.setblocking(False)
        if family == socket.AF_INET6:
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        return ear

    def _heard(self, ear: socket.socket, source_port: int) -> Heard | None:
        """The packet from `source_port`, if it has come. Whatever else has is what the kernel answers by itself,
        such as resets: those come from other ports."""
        while True:
            try:
                heard_from, heard = self._receive(ear)
            except BlockingIOError:
                return None
            if heard_from == source_port:
                return heard

    @staticmethod
    def _receive(ear: socket.socket) -> tuple[int, Heard]:
        """(source port, packet) of what the ear has heard next. Raises BlockingIOError if nothing."""
        if ear.family == socket.AF_INET:
            packet, peer = ear.recvfrom(65536)
            segment = packet[(packet[0] & 0xF) * 4 :]  # IPv4 raw sockets deliver the header, too
            local = socket.inet_ntop(socket.AF_INET, packet[16:20])
        else:
            segment, control, _flags, peer = ear.recvmsg(65536, socket.CMSG_SPACE(IN6_PKTINFO.size))
            local = socket.inet_ntop(socket.AF_INET6, IN6_PKTINFO.unpack(control[0][2])[0])
        source_port, port = struct.unpack_from("!HH", segment)
        return int(source_port), Heard(int(port), local, peer[0])

    def close(self) -> None:
        for ear in (self._fence, *self._ears.values()):
            ear.close()
        for cable, _ in self._cables.values():
            cable.close()
        self.world.close()
        self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _packed(address: str) -> bytes:
    return socket.inet_pton(family_of(address), address)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment(packet: Packet, source_port: int) -> bytes:
    """What begins a connection: SYN, a datagram, or INIT, with its checksum: conntrack ignores what has a wrong one."""
    if packet.protocol == "sctp":
        return init_packet(source_port, packet.port)
    if packet.protocol == "tcp":
        # Ports, sequence and acknowledgement number, length of this header, flags, window; checksum, urgent pointer.
        before, after = struct.pack("!HHIIBBH", source_port, packet.port, 1, 0, 5 << 4, SYN, 65535), bytes(2)
    else:
        before, after = struct.pack("!HHH", source_port, packet.port, 8), b""
    length = len(before) + 2 + len(after)
    # RFC 9293, section 3.1, and RFC 8200, section 8.1; the sum is the same in either layout.
    pseudo = _packed(packet.source) + _packed(packet.address) + struct.pack("!II", length, PROTOCOLS[packet.protocol])
    return before + struct.pack("!H", _checksum(pseudo + before + bytes(2) + after)) + after


def _network_header(source: str, address: str, protocol: int, length: int) -> bytes:
    """RFC 791 or RFC 8200, for `length` bytes of payload."""
    ends = _packed(source) + _packed(address)
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + ends
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 0, 0, 64, protocol)
    return head + struct.pack("!H", _checksum(head + bytes(2) + ends)) + ends
