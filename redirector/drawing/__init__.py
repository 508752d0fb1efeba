"""The way from a client's port to a process, drawn: one module for each kind of drawing, found by a table.

A module of KINDS has `draw(graph) -> str`, text that ends with a newline, and is imported only when its kind is asked
for; adding one is a line here. What they draw is data (`data.Graph`), made by `gather` from what an audit has found and
from what `audit.routing.fate` says of representative packets: a picture has the answers of `explain`, for all ports.
Names and rules that others chose may hold anything: `data` makes them printable, each kind escapes them its way.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redirector.drawing.data import Graph

KINDS = {
    "svg": "redirector.drawing.svg",
    "dot": "redirector.drawing.dot",
    "html": "redirector.drawing.html",
}


def draw(kind: str, graph: Graph) -> str:
    """The drawing, one of KINDS."""
    drawn: str = import_module(KINDS[kind]).draw(graph)
    return drawn
