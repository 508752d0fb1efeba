"""HTML: one static page around the picture, without scripts, and without anything from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from redirector.drawing.data import Graph, clients_words, ports_words, stop_words
from redirector.drawing.svg import picture
from redirector.records import NamedTuple

# What a page may load, whatever a name in it manages to say: nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """\
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--band:#f3f5f8;--good:#1a7f37;\
--bad:#cf222e;--maybe:#8a5a00}
@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#9aa4b0;--line:#3d444d;--band:#161b22;\
--good:#3fb950;--bad:#ff7b72;--maybe:#e0ad3a}}
body{margin:0 auto;padding:1.5rem 2rem 3rem;max-width:110rem;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}.maybe{color:var(--maybe)}
.scroll{overflow-x:auto}table{border-collapse:collapse;min-width:50%}
th,td{text-align:left;vertical-align:baseline;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);white-space:nowrap}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
code,pre,td.code{font:13px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
.finding{border-left:4px solid var(--line);padding:.2rem 0 .2rem .9rem;margin:.7rem 0}
.finding.error{border-color:var(--bad)}.finding.warning{border-color:var(--maybe)}
.finding p{margin:.1rem 0}
pre{background:var(--band);padding:.4rem .7rem;margin:.3rem 0;white-space:pre-wrap;border-radius:4px}
summary{cursor:pointer;color:var(--soft)}
@media print{body{padding:0;max-width:none}.scroll{overflow:visible}}
"""


class Cell(NamedTuple):
    """Text of a table, and how it looks: classes of STYLE."""

    text: str
    look: str = ""


class Section(NamedTuple):
    """`body` is HTML."""

    title: str
    body: str


def draw(graph: Graph) -> str:
    return page("The way from a client's port to a process", "", ways(graph))


def ways(graph: Graph) -> list[Section]:
    """The picture, and the same as a table, for those who cannot see it or want to copy."""
    rows = [
        [
            Cell(clients_words(way.clients, graph.known)),
            Cell(f"{way.protocol} {ports_words(way.ports)}", "code"),
            Cell("; ".join(_at(graph, stop.station) + stop_words(way, stop) for stop in way.stops), "code"),
            Cell(": ".join(filter(None, way.end[1:])) + ("" if way.sure else " (not sure)")),
        ]
        for way in graph.ways
    ]
    text = table(["clients", "port", "on the way", "end"], rows)
    return [
        Section("Ways", f'<div class="scroll">{picture(graph)}</div>'),
        Section("Ways, in words", f"<details><summary>{len(rows):,} ways as a table</summary>{text}</details>"),
    ]


def _at(graph: Graph, station: int) -> str:
    return f"[{graph.stations[station].table}] "


def page(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """The whole page; `subtitle` is HTML, "" for none."""
    head = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
    ]
    parts = [f"<p>{subtitle}</p>"] if subtitle else []
    for section in sections:
        parts += ["<section>", f"<h2>{escape(section.title)}</h2>", section.body, "</section>"]
    return "\n".join([*head, *parts, "</body>", "</html>", ""])


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table; a column of numbers is one whose first cell looks so."""
    rows = list(rows)
    looks = [cell.look if cell.look == "number" else "" for cell in rows[0]] if rows else [""] * len(head)
    lines = ["<tr>" + "".join(_cell("th", Cell(*pair)) for pair in zip(head, looks, strict=True)) + "</tr>"]
    lines += ["<tr>" + "".join(_cell("td", cell) for cell in row) + "</tr>" for row in rows]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def span(text: str, look: str) -> str:
    return f'<span class="{look}">{escape(text)}</span>'


def _cell(tag: str, cell: Cell) -> str:
    look = f' class="{cell.look}"' if cell.look else ""
    return f"<{tag}{look}>{escape(cell.text)}</{tag}>"
