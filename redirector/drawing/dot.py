"""Graphviz' language (graphviz.org/doc/info/lang.html): a cluster for each station, in the order of the hooks."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.drawing.data import Edge, Graph, Node, elements
from redirector.drawing.words import station_words

SHAPES = {"client": "oval", "port": "box", "stop": "box", "end": "component"}
STYLES = {"goes": "solid", "may": "dashed", "unreached": "dotted"}


def draw(graph: Graph) -> str:
    nodes, edges = elements(graph)
    return "\n".join(["digraph redirector {", *_body(graph, nodes, edges), "}", ""])


def _body(graph: Graph, nodes: tuple[Node, ...], edges: tuple[Edge, ...]) -> Iterator[str]:
    yield '  graph [rankdir="LR", fontname="monospace"];'
    yield '  node [fontname="monospace"];'
    if graph.notes:
        yield f"  label={quoted(chr(10).join(graph.notes))};"
    for number, station in enumerate(graph.stations):
        inside = [node for node in nodes if node.station == number]
        if inside:
            yield f"  subgraph cluster_{number} {{"
            yield f"    label={quoted(chr(10).join(station_words(station)))};"
            yield from (f"    {_node(node)}" for node in inside)
            yield "  }"
    yield from (f"  {_node(node)}" for node in nodes if node.station < 0)
    yield from (f'  {quoted(e.tail)} -> {quoted(e.head)} [style="{STYLES[e.kind]}"];' for e in edges)


def _node(node: Node) -> str:
    return f'{quoted(node.id)} [label={quoted(node.label)}, shape="{SHAPES[node.kind]}"];'


def quoted(text: str) -> str:
    """A quoted string: in labels a backslash begins an escape of dot's own, and so each of the text's is doubled."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
