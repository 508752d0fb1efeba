"""The blocks of README.md and docs/ that come from a run.

What stands between `<!-- bench:begin KIND … -->` and `<!-- bench:end -->` is written anew from the report; everything
else in a page stays. The kinds, by `KINDS`:

    machine           what measured, and when
    judged NAME …     the table of comparisons of these experiments
    series NAME …     the tables of what each case cost
    notes NAME …      their remarks
    targets           which are missed
    summary           which targets are missed, and where a peer wins
    growth            the lines through the medians of `growth`, and what they say of 100,000 entries
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Failed
from report import Chart, Report, Section, judged, series

PAGES = ("README.md", "docs/performance.md", "docs/scaling.md", "docs/backends.md", "docs/mechanisms.md")
BLOCK = re.compile(r"(<!-- bench:begin (?P<what>[^>]*?) -->\n).*?(<!-- bench:end -->)", re.DOTALL)
BEYOND = 100_000


def publish(report: Report, root: Path) -> None:
    """All pages, or none: raises Failed for a block that the report has nothing for."""
    pages = [root / page for page in PAGES]
    texts = [filled(page.read_text(encoding="utf-8"), report) for page in pages]
    for page, text in zip(pages, texts, strict=True):
        page.write_text(text, encoding="utf-8")


def filled(text: str, report: Report) -> str:
    def block(match: re.Match[str]) -> str:
        kind, *names = match["what"].split()
        if kind not in KINDS:
            raise Failed(f"there is no block of the kind {kind!r}")
        lines = KINDS[kind](report, [_section(report, name) for name in names])
        return "".join([match[1], *(f"{line}\n" for line in lines), match[3]])

    return BLOCK.sub(block, text)


def _section(report: Report, name: str) -> Section:
    found = report.section(name)
    if not found:
        raise Failed(f"the run has no {name!r}: publish only what `make bench-full` measured")
    return found


def _machine(report: Report, _: list[Section]) -> Iterator[str]:
    words = report.machine
    yield (
        f"Measured {words['when']} on {words['CPU']}; {words['kernel']}, Python {words['Python']}; "
        f"{words['peers']}; redirector {words['redirector']}. "
        f"Load average before {words['load before']}, after {words['load after']}."
    )


def _judged(_: Report, sections: list[Section]) -> Iterator[str]:
    return judged([found for section in sections for found in section.comparisons])


def _series(_: Report, sections: list[Section]) -> Iterator[str]:
    for section in sections:
        yield f"\n**{section.title}**\n"
        yield from series(section)


def _notes(_: Report, sections: list[Section]) -> Iterator[str]:
    for section in sections:
        yield from (f"\n{note}" for note in section.notes)


def _summary(report: Report, _: list[Section]) -> Iterator[str]:
    return report.summary()


def _targets(report: Report, _: list[Section]) -> Iterator[str]:
    return report.targets()


def _growth(report: Report, _: list[Section]) -> Iterator[str]:
    (chart,) = _section(report, "growth").charts
    measured = _section(report, "keys").series
    sizes = [at for at, _ in next(iter(chart.lines.values()))]
    heads = " | ".join(f"{size:,}" for size in sizes)
    yield f"| ms, median | {heads} | constant | each entry adds | {BEYOND:,}, by the line | {BEYOND:,}, measured |"
    yield "|---|" + "--:|" * (len(sizes) + 4)
    for name, line in chart.lines.items():
        medians = " | ".join(_number(spread.median * 1000) for _, spread in line)
        constant, slope = fit(chart, name)
        spent = next((found for key, found in measured.items() if key.replace("`", "") == name), None)
        said = _number((constant + slope * BEYOND) * 1000)
        seen = _number(spent.seconds.median * 1000) if spent else ""
        yield f"| {name} | {medians} | {_number(constant * 1000)} | {slope * 1e6:.2f} µs | {said} | {seen} |"


def fit(chart: Chart, name: str) -> tuple[float, float]:
    """(a, b) of a + b × number, the line through the medians: least squares of relative errors, neither below zero."""
    points = [(at, spread.median) for at, spread in chart.lines[name]]
    weights = [1 / value**2 for _, value in points]
    total = sum(weights)
    mean = sum(w * at for w, (at, _) in zip(weights, points, strict=True)) / total
    level = sum(w * value for w, (_, value) in zip(weights, points, strict=True)) / total
    spread = sum(w * (at - mean) ** 2 for w, (at, _) in zip(weights, points, strict=True))
    both = sum(w * (at - mean) * (value - level) for w, (at, value) in zip(weights, points, strict=True))
    slope = max(0.0, both / spread)
    return max(0.0, level - slope * mean), slope


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


KINDS: dict[str, Callable[[Report, list[Section]], Iterator[str]]] = {
    "machine": _machine,
    "judged": _judged,
    "series": _series,
    "notes": _notes,
    "summary": _summary,
    "targets": _targets,
    "growth": _growth,
}
