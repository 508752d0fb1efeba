"""The experiments on the iptables backends, next to what iptables-restore does with a flat chain of the same rules.

Everything is for IPv4 and IPv6, one after the other, on both sides of each comparison: `apply` always writes both.
The flat chain is what a person would write: one chain, to which PREROUTING and OUTPUT jump.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

from measure import Case, Failed, Place, Sample, take_turns
from report import Comparison, Section, ratio
from workshop import Workshop

TOOLS = ("iptables", "ip6tables")
TARGET = 40000
WORST_TO_ONE = 1.5
APPLY_TO_RESTORE = 1.5
RANGE_RULES = 6  # "a handful"
BATCH = 100  # connections between two turns
EMPTY = "*nat\nCOMMIT\n*filter\nCOMMIT\n"  # without --noflush it takes everything away


def connects(shop: Workshop, variant: str) -> Section:
    """How long a connection takes that many rules come before."""
    count = _count(shop)
    with contextlib.ExitStack() as stack:

        def place(label: str) -> Place:
            here = stack.enter_context(shop.place(f"connects-{variant}-{label}"))
            here.run(["ip", "link", "set", "lo", "up"])
            return here

        def case(here: Place, port: int) -> Case:
            ask = stack.enter_context(shop.talk(here, "connects.py", [str(TARGET), str(port)]))
            return Case(lambda: _sample(ask(BATCH)))

        one, many, flat = map(place, ("one", "many", "flat"))
        one.run(shop.apply(one, _mappings(shop, variant, 1)))
        many.run(shop.apply(many, _mappings(shop, variant, count)))
        flat.run(_restore_flat(shop, variant, count))
        port, passed = _worst(many, variant)
        cases = {
            "no NAT": case(place("none"), TARGET),
            "1 mapping": case(one, _port(0)),
            f"{count:,} mappings, the worst one": case(many, port),
            f"flat chain of {count:,} rules, the last one": case(flat, _port(count - 1)),
        }
        found = take_turns(cases, shop.rounds(20))
    section = Section(f"connects-{variant}", f"Connections, iptables-{variant}: connect and close, loopback", found)
    none, single, worst, last = found.values()
    what = f"iptables-{variant}: connecting through the worst of {count:,} mappings"
    section.comparisons += [
        ratio(f"{what}, to 1 mapping", worst, single, limit=WORST_TO_ONE),
        ratio(f"{what}, to the last rule of a flat chain", worst, last, peer="the flat chain"),
        ratio(f"iptables-{variant}: the last rule of a flat chain of {count:,}, to 1 mapping", last, single),
        ratio(f"iptables-{variant}: connecting through 1 mapping, to no NAT", single, none),
    ]
    section.notes.append(f"Each run is the median of {BATCH} connections. The worst of ours passes {passed} rules.")
    return section


def load(shop: Workshop, variant: str) -> Section:
    """Applying many mappings, and looking at them."""
    count = _count(shop)
    file, other = _mappings(shop, variant, count), _one_mapping(shop, variant, count)
    restore = _restore_flat(shop, variant, count)
    label = f"load-{variant}"
    with (
        shop.place(f"{label}-ours") as ours,
        shop.place(f"{label}-one") as one,
        shop.place(f"{label}-flat") as theirs,
        shop.place(f"{label}-engine") as bare,
        shop.talk(bare, "engine_iptables.py", [file, f"iptables-{variant}"]) as ask,
    ):
        listeners = [here.listen(TARGET) for here in (ours, one)]  # or there would be 10,000 warnings

        def engine(job: str) -> Sample:
            answer = ask(job)
            if answer.get("entries") != count:
                raise Failed(f"the engine did not do its job {job!r}: {answer}")
            return _sample(answer)

        def again(here: Place) -> None:
            _clean(here, variant)
            shutil.rmtree(here.state, ignore_errors=True)

        cases = {
            "`redirector apply`": Case(lambda: ours.run(shop.apply(ours, file)), lambda: again(ours)),
            "`redirector apply`, the same ports as one mapping": Case(
                lambda: one.run(shop.apply(one, other)), lambda: again(one)
            ),
            "engine: plan, write, restore, read back": Case(lambda: engine("commit"), lambda: _clean(bare, variant)),
            "of these, plan and write alone": Case(lambda: engine("write")),
            "restore of a flat chain, IPv4 and IPv6": Case(
                lambda: theirs.run(restore), lambda: _clean(theirs, variant)
            ),
            "`redirector status`": Case(lambda: ours.run(shop.command(ours, "status"))),
            "save of what `apply` made, IPv4 and IPv6": Case(lambda: ours.run(_both(f"{variant}-save -c"))),
        }
        found = take_turns(cases, shop.rounds(3))
        if _rules_of_ports(ours, variant) != 2 * count:
            raise Failed("the rules that are there are not those that were asked for")
        for listener in listeners:
            listener.close()
    name = f"iptables-{variant}"
    section = Section(label, f"{count:,} mappings of one port each, {name}, both families", found)
    apply, single, alone, _, flat, status, saved = found.values()
    to = f"{count:,} mappings to `{name}-restore` of a flat chain"
    section.comparisons += [
        ratio(f"`apply` of {to}, whole processes", apply, flat, limit=APPLY_TO_RESTORE, peer="restore"),
        ratio(f"the same ports as one mapping: `apply` of {to}", single, flat, peer="restore"),
        ratio(f"engine alone, {to}", alone, flat, peer="restore"),
        ratio(f"`status` of {count:,} mappings to `{name}-save`", status, saved, peer="save"),
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
        files = {name: _range(shop, name, count) for name in backends}

        def case(name: str) -> Case:
            here = places[name]

            def before() -> None:
                if name == "nftables":
                    here.clean()
                else:
                    _clean(here, name.removeprefix("iptables-"))
                shutil.rmtree(here.state, ignore_errors=True)

            return Case(lambda: here.run(shop.apply(here, files[name])), before)

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


# -- files ---------------------------------------------------------------------------------------------------------


def _count(shop: Workshop) -> int:
    return 200 if shop.quick else 10_000


def _port(index: int) -> int:
    """No two of them are neighbours, so that each takes a rule."""
    return 1001 + 3 * index


def _head(backend: str) -> str:
    return f'version = 1\n[settings]\nbackend = "{backend}"\n'


def _mappings(shop: Workshop, variant: str, count: int) -> str:
    tables = (f'[[mapping]]\nname = "m{i:05d}"\nlisten = {_port(i)}\nto = {TARGET}\n' for i in range(count))
    return shop.write(f"{variant}-{count}.toml", "".join([_head(f"iptables-{variant}"), *tables]))


def _one_mapping(shop: Workshop, variant: str, count: int) -> str:
    ports = ", ".join(str(_port(i)) for i in range(count))
    table = f'[[mapping]]\nname = "all"\nlisten = [{ports}]\nto = {TARGET}\n'
    return shop.write(f"{variant}-one.toml", _head(f"iptables-{variant}") + table)


def _range(shop: Workshop, backend: str, count: int) -> str:
    first, last = 10_000, 10_000 + count - 1
    table = f'[[mapping]]\nname = "game"\nlisten = "{first}-{last}"\nto = "{first + 20_000}-{last + 20_000}"\n'
    return shop.write(f"range-{backend}.toml", _head(backend) + table)


def _flat(shop: Workshop, count: int) -> str:
    to = f"-j DNAT --to-destination :{TARGET}"
    rules = (f"-A FLAT -p tcp -m tcp --dport {_port(i)} -m comment --comment m{i:05d} {to}\n" for i in range(count))
    jumps = (f"-A {chain} -m addrtype --dst-type LOCAL -j FLAT\n" for chain in ("PREROUTING", "OUTPUT"))
    return shop.write("flat.rules", "".join(["*nat\n:FLAT - [0:0]\n", *jumps, *rules, "COMMIT\n"]))


# -- commands --------------------------------------------------------------------------------------------------------


def _both(command: str) -> list[str]:
    """A command of both families as one process that can be measured: the shell waits, and so is charged for both."""
    return ["sh", "-ec", "\n".join(f"{tool}-{command}" for tool in TOOLS)]


def _restore_flat(shop: Workshop, variant: str, count: int) -> list[str]:
    return _both(f"{variant}-restore --noflush --counters --wait 5 <{_flat(shop, count)}")


def _clean(here: Place, variant: str) -> None:
    """Take every rule away: without --noflush, naming a table empties it."""
    empty = "printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n'"
    here.run(["sh", "-ec", "\n".join(f"{empty} | {tool}-{variant}-restore" for tool in TOOLS)])


def _sample(answer: dict[str, Any]) -> Sample:
    if "seconds" not in answer:
        raise Failed(f"a child did not do its job: {answer}")
    return Sample(answer["seconds"], answer["cpu"])


# -- what is there -------------------------------------------------------------------------------------------------


def _chains(here: Place, tool: str) -> dict[str, list[str]]:
    """The rules of the nat table, by chain; `tool` is such as "iptables-nft"."""
    path = os.path.join(here.folder, "listing")
    here.run([f"{tool}-save", "-t", "nat"], path)
    chains: dict[str, list[str]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(":"):
                chains[line[1:].split()[0]] = []
            elif line.startswith("-A "):
                chain, _, rule = line[3:].strip().partition(" ")
                chains[chain].append(rule)
    return chains


def _rules_of_ports(here: Place, variant: str) -> int:
    """How many there are, for both families."""
    chains = [_chains(here, f"{tool}-{variant}") for tool in TOOLS]
    return sum("-j DNAT " in rule for found in chains for rules in found.values() for rule in rules)


def _worst(here: Place, variant: str) -> tuple[int, int]:
    """(port, rules passed) of the port that a connection of the host itself passes most rules for."""
    chains = {name: [*map(_read, rules)] for name, rules in _chains(here, f"iptables-{variant}").items()}

    def passed(chain: str, port: int) -> tuple[int, bool]:
        """(rules passed, whether one of them is the end)."""
        count = 0
        for first, last, target in chains[chain]:
            count += 1
            if first <= port <= last:
                below, ended = passed(target, port) if target in chains else (0, True)
                count += below
                if ended:
                    return count, True
        return count, False

    ports = {first for rules in chains.values() for first, _, target in rules if target == "DNAT"}
    return max(((port, passed("OUTPUT", port)[0]) for port in ports), key=lambda found: found[1])


def _read(rule: str) -> tuple[int, int, str]:
    """(first port, last port, target) of a rule; ours, and those of a plain flat chain, ask for nothing else."""
    words = rule.split()
    ports = words[words.index("--dport") + 1] if "--dport" in words else "0:65535"
    first, _, last = ports.partition(":")
    return int(first), int(last or first), words[words.index("-j") + 1]
