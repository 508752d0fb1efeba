"""Much at once: whole processes of `apply`, next to `nft -f` of the same rules as text."""

from __future__ import annotations

from typing import NamedTuple

import files
from measure import Case, Sample, own_peak, take_turns
from report import MIB, Section, peak_ratio, ratio
from workshop import Workshop, forget, require_equal

HINT = (
    "A person who wants all these ports to lead to *one* port writes one nft rule with a range, and no element at all: "
    "that is the last series, and nothing beats it. nft has no rule that shifts a range."
)


class Kind(NamedTuple):
    """What is measured under one name; `limit` and `peak` are the targets of time and memory to `nft -f`'s."""

    what: str
    pair: files.Pair
    entries: int
    rounds: int
    limit: float
    peak: float | None
    one_rule: str = ""


def measure(shop: Workshop, name: str) -> Section:
    """One of the kinds: a mapping of 10,000 shifted ports, one of 60,000, or 10,000 mappings."""
    kind = KINDS[name](shop)
    with shop.place(f"{name}-ours") as ours, shop.place(f"{name}-nft") as theirs, shop.place(f"{name}-rule") as rule:
        cases = {
            "`redirector apply`": Case(lambda: ours.run(shop.apply(ours, kind.pair.file)), lambda: forget(ours)),
            "`nft -f`": Case(lambda: theirs.run(["nft", "-f", kind.pair.rules]), theirs.clean),
        }
        if kind.one_rule:
            script = shop.write(f"{name}-rule.nft", kind.one_rule)

            def load() -> Sample:
                return rule.run(["nft", "-f", script])

            cases["`nft -f` of one rule, all to one port"] = Case(load, rule.clean)
        found = take_turns(cases, shop.rounds(kind.rounds))
        floor = own_peak()
        require_equal(ours, theirs, kind.entries)
    apply, nft = found["`redirector apply`"], found["`nft -f`"]
    section = Section(name, f"{kind.what}, whole processes", found)
    section.comparisons.append(ratio(f"`apply` of {kind.what} to `nft -f`", apply, nft, limit=kind.limit, peer="nft"))
    if min(apply.peak.low, nft.peak.low) > floor or shop.quick:
        what = f"peak memory of `apply`, {kind.what}, to `nft -f`"
        section.comparisons.append(peak_ratio(what, apply, nft, limit=kind.peak, peer="nft"))
    else:
        section.notes.append(f"Peaks up to {floor / MIB:.1f} MiB are the measuring process's own: they say nothing.")
    if kind.one_rule:
        section.notes.append(HINT)
    return section


def _shifted(shop: Workshop) -> Kind:
    count = shop.size(200, 10_000)
    table = files.table("game", 10_000, 30_000, count)
    pair = files.pair(shop, "shifted", [table])
    return Kind(f"one mapping of {count:,} shifted ports", pair, count, 9, 1.0, None)


def _range(shop: Workshop) -> Kind:
    count = shop.size(300, 60_000)
    # Ports that are both a target and mapped: each client's connection is translated once, so that is no loop.
    pair = files.pair(shop, "range", [files.table("all", 1001, 5001, count)])
    rule = (
        "table inet redirector\ndelete table inet redirector\ntable inet redirector {\n"
        "\tchain prerouting {\n\t\ttype nat hook prerouting priority -110\n"
        f"\t\tfib daddr type local tcp dport 1001-{1000 + count} redirect to :65001\n\t}}\n}}\n"
    )
    return Kind(f"one range of {count:,} shifted ports", pair, count, 5, 0.5, 1.0, rule)


def _tables(shop: Workshop) -> Kind:
    count = shop.size(200, 10_000)
    tables = [f'[[mapping]]\nname = "m{i:05d}"\nlisten = {files.port(i)}\nto = {files.TARGET}\n' for i in range(count)]
    return Kind(f"{count:,} tables of one port", files.pair(shop, "tables", tables), count, 5, 4.0, None)


KINDS = {"shifted": _shifted, "range": _range, "tables": _tables}
