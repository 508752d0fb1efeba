"""The benchmark runs. What it measures is never judged here: a time limit would only test the machine's other work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "bench.py"

# The experiments make network namespaces, in processes of their own (as anybody: they see to that themselves).
pytestmark = pytest.mark.kernel


def bench(out: Path, *arguments: str, path: str = "") -> tuple[int, str, Any]:
    """(exit status, what was printed, bench.json) of a quick run; `path` goes before the others of PATH."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["PATH"] = f"{path}:{environ['PATH']}".removeprefix(":")
    argv = [sys.executable, str(BENCH), "--quick", *arguments, "--out", str(out)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environ, timeout=100)
    assert (out / "bench.json").exists(), done.stderr
    return done.returncode, done.stdout, json.loads((out / "bench.json").read_text(encoding="utf-8"))


def test_every_experiment_runs(tmp_path: Path) -> None:
    status, printed, found = bench(tmp_path / "a" / "folder")
    assert found["failures"] == []
    assert status == 0
    names = [section["name"] for section in found["sections"]]
    ours = ["start", "imports", "shifted", "engine", "whole", "observe", "unchanged", "change"]
    iptables = ["connects-nft", "connects-legacy", "load-nft", "load-legacy", "range-iptables"]
    # A plain user's namespace has no iptables-legacy.
    assert names == ours + [name for name in iptables if os.geteuid() == 0 or "legacy" not in name]
    for section in found["sections"]:
        assert section["comparisons"], section["name"]
        for series in section["series"].values():
            for spread in (series["seconds"], series["cpu"]):
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert printed == (tmp_path / "a" / "folder" / "bench.md").read_text(encoding="utf-8")
    assert "| `apply` of web.toml to `--version` |" in printed


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
