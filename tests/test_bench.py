"""The benchmark runs. What it measures is never judged here: a time limit would only test the machine's other work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "bench.py"

EXPERIMENTS = [
    "start",
    "imports",
    "growth",
    "keys",
    "limit",
    "shifted",
    "range",
    "tables",
    "engine",
    "observe",
    "status",
    "unchanged",
    "delta",
    "healing",
    "connects-nftables",
    "connects-iptables-nft",
    "connects-iptables-legacy",
    "proxies",
    "rivals",
    "load-iptables-nft",
    "load-iptables-legacy",
    "range-iptables",
]
GROWTH = {"growth", "keys", "limit"}  # which compare nothing
MEASURED = {"README.md", "performance.md", "scaling.md", "backends.md", "mechanisms.md"}
MARKED = re.compile(r"(?<=-->\n)(?:(?!<!-- bench:begin).)*?(?=<!-- bench:end -->)", re.DOTALL)

# The experiments make network namespaces, in processes of their own (as anybody: they see to that themselves).
pytestmark = pytest.mark.kernel


def bench(out: Path, *arguments: str, path: str = "") -> tuple[int, str, Any]:
    """(exit status, what was printed, bench.json) of a quick run; `path` goes before the others of PATH."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["PATH"] = f"{path}:{environ['PATH']}".removeprefix(":")
    argv = [sys.executable, str(BENCH), "--quick", *arguments, "--out", str(out)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environ, timeout=300)
    assert (out / "bench.json").exists(), done.stderr
    return done.returncode, done.stdout, json.loads((out / "bench.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(400)  # 15 s of CPU, and two dozen daemons that start and end
def test_every_experiment_runs_and_pages_are_filled_from_them(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "folder"
    status, printed, found = bench(folder)
    assert found["failures"] == []
    assert status == 0
    names = [section["name"] for section in found["sections"]]
    # A plain user's namespace has no iptables-legacy.
    assert names == [name for name in EXPERIMENTS if os.geteuid() == 0 or not name.endswith("-legacy")]
    for section in found["sections"]:
        assert section["comparisons"] or section["name"] in GROWTH, section["name"]
        for series in section["series"].values():
            for spread in (series["seconds"], series["cpu"]):
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert printed == (folder / "bench.md").read_text(encoding="utf-8")
    assert "| `apply` of web.toml to `python -c" in printed
    assert "the numbers and verdicts say nothing" in printed
    assert sorted(path.name for path in folder.glob("*.svg")) == ["growth.svg", "packets.svg", "rivals.svg"]
    for name, line in (("growth", "status"), ("packets", "no NAT at all"), ("rivals", "nft -f")):
        drawn = (folder / f"{name}.svg").read_text(encoding="utf-8")
        assert "<svg " in drawn
        assert f">{line}</text>" in drawn
    check_pages(tmp_path / "checkout", folder, found["machine"]["when"])


def check_pages(root: Path, out: Path, when: str) -> None:
    """In a copy of the checkout, only what stands between the marks is written anew, and twice the same."""
    shutil.copytree(BENCH.parent, root / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(BENCH.parents[1] / "docs", root / "docs")
    shutil.copy(BENCH.parents[1] / "README.md", root)
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]

    def read() -> list[str]:
        return [page.read_text(encoding="utf-8") for page in pages]

    def republish() -> None:
        argv = [sys.executable, str(root / "bench" / "bench.py"), "--republish", "--out", str(out)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr

    before = read()
    republish()
    after = read()
    assert [MARKED.sub("", text) for text in after] == [MARKED.sub("", text) for text in before]
    assert {page.name for page, text in zip(pages, after, strict=True) if when in text} == MEASURED
    republish()
    assert read() == after


def test_pages_stay_where_a_run_lacks_an_experiment(tmp_path: Path) -> None:
    root, out = tmp_path / "checkout", tmp_path / "out"
    bench(out, "--only", "imports")
    shutil.copytree(BENCH.parent, root / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs").mkdir()
    pages = {root / "README.md": "imports", root / "docs" / "performance.md": "start"}
    for page, name in pages.items():
        page.write_text(f"<!-- bench:begin judged {name} -->\nold\n<!-- bench:end -->\n", encoding="utf-8")
    argv = [sys.executable, str(root / "bench" / "bench.py"), "--republish", "--out", str(out)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "the run has no 'start'" in done.stderr
    assert all("\nold\n" in page.read_text(encoding="utf-8") for page in pages)


def test_a_line_through_medians() -> None:
    """Without noise, the line is found exactly, whatever the distance of the sizes."""
    code = (
        "import publish; from measure import Spread; from report import Chart; "
        "at = lambda n: Spread(*[0.05 + n * 5e-6] * 3); "
        "c = Chart('', '', '', '', 1, {'x': [(n, at(n)) for n in (10, 1000, 60000)]}); print(*publish.fit(c, 'x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=BENCH.parent)
    constant, slope = map(float, done.stdout.split())
    assert constant == pytest.approx(0.05)
    assert slope == pytest.approx(5e-6)


def test_one_experiment(tmp_path: Path) -> None:
    status, _, found = bench(tmp_path, "--only", "imports")
    assert status == 0
    (section,) = found["sections"]
    # Which packages the way of `apply` imports is the same on every machine.
    counts = {comparison["what"]: comparison["median"] for comparison in section["comparisons"]}
    assert counts["packages beyond click, tomli and the stdlib that `apply` imports"] == 0


def test_work_that_is_not_the_same_is_told_and_the_rest_still_runs(tmp_path: Path) -> None:
    idle = tmp_path / "nft"
    idle.write_text("#!/bin/sh\n", encoding="ascii")
    idle.chmod(0o755)
    status, printed, found = bench(tmp_path, "--only", "shifted", "--only", "start", path=str(tmp_path))
    assert status == 1
    assert [section["name"] for section in found["sections"]] == ["start"]
    (failure,) = found["failures"]
    assert failure.startswith("shifted: the two did not leave the same rules")
    assert f"**Did not run:** {failure}" in printed
