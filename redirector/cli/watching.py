"""The command that stays: watch."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import Refused, Usage, printable

if TYPE_CHECKING:
    from redirector.journal import Entry
    from redirector.watch.told import Told

EXIT_CODES = {"in-sync": 0, "pending": 0, "drifted": 2, "drained": 3, "absent": 3, "unknown": 4}


@command
@click.option("--once", is_flag=True, help="Compare and heal once, and end.")
@click.option("--dry-run", is_flag=True, help="Only tell; heal nothing.")
@click.option("--interval", type=click.FloatRange(1, 86400), metavar="SECONDS", help="Compare as often, events or not.")
@click.option("--metrics", metavar="FILE", help="Keep a Prometheus textfile there.")
def watch(app: App, once: bool, dry_run: bool, interval: float | None, metrics: str | None) -> int:
    """Hear what others do to the kernel's tables, and heal at once what the last generation says (until a signal)."""
    from redirector import journal, output_watch, terminal
    from redirector.backends.opening import open_backend
    from redirector.history import History
    from redirector.journal import Entry
    from redirector.watch.look import ACTION, Eyes
    from redirector.watch.loop import Options, Watcher
    from redirector.watch.sources import open_sources

    if app.json and not once:
        raise Usage("--json goes with --once", "what a watch tells comes as lines, and in the journal with fields")
    if once and (interval or metrics):
        raise Usage("--once ends at once", "leave out --interval and --metrics")
    app.enter_namespace()
    eyes = Eyes(History(app.state_folder(), _tell_others), open_backend)
    if once:
        found = eyes.look(heal=not dry_run, compare=True)
        words = f"{'healed' if found.healed else 'drifted'}: {output_watch.drift_words(found.drift)}; "
        told = words * bool(found.drift) + output_watch.look_words(found)
        app.report(lambda: told, lambda: output_watch.look_json(found))
        return EXIT_CODES[found.state] or 2 * bool(found.drift and not found.healed)

    journalled = journal.is_stream(2)  # a line there would be there twice

    def tell(told: Told) -> None:
        if not journalled:
            terminal.say(f"redirector: {output_watch.line(told)}", sys.stderr)
        summary, failed = output_watch.summary(told), output_watch.failed(told)
        journal.tell(Entry(ACTION, ACTION, "", output_watch.generation(told), summary, failed))

    options = Options(not dry_run, interval or 0.0, os.path.abspath(metrics) if metrics else "")
    sources = open_sources(lambda: eyes.backend)
    try:
        Watcher(eyes, sources, tell, output_watch.state, options).run()
    except OSError as error:
        if error.filename != options.metrics:
            raise
        raise Refused(f"{printable(options.metrics)}: {error.strerror}", "choose another file for --metrics") from None
    finally:
        for source in sources:
            source.close()
        eyes.close()
    return 0


def _tell_others(entry: Entry) -> None:
    """Changes that were made on the way, such as one taken back; of healings we tell ourselves, and more."""
    from redirector import journal

    if entry.action != "watch" or entry.failed:
        journal.tell(entry)
