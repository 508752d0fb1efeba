"""The rules engine: Ruleset → Program. Pure.

Theory of operation. A base chain at each hook (prerouting for what arrives, output for the host's own connections) has
one rule: a local destination jumps to our tree of chains. A tree follows the order in which mappings win, which is
lexicographic (source prefix, then address, then interface), so it is walked by jumps that return on a miss:

    arriving ── by source, longest prefix first ─▶ arriving_from_10.0.0.0/8 ── by address ─▶ … ── by interface ─▶ …
             ── by address ─▶ arriving_at_192.0.2.1 ── by interface ─▶ …
             ── by interface: exact, then wildcards, longest first ─▶ arriving_on_eth0
             ── then the unscoped ports

Each step is one rule and one hash map of verdicts, whatever the number of networks, addresses or interfaces (only
wildcards take a rule each); each leaf is one rule and one hash map of ports, whatever their number. No interval map
is used anywhere: those refuse nesting and are slow to fill.

Beside each map of ports there is a map of the same keys which leads to counters, and a rule before the translating one
that looks into it. There is one counter for each mapping, wherever its ports are: so its count outlives whatever
becomes of them, and an element costs no memory for each CPU.

Targets on other addresses are in maps of their own, one for each family, which nothing on loopback is led to: a packet
of the host to itself cannot leave it. What has to be masqueraded then (see `neighbours`) is found at the postrouting
hook as scopes are: by source, then by a set of the targets that are in the same network.

A scope that counts for both sides alike shares its maps between the two trees.
`exclusive` adds one filter chain at the input hook, after NAT, with sets of guarded target ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TypeVar

from redirector import naming
from redirector.model import ARRIVING, FAMILIES, OWN, PROTOCOLS, SIDES, Mapping, Ruleset, Scope, Target, family_of
from redirector.naming import PortMap
from redirector.program import (
    ADDRESSES,
    COUNTS,
    FORWARDS,
    GUARDS,
    GUARDS_AT,
    INTERFACES,
    PORTS,
    Chain,
    Count,
    Dispatch,
    Entries,
    Guard,
    Hook,
    Jump,
    Keep,
    LocalJump,
    Map,
    Masquerade,
    Program,
    Refuse,
    Rule,
    Skip,
    Translate,
    endpoint,
    port_key,
)

T = TypeVar("T")


class _Every:
    """A container that has everything."""

    def __contains__(self, item: object) -> bool:
        return True


EVERY = _Every()
# Before filter chains at 0, at a priority that nobody else's default has. What we refuse is final whoever comes later.
GUARD_PRIORITY = -10
# Before the source NAT of others, at NF_IP_PRI_NAT_SRC (100, linux/netfilter_ipv4.h): the first verdict wins.
HAIRPIN_PRIORITY = 90


def compile_ruleset(ruleset: Ruleset, only: Container[str] = EVERY) -> Program:
    """The one Program for a Ruleset; that of an empty one drains: base chains, and a rule that holds conntrack.

    With `only`, names of mappings, it has the frame, guards and hairpins of all, but the ports and counters of these
    alone.
    """
    leaves = _leaves(ruleset.enabled, only)
    maps: dict[str, Map] = {}
    for wanted, (ports, counts) in leaves.items():
        maps[naming.port_map(wanted)] = Map(data_kind(wanted), ports)
        maps[naming.count_map(wanted)] = Map(COUNTS, counts)
    maps |= _guards(ruleset.enabled) | _hairpins(ruleset)
    counters = frozenset([naming.counter(mapping.name) for mapping in ruleset.enabled if mapping.name in only])
    return whole(leaves, maps, ruleset.settings.priority, counters)


def data_kind(wanted: PortMap) -> str:
    """The kind of a map of ports."""
    return FORWARDS[wanted.family] if wanted.rewrite == "forward" else PORTS


def whole(leaves: Iterable[PortMap], maps: dict[str, Map], priority: int, counters: frozenset[str]) -> Program:
    """The Program that has these maps of ports, counts and guards (`leaves`: those of ports): the frame put around."""
    frame = skeleton(leaves, maps, priority)
    return Program(frame.chains, maps | frame.maps, counters=counters)


def skeleton(leaves: Iterable[PortMap], names: Iterable[str], priority: int) -> Program:
    """The chains and verdict maps around maps of ports and counts (`leaves`), and of guards (by their `names`).

    That the frame follows from these alone is what lets a damaged frame be told from mappings that come or go.
    """
    leaves, names = list(leaves), set(names)
    chains: dict[str, Chain] = {}
    maps: dict[str, Map] = {}
    for side in SIDES:
        base = naming.BASE_CHAINS[side]
        rules: tuple[Rule, ...] = ()
        if not leaves:
            rules = (Keep(),) if side == ARRIVING else ()
        elif any(wanted.side in ("", side) for wanted in leaves):
            rules = (LocalJump(naming.chain(side, Scope())),)
            _Tree(side, leaves, chains, maps).build()
        chains[base] = Chain(Hook("nat", base, priority), rules)
    guards = [name for name in naming.GUARD_MAPS if name in names]
    if guards:
        chains[naming.REFUSE_CHAIN] = Chain(None, (Refuse("reset"), Refuse("unreachable")))
        rules = tuple(Guard(*naming.GUARD_MAPS[name], name, naming.REFUSE_CHAIN) for name in guards)
        chains[naming.GUARD_CHAIN] = Chain(Hook("filter", "input", GUARD_PRIORITY), rules)
    networks = list(filter(None, map(naming.targets_network, names)))
    if networks:
        _frame_hairpins(networks, chains, maps)
    return Program(chains, maps)


def _frame_hairpins(networks: Iterable[str], chains: dict[str, Chain], maps: dict[str, Map]) -> None:
    """The way from the postrouting hook to the targets in each network, narrowest network first."""
    rules: dict[Rule, None] = {}
    for scope in sorted((Scope(network) for network in networks), key=lambda s: (-s.specificity[0], s)):
        chain = naming.hairpin_chain(scope.source)
        rule, kind, key = _step(naming.HAIRPIN_CHAIN, 0, scope)
        rules[rule] = None
        maps.setdefault(rule.map, Map(kind, {})).entries[key] = (chain, "")
        chains[chain] = Chain(None, (Masquerade(naming.targets_set(scope.source), scope.family),))
    chains[naming.HAIRPIN_CHAIN] = Chain(Hook("nat", naming.HAIRPIN_CHAIN, HAIRPIN_PRIORITY), tuple(rules))


def sizes(mappings: Iterable[Mapping]) -> Counter[str]:
    """How many entries mappings have in each map of ports or counts, by name; counted, not made."""
    found: Counter[str] = Counter()
    for maps, mapping in _alike(
        mappings, lambda m: [f(w) for w in _wanted(m) for f in (naming.port_map, naming.count_map)]
    ):
        size = len(mapping.protocol) * sum([last - first + 1 for first, last in mapping.listen])
        for name in maps:
            found[name] += size
    return found


def _leaves(mappings: Iterable[Mapping], only: Container[str]) -> dict[PortMap, tuple[Entries, Entries]]:
    """Every map of ports with its entries, and those of its counting map."""
    leaves: dict[PortMap, tuple[Entries, Entries]] = {}
    for maps, mapping in _alike(mappings, lambda m: [(w, *leaves.setdefault(w, ({}, {}))) for w in _wanted(m)]):
        if mapping.name in only:
            for wanted, entries, counts in maps:
                to, target = mapping.to, mapping.to.first
                if type(to) is Target:
                    target = endpoint(to.address(wanted.family), target)
                for protocol in mapping.protocol:
                    _fill(entries, counts, mapping, PROTOCOLS[protocol], target)
    return leaves


def _alike(mappings: Iterable[Mapping], make: Callable[[Mapping], T]) -> Iterator[tuple[T, Mapping]]:
    """Each mapping with what `make` gives for its claims: made once for all that are alike, as thousands may be."""
    known: dict[tuple[object, ...], T] = {}
    for mapping in mappings:
        to = mapping.to
        alike = mapping.claims, mapping.family, mapping.rewrite, to.families if type(to) is Target else ()
        if alike not in known:
            known[alike] = make(mapping)
        yield known[alike], mapping


def _wanted(mapping: Mapping) -> Iterator[PortMap]:
    """The maps that a mapping's ports are in."""
    sides: dict[Scope, str] = {}
    for side, scope in mapping.claims:
        sides[scope] = "" if scope in sides else side
    for scope, side in sides.items():
        if mapping.forwards:
            for family in (scope.family,) if scope.family else mapping.families:
                yield PortMap(side, scope, family, "forward")
            continue
        family = "" if scope.family or mapping.family == "both" else mapping.family
        yield PortMap(side, scope, family, mapping.rewrite)


def _fill(entries: Entries, counts: Entries, mapping: Mapping, protocol: int, first_target: int) -> None:
    base, name = port_key(protocol, 0), mapping.name
    counter = (naming.counter(name), "")
    for first, last in mapping.listen:
        if first == last:
            entries[base + first], counts[base + first] = (first_target, name), counter
            continue
        keys = list(range(base + first, base + last + 1))  # the same numbers in both
        if mapping.shifted:
            entries.update(
                (key, (port, name))
                for key, port in zip(keys, range(first_target, first_target + len(keys)), strict=True)
            )
        else:
            entries.update(dict.fromkeys(keys, (first_target, name)))
        counts.update(dict.fromkeys(keys, counter))


class _Tree:
    """The chains and verdict maps of one side."""

    def __init__(self, side: str, leaves: Iterable[PortMap], chains: dict[str, Chain], maps: dict[str, Map]) -> None:
        self.side = side
        self.chains = chains
        self.maps = maps
        self.leaves: dict[Scope, list[PortMap]] = {}
        for wanted in leaves:
            if wanted.side in ("", side):
                self.leaves.setdefault(wanted.scope, []).append(wanted)

    def build(self) -> None:
        self._node(Scope(), sorted(self.leaves), 0)

    def _node(self, here: Scope, scopes: list[Scope], depth: int) -> str:
        """The chain for `here`, dispatching by the scope's parts from `depth` on; returns its name."""
        name = naming.chain(self.side, here)
        rules: list[Rule] = []
        for part in range(depth, 3):
            narrower: dict[Scope, list[Scope]] = {}
            for scope in scopes:
                if scope[part] and not any(scope[depth:part]):
                    narrower.setdefault(here._replace(**{Scope._fields[part]: scope[part]}), []).append(scope)
            rules += self._dispatch(name, part, narrower)
        for wanted in sorted(self.leaves.get(here, ()), key=lambda w: (w.rewrite == "forward", w)):
            if wanted.rewrite == "forward":
                rules.append(Skip(wanted.family))
            rules.append(Count(wanted.family, naming.count_map(wanted)))
            rules.append(Translate(wanted.rewrite, wanted.family, naming.port_map(wanted)))
        self.chains[name] = Chain(None, tuple(rules))
        return name

    def _dispatch(self, parent: str, part: int, narrower: dict[Scope, list[Scope]]) -> list[Rule]:
        """Rules of `parent` that lead to narrower scopes by one part: source, address or interface; longest first."""
        rules: list[Rule] = []
        verdicts: dict[str, Entries] = {}
        for scope in sorted(narrower, key=lambda s: (tuple(-n for n in s.specificity), s)):
            chain = self._node(scope, narrower[scope], part + 1)
            if part == 2 and self.side == OWN:
                rules.append(Jump("", "", chain))  # "lo": whatever the host sends to itself
                continue
            if part == 2 and scope.interface.endswith("*"):
                rules.append(Jump("", scope.interface, chain))
                continue
            if scope.source.endswith("/0") and part == 0:
                rules.append(Jump(scope.family, "", chain))
                continue
            rule, kind, key = _step(parent, part, scope)
            if rule.map not in verdicts:
                verdicts[rule.map] = {}
                self.maps[rule.map] = Map(kind, verdicts[rule.map])
                rules.append(rule)
            verdicts[rule.map][key] = (chain, "")
        return rules


def _step(parent: str, part: int, scope: Scope) -> tuple[Dispatch, str, str]:
    """(rule, kind of its map, key in it) that leads from `parent` to `scope`."""
    family = "ipv6" if ":" in (scope.source, scope.address, "")[part] else "ipv4"
    if part == 0:
        base, _, length = scope.source.partition("/")
        name = naming.verdict_map(parent, f"sources_{family}_{length}")
        return Dispatch("source", family, int(length), name), ADDRESSES[family], base
    if part == 1:
        name = naming.verdict_map(parent, f"addresses_{family}")
        return Dispatch("address", family, 0, name), ADDRESSES[family], scope.address
    return Dispatch("interface", "", 0, naming.verdict_map(parent, "interfaces")), INTERFACES, scope.interface


def _guards(mappings: Iterable[Mapping]) -> dict[str, Map]:
    """The sets of target ports that `exclusive` mappings guard, but for ports that are mapped to themselves."""
    mappings = tuple(mappings)
    guarded = [mapping for mapping in mappings if mapping.exclusive]
    exempt = {key for mapping in mappings for key in _mapped_to_themselves(mapping)} if guarded else set()
    maps: dict[str, Map] = {}
    for mapping in guarded:
        for protocol in (PROTOCOLS[p] for p in mapping.protocol):
            for port in range(mapping.to.first, mapping.to.last + 1):
                key = port_key(protocol, port)
                families = [f for f in mapping.families if (f, key) not in exempt]
                places = [(f, a) for a in mapping.address for f in families if (f == "ipv6") == (":" in a)]
                if not mapping.address:
                    places = [("", "")] if len(families) == len(FAMILIES) else [(f, "") for f in families]
                for family, address in places:
                    kind = GUARDS_AT[family] if address else GUARDS
                    guards = maps.setdefault(naming.guard_map(family, bool(address)), Map(kind, {}))
                    # Several mappings may guard one target; the first in the file gives its name to the entry.
                    guards.entries.setdefault((address, key) if address else key, (0, mapping.name))
    return maps


def _hairpins(ruleset: Ruleset) -> dict[str, Map]:
    """By network, the set of targets in it; what several mappings lead to has the name of the first."""
    maps: dict[str, Map] = {}
    sets: dict[str, Entries] = {}  # by address
    for mapping in [mapping for mapping in ruleset.enabled if type(mapping.to) is Target]:
        from redirector.neighbours import network_of  # what most files have no use for

        to = mapping.to
        for address in to.addresses if isinstance(to, Target) else ():
            if address not in sets:
                name = naming.targets_set(network_of(address, ruleset.networks))
                sets[address] = maps.setdefault(name, Map(GUARDS_AT[family_of(address)], {})).entries
            for protocol in mapping.protocol:
                for port in range(to.first, to.last + 1):
                    sets[address].setdefault((address, port_key(PROTOCOLS[protocol], port)), (0, mapping.name))
    return maps


def _mapped_to_themselves(mapping: Mapping) -> Iterator[tuple[str, int]]:
    """(family, port key) of each port that the mapping sends to itself: no DNAT marks such a connection."""
    for listen, target in mapping.pairs() if not mapping.forwards else ():
        if mapping.shifted:
            same = range(listen.first, listen.last + 1) if listen == mapping.to else range(0)
        else:
            same = range(target, target + 1) if listen.first <= target <= listen.last else range(0)
        for port in same:
            for protocol in mapping.protocol:
                for family in mapping.served:
                    yield family, port_key(PROTOCOLS[protocol], port)
