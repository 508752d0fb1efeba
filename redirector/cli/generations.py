"""Commands about generations: history, show, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import NotFound

if TYPE_CHECKING:
    from redirector.history import History, Record
    from redirector.model import Ruleset


@command
def history(app: App) -> int:
    """List the generations, the oldest first."""
    from redirector import output_generations as output

    records = app.history().all()
    app.report(
        lambda: output.history_text(records, app.paint),
        lambda: [output.record_json(record) for record in records],
    )
    return 0


@command
@click.argument("generation", type=int, required=False)
def show(app: App, generation: int | None) -> int:
    """Print one generation (default: the current one) as a mapping file."""
    from redirector import output_generations as output

    record = _record(app.history(), generation)
    app.report(lambda: output.show_text(record).rstrip(), lambda: output.show_json(record))
    return 0


@command
@click.argument("a")
@click.argument("b")
def compare(app: App, a: str, b: str) -> int:
    """Show in which mappings A and B differ: generations by number, or mapping files. Exits 2 if they do."""
    from redirector import output_generations as output

    first, second = (_ruleset(app, word) for word in (a, b))
    found = output.differences(first, second)
    rows = [
        {"mapping": name, "key": key, "a": first or None, "b": second or None} for name, key, first, second in found
    ]
    app.report(lambda: output.differences_text(found, app.paint), lambda: {"equal": not found, "differences": rows})
    return 2 if found else 0


def _ruleset(app: App, word: str) -> Ruleset:
    """The ruleset of a generation, by number, or of a mapping file."""
    if word.isascii() and word.isdigit():
        return _record(app.history(), int(word)).ruleset
    from redirector import mappings

    return mappings.load(word)


def _record(history: History, generation: int | None) -> Record:
    from redirector.history import Unreadable

    found = history.current() if generation is None else history.read(generation)
    if found is None:
        raise NotFound("nothing was applied yet")
    if isinstance(found, Unreadable):
        raise NotFound(f"generation {found.generation}: {found.reason}")
    return found
