"""The packet path: what a connection costs that is redirected, among many mappings.

Theory of operation. Every number of mappings, every backend and "no NAT at all" has a network namespace of its own, all
alive at once, with a child in it that connects to its own server over loopback. The children take turns, some hundred
connections each: so a load of the machine meets all alike, and medians of some thousand connections are compared. The
port that is hit is the one that costs most: of a map any (the last), of a flat chain the last, of the iptables
backend's tree the one that passes most rules.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import files
from measure import Case, Place, Samples, take_turns
from report import Chart, Comparison, Section, ratio
from workshop import Workshop, sample

TOOLS = ("iptables", "ip6tables")
LIMITS = {"nftables": 1.1, "iptables-nft": 1.5, "iptables-legacy": 1.5}
BATCH = 200  # connections between two turns
FLAT_BATCH = 50  # of those that take milliseconds
Ask = Callable[[object], dict[str, Any]]


def connects(shop: Workshop, backend: str) -> Section:
    """Through each number of mappings, and through flat chains of as many rules."""
    sizes = _sizes(shop, backend)
    label = f"connects-{backend}"
    passed = ""
    with contextlib.ExitStack() as stack:

        def place(name: str) -> Place:
            here = stack.enter_context(shop.place(f"{label}-{name}"))
            here.run(["ip", "link", "set", "lo", "up"])
            return here

        def child(here: Place, port: int) -> Ask:
            return stack.enter_context(shop.talk(here, "connects.py", [str(files.TARGET), str(port)]))

        children = {"no NAT": child(place("none"), files.TARGET)}
        for count in sizes:
            here = place(str(count))
            here.run(shop.apply(here, files.mappings(shop, count, backend)))
            port = files.claims(count)[-1][1]
            if backend != "nftables":
                port, rules = worst(here, backend.removeprefix("iptables-"))
                passed += f", {rules} of {count:,}"
            children[_ours(count)] = child(here, port)
        for count in sizes if backend != "nftables" else []:
            here = place(f"flat-{count}")
            here.run(restore_flat(shop, backend.removeprefix("iptables-"), count))
            children[_flat(count)] = child(here, files.claims(count)[-1][1])
        latency = take_turns(_cases(children, "latency"), shop.rounds(20))
        rates = take_turns(_cases(children, "rate"), shop.rounds(7))
    section = Section(label, f"Connections through {backend}: connect and close, loopback", latency)
    section.comparisons += [found for count in sizes for found in _judged(backend, count, sizes[0], latency, "latency")]
    some = sizes if backend == "nftables" else [sizes[0], sizes[-1]]
    section.comparisons += [found for count in some for found in _judged(backend, count, sizes[0], rates, "rate")]
    section.notes.append(_rates(rates))
    if passed:
        section.notes.append(f"Rules that the worst connection passes in our tree{passed.replace(',', ':', 1)}.")
    section.charts.append(_chart(backend, sizes, latency))
    return section


def _sizes(shop: Workshop, backend: str) -> list[int]:
    if shop.quick:
        return [1, 60]
    return [1, 100, 10_000, *[60_000] * (backend == "nftables" or shop.pace == "full")]


def _ours(count: int) -> str:
    return "1 mapping" if count == 1 else f"{count:,} {'mappings' if count <= 10_000 else 'mapped ports'}"


def _flat(count: int) -> str:
    return f"flat chain of {count:,} rule{'s' * (count > 1)}"


def _cases(children: dict[str, Ask], job: str) -> dict[str, Case]:
    def case(name: str, ask: Ask) -> Case:
        batch = FLAT_BATCH if name in {_flat(10_000), _flat(60_000)} else BATCH
        return Case(lambda: sample(ask(f"{job} {batch}")))

    return {name: case(name, ask) for name, ask in children.items()}


def _judged(backend: str, count: int, one: int, found: dict[str, Samples], kind: str) -> list[Comparison]:
    what = f"{backend}: {'a connection' if kind == 'latency' else 'time per connection, 16 at once,'} through"
    ours, flat = found[_ours(count)], found.get(_flat(count))
    to_flat = [ratio(f"{what} {_ours(count)}, to a flat chain", ours, flat, peer="the flat chain")] if flat else []
    if count == one:  # where a flat chain is the same rule as ours
        return [ratio(f"{what} 1 mapping, to no NAT", ours, found["no NAT"])]
    return [ratio(f"{what} {_ours(count)}, to 1 mapping", ours, found[_ours(one)], limit=LIMITS[backend]), *to_flat]


def _rates(found: dict[str, Samples]) -> str:
    rows = (
        f"| {name} | {1 / spent.seconds.high:,.0f} · {1 / spent.seconds.median:,.0f} · {1 / spent.seconds.low:,.0f} |"
        for name, spent in found.items()
    )
    head = "| connections per second, 16 at once | least · median · greatest |\n|---|--:|\n"
    return (
        f"{head}{chr(10).join(rows)}\n\nClient and server are two processes of Python, which is what limits the rate."
    )


def _chart(backend: str, sizes: list[int], found: dict[str, Samples]) -> Chart:
    chart = Chart("packets", "A connection through N mappings", "mappings or rules", "microseconds", 1e6)
    chart.lines[f"redirector, {backend}"] = [(count, found[_ours(count)].seconds) for count in sizes]
    if _flat(1) in found:
        chart.lines[f"flat chain, {backend}"] = [(count, found[_flat(count)].seconds) for count in sizes]
    else:
        chart.lines["no NAT at all"] = [(count, found["no NAT"].seconds) for count in sizes]
    return chart


# -- iptables ------------------------------------------------------------------------------------------------------


def both(command: str) -> list[str]:
    """A command of both families as one process that can be measured: the shell waits, and so is charged for both."""
    return ["sh", "-ec", "\n".join(f"{tool}-{command}" for tool in TOOLS)]


def restore_flat(shop: Workshop, variant: str, count: int) -> list[str]:
    return both(f"{variant}-restore --noflush --counters --wait 5 <{files.flat(shop, count)}")


def chains(here: Place, tool: str) -> dict[str, list[str]]:
    """The rules of the nat table, by chain; `tool` is such as "iptables-nft"."""
    path = os.path.join(here.folder, "listing")
    here.run([f"{tool}-save", "-t", "nat"], path)
    found: dict[str, list[str]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(":"):
                found[line[1:].split()[0]] = []
            elif line.startswith("-A "):
                chain, _, rule = line[3:].strip().partition(" ")
                found[chain].append(rule)
    return found


def worst(here: Place, variant: str) -> tuple[int, int]:
    """(port, rules passed) of the TCP port that a connection of the host itself passes most rules for."""
    tree = {name: [*map(_read, rules)] for name, rules in chains(here, f"iptables-{variant}").items()}

    def passed(chain: str, port: int) -> tuple[int, bool]:
        """(rules passed, whether one of them is the end)."""
        count = 0
        for first, last, protocol, target in tree[chain]:
            count += 1
            if first <= port <= last and protocol in ("", "tcp"):
                below, ended = passed(target, port) if target in tree else (0, True)
                count += below
                if ended:
                    return count, True
        return count, False

    ports = {row[0] for rules in tree.values() for row in rules if row[2] == "tcp" and row[3] == "DNAT"}
    return max(((port, passed("OUTPUT", port)[0]) for port in ports), key=lambda found: found[1])


def _read(rule: str) -> tuple[int, int, str, str]:
    """(first port, last port, protocol, target) of a rule; ours, and a plain flat chain's, ask for nothing else."""
    words = rule.split()

    def after(option: str, default: str) -> str:
        return words[words.index(option) + 1] if option in words else default

    first, _, last = after("--dport", "0:65535").partition(":")
    return int(first), int(last or first), after("-p", ""), words[words.index("-j") + 1]
