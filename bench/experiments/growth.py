"""How cost grows: the same work at every size, and what it would be beyond.

Whole processes; entries are (protocol, port) pairs, in mappings of at most 100 ports, TCP and UDP. A straight line
through the medians, a + b × entries, says what is constant and what each entry adds; sizes far apart count alike
(the least squares of the *relative* errors). `keys` measures what the line says of 100,000 entries, on (port, address)
keys this time.
"""

from __future__ import annotations

import contextlib
import os

import files
from measure import Case, Place, Samples, own_peak, take_turns
from report import MIB, Chart, Section, peak
from workshop import TABLE, Turns, Workshop, forget

from redirector.model import MAX_TOTAL

SIZES = (10, 100, 1000, 10_000, 60_000)
TARGETS = (701, 702)  # of the mapping that changes
FIRST, AGAIN, CHANGE = "`apply`, the first", "`apply`, nothing to do", "`apply`, one mapping changed"
STATUS, FULL, NFT, LIST = "`status`", "`status`, full comparison", "`nft -f`", "`nft list table`"


def growth(shop: Workshop) -> Section:
    """Every size, its cases in turns."""
    found: dict[int, dict[str, Samples]] = {}
    stored: dict[int, int] = {}
    for count in [10, 200] if shop.quick else SIZES:
        pairs = [files.ranges(shop, count, extra) for extra in TARGETS]
        found[count], stored[count] = _measure(shop, f"growth-{count}", pairs)
    series = {f"{name}, {count:,} entries": spent for count, at in found.items() for name, spent in at.items()}
    section = Section("growth", "How cost grows: whole processes", series)
    chart = Chart("growth", "Whole processes with N entries", "entries: (protocol, port)", "milliseconds", 1000)
    for name in next(iter(found.values())):
        chart.lines[name.replace("`", "")] = [(count, at[name].seconds) for count, at in found.items()]
    section.charts.append(chart)
    floor = own_peak()
    peaks = ", ".join(f"{peak(at[FIRST].peak.median, floor)} MiB at {count:,}" for count, at in found.items())
    sizes = ", ".join(f"{size / 1024:,.1f} KiB at {count:,}" for count, size in stored.items())
    section.notes.append(f"Peak memory of the first `apply`: {peaks}. One generation on disk: {sizes}.")
    return section


def keys(shop: Workshop) -> Section:
    """100,000 (port, address) keys: 10,000 ports on each of 10 addresses."""
    ports, addresses = shop.size(20, 10_000), 10
    pair = files.keys(shop, ports, addresses)
    found, stored = _measure(shop, "keys", [pair, pair])
    count = ports * addresses
    section = Section("keys", f"{count:,} (port, address) keys: whole processes", found)
    section.notes.append(f"{ports:,} ports on {addresses} addresses; a generation on disk is {stored / 1024:,.0f} KiB.")
    return section


def limit(shop: Workshop) -> Section:
    """As many entries as a file may have, once (redirector.model.MAX_TOTAL), and what they take in the kernel."""
    addresses, ports = 16, shop.size(20, MAX_TOTAL // 32 - 1)  # TCP and UDP; ports at most 32,767
    pair = files.crowd(shop, ports, addresses)
    with shop.place("limit") as here:
        before = _kernel_memory()
        spent = {"`apply`": here.run(shop.apply(here, pair))}
        taken = _kernel_memory() - before
        spent["`status`, full comparison"] = here.run(shop.full(here))
        freed = _kernel_memory()
        here.clean()
        freed -= _kernel_memory()
    count = 2 * ports * addresses
    found = {name: Samples.of([sample]) for name, sample in spent.items()}
    section = Section("limit", f"{count:,} entries, once: as many as a file may have", found)
    if before:
        section.notes.append(
            f"The kernel's elements took {taken / MIB:.1f} MiB of its slabs named kmalloc (/proc/slabinfo), "
            f"{taken / count:.0f} bytes for each entry, and gave {freed / MIB:.1f} MiB back. What else the machine did "
            "meanwhile is in these two; the tables of the hashes are not."
        )
    return section


def _kernel_memory() -> int:
    """Bytes of live objects in the general slabs; 0 for whoever may not know (slabinfo(5))."""
    try:
        with open("/proc/slabinfo", encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("kmalloc")]
    except PermissionError:
        return 0
    return sum(int(row[1]) * int(row[3]) for row in rows)


def _measure(shop: Workshop, label: str, pairs: list[files.Pair]) -> tuple[dict[str, Samples], int]:
    """(what each case cost, bytes of one generation on disk)."""
    turn = Turns()
    with contextlib.ExitStack() as places:

        def place(name: str) -> Place:
            return places.enter_context(shop.place(f"{label}-{name}"))

        first, ours, theirs = map(place, ("first", "ours", "nft"))
        ours.run(shop.apply(ours, pairs[0].file))
        cases = {
            FIRST: Case(lambda: first.run(shop.apply(first, pairs[0].file)), lambda: forget(first)),
            AGAIN: Case(lambda: ours.run(shop.apply(ours, pairs[turn.number].file))),
            STATUS: Case(lambda: ours.run(shop.command(ours, "status"))),
            FULL: Case(lambda: ours.run(shop.full(ours))),
            CHANGE: Case(lambda: ours.run(shop.apply(ours, pairs[turn.number].file)), turn.next),
            NFT: Case(lambda: theirs.run(["nft", "-f", pairs[0].rules]), theirs.clean),
            LIST: Case(lambda: ours.run(["nft", "list", "table", *TABLE])),
        }
        if pairs[0] == pairs[1]:
            del cases[CHANGE]
        found = take_turns(cases, shop.rounds(2))
        stored = os.scandir(os.path.join(ours.state, "generations"))
        return found, max(entry.stat().st_size for entry in stored)
