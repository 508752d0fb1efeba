"""Rules out of iptables-save's text → clauses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from redirector.backends.iptables.save import SavedRule, SavedTable, words
from redirector.backends.iptables.tree import PREFIX
from redirector.others import ALL, Base, Clause, Spans, Table, spans, without

# iptables' own chains and the priorities of their hooks (linux/netfilter_ipv4.h: NF_IP_PRI_NAT_DST, NF_IP_PRI_FILTER);
# the nft variant uses the same.
BASES = {
    ("nat", "PREROUTING"): ("nat", "prerouting", -100),
    ("nat", "OUTPUT"): ("nat", "output", -100),
    ("filter", "INPUT"): ("filter", "input", 0),
    ("filter", "FORWARD"): ("filter", "forward", 0),
}
VERDICTS = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "RETURN": "return",
    "DNAT": "nat",
    "REDIRECT": "nat",
    "NETMAP": "nat",
    # A program decides: nothing can be said of it, and nothing is.
    "QUEUE": "accept",
    "NFQUEUE": "accept",
}
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
# Matches that say nothing by themselves, or nothing that is not true of every new connection.
NEUTRAL = ("-m", "--match", "--comment")
NEW = ["FIN,SYN,RST,ACK", "SYN"]  # --syn


def table(form: str, family: str, name: str, found: SavedTable) -> Table:
    """A table as `others` has it; `family` is ipv4 or ipv6."""
    bases = {
        chain: Base(*BASES[name, chain], policy.lower())
        for chain, policy in found.policies.items()
        if (name, chain) in BASES
    }
    chains = {
        chain: tuple(c for rule in rules for c in clauses(chain, rule, found.policies.__contains__))
        for chain, rules in found.rules.items()
    }
    return Table(form, {"ipv4": "ip", "ipv6": "ip6"}[family], name, bases, chains)


class _Never(Exception):
    """The rule is not for a new connection from outside to this host."""


def clauses(chain: str, rule: SavedRule, known: Callable[[str], bool]) -> Iterator[Clause]:
    """The clause of a rule, or none where it decides nothing; `known` tells which words are chains. Rules that lead to
    our chains are none of others'."""
    try:
        text = words(rule.text)
        clause = Clause("", f"-A {chain} {rule.text}")
        for negated, option, values in _options(text):
            if option in ("-j", "-g", "--jump", "--goto"):
                target = values[0] if values else ""
                if target.startswith(PREFIX):
                    return
                verdict = VERDICTS.get(target, "")
                if known(target):
                    verdict = "goto" if option in ("-g", "--goto") else "jump"
                if verdict:
                    yield clause._replace(verdict=verdict, chain=target if known(target) else "")
                return
            clause = _narrowed(clause, negated, option, values)
    except (_Never, ValueError):
        return


def _options(found: tuple[str, ...]) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, option, its values) of the words of a rule."""
    at, negated = 0, False
    while at < len(found):
        word = found[at]
        at += 1
        if word == "!":
            negated = True
            continue
        # A comment may be any text; for the others a value that looks like an option is none.
        end = at + 1 if word == "--comment" else at
        while word != "--comment" and end < len(found) and found[end] != "!" and not found[end].startswith("-"):
            end += 1
        yield negated, word, list(found[at:end])
        at, negated = end, False


def _narrowed(clause: Clause, negated: bool, option: str, values: list[str]) -> Clause:
    """The clause with one more condition. Raises _Never where that is false of every connection that is asked for."""
    value = values[0] if values else ""
    if option in NEUTRAL:
        return clause
    if option in ("-p", "--protocol"):
        if value == "all":
            return clause
        named = PROTOCOLS - {value} if negated else PROTOCOLS & {value}
        return clause._replace(protocols=named if clause.protocols is None else clause.protocols & named)
    if option in ("--dport", "--dports"):
        found = ports(value)
        return clause._replace(ports=without(ALL, found) if negated else found)
    if option in ("-i", "--in-interface"):
        if value == "lo" and not negated:
            raise _Never
        return clause if value == "lo" else clause._replace(certain=False)
    if option in ("--ctstate", "--state"):
        return _state(clause, negated, set(value.split(",")))
    if option == "--dst-type":
        if ("LOCAL" in value.split(",")) == negated:
            raise _Never
        return clause
    if option == "--tcp-flags" and values == NEW:
        if negated:
            raise _Never
        return clause
    return clause._replace(certain=False)


def _state(clause: Clause, negated: bool, states: set[str]) -> Clause:
    if negated:
        if "NEW" in states:
            raise _Never
        return clause._replace(dnat=False) if "DNAT" in states else clause
    if "NEW" in states:
        return clause
    if "DNAT" in states:
        return clause._replace(dnat=True)
    raise _Never


def ports(text: str) -> Spans:
    """The ports of "80", "80:90", ":90", "80:" or several of them behind commas. Raises ValueError."""
    found = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        low = int(first or 0)
        found.append((low, int(last or 65535) if colon else low))
    return spans(found)
