"""Nothing has changed: what it costs to know that."""

from __future__ import annotations

import files
from measure import Case, take_turns
from report import Section, ratio
from workshop import TABLE, Workshop

MANY_TO_ONE = 1.2
FULL_TO_LIST = 0.4


def status(shop: Workshop) -> Section:
    """`status` at 1 and at many entries, by the recorded generation and by a full comparison."""
    count = shop.size(400, 60_000)
    pair, single = files.ranges(shop, count), files.mappings(shop, 1)
    flag = shop.knows("status", "--full")
    with shop.place("status-one") as one, shop.place("status-many") as many:
        one.run(shop.apply(one, single))
        many.run(shop.apply(many, pair.file))
        cases = {
            "`redirector status`, 1 entry": Case(lambda: one.run(shop.command(one, "status"))),
            f"`redirector status`, {count:,} entries": Case(lambda: many.run(shop.command(many, "status"))),
            "full comparison, 1 entry": Case(lambda: one.run(shop.full(one))),
            f"full comparison, {count:,} entries": Case(lambda: many.run(shop.full(many))),
            f"`nft list table`, {count:,} entries": Case(lambda: many.run(["nft", "list", "table", *TABLE])),
        }
        found = take_turns(cases, shop.rounds(7))
    section = Section("status", "Is it still so? `status`, whole processes", found)
    least, most, _, full, listed = found.values()
    section.comparisons += [
        ratio(f"`status` of {count:,} entries to `status` of 1", most, least, limit=MANY_TO_ONE),
        ratio(
            f"`status`, full comparison of {count:,} entries, to `nft list table`",
            full,
            listed,
            limit=FULL_TO_LIST,
            peer="nft",
        ),
        ratio(f"`status` of {count:,} entries to `nft list table`", most, listed, peer="nft"),
    ]
    section.notes.append(
        "A full comparison is `status --full`."
        if flag
        else "This version's `status` has no `--full`: it always compares in full."
    )
    return section


def unchanged(shop: Workshop) -> Section:
    """`apply` and `plan` of what is there already."""
    count = shop.size(400, 60_000)
    pair = files.ranges(shop, count)
    whole = files.again(shop, pair.rules)
    with shop.place("unchanged-ours") as ours, shop.place("unchanged-nft") as theirs:
        ours.run(shop.apply(ours, pair.file))
        cases = {
            "`redirector apply`": Case(lambda: ours.run(shop.apply(ours, pair.file))),
            "`redirector plan`": Case(lambda: ours.run(shop.command(ours, "plan", pair.file))),
            "`nft list table`": Case(lambda: ours.run(["nft", "list", "table", *TABLE])),
            "`nft -f`, everything again": Case(lambda: theirs.run(["nft", "-f", whole])),
        }
        found = take_turns(cases, shop.rounds(5))
    section = Section("unchanged", f"Nothing to do, {count:,} entries", found)
    apply, plan, listed, loaded = found.values()
    for name, spent in (("apply", apply), ("plan", plan)):
        section.comparisons.append(ratio(f"`{name}`, nothing to do, to `nft list table`", spent, listed, peer="nft"))
    what = f"`apply`, nothing to do among {count:,} entries, to `nft -f` of everything"
    section.comparisons.append(ratio(what, apply, loaded, peer="nft"))
    return section
