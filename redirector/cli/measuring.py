"""The command that gives numbers to a monitoring system: metrics."""

from __future__ import annotations

import os
import sys

import click

from redirector.cli.app import App, command
from redirector.cli.looking import compared
from redirector.errors import Refused, printable


@command
@click.option("--out", metavar="FILE", help="Replace this file, for node_exporter's textfile collector.")
def metrics(app: App, out: str | None) -> int:
    """Print the state and each mapping's connections for Prometheus. Exits 0 whatever the state: that is a number."""
    from redirector import metrics as prometheus
    from redirector import status_metrics, terminal

    with terminal.Progress(sys.stderr) as progress:
        progress("reading the kernel's tables")
        app.enter_namespace()
        found, waiting = compared(app)
    numbers = status_metrics.of_status(found, waiting.seconds_left if waiting else None)
    if out is None:
        app.report(lambda: prometheus.text(numbers).removesuffix("\n"), lambda: prometheus.data(numbers))
        return 0
    try:
        prometheus.write(os.path.abspath(out), numbers)
    except OSError as error:
        raise Refused(f"{printable(out)}: {error.strerror or error}", "name a file in a folder that exists") from None
    return 0
