"""Where does a packet go? Section by section what the mapping file promises, on the Ruleset alone. Pure.

This is the specification in executable form: it knows nothing of chains and maps, and a property test holds it
against the compiled Program and real packets.
"""

from __future__ import annotations

import _socket as socket  # see netlink

from redirector.model import ARRIVING, OWN, Mapping, Ruleset, Scope, Target, loopback
from redirector.records import NamedTuple


class Packet(NamedTuple):
    """The first packet of a connection to one of the host's own addresses.

    `interface` is where it arrived; "" for a connection that the host makes to itself. Addresses are canonical text.
    """

    interface: str
    source: str
    address: str
    protocol: str
    port: int

    @property
    def side(self) -> str:
        return ARRIVING if self.interface else OWN

    @property
    def family(self) -> str:
        return "ipv6" if ":" in self.address else "ipv4"


class Decision(NamedTuple):
    """`action` is "pass" (as it came), "translate" (to `port`; `rewrite` says what becomes of the address: "forward",
    that it becomes `address`), or "refuse" (an exclusive target, connected to directly); `mapping` is the one that
    decides, "" for "pass"."""

    action: str
    port: int
    mapping: str = ""
    rewrite: str = ""
    address: str = ""


def decide(ruleset: Ruleset, packet: Packet) -> Decision:
    """What becomes of `packet`."""
    best: tuple[tuple[int, int, int], Mapping] | None = None
    for mapping in ruleset.enabled:
        if packet.protocol not in mapping.protocol or packet.family not in mapping.families:
            continue
        if not any(ports.first <= packet.port <= ports.last for ports in mapping.listen):
            continue
        if mapping.forwards and loopback(packet.address):
            continue  # what the host sends to its loopback addresses never leaves it
        for side, scope in mapping.claims:
            if side == packet.side and covers(scope, packet) and (best is None or scope.specificity > best[0]):
                best = scope.specificity, mapping
    if best is None:
        return _direct(ruleset, packet)
    mapping = best[1]
    if isinstance(mapping.to, Target):
        address = mapping.to.address(packet.family)
        return Decision("translate", mapping.target(packet.port), mapping.name, "forward", address)
    return Decision("translate", mapping.target(packet.port), mapping.name, mapping.rewrite)


def covers(scope: Scope, packet: Packet) -> bool:
    """Whether a packet is within a scope, side and port aside."""
    if scope.source and not within(packet.source, scope.source):
        return False
    if scope.address and scope.address != packet.address:
        return False
    if not scope.interface or packet.side == OWN:
        return True  # a scope of the host's own connections names no interface but "lo"
    if scope.interface.endswith("*"):
        return packet.interface.startswith(scope.interface[:-1])
    return packet.interface == scope.interface


def within(address: str, network: str) -> bool:
    """Whether a canonical address lies in a canonical network."""
    base, _, length = network.partition("/")
    if (":" in address) != (":" in base):
        return False
    family = socket.AF_INET6 if ":" in base else socket.AF_INET
    packed = socket.inet_pton(family, address)
    shift = len(packed) * 8 - int(length)
    wanted = int.from_bytes(socket.inet_pton(family, base), "big")
    return int.from_bytes(packed, "big") >> shift == wanted >> shift


def _direct(ruleset: Ruleset, packet: Packet) -> Decision:
    """A packet that no mapping translates: refused at an exclusive target, unless the host itself sends it."""
    if packet.side == OWN or _mapped_to_itself(ruleset, packet):
        return Decision("pass", packet.port)
    for mapping in ruleset.enabled:
        if (
            mapping.exclusive
            and packet.protocol in mapping.protocol
            and packet.family in mapping.families
            and mapping.to.first <= packet.port <= mapping.to.last
            and (not mapping.address or packet.address in mapping.address)
        ):
            return Decision("refuse", packet.port, mapping.name)
    return Decision("pass", packet.port)


def _mapped_to_itself(ruleset: Ruleset, packet: Packet) -> bool:
    return any(
        packet.protocol in mapping.protocol
        and packet.family in mapping.served
        and any(ports.first <= packet.port <= ports.last for ports in mapping.listen)
        and mapping.exempts(packet.port)
        for mapping in ruleset.enabled
    )
