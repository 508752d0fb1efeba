"""What `status` found, as numbers for Prometheus; `watch` tells of the state by the same names. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from redirector.metrics import Metric, Sample
from redirector.report import Status

STATES = ("in-sync", "pending", "drifted", "drained", "absent", "unknown")


def of_state(state: str, generation: int | None) -> list[Metric]:
    """Which of STATES it is, and the number of the last generation, None where there is none."""
    samples = tuple(Sample(name == state, {"state": name}) for name in STATES)
    return [
        Metric("redirector_state", "gauge", "Which state the redirects are in: 1 for that, 0 for others.", samples),
        _one("generation", "The last generation, 0 before the first.", generation or 0),
    ]


def of_status(found: Status, seconds_left: float | None) -> list[Metric]:
    """The state; how many mappings there are; of each one that is enabled the connections, and whether it drifts.
    `seconds_left` is the time in which a change that waits has to be confirmed, None where none does.

    A counter begins anew when its mapping is loaded: Prometheus takes a number that falls for that.
    """
    head, connections, drifted = found.head, found.connections or {}, found.drifted
    enabled = [mapping.name for mapping in found.mappings or () if mapping.enabled]
    disabled = head.mappings - head.enabled if head else 0
    mappings = {"enabled": head.enabled if head else 0, "disabled": disabled}
    return [
        *of_state(found.state, head.generation if head else None),
        Metric(
            "redirector_mappings",
            "gauge",
            "Mappings of the last generation.",
            _samples("state", mappings.items()),
        ),
        _one("drift", "Differences between the kernel and the last generation.", len(found.drift)),
        _one("pending_seconds", "Time that is left to confirm a change, 0 where none waits.", seconds_left or 0),
        Metric(
            "redirector_connections_total",
            "counter",
            "Connections that a mapping has taken since its counter was loaded.",
            _samples("mapping", ((name, connections.get(name, 0)) for name in enabled)),
        ),
        Metric(
            "redirector_mapping_in_sync",
            "gauge",
            "Whether the kernel has a mapping as the last generation says.",
            _samples("mapping", ((name, name not in drifted) for name in enabled)),
        ),
    ]


def _one(name: str, words: str, value: float) -> Metric:
    return Metric(f"redirector_{name}", "gauge", words, (Sample(value),))


def _samples(label: str, values: Iterable[tuple[str, float]]) -> tuple[Sample, ...]:
    return tuple(Sample(value, {label: name}) for name, value in values)
