"""How the rules that were read differ from those that we would write, told in mappings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from redirector.backends.iptables import rules
from redirector.backends.iptables.save import SavedRule, SavedTable
from redirector.backends.iptables.tree import PREFIX, Chains
from redirector.errors import plural, printable
from redirector.program import Damage


def leads_to_us(text: str) -> bool:
    """Whether a rule leads to a chain of ours: that comes last in it, and a comment of that wording ends in a quote."""
    option, chain = ("", "", *text.split(" "))[-2:]
    return option in ("-j", "-g") and chain.startswith(PREFIX) and not chain.endswith('"')


def commented(text: str) -> str:
    """The mapping that a rule of ours is of, "" where it has none."""
    _, found, rest = text.partition(" -m comment --comment ")
    return rest.split(" ", 1)[0].strip('"') if found else ""


def damage(family: str, wanted: rules.Tables, ours: rules.Tables, saved: dict[str, SavedTable]) -> Iterator[Damage]:
    """How what was read differs from what the guess would be written as."""
    tool = "ip6tables" if family == "ipv6" else "iptables"
    for table in ("nat", "filter"):
        expected, found = wanted[table], ours[table]
        for chain in [*expected, *(name for name in found if name not in expected)]:
            place = f"{tool} {table} {printable(chain)}"
            if chain not in expected and chain.startswith(PREFIX):
                yield Damage("remove", f"{place}: nothing leads to this chain", _serves(found, [chain]))
            elif chain not in found:
                yield Damage("add", f"{place}: it is missing", _serves(expected, [chain]))
            elif expected.get(chain) != found[chain]:
                yield from _rules_damage(place, expected.get(chain, []), found[chain], expected, chain)
        for _, chain in (spot for spot in rules.BUILTIN if spot[0] == table and spot[1] in expected):
            before = _before(saved, table, chain)
            if before and expected[chain] == found.get(chain):
                place = f"{tool} {table} {chain}"
                words_ = f"{place}: our jump is not first: {plural(len(before), 'rule')} of others before it, "
                yield Damage("change", words_ + f"such as {before[0].text[:80]}", _serves(expected, [chain]))


def _before(saved: dict[str, SavedTable], table: str, chain: str) -> list[SavedRule]:
    """The rules of others that stand before our jump in a built-in chain."""
    kept = saved[table].rules.get(chain, []) if table in saved else []
    first = next((i for i, rule in enumerate(kept) if leads_to_us(rule.text)), 0)
    return kept[:first]


def displaced(saved: dict[str, dict[str, SavedTable]]) -> bool:
    """Whether a rule of others stands before a jump of ours."""
    return any(_before(tables, *place) for tables in saved.values() for place in rules.BUILTIN)


def _rules_damage(place: str, expected: list[str], found: list[str], chains: Chains, chain: str) -> Iterator[Damage]:
    gone, new = _without(expected, found), _without(found, expected)
    for text in gone:
        yield Damage("add", f"{place}: a rule is missing: {text}", _behind(text, chain, chains))
    for text in new:
        words = f"{place}: a rule is not ours, or stands here twice: {printable(text)}"
        yield Damage("remove", words, _behind(text, chain, chains))
    if not gone and not new:
        yield Damage("change", f"{place}: the rules are in another order", _serves(chains, [chain]))


def _behind(text: str, chain: str, chains: Chains) -> tuple[str, ...]:
    """The mappings that a rule is about; of one that is nothing of ours, all that are served by its chain."""
    if commented(text):
        return (commented(text),)
    return _serves(chains, [text.rpartition("-j ")[2] if leads_to_us(text) else chain])


def _without(texts: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of `texts` that are not in `others`, each as often as it is too many."""
    left: dict[str, int] = {}
    for text in others:
        left[text] = left.get(text, 0) + 1
    found = []
    for text in texts:
        if left.get(text, 0):
            left[text] -= 1
        else:
            found.append(text)
    return found


def _serves(chains: Chains, names: Iterable[str]) -> tuple[str, ...]:
    """The mappings of which rules are in these chains, or in those that they lead to."""
    pending, seen, found = list(names), set[str](), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in chains.get(name, ()):
            found.add(commented(text))
            pending.append(text.rpartition("-j ")[2])
    return tuple(sorted(found - {""}))
