"""Many rules of ports as a tree of chains. Pure.

Theory of operation. More than FLAT rules of ports in one place become a tree, so that a packet passes some dozens of
them at most, whatever their number. The range of ports is halved until a half has at most FLAT rules: that is a chain
of its own, to which its parent jumps. A chain that would have to jump to more than FAN others leads to chains that are
cut the same way. A rule whose ports lie in both halves stays in the parent.

Blocks of ports are aligned to multiples of their size, so that a port that comes or goes changes the one chain that it
is in; now and then one becomes two, or two one. And they are as large as they may be, because chains cost more than
rules: 500 of them added a tenth to the time of iptables-restore with 10,000 rules (measured with 1.8.9, both variants).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from zlib import adler32, crc32

from redirector.program import protocol_name
from redirector.records import NamedTuple

PREFIX = "REDIRECTOR-"
FLAT = 64  # rules of ports in one chain; more become a tree
FAN = 32  # blocks to a chain of the tree
PORTS = 1 << 16

Chains = dict[str, list[str]]  # rules by chain


class Items(NamedTuple):
    """Rules of ports, in the order of their ports: the keys (`program.port_key`) of the first and of the last port that
    each is for, and its text. No two are for the same port."""

    firsts: list[int]
    lasts: list[int]
    texts: list[str]


class Tree(NamedTuple):
    """The rules of the chain that was asked for, and the chains below it."""

    rules: list[str]
    below: Chains


def tree(name: str, items: Items) -> Tree:
    """The rules of the chain `name` for these items."""
    found = Tree([], {})
    if len(items.texts) <= FLAT:
        found.rules.extend(items.texts)
        return found
    low = 0
    while low < len(items.texts):
        protocol = items.firsts[low] >> 16
        high = bisect_left(items.firsts, (protocol + 1) << 16, low)
        below = named(f"{name} {protocol}")
        found.rules.append(f"-p {protocol_name(protocol)} -j {below}")
        _Node(below, items, protocol << 16, PORTS, found.below).write(low, high)
        low = high
    return found


class _Node:
    """The chain `name`, for those of the items that lie within the `width` ports from the key `start` on."""

    def __init__(self, name: str, items: Items, start: int, width: int, chains: Chains) -> None:
        self._name, self._items, self._start, self._width, self._chains = name, items, start, width, chains
        self._rules: list[str] = []

    def write(self, low: int, high: int) -> None:
        """Write it, for the items from `low` to before `high`."""
        self._chains[self._name] = self._rules
        if high - low <= FLAT:
            self._rules += self._items.texts[low:high]
        else:
            self._halve(low, high, self._start, self._width)

    def _halve(self, low: int, high: int, start: int, width: int) -> None:
        """Add the rules for the items from `low` to before `high`, which lie in a block of more than one of them."""
        middle = start + width // 2
        at = bisect_left(self._items.firsts, middle, low, high)
        across = at > low and self._items.lasts[at - 1] >= middle
        self._block(low, at - across, start, width // 2)
        if across:
            self._rules.append(self._items.texts[at - 1])
        self._block(at, high, middle, width // 2)

    def _block(self, low: int, high: int, start: int, width: int) -> None:
        if high - low < 2:
            self._rules += self._items.texts[low:high]
        elif high - low > FLAT and width * FAN > self._width:
            self._halve(low, high, start, width)
        else:
            below = named(f"{self._name} {start & 0xFFFF} {width}")
            self._rules.append(f"{match(start, start + width - 1)} -j {below}")
            _Node(below, self._items, start, width, self._chains).write(low, high)


def match(first: int, last: int) -> str:
    """The condition that a packet is for one of the ports from one key to another."""
    ports = f"{first & 0xFFFF}:{last & 0xFFFF}" if last > first else first & 0xFFFF
    return f"{_port_of(first >> 16)}{ports}"


@lru_cache
def _port_of(protocol: int) -> str:
    name = protocol_name(protocol)
    return f"-p {name} -m {name} --dport "


def named(what: str) -> str:
    """The name of a chain: 27 characters of at most 28 (XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h)."""
    data = what.encode()
    return f"{PREFIX}{crc32(data):08x}{adler32(data):08x}"
