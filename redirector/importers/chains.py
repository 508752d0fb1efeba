"""The chains of a nat table, walked as a packet walks them. Pure.

Theory of operation. From PREROUTING and from OUTPUT every jump is followed, with the conditions on the way narrowing
those of the rules that it leads to; what comes out is a list in the order in which a packet meets it. A rule that
cannot be said in a mapping is left over. Where it takes packets away from later rules (ACCEPT, RETURN, another
address), it stands in the list without a target, so that what it hides is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redirector.errors import printable
from redirector.importers import rules
from redirector.importers.found import EVERY_PORT, FOREVER, Beyond, Entry, Findings, Leftover, Place, Target
from redirector.importers.rules import Condition, Rule
from redirector.importers.scopes import narrowed
from redirector.model import ARRIVING, OWN, PROTOCOLS, Ports, Scope
from redirector.records import NamedTuple

OURS = "REDIRECTOR-"
HAIRPINS = "REDIRECTOR-POST"
ALL = "REDIRECTOR-ALL"  # what both sides share: the jump to it narrows nothing
DEPTH = 64  # chains deep; iptables itself refuses loops, but a text may have one
VISITS = 400_000  # rules, those of a chain counted for each way to it
HOOKS = (("PREROUTING", ARRIVING), ("OUTPUT", OWN))
SETTLED = ("ACCEPT", "DROP", "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "TPROXY", "BALANCE", "MIRROR")
PASSING = {"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TRACE", "CT", "AUDIT", "TEE", "CLASSIFY", "SET"}


class Line(NamedTuple):
    """One rule: where it stands, and what gives its words (raises ValueError where a quote is open)."""

    place: Place
    words: Callable[[], Sequence[str]]


Chains = dict[str, list[Line]]


def walk(chains: Chains, family: str) -> Findings:
    """What PREROUTING and OUTPUT of a nat table do, for one family."""
    walker = _Walker(chains, family)
    for hook, side in HOOKS:
        walker.side = side
        walker.chain(hook, Condition(), (hook,))
    known = walker.seen | _hairpins(chains)
    unused = {name: lines for name, lines in chains.items() if name not in known and lines}
    hints = []
    if unused:
        names = ", ".join(printable(name) for name in sorted(unused)[:5]) + (" …" if len(unused) > 5 else "")
        hints.append(f"chains of the nat table to which no rule leads that was understood were not looked at: {names}")
    return Findings(walker.entries, walker.left, hints, set())


def _hairpins(chains: Chains) -> set[str]:
    """Our chains behind POSTROUTING, which follow from the mappings."""
    found: set[str] = set()
    pending = [HAIRPINS]
    while pending:
        name = pending.pop()
        if name in chains and name not in found:
            found.add(name)
            pending += [words[-1] for line in chains[name] if (words := line.words()) and words[-1].startswith(OURS)]
    return found


class _Walker:
    def __init__(self, chains: Chains, family: str) -> None:
        self.chains, self.family, self.side = chains, family, ARRIVING
        self.entries: list[Entry] = []
        self.left: list[Leftover] = []
        self.seen: set[str] = set()
        self._parsed: dict[tuple[str, int], Rule | str] = {}
        self._visits = 0
        self._told: set[Place] = set()

    def chain(self, name: str, outer: Condition, way: tuple[str, ...]) -> None:
        self.seen.add(name)
        begin = len(self.entries)
        for index, line in enumerate(self.chains.get(name, ())):
            self._visits += 1
            if self._visits > VISITS:
                self._leave(line.place, "too many rules, counted by every way that leads to them")
                break
            try:
                rule = self._rule(name, index, line)
                condition = self._narrowed(outer, rule, name)
                if condition is not None:
                    self._act(line.place, rule, condition, way, begin)
                elif not name.startswith(OURS):
                    self._leave(line.place, "never reached: the way to it, or its side, excludes it")
            except Beyond as beyond:
                self._leave(line.place, str(beyond))
        # What returns from this chain has hidden its rest, and nothing else.
        for index in range(begin, len(self.entries)):
            if self.entries[index].until == -len(way):
                self.entries[index] = self.entries[index]._replace(until=len(self.entries))

    def _rule(self, chain: str, index: int, line: Line) -> Rule:
        """A rule of a chain that many ways lead to is parsed once."""
        known = self._parsed.get((chain, index))
        if known is None:
            try:
                known = rules.parse(line.words(), self.family)
            except Beyond as beyond:
                known = str(beyond)
            self._parsed[chain, index] = known
        if isinstance(known, str):
            raise Beyond(known)
        return known

    def _leave(self, place: Place, why: str) -> None:
        if place not in self._told:
            self._told.add(place)
            self.left.append(Leftover(place, why))

    def _act(self, place: Place, rule: Rule, condition: Condition, way: tuple[str, ...], begin: int) -> None:
        verdict = rule.verdict
        if verdict in ("REDIRECT", "DNAT"):
            try:
                to = rules.target(rule, self.family)
                if condition.beyond and self.side == OWN and not to.address:
                    raise Beyond(rules.NOT)
            except Beyond as beyond:
                self._leave(place, str(beyond))
                self._add(place, condition, None)
            else:
                self._add(place, condition, to, rule)
        elif verdict in self.chains:
            if verdict in way or len(way) > DEPTH:
                raise Beyond("a loop of chains")
            self.chain(verdict, condition, (*way, verdict))
            if rule.goto:
                self._add(place, condition, None, until=-len(way))
        elif verdict == "RETURN":
            self._leave(place, "an exception: a mapping that is narrower, with to = listen, says the same")
            self._add(place, condition, None, until=-len(way) if len(way) > 1 else FOREVER)
        elif verdict in SETTLED:
            self._leave(place, "an exception" if verdict == "ACCEPT" else f"{verdict} is not part of a mapping file")
            self._add(place, condition, None)
        elif verdict or not way[-1].startswith(OURS):  # ours may hold a rule that only keeps conntrack on
            self._leave(place, f"{printable(verdict)[:40] or 'a rule without a target'} does not redirect")

    def _add(
        self, place: Place, condition: Condition, to: Target | None, rule: Rule | None = None, until: int = FOREVER
    ) -> None:
        protocols = (condition.protocol,) if condition.protocol else tuple(PROTOCOLS)
        if to is not None and not condition.protocol:
            self._leave(place, "a mapping names its protocols")
            to = None
        ports = condition.ports or EVERY_PORT
        name = rule.comment if rule else ""
        scope = condition.scope
        if self.side == OWN and scope.source:
            scope = scope._replace(interface="lo")  # without it a mapping's sources are those of what arrives
        transit = not (condition.local or condition.scope.address or condition.outgoing)
        for protocol in protocols:
            group = (protocol, ports, to)
            found = Entry(place, self.side, self.family, protocol, ports, to, scope, name, transit, until, group)
            self.entries.append(found)

    def _narrowed(self, outer: Condition, rule: Rule, chain: str) -> Condition | None:
        """The condition of a rule within that of the way to it; None where no packet can meet both."""
        inner = rule.condition
        scope = self._side_scope(inner, rule, chain)
        if scope is None or (outer.protocol and inner.protocol and outer.protocol != inner.protocol):
            return None
        both = narrowed(outer.scope, scope)
        if both is None:
            return None
        ports: tuple[Ports, ...] = outer.ports or inner.ports
        if outer.ports and inner.ports:
            ports = rules.common(outer.ports, inner.ports)
            if not ports:
                return None
        return Condition(
            outer.protocol or inner.protocol,
            ports,
            both,
            outer.outgoing or inner.outgoing,
            outer.local or inner.local,
            outer.beyond or inner.beyond,
        )

    def _side_scope(self, inner: Condition, rule: Rule, chain: str) -> Scope | None:
        """The scope of a rule as a mapping has it on this side; None for a rule that no packet of it can meet."""
        scope, ours = inner.scope, chain.startswith(OURS)
        if scope.source.endswith("/0") and not ours:
            scope = scope._replace(source="")
        if ours and rule.verdict.startswith(OURS) and rule.verdict != ALL and inner == Condition():
            # How iptables-save has "-s 0.0.0.0/0".
            return Scope(source="::/0" if self.family == "ipv6" else "0.0.0.0/0")
        if self.side == ARRIVING:
            # What the host sends to itself has been through OUTPUT, and meets no nat rules again.
            return None if scope.interface == "lo" or inner.outgoing else scope
        if scope.interface:
            return None
        if inner.outgoing not in ("", "lo", "+"):
            raise Beyond("a mapping takes connections to this host only")
        return scope._replace(interface="lo") if ours and inner.outgoing else scope
