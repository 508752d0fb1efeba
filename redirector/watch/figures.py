"""What a watcher counts, as a Prometheus textfile."""

from __future__ import annotations

import contextlib
import time

from redirector import metrics
from redirector.metrics import Metric, Sample
from redirector.status_metrics import of_state
from redirector.watch.look import Look
from redirector.watch.sources import Happening


class Figures:
    """`path` is the file, "" for none. That it can be written no more is no reason not to watch: its age tells."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._started = time.time()
        self._events: dict[str, int] = {}
        self._losses = self._heals = self.failures = 0
        self._drift_at = self._heal_seconds = 0.0
        self.written = float("-inf")  # seconds of time.monotonic

    def heard(self, source: str, found: Happening) -> None:
        self._events[source] = self._events.get(source, 0) + found.events
        self._losses += found.lost

    def drifted(self) -> None:
        self._drift_at = time.time()

    def healed(self, seconds: float) -> None:
        self._heals += 1
        self._heal_seconds = seconds
        self.drifted()

    def write(self, now: float, look: Look | None, *, resting: bool) -> None:
        """Raises OSError where the file cannot be written the first time."""
        first, self.written = self.written < 0, now
        if self._path:
            with contextlib.nullcontext() if first else contextlib.suppress(OSError):
                metrics.write(self._path, self._metrics(look, resting=resting))

    def _metrics(self, look: Look | None, *, resting: bool) -> list[Metric]:
        state = look.state if look else "unknown"
        events = tuple(Sample(count, {"source": name}) for name, count in sorted(self._events.items()))
        one = (
            ("watch_heals_total", "counter", "How many times drift was healed since the watch began.", self._heals),
            ("watch_last_drift_timestamp_seconds", "gauge", "When drift was last found, 0 for never.", self._drift_at),
            (
                "watch_last_heal_seconds",
                "gauge",
                "How long the last healing took from its event on.",
                self._heal_seconds,
            ),
            ("watch_event_losses_total", "counter", "How many times the kernel had to drop events.", self._losses),
            ("watch_failures_total", "counter", "How many looks could not be finished.", self.failures),
            ("watch_resting", "gauge", "Whether healing rests: somebody undoes it, or a look has failed.", resting),
            ("watch_start_timestamp_seconds", "gauge", "When the watch began.", self._started),
        )
        return [
            *of_state(state, look.generation if look else None),
            Metric("redirector_watch_events_total", "counter", "Events that were heard.", events),
            *(Metric(f"redirector_{name}", kind, words, (Sample(n),)) for name, kind, words, n in one),
        ]
