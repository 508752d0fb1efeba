"""`make bench`: what redirector costs, next to what others cost, on this machine and now.

    bench.py [--quick | --full] [--only NAME]… [--out FOLDER] [--publish | --republish]

Everything is measured in private network namespaces, in turns (see measure.py), and printed as Markdown; FOLDER gets
the same as bench.md, bench.json with every number, and the charts as SVG. With --publish the blocks of README.md and
docs/ that come from a run are written anew; --republish does only that, from what FOLDER has. The exit status is 0
whatever the numbers are, and 1 if something did not run.
Nothing here is a test: a time that is judged by a machine under load proves nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import SLOW, TABLE, find
from machine import load, machine
from measure import Failed, own_peak
from report import Report
from workshop import BIN, FULL, HERE, NORMAL, QUICK, Workshop

import redirector
from redirector.host.privileges import become_user_namespace_root

ROOT = HERE.parent


def _measure(shop: Workshop, names: list[str], report: Report, folder: Path) -> None:
    """What has been measured is in the folder after each experiment, however this ends."""
    for name in names:
        print(f"{name} … ", end="", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            section = find(name)(shop)
            section.floor = own_peak()
            report.sections.append(section)
        except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
            report.failures.append(f"{name}: {error}")
        report.machine["load after"] = load()
        _save(report, folder)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


def _save(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(report.markdown(), encoding="utf-8")
    text = json.dumps(report.json(), indent=1, ensure_ascii=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")


def _prepare() -> None:
    """Leave no compiling to be measured. Raises Failed without what is needed."""
    if not (BIN / "redirector").exists():
        raise Failed(f"{BIN} has no redirector: run make setup first, or this by .venv/bin/python")
    if not shutil.which("nft"):
        raise Failed("there is no nft: install nftables")
    if not compileall.compile_dir(os.path.dirname(redirector.__file__), quiet=2):
        print("bench: not all modules could be compiled beforehand: starts are slower than they are", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What redirector costs, next to what others cost.")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--quick", action="store_true", help="small sizes, one round: proves only that it runs")
    pace.add_argument("--full", action="store_true", help="every experiment, and more rounds")
    parser.add_argument("--only", action="append", choices=list(TABLE), help="this experiment (may be repeated)")
    parser.add_argument("--out", default=str(ROOT / "build" / "bench"), help="folder for what was measured")
    parser.add_argument("--publish", action="store_true", help="write the blocks of README.md and docs/ anew")
    parser.add_argument("--republish", action="store_true", help="the same from what FOLDER has, measuring nothing")
    return parser.parse_args()


def main() -> int:
    options = _options()
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    folder = Path(options.out)
    if options.republish:
        report = Report.read(json.loads((folder / "bench.json").read_text(encoding="utf-8")))
        return 0 if _show(report, folder, pages=True) else 1
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
    report = _run(QUICK if options.quick else FULL if options.full else NORMAL, options.only, folder)
    shown = _show(report, folder, pages=options.publish)
    print(report.markdown(), end="")
    return 0 if shown and not report.failures else 1


def _show(report: Report, folder: Path, *, pages: bool) -> bool:
    """Draw the charts, and write the pages; whether that went well. It makes a process large: see measure.own_peak."""
    import chart
    import publish

    chart.draw(report, folder)
    try:
        if pages:
            publish.publish(report, ROOT)
    except Failed as error:
        print(f"bench: the pages stay as they are: {error}", file=sys.stderr)
        return False
    return True


def _run(pace: str, only: list[str] | None, folder: Path) -> Report:
    with tempfile.TemporaryDirectory(prefix="redirector-bench-") as files:
        shop = Workshop(files, pace)
        report = Report(machine(shop))
        names = only or [name for name in TABLE if pace != NORMAL or name not in SLOW]
        if "legacy" not in shop.variants:
            report.machine["left out"] = "iptables-legacy: a user namespace's root cannot open its lock"
            names = [name for name in names if not name.endswith("-legacy")]
        if pace == QUICK:
            report.machine["sizes"] = "**those of --quick: the numbers and verdicts say nothing**"
        _measure(shop, names, report, folder)
    return report


if __name__ == "__main__":
    sys.exit(main())
