"""The text for iptables-restore --noflush that leads from the rules that are there to those that should be. Pure.

Of a chain that differs a little, rules are taken away and put in by their numbers, and the others keep their counters;
one that differs more is written anew, whole; those that do not differ are not mentioned. Counts of the connections that
a mapping has taken are carried over from the rules that go to those that come (of the moment in between they may be
lost, and ip6tables-nft 1.8.9 gives no rule a count to begin with). Where somebody changes our chains between reading
and writing, numbers may mean other rules: what is read back afterwards tells, and all is written again. All of one
table is one transaction of the kernel's.
"""

from __future__ import annotations

from redirector.backends.iptables import rules
from redirector.backends.iptables.damage import commented
from redirector.backends.iptables.save import SavedRule, SavedTable
from redirector.backends.iptables.tree import PREFIX, Chains

# What may stand in a rule of somebody's that we take away again by its own text: jumps to our chains have no more.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .:/+-,!_")
EDITS = 32  # in one chain


class Unspeakable(ValueError):
    """A rule in a chain of everybody leads to our chains, and is not to be repeated: a person has to delete it."""


def script(saved: dict[str, SavedTable], ours: rules.Tables, wanted: rules.Tables) -> str:
    """The text for one family; "" where there is nothing to do. `ours` is what `saved` has of us (see `reading.held`).

    Raises Unspeakable.
    """
    return "".join(_table(name, saved.get(name), ours[name], wanted[name]) for name in ("nat", "filter"))


def _table(name: str, saved: SavedTable | None, ours: Chains, wanted: Chains) -> str:
    changed = [c for c, texts in wanted.items() if c.startswith(PREFIX) and ours.get(c) != texts]
    stale = [c for c in ours if c.startswith(PREFIX) and c not in wanted]
    edits = {c: found for c in changed if (found := _edits(ours.get(c, []), wanted[c]))}
    anew = {c: None for c in changed if c not in edits}
    lines = [f":{chain} - [0:0]" for chain in (*anew, *stale)]
    for _, chain in (place for place in rules.BUILTIN if place[0] == name):
        lines += _jumps(chain, saved, ours.get(chain, []), wanted.get(chain, []))
    if not (lines or edits):
        return ""
    kept = saved.rules if saved else {}
    going = [rule for chain in (*anew, *stale) for rule in kept.get(chain, ())]
    going += [kept[chain][at] for chain, (gone, _) in edits.items() for at in gone]
    counts = _counts(going)
    for chain in changed:
        if not counts and chain in anew:  # nearly all of a large text
            before = f"-A {chain} "
            lines += [before + text for text in wanted[chain]]
            continue
        gone, new = edits.get(chain, ((), range(len(wanted[chain]))))
        lines += [f"-D {chain} {at + 1}" for at in reversed(gone)]
        for at in new:
            text = wanted[chain][at]
            count = counts.pop(commented(text), None) if counts else None
            where = f"-I {chain} {at + 1}" if chain in edits else f"-A {chain}"
            lines.append(f"[{count[0]}:{count[1]}] {where} {text}" if count else f"{where} {text}")
    lines += [f"-X {chain}" for chain in stale]
    return "\n".join([f"*{name}", *lines, "COMMIT", ""])


def _edits(old: list[str], new: list[str]) -> tuple[list[int], list[int]] | None:
    """Which rules go, by their places in the old chain, and which come, by those in the new one, both ascending; None
    where the chain is to be written anew: for more than EDITS, for another order, or nothing to be kept."""
    before, after = set(old), set(new)
    if len(before) < len(old) or [t for t in old if t in after] != [t for t in new if t in before]:
        return None
    gone = [at for at, text in enumerate(old) if text not in after]
    come = [at for at, text in enumerate(new) if text not in before]
    return (gone, come) if len(gone) < len(old) and len(gone) + len(come) <= EDITS else None


def _jumps(chain: str, saved: SavedTable | None, ours: list[str], wanted: list[str]) -> list[str]:
    """Commands that leave exactly the wanted jumps to us in a built-in chain, first of all."""
    kept = saved.rules.get(chain, []) if saved else []
    if ours == wanted and [rule.text for rule in kept[: len(wanted)]] == wanted:
        return []
    for text in ours:
        if not _PLAIN.issuperset(text):
            raise Unspeakable(f"{chain}: {text}")
    return [f"-D {chain} {text}" for text in ours] + [f"-I {chain} 1 {text}" for text in reversed(wanted)]


def _counts(going: list[SavedRule]) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by mapping, of these rules together; none that are 0."""
    found: dict[str, tuple[int, int]] = {}
    for rule in going:
        mapping = commented(rule.text) if rule.packets else ""
        if mapping:
            packets, size = found.get(mapping, (0, 0))
            found[mapping] = (packets + rule.packets, size + rule.bytes)
    return found
