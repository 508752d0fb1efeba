"""A Program as rules of iptables, for one family. Pure.

Theory of operation. A Program's chains are walked as a packet would walk them, and written down as iptables has them:

    -A PREROUTING -m addrtype --dst-type LOCAL -j REDIRECTOR-IN        the first rule there; OUTPUT, -OUT likewise
    -A REDIRECTOR-IN -s 10.0.0.0/8 -j REDIRECTOR-…                     narrower scopes, most specific first
    -A REDIRECTOR-IN -d 192.0.2.1/32 -j REDIRECTOR-…
    -A REDIRECTOR-IN -i veth+ -j REDIRECTOR-…
    -A REDIRECTOR-IN -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080

There is a rule for each run of ports and none for each port: DNAT shifts a range by itself (`:9090-9099/190`). REDIRECT
cannot, so a shifted range with `rewrite = "redirect"` is a rule for each port. Many rules of ports in one place become
a tree (see `tree`).

Rules that lead to other addresses (`--to-destination 10.88.0.5:8080`) are in a chain of their own in each place, which
what is on loopback is not led to. What then has to be masqueraded is in `hairpins`.

The guards of exclusive mappings are in the filter table, which iptables changes apart from nat.

What counts for both sides alike and everybody is in one chain, REDIRECTOR-ALL, that -IN and -OUT end with.

Chains are named by a digest of what they are for: iptables has room for 28 characters. What a chain means is told by
the way to it, never by its name (see `reading`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_

from redirector import naming
from redirector.backends.iptables import hairpins
from redirector.backends.iptables.tree import PREFIX, Chains, Items, Tree, match, named, tree
from redirector.model import PROTOCOLS
from redirector.program import (
    FORWARDS,
    Dispatch,
    Entries,
    Guard,
    Jump,
    LocalJump,
    Program,
    Rule,
    Translate,
    endpoint_parts,
    spans,
)

TOP = {"arriving": f"{PREFIX}IN", "own": f"{PREFIX}OUT"}  # by chain of the Program
ALL = f"{PREFIX}ALL"
GUARD = f"{PREFIX}GUARD"
LOCAL = "-m addrtype --dst-type LOCAL -j "
GUARDED = f"! -i lo -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j {GUARD}"
KEEP = "-m conntrack --ctstate INVALID"  # has no target: all that it does is to hold connection tracking
SYN = "--tcp-flags FIN,SYN,RST,ACK SYN"  # what `--syn` is saved as
# Where ours are in chains of everybody: (table, chain).
BUILTIN = (("nat", "PREROUTING"), ("nat", "OUTPUT"), ("nat", hairpins.BUILTIN), ("filter", "INPUT"))
BEYOND = {"ipv4": "! -d 127.0.0.0/8 -j ", "ipv6": "! -d ::1/128 -j "}  # what can leave the host
FULL = {"ipv4": 32, "ipv6": 128}  # the bits of an address
UNREACHABLE = {"ipv4": "icmp-port-unreachable", "ipv6": "icmp6-port-unreachable"}

Tables = dict[str, Chains]  # rules by chain, by table; of a built-in chain only those that are ours
_Found = tuple[int, int, str]  # a rule of ports: the keys of the first and the last port, and its text


def encode(program: Program | None, family: str) -> Tables:
    """The rules for one family, in the words and the order in which iptables-save has them."""
    return encoded(program, (family,))[family]


def encoded(program: Program | None, families: Iterable[str]) -> dict[str, Tables]:
    """The rules for each family: see `encode`. What is the same in all of them is made once."""
    found: dict[str, Tables] = {family: {"nat": {}, "filter": {}} for family in families}
    trees = _Trees(program) if program is not None else None
    for family, tables in found.items():
        if program is not None and trees is not None and program.chains:
            tables["nat"] = _Nat(program, family, trees).chains
            tables["filter"] = _guards(program, family)
    return found


class _Trees:
    """The rules of ports of a Program, by the maps that they are made from, as trees."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._items: dict[_Maps, Items] = {}
        self._trees: dict[tuple[str, _Maps], Tree] = {}

    def items(self, maps: _Maps) -> Items:
        if maps not in self._items:
            found: list[_Found] = []
            for rewrite, *names in maps:
                entries = reduce(or_, (self._program.maps[name].entries for name in names))
                found += _translations(rewrite, entries)
            self._items[maps] = _items(found)
        return self._items[maps]

    def tree(self, name: str, maps: _Maps) -> Tree:
        """See `tree.tree`."""
        if (name, maps) not in self._trees:
            self._trees[name, maps] = tree(name, self.items(maps))
        return self._trees[name, maps]


_Maps = tuple[tuple[str, ...], ...]  # for each rewrite: it, and the names of the maps


class _Nat:
    """The nat table: `chains`."""

    def __init__(self, program: Program, family: str, trees: _Trees) -> None:
        self.program, self.family, self._trees = program, family, trees
        self.chains: Chains = {}
        self._any = False
        for base, chain in (("prerouting", "arriving"), ("output", "own")):
            if LocalJump(chain) in program.chains[base].rules:
                self.chains[base.upper()] = [LOCAL + TOP[chain]]
                self._chain(chain)
        self._hairpins()
        if not self._any:  # nothing for this family: no packet needs to be led anywhere
            self.chains = {TOP["arriving"]: [KEEP]}

    def _chain(self, name: str) -> str:
        """Write a chain and all that it leads to; its name, "" where nothing of this family is in it."""
        texts: list[str] = []
        looked_up: list[Translate] = []
        for rule in self.program.chains[name].rules:
            if isinstance(rule, Translate):
                looked_up += [rule] * (rule.family in ("", self.family))
            elif isinstance(rule, Jump | Dispatch):
                texts += [f"{condition} -j {chain}".lstrip() for condition, chain in self._jumps(rule) if chain]
        shared = [rule for rule in looked_up if name in TOP and naming.serves_both(rule.map)]
        alone = [rule for rule in looked_up if rule not in shared]
        if not (texts or alone) and name not in TOP:
            return ""
        own = TOP.get(name) or named(name)
        self.chains[own] = texts + self._ports(own, alone)
        if shared:  # what both top chains end with
            if ALL not in self.chains:
                self.chains[ALL] = self._ports(ALL, shared)
            self.chains[own].append(f"-j {ALL}")
        return own

    def _ports(self, name: str, looked_up: Iterable[Translate]) -> list[str]:
        """The rules of the chain `name` for these rules of a Program; what they lead to is written. That a mapping
        stands in one map for both families or in one for each is all the same here, and so maps of one form are taken
        together."""
        maps: dict[str, list[str]] = {}
        forwards: list[str] = []
        for rule in looked_up:
            names = forwards if rule.rewrite == "forward" else maps.setdefault(rule.rewrite, [])
            names.append(rule.map)
        found = self._trees.tree(name, tuple((rewrite, *names) for rewrite, names in maps.items()))
        self._any = self._any or bool(maps or forwards)
        self.chains |= found.below
        if not forwards:
            return found.rules
        beyond = named(f"forward {name}")
        below = self._trees.tree(beyond, ((FORWARDS[self.family], *forwards),))
        self.chains |= below.below
        self.chains[beyond] = below.rules
        return [*found.rules, BEYOND[self.family] + beyond]

    def _hairpins(self) -> None:
        """The way from the postrouting hook."""
        top: list[str] = []
        for network, addresses in hairpins.by_network(self.program, self.family):
            place = named(f"hairpin {network}")
            top.append(f"-s {network} -j {place}")
            self.chains[place] = []
            for address, entries in addresses.items():
                chain = named(f"hairpin {network} {address}")
                self.chains[place].append(f"-d {address}/{FULL[self.family]} -j {chain}")
                self.chains[chain] = _grown(chain, [*_masquerades(entries)], self.chains)
        if top:
            self.chains[hairpins.BUILTIN] = [hairpins.REDIRECTED]
            self.chains[hairpins.TOP] = top

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
                option, length = ("-s", prefix) if field == "source" else ("-d", FULL[family])
                for key, value in sorted(self.program.maps[found].entries.items()):
                    yield f"{option} {key}/{length}", self._chain(value[0])


def _translations(rewrite: str, entries: Entries) -> Iterator[_Found]:
    for mapping, first, last, target, final in spans(entries):
        comment = f"-m comment --comment {_quoted(mapping)} -j"
        if rewrite in FORWARDS.values():
            address, port = endpoint_parts(rewrite, target)
            shift = f"-{final & 0xFFFF}/{first & 0xFFFF}" if final > target else ""
            where = f"[{address}]" if ":" in address else address
            yield first, last, f"{match(first, last)} {comment} DNAT --to-destination {where}:{port}{shift}"
        elif rewrite == "port":
            to = f"{target}-{final}/{first & 0xFFFF}" if final > target else target
            yield first, last, f"{match(first, last)} {comment} DNAT --to-destination :{to}"
        elif target == final:
            yield first, last, f"{match(first, last)} {comment} REDIRECT --to-ports {target}"
        else:
            for key in range(first, last + 1):
                yield key, key, f"{match(key, key)} {comment} REDIRECT --to-ports {target + key - first}"


def _masquerades(entries: Entries) -> Iterator[_Found]:
    for mapping, first, last, _, _ in spans(entries):
        yield first, last, f"{match(first, last)} -m comment --comment {_quoted(mapping)}{hairpins.ACTION}"


def _quoted(mapping: str) -> str:
    """The comment as iptables-save has it: in quotes unless of letters, digits, "_" and "-" alone
    (xtables_save_string in libxtables/xtables.c). A mapping's name has nothing in it that would have to be escaped."""
    return f'"{mapping}"' if "." in mapping else mapping


def _items(found: list[_Found]) -> Items:
    found.sort()
    return Items([first for first, _, _ in found], [last for _, last, _ in found], [text for _, _, text in found])


def _guards(program: Program, family: str) -> Chains:
    """The filter table; empty where nothing is guarded."""
    chains: Chains = {}
    places: dict[str, list[_Found]] = {}
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
        chains[chain] = _grown(chain, places[address], chains)
        jumps.append(f"-d {address}/{FULL[family]} -j {chain}")
    chains[GUARD] = jumps + _grown(GUARD, places.get("", []), chains)
    return chains


def _grown(name: str, found: list[_Found], chains: Chains) -> list[str]:
    """The rules of the chain `name`; those below it are added to `chains`."""
    grown = tree(name, _items(found))
    chains |= grown.below
    return grown.rules


def _refusals(family: str, entries: Entries) -> Iterator[_Found]:
    for mapping, first, last, _, _ in spans(entries):
        tcp = first >> 16 == PROTOCOLS["tcp"]
        how = "tcp-reset" if tcp else UNREACHABLE[family]
        flags = f" {SYN}" if tcp else ""
        comment = f"-m comment --comment {_quoted(mapping)}"
        yield first, last, f"{match(first, last)}{flags} {comment} -j REJECT --reject-with {how}"
