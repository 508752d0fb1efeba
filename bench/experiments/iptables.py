"""The experiments on the iptables backends, next to what iptables-restore does with a flat chain of the same rules.

Everything is for IPv4 and IPv6, one after the other, on both sides of each comparison: `apply` always writes both.
The flat chain is what a person would write: one chain, to which PREROUTING and OUTPUT jump.
"""

from __future__ import annotations

import contextlib
import shutil

import files
from measure import Case, Failed, Place, Sample, take_turns
from report import Comparison, Section, ratio
from workshop import Workshop, sample

from experiments.packets import TOOLS, both, chains, restore_flat

APPLY_TO_RESTORE = 1.5
RANGE_RULES = 6  # "a handful"


def load(shop: Workshop, variant: str) -> Section:
    """Applying many mappings, and looking at them."""
    count, name = _count(shop), f"iptables-{variant}"
    file, other = files.mappings(shop, count, name), _one_mapping(shop, name, count)
    restore = restore_flat(shop, variant, count)
    label = f"load-{name}"
    with (
        shop.place(f"{label}-ours") as ours,
        shop.place(f"{label}-one") as one,
        shop.place(f"{label}-flat") as theirs,
        shop.place(f"{label}-engine") as bare,
        shop.talk(bare, "engine_iptables.py", [file, name]) as ask,
    ):
        listeners = [here.listen(files.TARGET) for here in (ours, one)]  # or there would be 10,000 warnings

        def engine(job: str) -> Sample:
            answer = ask(job)
            if answer.get("entries") != count:
                raise Failed(f"the engine did not do its job {job!r}: {answer}")
            return sample(answer)

        def again(here: Place) -> None:
            clean(here, variant)
            shutil.rmtree(here.state, ignore_errors=True)

        cases = {
            "`redirector apply`": Case(lambda: ours.run(shop.apply(ours, file)), lambda: again(ours)),
            "`redirector apply`, the same ports as one mapping": Case(
                lambda: one.run(shop.apply(one, other)), lambda: again(one)
            ),
            "engine: plan, write, restore, read back": Case(lambda: engine("commit"), lambda: clean(bare, variant)),
            "of these, plan and write alone": Case(lambda: engine("write")),
            "restore of a flat chain, IPv4 and IPv6": Case(lambda: theirs.run(restore), lambda: clean(theirs, variant)),
            "`redirector status`": Case(lambda: ours.run(shop.command(ours, "status"))),
            "`redirector status`, full comparison": Case(lambda: ours.run(shop.full(ours))),
            "save of what `apply` made, IPv4 and IPv6": Case(lambda: ours.run(both(f"{variant}-save -c"))),
        }
        found = take_turns(cases, shop.rounds(1))
        if _rules_of_ports(ours, variant) != 2 * count:
            raise Failed("the rules that are there are not those that were asked for")
        for listener in listeners:
            listener.close()
    section = Section(label, f"{count:,} mappings of one port each, {name}, both families", found)
    apply, single, alone, _, flat, status, full, saved = found.values()
    to = f"{count:,} mappings to `{name}-restore` of a flat chain"
    section.comparisons += [
        ratio(f"`apply` of {to}, whole processes", apply, flat, limit=APPLY_TO_RESTORE, peer="restore"),
        ratio(f"the same ports as one mapping: `apply` of {to}", single, flat, peer="restore"),
        ratio(f"engine alone, {to}", alone, flat, peer="restore"),
        ratio(f"`status` of {count:,} mappings to `{name}-save`", status, saved, peer="save"),
        ratio(f"`status`, full comparison of {count:,} mappings, to `{name}-save`", full, saved, peer="save"),
    ]
    section.notes.append(
        "Both families are counted on both sides. `apply` writes, reads everything back and records a generation; "
        f"restore only writes. {count:,} tables of TOML are parsed and judged before anything is written: what that "
        "costs on every backend is the difference between `apply` and the engine."
    )
    return section


def shifted(shop: Workshop) -> Section:
    """One range of many shifted ports, on all three backends."""
    count = _count(shop)
    backends = ["nftables", *(f"iptables-{variant}" for variant in shop.variants)]
    with contextlib.ExitStack() as stack:
        places = {name: stack.enter_context(shop.place(f"range-{name}")) for name in backends}
        paths = {name: _range(shop, name, count) for name in backends}

        def case(name: str) -> Case:
            here = places[name]

            def before() -> None:
                if name == "nftables":
                    here.clean()
                else:
                    clean(here, name.removeprefix("iptables-"))
                shutil.rmtree(here.state, ignore_errors=True)

            return Case(lambda: here.run(shop.apply(here, paths[name])), before)

        found = take_turns({f"`redirector apply`, {name}": case(name) for name in backends}, shop.rounds(7))
        rules = {
            name: _rules_of_ports(here, name.removeprefix("iptables-"))
            for name, here in places.items()
            if name != "nftables"
        }
    section = Section("range-iptables", f"One mapping of {count:,} shifted ports, on each backend", found)
    nftables = found["`redirector apply`, nftables"]
    for name, number in rules.items():
        what = f"{name}: rules for {count:,} shifted ports, both families"
        section.comparisons += [
            Comparison(what, number, number, unit="", limit=RANGE_RULES),
            ratio(
                f"`apply` of {count:,} shifted ports, {name} to nftables",
                found[f"`redirector apply`, {name}"],
                nftables,
            ),
        ]
    return section


# -- files and commands --------------------------------------------------------------------------------------------


def _count(shop: Workshop) -> int:
    return shop.size(200, 10_000)


def _one_mapping(shop: Workshop, backend: str, count: int) -> str:
    """The ports of `files.mappings`."""
    head = f'version = 1\n[settings]\nbackend = "{backend}"\n'
    return shop.write(f"one-{backend}-{count}.toml", head + files.scattered("all", count))


def _range(shop: Workshop, backend: str, count: int) -> str:
    head = f'version = 1\n[settings]\nbackend = "{backend}"\n'
    return shop.write(f"range-{backend}.toml", head + files.table("game", 10_000, 30_000, count))


def clean(here: Place, variant: str) -> None:
    """Take every rule away: without --noflush, naming a table empties it."""
    empty = "printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n'"
    here.run(["sh", "-ec", "\n".join(f"{empty} | {tool}-{variant}-restore" for tool in TOOLS)])


def _rules_of_ports(here: Place, variant: str) -> int:
    """How many there are, for both families."""
    found = [chains(here, f"{tool}-{variant}") for tool in TOOLS]
    return sum("-j DNAT " in rule for chain in found for rules in chain.values() for rule in rules)
