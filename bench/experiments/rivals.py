"""The same mappings, loaded by each program that people use for it; whole processes.

Every mapping leads one port to another, for connections from outside and of the host itself, IPv4 and IPv6. What each
is given is what its users would write: `[[mapping]]` tables; the rules of `redirector render` for `nft -f`; a flat
chain for each family for iptables-restore; `forward-port` lines of a zone for firewalld (which does not serve the
host's own connections); and for scripts one `nft add rule` after the other, each a process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import files
import peers
from measure import Case, Failed, Place, Sample, Samples, take_turns
from report import Chart, Section, ratio
from workshop import Workshop, forget

from experiments import iptables
from experiments.packets import restore_flat

APPLY, NFT, SCRIPT, FIREWALLD = "`redirector apply`", "`nft -f`", "one `nft` process per mapping", "firewalld's reload"
SCRIPTED = "scripted"
FRAME = f"""table inet {SCRIPTED}
delete table inet {SCRIPTED}
table inet {SCRIPTED} {{
	chain ports_in {{ }}
	chain prerouting {{ type nat hook prerouting priority -110; jump ports_in; }}
	chain output {{ type nat hook output priority -110; jump ports_in; }}
}}
"""


def rivals(shop: Workshop) -> Section:
    """At every size, in turns; compared at the largest of them up to 1,000."""
    sizes = {"quick": [5], "normal": [10, 100, 1000], "full": [10, 100, 1000, 10_000]}[shop.pace]
    scripted = shop.size(5, 100, 1000)  # mappings that a script loads one by one
    found: dict[int, dict[str, Samples]] = {}
    with contextlib.ExitStack() as stack:
        here = {name: stack.enter_context(shop.place(f"rivals-{name}")) for name in ("ours", "nft", "script", "fire")}
        variants = {name: stack.enter_context(shop.place(f"rivals-iptables-{name}")) for name in shop.variants}
        reload = stack.enter_context(peers.firewalld(shop, here["fire"]))
        for count in sizes:
            file = files.mappings(shop, count)
            cases = _cases(shop, here, count, file)
            if count <= scripted:
                cases[SCRIPT] = _script(shop, here["script"], count)
            for variant, there in variants.items():
                cases[f"`iptables-{variant}-restore`, both families"] = _restore(shop, there, variant, count)
            if reload:
                cases[FIREWALLD] = _reload(here["fire"], reload, count)
            found[count] = take_turns(cases, shop.rounds(3 if count < 1000 else 2 if count == 1000 else 1))
    series = {f"{name}, {count:,} mappings": spent for count, at in found.items() for name, spent in at.items()}
    section = Section("rivals", "The same mappings by other programs, whole processes", series)
    for name in found[sizes[0]]:
        if name != APPLY:
            most = max(count for count, at in found.items() if name in at and count <= 1000)
            what = f"`apply` of {most:,} mappings to {name}"
            section.comparisons.append(ratio(what, found[most][APPLY], found[most][name], peer=name.replace("`", "")))
    if not reload:
        section.notes.append("There is no firewalld here (`make bench-packages`): it was not measured.")
    chart = Chart("rivals", "Loading N mappings of one port", "mappings", "seconds")
    for name in found[sizes[0]]:
        chart.lines[name.replace("`", "")] = [(n, spent[name].seconds) for n, spent in found.items() if name in spent]
    section.charts.append(chart)
    return section


def _cases(shop: Workshop, here: dict[str, Place], count: int, file: str) -> dict[str, Case]:
    ours, nft = here["ours"], here["nft"]
    tables = [f'[[mapping]]\nname = "m{i:05d}"\nlisten = {files.port(i)}\nto = {files.TARGET}\n' for i in range(count)]
    rules = files.pair(shop, f"rivals-{count}", tables).rules
    return {
        APPLY: Case(lambda: ours.run(shop.apply(ours, file)), lambda: forget(ours)),
        NFT: Case(lambda: nft.run(["nft", "-f", rules]), nft.clean),
    }


def _script(shop: Workshop, here: Place, count: int) -> Case:
    """What a script does that calls nft once for each mapping; the shell waits, and so is charged for all."""
    start = f"nft add rule inet {SCRIPTED} ports_in fib daddr type local tcp dport"
    lines = (f"{start} {files.port(i)} redirect to :{files.TARGET}\n" for i in range(count))
    path = shop.write(f"script-{count}.sh", "".join(lines))
    frame = shop.write("script-frame.nft", FRAME)
    return Case(lambda: here.run(["sh", "-e", path]), lambda: here.run(["nft", "-f", frame]))


def _restore(shop: Workshop, here: Place, variant: str, count: int) -> Case:
    argv = restore_flat(shop, variant, count)
    return Case(lambda: here.run(argv), lambda: iptables.clean(here, variant))


def _reload(here: Place, reload: Callable[[str], Sample], count: int) -> Case:
    """From no port to all of them, and only after a look whether they are there is it believed."""
    lines = "".join(
        f'<forward-port port="{files.port(i)}" protocol="tcp" to-port="{files.TARGET}"/>\n' for i in range(count)
    )

    def run() -> Sample:
        spent = reload(lines)
        path = f"{here.folder}/rules"
        here.run(["nft", "list", "ruleset"], path)
        with open(path, encoding="utf-8") as file:
            loaded = sum(f"redirect to :{files.TARGET}" in line for line in file)
        if loaded < count:
            raise Failed(f"firewalld loaded {loaded} of {count} mappings: {here.said()}")
        return spent

    return Case(run, lambda: reload(""))
