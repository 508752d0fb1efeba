"""`make bench`: what redirector costs, next to what nft costs, on this machine and now.

    bench.py [--quick] [--only NAME]… [--out FOLDER]

Everything is measured in private network namespaces, in turns (see measure.py), and printed as Markdown; FOLDER gets
the same as bench.md, and bench.json with every number. The exit status is 0 whatever the numbers are, and 1 if
something did not run. Nothing here is a test: a time that is judged by a machine under load proves nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import imports
import iptables
from measure import CLEAN, Case, Failed, Place, Sample, own_peak, take_turns
from report import MIB, Comparison, Report, Section, load, machine, peak_ratio, ratio
from workshop import BIN, HERE, Workshop

import redirector
from redirector.host.privileges import become_user_namespace_root

ROOT = HERE.parent
TABLE = ("inet", "redirector")
ELEMENT = re.compile(r'(?P<key>\w+ \. \d+) comment "[^"]*" : \d+')

# Targets, from the requirements of the project.
APPLY_MILLISECONDS = 150
APPLY_TO_VERSION = 1.5
SHIFTED_TO_NFT = 1.0
ENGINE_TO_NFT = 0.25
PEAK_TO_NFT = 1.0


class Bench(Workshop):
    """The files to measure with, and the experiments: methods that return a Section, by name in `EXPERIMENTS`."""

    def __init__(self, folder: str, *, quick: bool) -> None:
        super().__init__(folder, quick=quick)
        self.shifted_ports = 200 if quick else 10_000
        self.groups = 2 if quick else 300  # of 100 ports, TCP and UDP: 60,000 map elements, and as many that count
        self.elements = f"{self.groups * 200:,}"
        shutil.copy(ROOT / "rules" / "web.toml", folder)

    # -- the experiments ---------------------------------------------------------------------------------------------

    def start(self) -> Section:
        """Whole processes with next to nothing to do."""
        web = self.file("web.toml")
        python = sys.executable
        with self.place("start") as here:
            cases = {
                "`python -c pass`": Case(lambda: here.run([python, "-c", "pass"])),
                '`python -c "import click"`': Case(lambda: here.run([python, "-c", "import click"])),
                "`redirector --version`": Case(lambda: here.run([self.redirector, "--version"])),
                "`redirector check`": Case(lambda: here.run([self.redirector, "check", web])),
                "`redirector apply`": Case(lambda: here.run(self.apply(here, web)), lambda: _forget(here)),
                "`redirector status`": Case(lambda: here.run(self.command(here, "status"))),
            }
            found = take_turns(cases, self.rounds(15))
        section = Section("start", "Start of a process: rules/web.toml", found)
        version = found["`redirector --version`"]
        for command in ("apply", "status"):
            spent = found[f"`redirector {command}`"]
            milliseconds = 1000 * spent.seconds.median, 1000 * spent.seconds.low, 1000 * spent.cpu.median
            what = f"`{command}` of web.toml"
            section.comparisons += [
                Comparison(f"{what}, whole process", *milliseconds, unit="ms", limit=APPLY_MILLISECONDS),
                ratio(f"{what} to `--version`", spent, version, limit=APPLY_TO_VERSION),
            ]
        click = found['`python -c "import click"`']
        section.comparisons.append(ratio("`--version` to `import click`", version, click))
        return section

    def imports(self) -> Section:
        """What the way of `apply` imports."""
        with self.place("imports") as here:
            argv = self.apply(here, self.file("web.toml"))
            trees = []
            for _ in range(1 + self.rounds(3)):  # of which the first fills caches
                _forget(here)
                here.run([sys.executable, "-X", "importtime", *argv])
                trees.append(imports.parse(here.complaints()))
        root = min(trees[1:], key=imports.Import.cost)
        heavy, foreign = imports.heavier(root, "click"), imports.third_party(root, ("click", "redirector", "tomli"))
        section = Section("imports", "Imports of `redirector apply`")
        for what, names in (
            ("modules heavier than click", heavy),
            ("packages beyond click, tomli and the stdlib", foreign),
        ):
            section.comparisons.append(
                Comparison(f"{what} that `apply` imports", len(names), len(names), unit="", limit=0)
            )
            section.notes += [f"{what}: {', '.join(names)}."] if names else []
        most = ", ".join(f"{name} {cost:.1f}" for name, cost in imports.heaviest(root, "click"))
        click = root.find("click")
        cost = click.cost() / 1000 if click else 0
        rest = root.cost(without="click") / 1000
        section.notes.append(
            f"In ms, by `-X importtime`: click, with all that it pulls in, {cost:.1f}; everything else {rest:.1f}, "
            f"of which the dearest, without what they import: {most}."
        )
        return section

    def shifted(self) -> Section:
        """One mapping of many shifted ports, whole processes."""
        count = self.shifted_ports
        tables = [_table("game", 10_000, 30_000, count, "tcp")]
        file, rules = self._rules("shifted", tables)
        with self.place("shifted-ours") as ours, self.place("shifted-nft") as theirs:
            cases = {
                "`redirector apply`": Case(lambda: ours.run(self.apply(ours, file)), lambda: _forget(ours)),
                "`nft -f`": Case(lambda: theirs.run(["nft", "-f", rules]), theirs.clean),
            }
            found = take_turns(cases, self.rounds(15))
            _require_equal(ours, theirs, count)
        section = Section("shifted", f"One mapping of {count:,} shifted ports, whole processes", found)
        apply, nft = found.values()
        what = f"`apply` of {count:,} shifted ports to `nft -f`"
        section.comparisons.append(ratio(what, apply, nft, limit=SHIFTED_TO_NFT, peer="nft"))
        return section

    def engine(self) -> Section:
        """Program → committed, inside a process that runs already."""
        _, rules = self._many()
        with self.place("engine-ours") as ours, self.place("engine-nft") as theirs, self._engine(ours) as ask:
            cases = {
                "engine: plan, encode, commit, proof": Case(lambda: ask("commit"), ours.clean),
                "of these, plan and encode alone": Case(lambda: ask("encode")),
                "`nft -f`, whole process": Case(lambda: theirs.run(["nft", "-f", rules]), theirs.clean),
            }
            found = take_turns(cases, self.rounds(9))
        section = Section("engine", f"The engine alone, {self.elements} elements", found)
        commit, encode, nft = found.values()
        what = f"engine alone, {self.elements} elements, to `nft -f`"
        section.comparisons.append(ratio(what, commit, nft, limit=ENGINE_TO_NFT, peer="nft"))
        share = (commit.cpu.median - encode.cpu.median) / nft.cpu.median
        section.notes.append(f"The rest of the engine's CPU time is the kernel's: {share:.2f} × all of `nft -f`.")
        return section

    def observe(self) -> Section:
        """Reading everything back."""
        with self.place("observe") as here, self._engine(here) as ask:
            ask("commit")
            cases = {
                "engine: observe": Case(lambda: ask("observe")),
                "`nft list table`": Case(lambda: here.run(["nft", "list", "table", *TABLE])),
            }
            found = take_turns(cases, self.rounds(5))
        section = Section("observe", f"Full observation, {self.elements} elements", found)
        observe, listed = found.values()
        what = f"observing {self.elements} elements to `nft list table`"
        section.comparisons.append(ratio(what, observe, listed, peer="nft"))
        return section

    def whole(self) -> Section:
        """Whole processes and their memory."""
        file, rules = self._many()
        with self.place("whole-ours") as ours, self.place("whole-nft") as theirs:
            cases = {
                "`redirector apply`": Case(lambda: ours.run(self.apply(ours, file)), lambda: _forget(ours)),
                "`nft -f`": Case(lambda: theirs.run(["nft", "-f", rules]), theirs.clean),
            }
            found = take_turns(cases, self.rounds(7))
            floor = own_peak()
            _require_equal(ours, theirs, self.groups * 200)
        section = Section("whole", f"Whole processes, {self.elements} elements in {self.groups} mappings", found)
        apply, nft = found.values()
        what = f"{self.elements} elements to `nft -f`"
        section.comparisons += [
            peak_ratio(f"peak memory of `apply`, {what}", apply, nft, limit=PEAK_TO_NFT, peer="nft"),
            ratio(f"`apply` of {what}", apply, nft, peer="nft"),
        ]
        if apply.peak.low <= floor or nft.peak.low <= floor:
            section.notes.append(
                f"Peaks up to {floor / MIB:.1f} MiB are the measuring process's own: they say nothing."
            )
        return section

    def unchanged(self) -> Section:
        """Nothing to do."""
        file, rules = self._many()
        with self.place("unchanged-ours") as ours, self.place("unchanged-nft") as theirs:
            ours.run(self.apply(ours, file))
            again = self._again("again.nft", rules)
            cases = {
                "`redirector apply`": Case(lambda: ours.run(self.apply(ours, file))),
                "`redirector plan`": Case(lambda: ours.run(self.command(ours, "plan", file))),
                "`redirector status`": Case(lambda: ours.run(self.command(ours, "status"))),
                "`nft list table`": Case(lambda: ours.run(["nft", "list", "table", *TABLE])),
                "`nft -f`, everything again": Case(lambda: theirs.run(["nft", "-f", again])),
            }
            found = take_turns(cases, self.rounds(5))
        section = Section("unchanged", f"Nothing to do, {self.elements} elements", found)
        apply, plan, status, listed, loaded = found.values()
        for name, spent in (("apply", apply), ("plan", plan), ("status", status)):
            section.comparisons.append(
                ratio(f"`{name}`, nothing to do, to `nft list table`", spent, listed, peer="nft")
            )
        section.comparisons.append(
            ratio("`apply`, nothing to do, to `nft -f` of everything", apply, loaded, peer="nft")
        )
        return section

    def change(self) -> Section:
        """One mapping of many changes its target."""
        files, rules = zip(self._many(), self._many(moved=self.groups // 2), strict=True)
        whole = [self._again(f"again-{i}.nft", path) for i, path in enumerate(rules)]
        only = [self._difference(f"only-{i}.nft", rules[1 - i], rules[i]) for i in range(2)]
        turn = _Turns()
        with (
            self.place("change-ours") as ours,
            self.place("change-whole") as theirs,
            self.place("change-only") as skilled,
            self.place("change-engine") as bare,
            self._engine(bare) as ask,
        ):
            ours.run(self.apply(ours, files[0]))
            skilled.run(["nft", "-f", rules[0]])
            ask("commit")
            cases = {
                "`redirector apply`": Case(lambda: ours.run(self.apply(ours, files[turn.number])), turn.next),
                "engine: plan, encode, commit, proof": Case(lambda: ask("change")),
                "`nft -f`, everything again": Case(lambda: theirs.run(["nft", "-f", whole[turn.number]])),
                "`nft -f`, only these elements": Case(lambda: skilled.run(["nft", "-f", only[turn.number]])),
            }
            found = take_turns(cases, self.rounds(5))
            _require_equal(ours, skilled, self.groups * 200)
        section = Section("change", f"One changed mapping of {self.groups}, among {self.elements} elements", found)
        apply, engine, loaded, written = found.values()
        section.comparisons += [
            ratio("`apply` of one changed mapping to `nft -f` of everything", apply, loaded, peer="nft"),
            ratio("`apply` of one changed mapping to `nft -f` of its elements alone", apply, written, peer="nft"),
            ratio("engine alone, one changed mapping, to the same", engine, written, peer="nft"),
        ]
        section.notes.append(
            "The last of them is what a person could write who knows exactly what is loaded and what has to change; "
            "`apply` reads the table, finds that out, and proves it."
        )
        return section

    # -- files and commands ------------------------------------------------------------------------------------------

    def _rules(self, name: str, tables: list[str]) -> tuple[str, str]:
        """(mapping file, the same rules for nft)."""
        file, rules = self.file(f"{name}.toml"), self.file(f"{name}.nft")
        if not os.path.exists(file):
            self.write(f"{name}.toml", "\n".join(["version = 1\n", *tables]))
            with open(rules, "wb") as out:
                argv = [self.redirector, "render", file, "--as", "nft"]
                subprocess.run(argv, check=True, stdout=out, env=self.environ)
        return file, rules

    def _many(self, moved: int = -1) -> tuple[str, str]:
        """Mappings of 100 ports each, none of which is another's target; `moved` is one that goes elsewhere."""
        both = '["tcp", "udp"]'
        tables = [
            _table(f"range-{i:03d}", 1001 + 100 * i, 65001 if i == moved else 32001 + 100 * i, 100, both)
            for i in range(self.groups)
        ]
        return self._rules("many" if moved < 0 else "moved", tables)

    def _again(self, name: str, rules: str) -> str:
        """A script for nft that replaces the table by what `rules` holds, in one transaction."""
        path = self.write(name, CLEAN)
        with open(path, "ab") as out, open(rules, "rb") as rest:
            shutil.copyfileobj(rest, out)
        return path

    def _difference(self, name: str, before: str, after: str) -> str:
        """A script for nft that turns one set of rules into the other, of which only targets differ."""
        with open(before, encoding="ascii") as old, open(after, encoding="ascii") as new:
            pairs = zip(old, new, strict=True)
            found = [match for line, other in pairs if line != other and (match := ELEMENT.search(other))]
        doomed, fresh = (", ".join(match[part] for match in found) for part in ("key", 0))
        place = " ".join(TABLE) + " ports"
        return self.write(name, f"delete element {place} {{ {doomed} }}\nadd element {place} {{ {fresh} }}\n")

    @contextmanager
    def _engine(self, here: Place) -> Iterator[Callable[[str], Sample]]:
        """A running engine.py; the function gives it a job and returns what that cost. Raises Failed."""
        files = self._many()[0], self._many(moved=self.groups // 2)[0]
        with self.talk(here, "engine.py", files) as answer_to:

            def ask(job: str) -> Sample:
                answer = answer_to(job)
                if answer.get("entries") != self.groups * 200:
                    raise Failed(f"the engine did not do its job {job!r}: {answer}")
                return Sample(answer["seconds"], answer["cpu"])

            yield ask


EXPERIMENTS: dict[str, Callable[[Bench], Section]] = {
    "start": Bench.start,
    "imports": Bench.imports,
    "shifted": Bench.shifted,
    "engine": Bench.engine,
    "whole": Bench.whole,
    "observe": Bench.observe,
    "unchanged": Bench.unchanged,
    "change": Bench.change,
    "connects-nft": partial(iptables.connects, variant="nft"),
    "connects-legacy": partial(iptables.connects, variant="legacy"),
    "load-nft": partial(iptables.load, variant="nft"),
    "load-legacy": partial(iptables.load, variant="legacy"),
    "range-iptables": iptables.shifted,
}


class _Turns:
    """0 or 1, in turns."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> None:
        self.number = 1 - self.number


def _table(name: str, listen: int, to: int, count: int, protocol: str) -> str:
    """A `[[mapping]]` of `count` shifted ports; `protocol` as TOML has it, quotes aside."""
    quoted = protocol if protocol.startswith("[") else f'"{protocol}"'
    ranges = f'listen = "{listen}-{listen + count - 1}"\nto = "{to}-{to + count - 1}"'
    return f'[[mapping]]\nname = "{name}"\n{ranges}\nprotocol = {quoted}\n'


def _forget(here: Place) -> None:
    """As if nothing had ever been applied."""
    here.clean()
    shutil.rmtree(here.state, ignore_errors=True)


def _require_equal(one: Place, other: Place, elements: int) -> None:
    """Both must hold the same rules, or what was compared is not the same work. Raises Failed."""
    found, wanted = one.fingerprint(), other.fingerprint()
    if found != wanted or found[0] < elements:
        raise Failed(
            f"the two did not leave the same rules: nft lists {found[0]} words of one, {wanted[0]} of the other"
        )


def _measure(bench: Bench, names: list[str], report: Report) -> None:
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            report.sections.append(EXPERIMENTS[name](bench))
        except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
            report.failures.append(f"{name}: {error}")


def _prepare() -> None:
    """Leave no compiling to be measured. Raises Failed without what is needed."""
    if not (BIN / "redirector").exists():
        raise Failed(f"{BIN} has no redirector: run make setup first, or this by .venv/bin/python")
    if not shutil.which("nft"):
        raise Failed("there is no nft: install nftables")
    if not compileall.compile_dir(os.path.dirname(redirector.__file__), quiet=2):
        print("bench: not all modules could be compiled beforehand: starts are slower than they are", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="What redirector costs, next to what nft costs.")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: proves only that it runs")
    parser.add_argument("--only", action="append", choices=list(EXPERIMENTS), help="this experiment (may be repeated)")
    parser.add_argument("--out", default=str(ROOT / "build" / "bench"), help="folder for bench.md and bench.json")
    options = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    try:
        if os.geteuid():
            if not options.quick:
                # The kernel takes no transaction of that size from a user namespace's root (SO_SNDBUFFORCE).
                raise Failed("only root can measure the large sizes; anybody can say --quick")
            become_user_namespace_root()
        _prepare()
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="redirector-bench-") as folder:
        report = Report(machine(folder))
        bench = Bench(folder, quick=options.quick)
        names = options.only or list(EXPERIMENTS)
        if "legacy" not in bench.variants:
            report.machine["left out"] = "iptables-legacy: a user namespace's root cannot open its lock"
            names = [name for name in names if not name.endswith("-legacy")]
        _measure(bench, names, report)
    report.machine["load after"] = load()
    if options.quick:
        report.machine["sizes"] = "**those of --quick: the numbers and verdicts say nothing**"
    _write(Path(options.out), report.markdown(), report.json())
    print(report.markdown(), end="")
    return 1 if report.failures else 0


def _write(folder: Path, markdown: str, data: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown, encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
