"""Whole processes with next to nothing to do."""

from __future__ import annotations

import shutil
import sys

import imports
from measure import Case, take_turns
from report import Comparison, Section, ratio
from workshop import HERE, Workshop, forget

APPLY_MILLISECONDS = 150
APPLY_TO_VERSION = 1.5
START_TO_CLICK = 1.3


def _web(shop: Workshop) -> str:
    return str(shutil.copy(HERE.parent / "rules" / "web.toml", shop.folder))


def start(shop: Workshop) -> Section:
    """Each command on a small file, next to an interpreter that only imports click."""
    web, python = _web(shop), sys.executable
    with shop.place("start") as here:
        cases = {
            "`python -c pass`": Case(lambda: here.run([python, "-c", "pass"])),
            '`python -c "import click"`': Case(lambda: here.run([python, "-c", "import click"])),
            "`redirector --version`": Case(lambda: here.run([shop.redirector, "--version"])),
            "`redirector check`": Case(lambda: here.run([shop.redirector, "check", web])),
            "`redirector apply`": Case(lambda: here.run(shop.apply(here, web)), lambda: forget(here)),
            "`redirector status`": Case(lambda: here.run(shop.command(here, "status"))),
        }
        found = take_turns(cases, shop.rounds(15))
    section = Section("start", "Start of a process: rules/web.toml", found)
    click = found['`python -c "import click"`']
    for command in ("--version", "check", "status", "apply"):
        what = f'`{command}` of web.toml to `python -c "import click"`'.replace("--version` of web.toml", "--version`")
        section.comparisons.append(ratio(what, found[f"`redirector {command}`"], click, limit=START_TO_CLICK))
    apply, version = found["`redirector apply`"], found["`redirector --version`"]
    milliseconds = 1000 * apply.seconds.median, 1000 * apply.seconds.low, 1000 * apply.cpu.median
    section.comparisons += [
        Comparison("`apply` of web.toml, whole process", *milliseconds, unit="ms", limit=APPLY_MILLISECONDS),
        ratio("`apply` of web.toml to `--version`", apply, version, limit=APPLY_TO_VERSION),
    ]
    return section


def imported(shop: Workshop) -> Section:
    """What the way of `apply` imports."""
    with shop.place("imports") as here:
        argv = shop.apply(here, _web(shop))
        trees = []
        for _ in range(1 + shop.rounds(3)):  # of which the first fills caches
            forget(here)
            here.run([sys.executable, "-X", "importtime", *argv])
            trees.append(imports.parse(here.complaints()))
    root = min(trees[1:], key=imports.Import.cost)
    heavy, foreign = imports.heavier(root, "click"), imports.third_party(root, ("click", "redirector", "tomli"))
    section = Section("imports", "Imports of `redirector apply`")
    for what, names in (
        ("modules heavier than click", heavy),
        ("packages beyond click, tomli and the stdlib", foreign),
    ):
        section.comparisons.append(Comparison(f"{what} that `apply` imports", len(names), len(names), unit="", limit=0))
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
