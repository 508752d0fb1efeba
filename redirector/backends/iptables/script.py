"""The text for iptables-restore --noflush that leads from the rules that are there to those that should be. Pure.

A chain that differs is written anew, whole; the others are not mentioned, and keep their rules and counters. Counts of
the connections that a mapping has taken are carried over into the chains that are written anew (those of the moment in
between may be lost). All of one table is one transaction of the kernel's.
"""

from __future__ import annotations

from redirector.backends.iptables import reading, rules
from redirector.backends.iptables.save import SavedTable

# What may stand in a rule of somebody's that we take away again by its own text: jumps to our chains have no more.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .:/+-,!_")


class Unspeakable(ValueError):
    """A rule in a chain of everybody leads to our chains, and is not to be repeated: a person has to delete it."""


def script(saved: dict[str, SavedTable], ours: rules.Tables, wanted: rules.Tables) -> str:
    """The text for one family; "" where there is nothing to do. `ours` is what `saved` has of us (see `reading.held`).

    Raises Unspeakable.
    """
    return "".join(_table(name, saved.get(name), ours[name], wanted[name]) for name in ("nat", "filter"))


def _table(name: str, saved: SavedTable | None, ours: rules.Chains, wanted: rules.Chains) -> str:
    changed = [c for c, texts in wanted.items() if c.startswith(rules.PREFIX) and ours.get(c) != texts]
    stale = [c for c in ours if c.startswith(rules.PREFIX) and c not in wanted]
    lines = [f":{chain} - [0:0]" for chain in changed + stale]
    for _, chain in (place for place in rules.BUILTIN if place[0] == name):
        lines += _jumps(chain, saved, ours.get(chain, []), wanted.get(chain, []))
    if not lines:
        return ""
    counts = _counts(saved, changed + stale)
    for chain in changed:
        for text in wanted[chain]:
            count = counts.pop(reading.commented(text), None) if counts else None
            lines.append(f"[{count[0]}:{count[1]}] -A {chain} {text}" if count else f"-A {chain} {text}")
    lines += [f"-X {chain}" for chain in stale]
    return "\n".join([f"*{name}", *lines, "COMMIT", ""])


def _jumps(chain: str, saved: SavedTable | None, ours: list[str], wanted: list[str]) -> list[str]:
    """Commands that leave exactly the wanted jumps to us in a built-in chain, first of all."""
    kept = saved.rules.get(chain, []) if saved else []
    if ours == wanted and [rule.text for rule in kept[: len(wanted)]] == wanted:
        return []
    for text in ours:
        if not _PLAIN.issuperset(text):
            raise Unspeakable(f"{chain}: {text}")
    return [f"-D {chain} {text}" for text in ours] + [f"-I {chain} 1 {text}" for text in reversed(wanted)]


def _counts(saved: SavedTable | None, chains: list[str]) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by mapping, of these chains together; none that are 0."""
    found: dict[str, tuple[int, int]] = {}
    for chain in chains if saved else ():
        for rule in saved.rules.get(chain, ()) if saved else ():
            mapping = reading.commented(rule.text) if rule.packets else ""
            if mapping:
                packets, size = found.get(mapping, (0, 0))
                found[mapping] = (packets + rule.packets, size + rule.bytes)
    return found
