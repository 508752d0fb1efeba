"""SVG: a column for each station, a row for each way. One file without scripts, fonts or anything else from outside.

The font is of one width, so that the room for a text is known without one; what is cut has its whole text as a tooltip.
Light or dark is the reader's choice (prefers-color-scheme). What colours say, words say, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from redirector.drawing import data
from redirector.drawing.data import End, Graph, Stop, Way, clients_words, grouped, ports_words, stop_words
from redirector.drawing.words import columns, cut, station_words
from redirector.records import NamedTuple

CHARACTER = 7.3  # px of a column at 12 px: what monospaced fonts have is 0.6 em, 7.2
LINE, BOX, GAP, PAD, HEAD = 26, 20, 14, 16, 66  # px
SMALLEST = 720.0  # px: the legend has room
HEAD_COLUMNS, STOP_COLUMNS, CLIENT_COLUMNS, END_COLUMNS, TITLE_LENGTH = 28, 34, 40, 72, 2000
CLASSES = {
    data.TAKES: "takes",
    data.MAY: "may",
    data.UNREACHED: "unreached",
    data.DROPS: "bad",
    data.REFUSES: "bad",
    data.SERVED: "served",
    data.NOBODY: "bad",
    data.STOPPED: "bad",
    data.ELSEWHERE: "elsewhere",
    data.UNKNOWN: "unknown",
}
LEGEND = (
    ("takes", "translates it"),
    ("may", "may translate it: takes some only"),
    ("unreached", "not reached"),
    ("bad", "ends it"),
)
STYLE = """\
.rg{--paper:#fff;--ink:#1f2328;--soft:#59636e;--band:#f3f5f8;--own:#e7f0ff;--line:#c9d1d9;--good:#1a7f37;--bad:#cf222e;\
--else:#0a63c9;--maybe:#8a5a00;font:12px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){.rg{--paper:#0d1117;--ink:#e6edf3;--soft:#9aa4b0;--band:#161b22;--own:#12243d;\
--line:#3d444d;--good:#3fb950;--bad:#ff7b72;--else:#79b8ff;--maybe:#e0ad3a}}
.rg .paper{fill:var(--paper)}.rg text{fill:var(--ink)}.rg .soft{fill:var(--soft)}.rg .strong{font-weight:700}
.rg .band{fill:var(--band)}.rg .own{fill:var(--own)}.rg .rule{stroke:var(--line)}
.rg .way{fill:none;stroke-width:2}.rg .unsure{stroke-dasharray:6 4}
.rg .box{fill:var(--paper);stroke-width:1.5}
.rg .way.served,.rg .box.served,.rg .box.takes{stroke:var(--good)}.rg .way.bad,.rg .box.bad{stroke:var(--bad)}
.rg .way.elsewhere,.rg .box.elsewhere{stroke:var(--else)}
.rg .way.unknown,.rg .box.unknown,.rg .box.may{stroke:var(--maybe)}.rg .box.may{stroke-dasharray:5 3}
.rg .box.unreached{stroke:var(--line);stroke-dasharray:2 3}.rg text.unreached{fill:var(--soft)}
"""


class _Plan(NamedTuple):
    """Where things are, in px: the left edges of ports, stations (and where the last one ends) and ends; the size."""

    ports: float
    stations: tuple[float, ...]
    ends: float
    width: float


def draw(graph: Graph) -> str:
    """The drawing as a file of its own, in its natural size."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{picture(graph)}\n'


def picture(graph: Graph) -> str:
    """The svg element alone."""
    graph = grouped(graph)
    heights = [_height(way) for way in graph.ways]
    tops = [float(HEAD + PAD + sum(heights[:row])) for row in range(len(heights) + 1)]
    plan = _plan(graph)
    notes = [*_footer(graph)]
    height = tops[-1] + PAD + LINE * (len(notes) + 1)
    width = max(plan.width, *(PAD * 2 + columns(note) * CHARACTER for note in notes), SMALLEST)
    size = f'width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg class="rg" xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>The way from a client's port to a process</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" {size}/>',
        *_columns(graph, plan, tops[-1]),
        *(part for way, top in zip(graph.ways, tops, strict=False) for part in _way(way, graph, plan, top)),
        *_ends(graph, plan, tops),
        *_legend(tops[-1] + PAD),
        *(_text(PAD, tops[-1] + PAD + LINE * (row + 1.7), note, "soft") for row, note in enumerate(notes)),
        "</svg>",
    ]
    return "\n".join(parts)


def _footer(graph: Graph) -> Iterator[str]:
    if not graph.ways:
        yield "no rule takes a port of this host, and nobody listens on a privileged one"
    yield from graph.notes


def _height(way: Way) -> int:
    deepest = max((sum(s.station == stop.station for s in way.stops) for stop in way.stops), default=1)
    return LINE * deepest + (LINE - BOX)


def _plan(graph: Graph) -> _Plan:
    def room(texts: list[str], most: int) -> float:
        return max((min(columns(text), most) for text in texts), default=0) * CHARACTER + 2 * GAP

    ports = PAD + room([clients_words(way.clients, graph.known) for way in graph.ways] + ["client"], CLIENT_COLUMNS)
    edges = [ports + room([_ports(way) for way in graph.ways] + ["port"], CLIENT_COLUMNS)]
    for number, station in enumerate(graph.stations):
        stops = [_label(way, stop) for way in graph.ways for stop in way.stops if stop.station == number]
        width = max(room([*station_words(station)], HEAD_COLUMNS), room(stops, STOP_COLUMNS))
        edges.append(edges[-1] + width + GAP)
    ends = edges[-1] + GAP
    width = room([_end(way.end) for way in graph.ways] + ["process"], END_COLUMNS)
    return _Plan(ports, tuple(edges), ends, ends + width + PAD)


def _columns(graph: Graph, plan: _Plan, bottom: float) -> Iterator[str]:
    for number, station in enumerate(graph.stations):
        left, right = plan.stations[number], plan.stations[number + 1]
        shade = "own" if station.own else "band"
        size = f'width="{right - left - 6:.0f}" height="{bottom - 8:.0f}"'
        yield f'<rect class="{shade}" x="{left:.0f}" y="8" {size} rx="6"/>'
        for row, words in enumerate(station_words(station)):
            style = "soft" if row else "strong"
            chains = ", ".join(station.chains)
            yield _text(left + GAP, 26 + 16 * row, cut(words, HEAD_COLUMNS), style, f"{words} {chains}".strip())
    for left, words in ((PAD, "client"), (plan.ports, "port"), (plan.ends, "process")):
        yield _text(left, 26, words, "strong")
    yield f'<line class="rule" x1="{PAD}" y1="{HEAD}" x2="{plan.width - PAD:.0f}" y2="{HEAD}"/>'


def _way(way: Way, graph: Graph, plan: _Plan, top: float) -> Iterator[str]:
    middle = top + LINE / 2
    words = clients_words(way.clients, graph.known)
    yield _text(PAD, middle + 4, cut(words, CLIENT_COLUMNS), "", words)
    yield _text(plan.ports, middle + 4, cut(_ports(way), CLIENT_COLUMNS), "strong", f"{way.protocol} {_all(way)}")
    stopped = next((stop for stop in way.stops if stop.verdict in (data.DROPS, data.REFUSES)), None)
    right = plan.stations[stopped.station] + GAP if stopped else plan.ends
    sure = "" if way.sure else " unsure"
    start = plan.stations[0] - GAP
    yield f'<path class="way {CLASSES[way.end.kind]}{sure}" d="M{start:.0f} {middle:.0f}H{right:.0f}"/>'
    used: dict[int, int] = {}
    for stop in way.stops:
        row = used[stop.station] = used.get(stop.station, -1) + 1
        yield from _stop(way, stop, plan, top + LINE * row)


def _stop(way: Way, stop: Stop, plan: _Plan, top: float) -> Iterator[str]:
    left, label = plan.stations[stop.station] + GAP / 2, cut(_label(way, stop), STOP_COLUMNS)
    style = CLASSES[stop.verdict]
    yield _box(left, top + (LINE - BOX) / 2, columns(label) * CHARACTER + GAP, BOX, style)
    title = ": ".join(filter(None, [stop_words(way, stop), stop.detail]))
    yield _text(left + GAP / 2, top + LINE / 2 + 4, label, style, title)


def _ends(graph: Graph, plan: _Plan, tops: list[float]) -> Iterator[str]:
    """The ends, each once for neighbours that have the same."""
    rows = zip(graph.ways, tops, tops[1:], strict=False)
    for end, same in groupby(rows, key=lambda row: row[0].end):
        if end.kind == data.STOPPED:
            continue
        ways = list(same)
        top, bottom = ways[0][1], ways[-1][2] - (LINE - BOX)
        words = cut(_end(end), END_COLUMNS)
        height = bottom - top - (LINE - BOX)
        yield _box(plan.ends, top + (LINE - BOX) / 2, columns(words) * CHARACTER + GAP, height, CLASSES[end.kind])
        yield _text(plan.ends + GAP / 2, (top + bottom) / 2 + 4, words, "", _end(end))


def _legend(top: float) -> Iterator[str]:
    left = float(PAD)
    for style, words in LEGEND:
        yield _box(left, top, 24, 14, style)
        yield _text(left + 32, top + 11, words, "soft")
        left += 32 + columns(words) * CHARACTER + 2 * GAP


def _label(way: Way, stop: Stop) -> str:
    """A stop's words; its box has the verdict where a colour alone would say it."""
    return stop.name if stop.verdict in (data.MAY, data.UNREACHED) else stop_words(way, stop)


def _end(end: End) -> str:
    return f"{end.title} ({end.detail})" if end.detail else end.title


def _ports(way: Way) -> str:
    return f"{way.protocol} {ports_words(way.ports)}"


def _all(way: Way) -> str:
    return ", ".join(map(str, way.ports))


def _box(x: float, y: float, width: float, height: float, style: str) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<rect class="box {style}" {place} rx="4"/>'


def _text(x: float, y: float, words: str, style: str = "", title: str = "") -> str:
    tip = f"<title>{escape(title[:TITLE_LENGTH])}</title>" if title and title != words else ""
    look = f' class="{style}"' if style else ""
    return f'<text{look} x="{x:.0f}" y="{y:.0f}" xml:space="preserve">{escape(words)}{tip}</text>'
