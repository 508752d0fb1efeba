"""Rules that others made, and a new connection followed through them. Pure.

Theory of operation. Whatever the form (iptables-save's text in `saved`, nft's JSON in `listed`), a rule becomes
*clauses*: for which ports of which protocols it does what. One connection stands for all that arrive: new, from outside
(never "lo"), to an address of this host; with NAT already done or not. A condition that is true of it vanishes, a rule
with a false one vanishes whole, and one that depends on more (its source, the interface, a limit) leaves the clause
*uncertain*: what that decides, it decides for some. `follow` then walks a base chain with all ports at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from redirector.model import Ports
from redirector.records import NamedTuple

Spans = tuple[Ports, ...]  # in order, disjoint, not adjacent
ALL: Spans = (Ports(0, 65535),)
DEPTH = 16  # jumps that the kernel follows (NFT_JUMP_STACK_SIZE)
BUDGET = 300_000  # clauses that are looked at in one walk: others' chains may be entered along very many ways
_NONE: MappingProxyType[Any, Any] = MappingProxyType({})
_LAST = attrgetter("last")


class Clause(NamedTuple):
    """`verdict`: accept, drop (also reject), nat, return, jump or goto `chain`. `protocols`, `ports`, `families` (ipv4,
    ipv6): None is any. `dnat`: only connections of which the destination was (not) translated; None: either."""

    verdict: str
    text: str
    chain: str = ""
    protocols: frozenset[str] | None = None
    ports: Spans | None = None
    families: frozenset[str] | None = None
    dnat: bool | None = None
    certain: bool = True


class Base(NamedTuple):
    """Where a chain is attached: `type` (nat, filter), `hook`, `priority`, `policy` (accept, drop)."""

    type: str
    hook: str
    priority: int
    policy: str


class Table(NamedTuple):
    """A table of others: `form` is nftables, iptables-nft or iptables-legacy, `family` nft's word (ip, ip6, inet)."""

    form: str
    family: str
    name: str
    bases: Mapping[str, Base] = _NONE
    chains: Mapping[str, tuple[Clause, ...]] = _NONE

    @property
    def families(self) -> tuple[str, ...]:
        return {"ip": ("ipv4",), "ip6": ("ipv6",)}.get(self.family, ("ipv4", "ipv6"))


class Question(NamedTuple):
    """Connections of `protocol` over `family` to any of `ports`; `dnat`: their destination was translated already."""

    protocol: str
    family: str
    ports: Spans
    dnat: bool = False


class Hit(NamedTuple):
    """`ports` of a question that a clause of `chain` decides (None: the base chain's policy); not `certain`: for some
    of the connections only."""

    ports: Spans
    verdict: str
    chain: str
    clause: Clause | None
    certain: bool


def spans(found: Iterable[tuple[int, int]]) -> Spans:
    """(first, last) in any order as Spans."""
    merged: list[Ports] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = Ports(merged[-1].first, max(last, merged[-1].last))
        else:
            merged.append(Ports(first, last))
    return tuple(merged)


def overlap(one: Spans, other: Spans) -> Spans:
    """The ports in both; costs the logarithm of the longer one for each span of the shorter."""
    if len(one) < len(other):
        one, other = other, one
    found = []
    for wanted in other:
        at = bisect_left(one, wanted.first, key=_LAST)
        while at < len(one) and one[at].first <= wanted.last:
            found.append(Ports(max(one[at].first, wanted.first), min(one[at].last, wanted.last)))
            at += 1
    return tuple(found)


def without(one: Spans, other: Spans) -> Spans:
    """The ports of one that are not in the other; spans that they do not share are not looked at, only copied."""
    shared = overlap(one, other)
    if not shared:
        return one
    begin = bisect_left(one, shared[0].first, key=_LAST)
    end = bisect_left(one, shared[-1].last, key=_LAST) + 1
    found, at = [], 0
    for span in one[begin:end]:
        first = span.first
        while at < len(shared) and shared[at].last <= span.last:
            if first < shared[at].first:
                found.append(Ports(first, shared[at].first - 1))
            first = shared[at].last + 1
            at += 1
        if first <= span.last:
            found.append(Ports(first, span.last))
    return (*one[:begin], *found, *one[end:])


def follow(table: Table, base: str, question: Question) -> Iterator[Hit]:
    """What becomes of the connections in a base chain: each port's last certain hit is its end.

    A walk that costs more than BUDGET ends without a verdict for what was left: nothing is claimed of it.
    """
    walk = _Walk(table, question)
    left, hits = walk.enter(base, question.ports, True, 0)
    yield from hits
    if left and walk.budget > 0:
        yield Hit(left, table.bases[base].policy, base, None, True)


class _Walk:
    def __init__(self, table: Table, question: Question) -> None:
        self.table, self.question = table, question
        self.budget = BUDGET

    def enter(self, chain: str, ports: Spans, certain: bool, depth: int) -> tuple[Spans, list[Hit]]:
        """The ports that come back to the caller, and what was decided."""
        back: Spans = ()
        hits: list[Hit] = []
        clauses = self.table.chains.get(chain, ()) if depth <= DEPTH else ()
        for clause in clauses:
            self.budget -= 1
            if not ports or self.budget <= 0:
                break
            asked = self._asked(clause, ports)
            if not asked:
                continue
            sure = certain and clause.certain
            returned: Spans = asked
            if clause.verdict in ("jump", "goto"):
                returned, inner = self.enter(clause.chain, asked, sure, depth + 1)
                hits += inner
            elif clause.verdict != "return":
                hits.append(Hit(asked, clause.verdict, chain, clause, sure))
                returned = ()
            if not clause.certain:
                continue
            ports = without(ports, asked)
            if clause.verdict == "jump":
                ports = spans([*ports, *returned])
            else:
                back = spans([*back, *returned])
        return spans([*back, *ports]), hits

    def _asked(self, clause: Clause, ports: Spans) -> Spans:
        """The ports that a clause is about."""
        if clause.protocols is not None and self.question.protocol not in clause.protocols:
            return ()
        if clause.families is not None and self.question.family not in clause.families:
            return ()
        if clause.dnat is not None and clause.dnat != self.question.dnat:
            return ()
        return ports if clause.ports is None else overlap(ports, clause.ports)
