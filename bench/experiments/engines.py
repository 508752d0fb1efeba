"""The engine alone, inside a process that runs already, next to whole processes of nft."""

from __future__ import annotations

import files
from measure import Case, take_turns
from report import Section, ratio
from workshop import TABLE, Workshop

ENGINE_TO_NFT = 0.25


def engine(shop: Workshop) -> Section:
    """Program → committed."""
    count = shop.size(400, 60_000)
    pair = files.ranges(shop, count)
    with (
        shop.place("engine-ours") as ours,
        shop.place("engine-nft") as theirs,
        shop.engine(ours, pair.file, pair.file, count) as ask,
    ):
        cases = {
            "engine: plan, encode, commit, proof": Case(lambda: ask("commit"), ours.clean),
            "of these, plan and encode alone": Case(lambda: ask("encode")),
            "`nft -f`, whole process": Case(lambda: theirs.run(["nft", "-f", pair.rules]), theirs.clean),
        }
        found = take_turns(cases, shop.rounds(7))
    section = Section("engine", f"The engine alone, {count:,} entries", found)
    commit, encode, nft = found.values()
    what = f"engine alone, {count:,} entries, to `nft -f`"
    section.comparisons.append(ratio(what, commit, nft, limit=ENGINE_TO_NFT, peer="nft"))
    share = (commit.cpu.median - encode.cpu.median) / nft.cpu.median
    section.notes.append(f"The rest of the engine's CPU time is the kernel's: {share:.2f} × all of `nft -f`.")
    return section


def observe(shop: Workshop) -> Section:
    """Reading everything back."""
    count = shop.size(400, 60_000)
    pair = files.ranges(shop, count)
    with shop.place("observe") as here, shop.engine(here, pair.file, pair.file, count) as ask:
        ask("commit")
        cases = {
            "engine: observe": Case(lambda: ask("observe")),
            "`nft list table`": Case(lambda: here.run(["nft", "list", "table", *TABLE])),
        }
        found = take_turns(cases, shop.rounds(5))
    section = Section("observe", f"The engine reads everything back, {count:,} entries", found)
    ours, listed = found.values()
    section.comparisons.append(ratio(f"observing {count:,} entries to `nft list table`", ours, listed, peer="nft"))
    return section
