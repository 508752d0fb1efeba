"""What watching decides, without a kernel: when to heal at once, whom to suspect, what to wait for, what is told."""

import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector import metrics, output_watch
from redirector.backends.memory import MemoryBackend
from redirector.errors import Refused
from redirector.history import History
from redirector.host import systemd
from redirector.metrics import Metric, Sample
from redirector.model import Ruleset
from redirector.program import Program
from redirector.reconcile import Origin, Wish, change
from redirector.report import Drift
from redirector.watch.look import Eyes, Look
from redirector.watch.loop import Options, Watcher, _culprits
from redirector.watch.patience import AT_ONCE, LONGEST, QUICK, Patience, growing
from redirector.watch.signals import Signals
from redirector.watch.sources import COMPARE, STOP, Happening, Suspect, later
from redirector.watch.told import Ended, Failed, Fought, Healed, Started, Told
from tests.strategies import mapping

GENIDS = st.integers(0, 2**32 - 1)
WEB = Ruleset((mapping("web", "80", "8080"),))


def test_ten_at_once_and_then_twice_as_long_each_time() -> None:
    patience = Patience()
    now, waits = 100.0, []
    for _ in range(AT_ONCE + 9):
        waits.append(patience.healed(now + 0.1, now + 0.2))
        now += 0.2 + waits[-1]
    assert waits == [0.0] * (AT_ONCE - 1) + [0.0 + w for w in (1, 2, 4, 8, 16, 32, 60, 60, 60, 60)]


@given(st.lists(st.floats(QUICK * 1.01, 1e6), max_size=40))
def test_what_is_undone_later_than_at_once_is_healed_at_once(pauses: list[float]) -> None:
    patience, now = Patience(), 0.0
    for pause in pauses:
        now += pause
        assert patience.healed(now, now) == 0


@given(st.integers(0, 10_000))
def test_no_wait_is_longer_than_the_longest(step: int) -> None:
    assert 1 <= growing(step) <= LONGEST
    assert growing(step) <= growing(step + 1)
    assert growing(-1 - step) == 0


@given(GENIDS, st.integers(1, 2**31 - 1))
def test_genids_come_again(one: int, steps: int) -> None:
    other = (one + steps) % 2**32
    assert later(other, one)
    assert not later(one, other)
    assert not later(one, one)


def test_those_who_came_between_what_was_known_and_our_healing_are_told() -> None:
    suspects = [Suspect("nft", number, number) for number in range(1, 8)]
    assert [s.pid for s in _culprits(Look("in-sync", genid=6, before=3), suspects)] == [4, 5]
    assert [s.pid for s in _culprits(Look("in-sync", genid=6), suspects)] == [1, 2, 3, 4, 5]
    assert [s.pid for s in _culprits(Look("in-sync"), suspects)] == [1, 2, 3, 4, 5, 6, 7]


class Tamperer:
    """A source, and what it tells of: at each of `rings` somebody empties the kernel, and it says so in these words.

    The next one is there as soon as the one before has been heard; the stop comes when somebody rings again.
    """

    name, patient = "tamperer", False

    def __init__(self, backend: MemoryBackend, *rings: Happening) -> None:
        self._backend, self._rings, self.left = backend, list(rings), len(rings)
        self._read, self._write = os.pipe()
        self.ring()

    def ring(self) -> None:
        os.write(self._write, b".")

    def fileno(self) -> int:
        return self._read

    def drain(self) -> Happening:
        os.read(self._read, 1)
        if not self._rings:
            return Happening(asked=STOP)
        self._backend.program = None
        found = self._rings.pop(0)
        if self._rings or not self.left:
            self.ring()
        suspects = tuple(s._replace(genid=self._backend.generation) for s in found.suspects)
        return found._replace(suspects=suspects)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


@pytest.fixture
def backend(history: History) -> MemoryBackend:
    made = MemoryBackend()
    with history.locked():
        change(made, history, Wish(WEB, Origin("apply", "a file", "anna")))
    return made


def told(
    history: History, backend: MemoryBackend, *rings: Happening, until: int, options: Options | None = None
) -> list[Told]:
    """What a watcher tells, which is to end when it has told so many things."""
    found: list[Told] = []
    source = Tamperer(backend, *rings)

    def tell(what: Told) -> None:
        found.append(what)
        if len(found) == until and rings:
            source.ring()

    Watcher(Eyes(history, lambda name: backend), [source], tell, output_watch.state, options or Options()).run()
    source.close()
    return found


def kinds(found: list[Told]) -> list[type]:
    return [type(each) for each in found]


EVENT = Happening(1, (Suspect("nft", 7),))


def test_it_looks_first(history: History, backend: MemoryBackend) -> None:
    backend.program = None
    found = told(history, backend, until=2)
    assert kinds(found) == [Healed, Started, Ended]
    assert "while nobody watched" in output_watch.line(found[0])


def test_what_comes_while_we_look_is_not_slept_over(history: History, backend: MemoryBackend) -> None:
    """The second event is heard right before the first look, the third one right after it: and nothing wakes anybody
    up any more."""
    found = told(history, backend, EVENT, EVENT, EVENT, until=3)
    assert kinds(found) == [Started, Healed, Healed, Ended]
    assert all("; by nft (pid 7)" in output_watch.line(each) for each in found[1:3])
    assert backend.program is not None


def test_what_the_last_look_has_seen_is_not_looked_at_again(history: History, backend: MemoryBackend) -> None:
    """Such as our own commit, whose announcement comes behind the look."""
    seen = Happening(1, (Suspect("nft", 7, backend.generation),))

    class Late(Tamperer):
        def drain(self) -> Happening:
            found = super().drain()
            backend._program = None  # which no look may find
            return seen if found.suspects else found

    found: list[Told] = []
    source = Late(backend, EVENT)
    source.left = 0  # the stop comes right behind
    Watcher(Eyes(history, lambda name: backend), [source], found.append, output_watch.state, Options()).run()
    source.close()
    assert kinds(found) == [Started, Ended]


def test_lost_events_make_it_look(history: History, backend: MemoryBackend) -> None:
    found = told(history, backend, Happening(lost=True), until=2)
    assert kinds(found) == [Started, Healed, Ended]
    assert "; by somebody (the kernel had to drop events)" in output_watch.line(found[1])


def test_a_look_that_fails_is_told_once_and_tried_again(history: History, backend: MemoryBackend) -> None:
    backend.foreign = "somebody's"
    backend.program = Program({}, {})
    found = told(history, backend, Happening(asked=COMPARE), until=1)
    assert kinds(found) == [Failed, Ended]
    assert isinstance(found[0], Failed)
    assert isinstance(found[0].error, Refused)
    assert "trying again in 1 s" in output_watch.line(found[0])


def test_nothing_is_healed_that_is_only_to_be_told(history: History, backend: MemoryBackend) -> None:
    backend.program = None
    found = told(history, backend, until=2, options=Options(heal=False))
    assert backend.program is None
    lines = [output_watch.line(each) for each in found]
    drift = "structure (table): the table is gone, missing web: lacks tcp 80 → 8080"
    assert lines[0] == f"{drift}; by somebody; nothing is healed (--dry-run); generation 1"
    assert lines[1:] == ["watching: drifted (memory); generation 1", "ended; the redirects stay as they are"]


def test_lines() -> None:
    many = tuple(Drift("missing", f"m{n}", "gone") for n in range(7))
    suspects = (Suspect("nft", 1), Suspect("nft", 1), Suspect("a\x1b[2J", 2))
    line = output_watch.line(Healed(Look("in-sync", "nftables", 3, many, healed=True), suspects, 0.0123))
    assert line == (
        "healed in 12 ms: missing m0: gone, missing m1: gone, missing m2: gone, missing m3: gone, missing m4: gone, "
        "and 2 more; by nft (pid 1), a\\x1b[2J (pid 2); generation 3"
    )
    fought = Fought(10, suspects[:1], 4.0)
    assert output_watch.line(fought) == (
        "undone 10 times in a row, at last by nft (pid 1): healing rests; looking again in 4 s"
    )
    assert output_watch.failed(fought)
    assert output_watch.state(Look("in-sync", "nftables", 3), fought) == (
        "undone 10 times in a row, at last by nft (pid 1): healing rests; in sync (nftables); generation 3"
    )


def test_signals_are_events() -> None:
    assert threading.current_thread() is threading.main_thread()
    former = signal.getsignal(signal.SIGHUP)
    source = Signals()
    try:
        for number, asked in ((signal.SIGHUP, COMPARE), (signal.SIGTERM, STOP), (signal.SIGINT, STOP)):
            signal.raise_signal(number)
            assert source.drain() == Happening(1, asked=asked)
    finally:
        source.close()
    assert signal.getsignal(signal.SIGHUP) == former


def test_metrics_as_prometheus_has_them(tmp_path: Path) -> None:
    """prometheus.io/docs/instrumenting/exposition_formats: escapes in help and in values of labels."""
    path = tmp_path / "a.prom"
    odd = Metric("a_total", "counter", "one\\two\nthree", (Sample(2, {"name": 'x"\\\n'}), Sample(0.5)))
    metrics.write(str(path), [odd, Metric("b", "gauge", "B.", (Sample(1e20),))])
    assert path.read_text() == (
        "# HELP a_total one\\\\two\\nthree\n# TYPE a_total counter\n"
        'a_total{name="x\\"\\\\\\n"} 2\na_total 0.5\n'
        "# HELP b B.\n# TYPE b gauge\nb 100000000000000000000\n"
    )
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["a.prom"]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("", "", None), ("2000000", "", 1.0), ("3000000", "self", 1.5), ("2000000", "1", None), ("x", "", None)],
)
def test_who_wants_to_hear_a_ping(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert systemd.ping_seconds() == seconds
