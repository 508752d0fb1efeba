"""Commands about generations: history, show, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import NotFound, Usage, printable
from redirector.model import Ruleset

if TYPE_CHECKING:
    from redirector.audit.document import Document
    from redirector.history import History, Record


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
@click.option("--root", "roots", is_flag=True, help="A and B are root folders of two trees, to be audited here.")
def compare(app: App, a: str, b: str, roots: bool) -> int:
    """Show how A and B differ: two generations (by number) or mapping files, or two files that `audit --json` wrote,
    or the files below two roots. Exits 2 if they do."""
    if roots:
        return _compare_audits(app, *(_audit_below(app, word) for word in (a, b)))
    first, second = (_side(app, word) for word in (a, b))
    if isinstance(first, Ruleset) and isinstance(second, Ruleset):
        return _compare_rulesets(app, first, second)
    if isinstance(first, Ruleset) or isinstance(second, Ruleset):
        audit, mappings = (b, a) if isinstance(first, Ruleset) else (a, b)
        message = f"{printable(audit)} is an audit, and {printable(mappings)} is none"
        raise Usage(message, "compare two audits, or two generations or mapping files")
    return _compare_audits(app, first, second)


def _compare_rulesets(app: App, first: Ruleset, second: Ruleset) -> int:
    from redirector import output_generations as output

    found = output.differences(first, second)
    app.report(lambda: output.differences_text(found, app.paint), lambda: output.differences_json(found))
    return 2 if found else 0


def _compare_audits(app: App, first: Document, second: Document) -> int:
    from redirector import output_audit as output
    from redirector.audit.drift import differences, unlike

    reason = unlike(first, second)
    if reason:
        raise Usage(f"these two audits cannot be compared: {reason}", "audit both in the same way")
    found = differences(first, second)
    app.report(lambda: output.drift_text(found, app.paint), lambda: output.drift_json(found))
    return 2 if found else 0


def _side(app: App, word: str) -> Ruleset | Document:
    """The ruleset of a generation, by number, or of a mapping file; or an audit."""
    if word.isascii() and word.isdigit():
        return _record(app.history(), int(word)).ruleset
    from redirector import mappings, source
    from redirector.audit import document

    files = source.read(word, most=document.MAX_BYTES)
    return document.parse(files[0]) if document.is_document(files[0]) else mappings.parse(files)


def _audit_below(app: App, root: str) -> Document:
    from redirector import output_audit
    from redirector.audit.chains import chains
    from redirector.audit.verdict import findings
    from redirector.cli.auditing import gather

    facts = gather(app, (), root, False)
    if not facts.root:
        hint = "redirector audit --json > FILE on both, and compare the files"
        raise Usage(f"{printable(root)} is the running system, of which --root does not tell", hint)
    return output_audit.audit_json(facts, chains(facts, ()), findings(facts), output_audit.Looked())


def _record(history: History, generation: int | None) -> Record:
    from redirector.history import Unreadable

    found = history.current() if generation is None else history.read(generation)
    if found is None:
        raise NotFound("nothing was applied yet")
    if isinstance(found, Unreadable):
        raise NotFound(f"generation {found.generation}: {found.reason}")
    return found
