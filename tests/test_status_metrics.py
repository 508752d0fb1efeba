"""What `status` found as Prometheus reads it: names, values, escaping, and a file that is whole or not there."""

import os
import re
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from redirector import metrics
from redirector.metrics import Metric, Sample
from redirector.proof import Head
from redirector.report import Drift, Status
from redirector.status_metrics import of_status
from tests.strategies import mapping

WEB, LAN, OLD = (
    mapping("web", "80", "8080"),
    mapping("lan", "81", "8081"),
    mapping("old", "82", "8082", enabled=False),
)
HEAD = Head(7, "apply", "2026-01-01T00:00:00Z", "anna", "/etc/m.toml", 3, 2)
DRIFTED = Status(
    "drifted", "nftables", HEAD, (Drift("missing", "web", ""),), (WEB, LAN, OLD), {"web": 5, "lan": 2, "stray": 9}
)


def values(found: list[Metric]) -> dict[str, dict[tuple[str, ...], float]]:
    return {one.name: {tuple(s.labels.values()): s.value for s in one.samples} for one in found}


def test_a_status_as_numbers() -> None:
    found = values(of_status(DRIFTED, 12.5))
    assert [name for (name,), value in found["redirector_state"].items() if value] == ["drifted"]
    assert found["redirector_generation"] == {(): 7}
    assert found["redirector_mappings"] == {("enabled",): 2, ("disabled",): 1}
    assert found["redirector_drift"] == {(): 1}
    assert found["redirector_pending_seconds"] == {(): 12.5}
    assert found["redirector_connections_total"] == {("web",): 5, ("lan",): 2}
    assert found["redirector_mapping_in_sync"] == {("web",): 0, ("lan",): 1}


def test_before_the_first_generation_there_are_zeros() -> None:
    found = values(of_status(Status("absent", "nftables", None, (), None, {}), None))
    assert found["redirector_state"][("absent",)] == 1
    assert found["redirector_generation"] == {(): 0} == found["redirector_drift"]
    assert found["redirector_connections_total"] == {}


LINE = re.compile(r'([a-z_]+)(?:\{([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"\})? (\S+)')


@given(st.text(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_is_said_stays_in_its_line(words: str, label: str, value: float) -> None:
    text = metrics.text([Metric("a_total", "counter", words, (Sample(value, {"mapping": label}),))])
    first, second, third, end = text.split("\n")
    assert (first[:15], second, end) == ("# HELP a_total ", "# TYPE a_total counter", "")
    match = LINE.fullmatch(third)
    assert match
    assert (match[1], match[2]) == ("a_total", "mapping")
    plain = re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], match[3])
    assert (plain, float(match[4])) == (label, value)


def test_the_file_is_replaced_whole_and_anybody_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "redirector.prom"
    path.write_text("older, and longer" * 1000)
    path.chmod(0o600)
    before = os.umask(0o077)
    try:
        metrics.write(str(path), of_status(DRIFTED, None))
    finally:
        os.umask(before)
    assert path.read_text() == metrics.text(of_status(DRIFTED, None))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["redirector.prom"]
