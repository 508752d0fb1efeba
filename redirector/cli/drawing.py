"""Commands that draw: graph, report."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from redirector.cli.app import App, command
from redirector.drawing import KINDS
from redirector.errors import Refused, printable

if TYPE_CHECKING:
    from redirector.drawing.data import Graph
    from redirector.terminal import Progress


@command
@click.argument("ports", metavar="[PORT]…", nargs=-1, type=click.IntRange(1, 65535))
@click.option("--as", "kind", type=click.Choice(tuple(KINDS)), default="svg", show_default=True, help="What to draw.")
def graph(app: App, ports: tuple[int, ...], kind: str) -> int:
    """Draw the way from each PORT (or all that rules take) through every chain to a process."""
    from redirector import terminal
    from redirector.drawing import draw

    app.enter_namespace()
    with terminal.Progress(sys.stderr) as progress:
        found = _gathered(app, ports, progress)
    app.report(lambda: draw(kind, found).removesuffix("\n"), lambda: as_data(found))
    return 0


@command
@click.option("--out", metavar="FILE", help="Write the page there, instead of printing it.")
def report(app: App, out: str | None) -> int:
    """Make one static HTML page of the mappings in force: their state, drift, what the doctor says, the ways."""
    import time

    from redirector import __version__, output, output_doctor, output_report, store, terminal
    from redirector.cli.doctoring import examined
    from redirector.cli.looking import compared, file_note
    from redirector.history import Record
    from redirector.output_report import Gathered

    app.enter_namespace()
    with terminal.Progress(sys.stderr) as progress:
        progress("reading the kernel's tables")
        status, waiting = compared(app)
        current = app.history().current()
        progress("reading the firewalls of this host")
        choice, findings = examined(app, current.ruleset if isinstance(current, Record) else None)
        drawn = _gathered(app, (), progress)
        path, changed, fault = file_note(app, None, status)
    note = output.file_words(path, changed, fault)
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    found = Gathered(os.uname().nodename, when, __version__, status, note, choice, tuple(findings), drawn)
    if out is None:
        app.report(
            lambda: output_report.report_html(found).removesuffix("\n"),
            lambda: {
                "status": output.status_json(status, path, changed, fault) | {"pending": output.pending_json(waiting)},
                "doctor": output_doctor.doctor_json(choice, findings, None),
                "graph": as_data(drawn),
            },
        )
        return 0
    try:
        # Not for everybody: it tells which processes of this host listen where.
        store.replace(os.path.abspath(out), output_report.report_html(found).encode(), 0o600)
    except OSError as error:
        raise Refused(f"{printable(out)}: {error.strerror or error}", "name a file in a folder that exists") from None
    return 0


def _gathered(app: App, ports: tuple[int, ...], progress: Progress) -> Graph:
    """What is to be drawn of this host."""
    from redirector.audit import survey
    from redirector.audit.tree import Tree
    from redirector.drawing import gather
    from redirector.host.routes import addresses

    progress("reading the host")
    facts = survey.running_system(app.history(), ports, Tree(walk="nowhere"))
    progress("following the ways")
    return gather.graph(facts, addresses(), ports)


def as_data(found: Graph) -> dict[str, Any]:
    """Ways, and the same as nodes and edges, for JSON."""
    from redirector.drawing.data import elements

    nodes, edges = elements(found)
    return {
        "stations": [station._asdict() for station in found.stations],
        "ways": [
            {
                "clients": [client._asdict() for client in way.clients],
                "protocol": way.protocol,
                "ports": [str(ports) for ports in way.ports],
                "targets": [str(ports) for ports in way.targets],
                "stops": [stop._asdict() for stop in way.stops],
                "end": way.end._asdict(),
                "sure": way.sure,
            }
            for way in found.ways
        ],
        "nodes": [node._asdict() for node in nodes],
        "edges": [edge._asdict() for edge in edges],
        "notes": list(found.notes),
    }
