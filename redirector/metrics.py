"""Numbers in Prometheus' text format (version 0.0.4, prometheus.io/docs/instrumenting/exposition_formats), and the file
that node_exporter's textfile collector reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from redirector import store
from redirector.records import NamedTuple

MODE = 0o644  # node_exporter reads it as a user of its own
_NONE: Mapping[str, str] = MappingProxyType({})


class Sample(NamedTuple):
    """One number, and what tells it from the others of its metric."""

    value: float
    labels: Mapping[str, str] = _NONE


class Metric(NamedTuple):
    """`kind` is counter (whose name ends with _total) or gauge; `words` say what it is."""

    name: str
    kind: str
    words: str
    samples: tuple[Sample, ...]


def text(metrics: Iterable[Metric]) -> str:
    return "".join(line for metric in metrics for line in _lines(metric))


def write(path: str, metrics: Iterable[Metric]) -> None:
    """The whole file or nothing; under a name that no collector takes for its own meanwhile. Raises OSError."""
    store.replace(path, text(metrics).encode(), MODE)


def _lines(metric: Metric) -> Iterable[str]:
    yield f"# HELP {metric.name} {_escaped(metric.words)}\n"
    yield f"# TYPE {metric.name} {metric.kind}\n"
    for sample in metric.samples:
        pairs = ",".join(f'{key}="{_escaped(value, quote=True)}"' for key, value in sample.labels.items())
        yield f"{metric.name}{f'{{{pairs}}}' if pairs else ''} {_number(sample.value)}\n"


def _escaped(words: str, *, quote: bool = False) -> str:
    escaped = words.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def data(metrics: Iterable[Metric]) -> dict[str, Any]:
    """The same numbers as JSON has them, by metric."""
    return {
        metric.name: [{"value": float(sample.value), "labels": dict(sample.labels)} for sample in metric.samples]
        for metric in metrics
    }
