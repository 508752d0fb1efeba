"""What was measured, as Markdown for people and as JSON; and what machine it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from measure import Samples, Spread

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number to judge, in up to three ways of looking at the same runs; less is better.

    `median` and `least` are of the clock (or of memory, or a count), `cpu` is the median of CPU time, which other work
    on the machine disturbs less; None where that makes no sense. `unit` is "×" for a ratio, "ms", or "" for a count.
    `limit` is the target, None where there is none. `peer` is the other program of a ratio, "" where that is no rival.
    """

    what: str
    median: float
    least: float
    cpu: float | None = None
    unit: str = "×"
    limit: float | None = None
    peer: str = ""

    @property
    def values(self) -> list[float]:
        return [value for value in (self.median, self.least, self.cpu) if value is not None]

    @property
    def verdict(self) -> str:
        """In words: of the target where there is one, else of the peer."""
        if self.limit is not None:
            return _agreed(self.values, self.limit, "met", "**not met**")
        return _agreed(self.values, 1, f"better than {self.peer}", f"**{self.peer} wins**") if self.peer else ""

    @property
    def missed(self) -> bool:
        """Whether the target is missed in any way of looking at it."""
        return self.limit is not None and max(self.values) > self.limit

    @property
    def lost(self) -> bool:
        """Whether the peer wins in any way of looking at it."""
        return bool(self.peer) and max(self.values) > 1


def _agreed(values: list[float], limit: float, within: str, beyond: str) -> str:
    """One word where all values agree, else how many of them are within the limit."""
    good = sum(value <= limit for value in values)
    return within if good == len(values) else beyond if not good else f"{within} by {good} of {len(values)}"


def ratio(what: str, ours: Samples, theirs: Samples, *, limit: float | None = None, peer: str = "") -> Comparison:
    """Of times."""
    clock, other = ours.seconds, theirs.seconds
    cpu = ours.cpu.median / theirs.cpu.median
    return Comparison(what, clock.median / other.median, clock.low / other.low, cpu, "×", limit, peer)


def peak_ratio(what: str, ours: Samples, theirs: Samples, *, limit: float | None = None, peer: str = "") -> Comparison:
    """Of peak memory."""
    mine, other = ours.peak, theirs.peak
    return Comparison(what, mine.median / other.median, mine.low / other.low, None, "×", limit, peer)


@dataclass(slots=True)
class Chart:
    """Lines of (number, Spread) for chart.py; charts of one name become one picture.

    The names of the axes say what is counted, and the unit that a second times `factor` is in.
    """

    name: str
    title: str
    across: str
    up: str
    factor: float = 1
    lines: dict[str, list[tuple[int, Spread]]] = field(default_factory=dict)


@dataclass(slots=True)
class Section:
    """One experiment: series that took turns, what is to be judged of them, remarks, and charts.

    `floor`: the measuring process's own peak memory, in bytes, below which those of its children cannot be told (see
    measure.own_peak).
    """

    name: str
    title: str
    series: dict[str, Samples] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    floor: int = 0


@dataclass(slots=True)
class Report:
    """`failures` are experiments that did not run, with the reason."""

    machine: dict[str, str]
    sections: list[Section] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Times in seconds, memory in bytes; each spread is {low, median, high}."""
        sections = [
            {
                "name": section.name,
                "title": section.title,
                "series": {name: _samples_json(samples) for name, samples in section.series.items()},
                "comparisons": [asdict(c) | {"verdict": c.verdict.replace("*", "")} for c in section.comparisons],
                "notes": section.notes,
                "charts": [asdict(chart) for chart in section.charts],
                "floor": section.floor,
            }
            for section in self.sections
        ]
        return {"machine": self.machine, "sections": sections, "failures": self.failures}

    @classmethod
    def read(cls, data: dict[str, Any]) -> Report:
        """What `json` gave, read back."""
        sections = [
            Section(
                found["name"],
                found["title"],
                {name: _samples(spent) for name, spent in found["series"].items()},
                [_comparison(spent) for spent in found["comparisons"]],
                found["notes"],
                [_chart(spent) for spent in found["charts"]],
                found["floor"],
            )
            for found in data["sections"]
        ]
        return cls(data["machine"], sections, data["failures"])

    def section(self, name: str) -> Section | None:
        return next((found for found in self.sections if found.name == name), None)

    def markdown(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# Benchmark of redirector"
        yield ""
        yield from (f"- {name}: {value}" for name, value in self.machine.items())
        yield ""
        comparisons = [found for section in self.sections for found in section.comparisons]
        yield from judged(comparisons)
        yield ""
        yield from self.summary()
        for section in self.sections:
            yield ""
            yield f"## {section.title}"
            if section.series:
                yield ""
                yield from series(section)
            yield from (f"\n{note}" for note in section.notes)

    def targets(self) -> Iterator[str]:
        """Which are missed."""
        judged = [found for section in self.sections for found in section.comparisons if found.limit is not None]
        missed = [found for found in judged if found.missed]
        yield f"Targets met: {len(judged) - len(missed)} of {len(judged)}." + " The others:" * bool(missed)
        yield ""
        yield from (f"- {found.what}: {found.verdict.replace('*', '')}" for found in missed)

    def summary(self) -> Iterator[str]:
        """Which targets are missed, where a peer wins, and what did not run."""
        yield from self.targets()
        rivals = [found for section in self.sections for found in section.comparisons if found.peer]
        lost = [found for found in rivals if found.lost]
        if rivals:
            yield ""
            yield (
                "Where the other program wins, in one way of looking at it at least:"
                if lost
                else ("The other program wins nowhere.")
            )
            yield ""
            yield from (f"- {found.what} ({found.median:.2f} ×, CPU {_value(found.cpu, '×')})" for found in lost)
        for failure in self.failures:
            yield ""
            yield f"**Did not run:** {failure}"


def judged(comparisons: list[Comparison]) -> Iterator[str]:
    """A table of them."""
    yield "| | median | least | CPU, median | target | |"
    yield "|---|--:|--:|--:|--:|---|"
    for found in comparisons:
        limit = "" if found.limit is None else f"≤ {found.limit:g} {found.unit}".rstrip()
        values = " | ".join(_value(value, found.unit) for value in (found.median, found.least, found.cpu))
        yield f"| {found.what} | {values} | {limit} | {found.verdict} |"


def series(section: Section) -> Iterator[str]:
    """A table of what each case cost; of peaks within its floor only the bound is told."""
    yield "| ms, least · median · greatest | runs | wall clock | CPU | peak, MiB |"
    yield "|---|--:|--:|--:|--:|"
    for name, samples in section.series.items():
        clock, cpu = _milliseconds(samples.seconds), _milliseconds(samples.cpu)
        yield f"| {name} | {samples.runs} | {clock} | {cpu} | {peak(samples.peak.high, section.floor)} |"


def _value(number: float | None, unit: str) -> str:
    if number is None:
        return ""
    return f"{number:.1f} ms" if unit == "ms" else f"{number:.2f} ×" if unit else f"{number:g}"


def _milliseconds(spread: Spread) -> str:
    digits = 1 if spread.high >= 0.001 else 4
    return " · ".join(f"{seconds * 1000:.{digits}f}" for seconds in spread)


def peak(size: float, floor: int) -> str:
    """Peak memory in MiB, the bound where it may be the measuring process's own, "" where it was not measured."""
    return f"{'≤ ' * (size <= floor)}{max(size, floor * (size <= floor)) / MIB:.1f}" if size else ""


def _samples_json(samples: Samples) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Spread) else value for name, value in samples._asdict().items()}


def _samples(data: dict[str, Any]) -> Samples:
    seconds, cpu, size = (Spread(**data[name]) for name in ("seconds", "cpu", "peak"))
    return Samples(seconds, cpu, size, data["runs"])


def _comparison(data: dict[str, Any]) -> Comparison:
    return Comparison(**{name: value for name, value in data.items() if name != "verdict"})


def _chart(data: dict[str, Any]) -> Chart:
    lines = {name: [(at, Spread(*spread)) for at, spread in line] for name, line in data["lines"].items()}
    return Chart(**data | {"lines": lines})
