"""What a mapping comes down to where sockets are bound: addresses, ports, protocols. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redirector.model import Mapping, Ports, ipv6

PRIVILEGED = 1024  # ports below it need a permission (linux, PROT_SOCK in net/sock.h)
ANY = {"ipv4": "0.0.0.0", "ipv6": "::"}  # noqa: S104 - what a mapping without an address asks for


@dataclass(frozen=True, slots=True)
class Binding:
    """`ports` of one protocol on one address; "0.0.0.0" and "::" are every one of their family."""

    protocol: str
    address: str
    ports: Ports

    @property
    def family(self) -> str:
        return "ipv6" if ipv6(self.address) else "ipv4"

    @property
    def host(self) -> str:
        """The address as it stands before a colon and a port."""
        return f"[{self.address}]" if ipv6(self.address) else self.address


def families(mapping: Mapping) -> tuple[str, ...]:
    """The families of the packets that the mapping wants: its addresses, or else its sources, may leave one out."""
    named = {"ipv6" if ipv6(text) else "ipv4" for text in mapping.address or mapping.source}
    return tuple(family for family in mapping.families if not named or family in named)


def bindings(mapping: Mapping) -> Iterator[Binding]:
    """Every socket that the mapping needs, ports in ranges; protocols in order, IPv4 before IPv6."""
    for protocol in mapping.protocol:
        for address in mapping.address or [ANY[family] for family in families(mapping)]:
            for ports in mapping.listen:
                yield Binding(protocol, address, ports)


def target_host(mapping: Mapping) -> str:
    """Where a proxy finds the server: on the loopback, by IPv4 unless the mapping is for IPv6 alone."""
    return "127.0.0.1" if "ipv4" in families(mapping) else "[::1]"


def privileged(mapping: Mapping) -> tuple[Ports, ...]:
    """The part of the listened ports that needs a permission."""
    return tuple(Ports(p.first, min(p.last, PRIVILEGED - 1)) for p in mapping.listen if p.first < PRIVILEGED)


def spoken(mapping: Mapping) -> str:
    """What the server of this mapping has to bind, in words: "tcp 80 on every address"."""
    what = " and ".join(mapping.protocol) + " " + ", ".join(map(str, mapping.listen))
    if mapping.address:
        return f"{what} on {', '.join(mapping.address)}"
    only = families(mapping)
    return f"{what} on every address" + ("" if len(only) > 1 else f" of {only[0]}")
