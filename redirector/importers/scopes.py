"""How scopes lie to each other: what both have in common, and which takes in which. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import cache

from redirector.model import Scope


def narrowed(one: Scope, other: Scope) -> Scope | None:
    """The scope of what is in both; None where nothing can be."""
    source = _both(one.source, other.source, network_covers)
    address = _both(one.address, other.address, _equal)
    interface = _both(one.interface, other.interface, interface_covers)
    return None if source is None or address is None or interface is None else Scope(source, address, interface)


def relation(one: Scope, other: Scope) -> str:
    """Whether scope `one` "covers" `other`, lies "within" it, "crosses" it, or is "apart" from it."""
    found = set()
    for wide, narrow, covers in (
        (one.source, other.source, network_covers),
        (one.address, other.address, _equal),
        (one.interface, other.interface, interface_covers),
    ):
        if wide == narrow:
            continue
        if not wide or (narrow and covers(wide, narrow)):
            found.add("covers")
        elif not narrow or covers(narrow, wide):
            found.add("within")
        else:
            return "apart"
    return "crosses" if len(found) == 2 else found.pop() if found else "covers"


def _both(one: str, other: str, covers: Callable[[str, str], bool]) -> str | None:
    """The narrower of two parts of a scope; None where nothing is in both."""
    if not one or not other or one == other:
        return one or other
    return other if covers(one, other) else one if covers(other, one) else None


def network_covers(wide: str, narrow: str) -> bool:
    """Whether all of a canonical network lies in the other."""
    version, base, length = _parsed(wide)
    other, number, longer = _parsed(narrow)
    return version == other and length <= longer and base == number >> (version - length) << (version - length)


@cache
def _parsed(network: str) -> tuple[int, int, int]:
    """(bits of an address, the base as a number, prefix length)."""
    found = ipaddress.ip_network(network)
    return found.max_prefixlen, int(found.network_address), found.prefixlen


def interface_covers(wide: str, narrow: str) -> bool:
    return wide.endswith("*") and narrow.startswith(wide[:-1])


def _equal(_wide: str, _narrow: str) -> bool:
    return False  # asked only where they differ
