"""A Program as rules of iptables, for one family. Pure.

Theory of operation. A Program's chains are walked as a packet would walk them, and written down as iptables has them:

    -A PREROUTING -m addrtype --dst-type LOCAL -j REDIRECTOR-IN        the first rule there; OUTPUT, -OUT likewise
    -A REDIRECTOR-IN -s 10.0.0.0/8 -j REDIRECTOR-…                     narrower scopes, most specific first
    -A REDIRECTOR-IN -d 192.0.2.1/32 -j REDIRECTOR-…
    -A REDIRECTOR-IN -i veth+ -j REDIRECTOR-…
    -A REDIRECTOR-IN -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080

There is a rule for each run of ports and none for each port: DNAT shifts a range by itself (`:9090-9099/190`). REDIRECT
cannot, so a shifted range with `rewrite = "redirect"` is a rule for each port. More than FLAT rules of ports in one
place become a tree: the range of ports is cut in FAN blocks again and again, and a packet passes some dozens of rules
at most, whatever their number. Blocks are aligned to multiples of their size, so that a port that comes or goes changes
the one chain that it is in.

The guards of exclusive mappings are in the filter table, which iptables changes apart from nat.

What counts for both sides alike and everybody is in one chain, REDIRECTOR-ALL, that -IN and -OUT end with.

Chains are named by a digest of what they are for: iptables has room for 28 characters. What a chain means is told by
the way to it, never by its name (see `reading`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_
from zlib import adler32, crc32

from redirector import naming
from redirector.model import PROTOCOLS, Ports
from redirector.program import (
    Dispatch,
    Entries,
    Guard,
    Jump,
    LocalJump,
    Program,
    Rule,
    Translate,
    protocol_name,
    runs,
)
from redirector.records import NamedTuple

PREFIX = "REDIRECTOR-"
TOP = {"arriving": f"{PREFIX}IN", "own": f"{PREFIX}OUT"}  # by chain of the Program
ALL = f"{PREFIX}ALL"
GUARD = f"{PREFIX}GUARD"
LOCAL = "-m addrtype --dst-type LOCAL -j "
GUARDED = f"! -i lo -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j {GUARD}"
KEEP = "-m conntrack --ctstate INVALID"  # has no target: all that it does is to hold connection tracking
SYN = "--tcp-flags FIN,SYN,RST,ACK SYN"  # what `--syn` is saved as
# Where ours are in chains of everybody: (table, chain).
BUILTIN = (("nat", "PREROUTING"), ("nat", "OUTPUT"), ("filter", "INPUT"))
UNREACHABLE = {"ipv4": "icmp-port-unreachable", "ipv6": "icmp6-port-unreachable"}
FLAT = 64  # rules of ports in one chain; more become a tree
FAN = 32  # blocks to a chain of the tree

Chains = dict[str, list[str]]
Tables = dict[str, Chains]  # rules by chain, by table; of a built-in chain only those that are ours


class Item(NamedTuple):
    """One rule of ports: protocol number, and the first and last port."""

    protocol: int
    first: int
    last: int
    text: str


def encode(program: Program | None, family: str) -> Tables:
    """The rules for one family, in the words and the order in which iptables-save has them."""
    return encoded(program, (family,))[family]


def encoded(program: Program | None, families: Iterable[str]) -> dict[str, Tables]:
    """The rules for each family: see `encode`. What is the same in all of them is made once."""
    found: dict[str, Tables] = {family: {"nat": {}, "filter": {}} for family in families}
    items: _Items = {}
    for family, tables in found.items():
        if program is not None and program.chains:
            tables["nat"] = _Nat(program, family, items).chains
            tables["filter"] = _guards(program, family)
    return found


_Items = dict[tuple[tuple[str, ...], ...], list[Item]]  # by the maps that they are made from


class _Nat:
    """The nat table: `chains`."""

    def __init__(self, program: Program, family: str, items: _Items) -> None:
        self.program, self.family, self._items = program, family, items
        self.chains: Chains = {}
        self._any = False
        for base, chain in (("prerouting", "arriving"), ("output", "own")):
            if LocalJump(chain) in program.chains[base].rules:
                self.chains[base.upper()] = [LOCAL + TOP[chain]]
                self._chain(chain)
        if not self._any:  # nothing for this family: no packet needs to be led anywhere
            self.chains = {TOP["arriving"]: [KEEP]}

    def _chain(self, name: str) -> str:
        """Write a chain and all that it leads to; its name, "" where nothing of this family is in it."""
        texts: list[str] = []
        looked_up: list[Translate] = []
        for rule in self.program.chains[name].rules:
            if isinstance(rule, Translate):
                looked_up += [rule] * (rule.family in ("", self.family))
            else:
                texts += [f"{condition} -j {chain}".lstrip() for condition, chain in self._jumps(rule) if chain]
        shared = [rule for rule in looked_up if name in TOP and naming.serves_both(rule.map)]
        alone = [rule for rule in looked_up if rule not in shared]
        items = self._ports(alone)
        if not (texts or alone) and name not in TOP:
            return ""
        self._any = self._any or bool(alone)
        own = TOP.get(name) or named(name)
        self.chains[own] = texts + tree(own, items, self.chains)
        if shared:
            self._share(own, shared)
        return own

    def _share(self, own: str, shared: list[Translate]) -> None:
        """Let a top chain end with what both of them lead to."""
        if ALL not in self.chains:
            self._any = True
            self.chains[ALL] = tree(ALL, self._ports(shared), self.chains)
        self.chains[own].append(f"-j {ALL}")

    def _ports(self, looked_up: Iterable[Translate]) -> list[Item]:
        """The rules of ports of these rules of a Program. That a mapping stands in one map for both families or in one
        for each is all the same here, and so maps of one form are taken together."""
        maps: dict[str, list[str]] = {}
        for rule in looked_up:
            maps.setdefault(rule.rewrite, []).append(rule.map)
        known = tuple((rewrite, *names) for rewrite, names in maps.items())
        if known not in self._items:
            entries = {
                rewrite: reduce(or_, (self.program.maps[name].entries for name in names))
                for rewrite, names in maps.items()
            }
            found = (item for rewrite, some in entries.items() for item in _translations(rewrite, some))
            self._items[known] = sorted(found)
        return self._items[known]

    def _jumps(self, rule: Rule) -> Iterator[tuple[str, str]]:
        """(condition, chain) of each jump that a rule of a Program stands for."""
        match rule:
            case Jump(family, interface, target) if family in ("", self.family):
                condition = f"-i {interface.replace('*', '+')}" if interface else ""
                if not family and not interface:
                    condition = "-o lo"  # the host's own connections, which "lo" narrows to
                yield condition, self._chain(target)
            case Dispatch("interface", _, _, found):
                for key, value in sorted(self.program.maps[found].entries.items()):
                    yield f"-i {key}", self._chain(value[0])
            case Dispatch(field, family, prefix, found) if family == self.family:
                option, length = ("-s", prefix) if field == "source" else ("-d", 128 if family == "ipv6" else 32)
                for key, value in sorted(self.program.maps[found].entries.items()):
                    yield f"{option} {key}/{length}", self._chain(value[0])


def _translations(rewrite: str, entries: Entries) -> Iterator[Item]:
    for mapping, protocol, ports, targets in runs(entries):
        if rewrite == "port":
            to = f":{targets}" if targets.size == 1 else f":{targets}/{ports.first}"
            yield _item(protocol, ports, f"{mapping} -j DNAT --to-destination {to}")
        elif targets.size == 1:
            yield _item(protocol, ports, f"{mapping} -j REDIRECT --to-ports {targets}")
        else:
            for port, target in zip(range(ports.first, ports.last + 1), range(targets.first, 65536), strict=False):
                yield _item(protocol, Ports(port, port), f"{mapping} -j REDIRECT --to-ports {target}")


def _item(protocol: int, ports: Ports, rest: str, flags: str = "") -> Item:
    text = f"{_match(protocol, ports.first, ports.last)}{flags} -m comment --comment {_quoted(rest)}"
    return Item(protocol, ports.first, ports.last, text)


def _quoted(rest: str) -> str:
    """The comment (first word) as iptables-save has it: in quotes unless of letters, digits, "_" and "-" alone
    (xtables_save_string in libxtables/xtables.c). A mapping's name has nothing in it that would have to be escaped."""
    name, _, more = rest.partition(" ")
    return f'"{name}" {more}' if "." in name else rest


def _match(protocol: int, first: int, last: int) -> str:
    name = protocol_name(protocol)
    return f"-p {name} -m {name} --dport {first}" + (f":{last}" if last > first else "")


def _guards(program: Program, family: str) -> Chains:
    """The filter table; empty where nothing is guarded."""
    chains: Chains = {}
    places: dict[str, list[Item]] = {}
    for rule in (rule for chain in program.chains.values() for rule in chain.rules):
        if isinstance(rule, Guard) and rule.family in ("", family):
            by_address: dict[str, Entries] = {}
            for key, value in program.maps[rule.map].entries.items():
                address, port = key if rule.at else ("", key)
                by_address.setdefault(address, {})[port] = value
            for address, found in by_address.items():
                places.setdefault(address, []).extend(_refusals(family, found))
    if not places:
        return chains
    chains["INPUT"] = [GUARDED]
    jumps = []
    for address in sorted(filter(None, places)):
        chain = named(f"guard {address}")
        chains[chain] = tree(chain, sorted(places[address]), chains)
        jumps.append(f"-d {address}/{128 if family == 'ipv6' else 32} -j {chain}")
    chains[GUARD] = jumps + tree(GUARD, sorted(places.get("", [])), chains)
    return chains


def _refusals(family: str, entries: Entries) -> Iterator[Item]:
    for mapping, protocol, ports, _ in runs(entries):
        tcp = protocol == PROTOCOLS["tcp"]
        how = "tcp-reset" if tcp else UNREACHABLE[family]
        yield _item(protocol, ports, f"{mapping} -j REJECT --reject-with {how}", f" {SYN}" if tcp else "")


def tree(name: str, items: list[Item], chains: Chains) -> list[str]:
    """The rules of the chain `name` for these items (sorted); chains below it are added to `chains`."""
    if len(items) <= FLAT:
        return [item.text for item in items]
    protocols = sorted({item.protocol for item in items})
    texts = []
    for protocol in protocols:
        mine = [item for item in items if item.protocol == protocol]
        below = named(f"{name} {protocol}")
        texts.append(f"-p {protocol_name(protocol)} -j {below}")
        chains[below] = _blocks(below, mine, 0, 65536, chains)
    return texts


def _blocks(name: str, items: list[Item], start: int, width: int, chains: Chains) -> list[str]:
    """As `tree`, for items of one protocol within the `width` ports from `start` on."""
    size = width // FAN
    if len(items) <= FLAT or size < 1:
        return [item.text for item in items]
    blocks: dict[int, list[Item]] = {}
    texts = []
    for item in items:
        block = (item.first - start) // size
        if (item.last - start) // size != block:
            texts.append(item.text)  # more than one block: at most as many as there are blocks, as none overlap
        else:
            blocks.setdefault(block, []).append(item)
    for block, mine in blocks.items():
        if len(mine) == 1:
            texts.append(mine[0].text)
            continue
        first = start + block * size
        below = named(f"{name} {first} {size}")
        texts.append(f"{_match(items[0].protocol, first, first + size - 1)} -j {below}")
        chains[below] = _blocks(below, mine, first, size, chains)
    return texts


def named(what: str) -> str:
    """The name of a chain: 27 characters of at most 28 (XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h)."""
    data = what.encode()
    return f"{PREFIX}{crc32(data):08x}{adler32(data):08x}"
