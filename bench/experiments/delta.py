"""One mapping of many changes its target: what it costs to make that so."""

from __future__ import annotations

import contextlib

import files
from measure import Case, Place, take_turns
from report import Comparison, Section, ratio
from workshop import Turns, Workshop, require_equal

BIG_TO_SMALL = 1.5
TRANSACTION_MILLISECONDS = 2
TARGETS = (701, 702)  # of the mapping that changes


def delta(shop: Workshop) -> Section:
    """Among many entries, next to the same among ten, and next to what nft can do."""
    count, few = shop.size(400, 60_000), 10
    big = [files.ranges(shop, count, extra) for extra in TARGETS]
    small = [files.ranges(shop, few, extra) for extra in TARGETS]
    whole = [files.again(shop, pair.rules) for pair in big]
    only = [_element(shop, before, after) for before, after in (TARGETS[::-1], TARGETS)]
    turn = Turns()
    with contextlib.ExitStack() as stack:

        def place(label: str) -> Place:
            return stack.enter_context(shop.place(f"delta-{label}"))

        ours, tiny, theirs, skilled, bare = map(place, ("ours", "tiny", "whole", "only", "engine"))
        ask = stack.enter_context(shop.engine(bare, big[0].file, big[1].file, count + 1))
        ours.run(shop.apply(ours, big[0].file))
        tiny.run(shop.apply(tiny, small[0].file))
        skilled.run(["nft", "-f", big[0].rules])
        ask("commit")
        cases = {
            f"`redirector apply`, {count:,} entries": Case(
                lambda: ours.run(shop.apply(ours, big[turn.number].file)), turn.next
            ),
            f"`redirector apply`, {few} entries": Case(lambda: tiny.run(shop.apply(tiny, small[turn.number].file))),
            "engine: plan, encode, commit, proof": Case(lambda: ask("change")),
            "engine: the transaction alone": Case(lambda: ask("send")),
            "`nft -f`, everything again": Case(lambda: theirs.run(["nft", "-f", whole[turn.number]])),
            "`nft -f`, only this element": Case(lambda: skilled.run(["nft", "-f", only[turn.number]])),
        }
        found = take_turns(cases, shop.rounds(7))
        require_equal(ours, skilled, count)
    section = Section("delta", f"One changed mapping among {count:,} entries", found)
    apply, least, engine, sent, loaded, written = found.values()
    what = f"`apply` of one changed mapping among {count:,} entries"
    milliseconds = 1000 * sent.seconds.median, 1000 * sent.seconds.low, 1000 * sent.cpu.median
    section.comparisons += [
        ratio(f"{what} to the same among {few}", apply, least, limit=BIG_TO_SMALL),
        Comparison(
            f"the transaction of one changed mapping among {count:,} entries",
            *milliseconds,
            unit="ms",
            limit=TRANSACTION_MILLISECONDS,
        ),
        ratio(f"{what} to `nft -f` of everything", apply, loaded, peer="nft"),
        ratio(f"{what} to `nft -f` of its element alone", apply, written, peer="nft"),
        ratio("engine alone, one changed mapping, to the same", engine, written, peer="nft"),
    ]
    section.notes.append(
        "`nft -f` of only this element is what a person could write who knows exactly what is loaded and what has to "
        "change; `apply` finds that out, proves it and records it. The transaction is encoded, sent and acknowledged."
    )
    return section


def _element(shop: Workshop, before: int, after: int) -> str:
    """A script for nft that changes the target of port 700."""
    place, key = "element inet redirector ports", "tcp . 700"
    text = f'delete {place} {{ {key} }}\nadd {place} {{ {key} comment "extra" : {after} }}\n'
    return shop.write(f"only-{before}-{after}.nft", text)
