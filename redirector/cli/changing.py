"""Commands that change the kernel: apply, rollback, remove."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command, file_argument, insisting, unsafe_option, verify_option
from redirector.errors import printable

if TYPE_CHECKING:
    from redirector.reconcile import Outcome
    from redirector.saved import SavedPlan
    from redirector.source import SourceFile


@command
@file_argument
@click.option("--dry-run", is_flag=True, help="Let the kernel validate everything and commit nothing.")
@verify_option
@unsafe_option
@insisting
def apply(app: App, file: str, dry_run: bool, verify: bool, allow_unsafe_file: bool, **insist: bool) -> int:
    """Make the kernel hold FILE (or a saved PLAN), verify it, and record a generation."""
    from redirector import mappings, output, reconcile, source

    with output.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        files = source.read(file, insist=allow_unsafe_file)
        app.enter_namespace()
        made = _saved_plan(files)
        ruleset = made.ruleset if made else mappings.parse(files)
        backend = app.backend(ruleset.settings.backend)
        if made:
            made.require(backend)
        progress("applying")
        judge = app.judge(insist)
        if dry_run:
            snapshot = backend.observe()
            found = reconcile.plan_for(ruleset, snapshot, replace_foreign=insist["replace_foreign"])
            if found:
                judge(ruleset, found, snapshot)
                backend.check(found.steps, {})
            app.warn(app.findings)
            app.report(
                lambda: output.plan_text(found, app.paint),
                lambda: output.plan_json(found, app.findings) | {"dry_run": True},
            )
            return 0
        wish = reconcile.Wish(
            ruleset,
            app.origin("apply", made.origin if made else _origin_path(file)),
            replace_foreign=insist["replace_foreign"],
            verify=verify,
            expected=made.observed if made else "",
            judge=judge,
        )
        history = app.history()
        with history.locked():
            outcome = reconcile.change(backend, history, wish)
    _report_outcome(app, outcome)
    return 0


@command
@click.argument("generation", type=int, required=False)
@verify_option
@insisting
def rollback(app: App, generation: int | None, verify: bool, **insist: bool) -> int:
    """Go back to the generation before the current one, or to GENERATION."""
    from redirector import reconcile

    app.enter_namespace()
    history = app.history()
    # Whoever asks for a generation by name knows whether it is empty.
    judge = app.judge(insist | {"allow_empty": True})
    with history.locked():
        record = reconcile.rollback_target(history, generation)
        wish = reconcile.Wish(
            record.ruleset,
            app.origin("rollback", f"generation {record.generation}"),
            purge=record.purged,
            replace_foreign=insist["replace_foreign"],
            verify=verify,
            judge=judge,
        )
        outcome = reconcile.change(app.backend(record.ruleset.settings.backend), history, wish)
    _report_outcome(app, outcome)
    return 0


@command
@click.option("--purge", is_flag=True, help="Take the table away too: established redirected connections are reset.")
@click.option("--replace-foreign", is_flag=True, help="Also when the table of our name is not ours.")
def remove(app: App, purge: bool, replace_foreign: bool) -> int:
    """Drain: no new redirects, while established connections live on."""
    from redirector import reconcile
    from redirector.history import Record
    from redirector.model import Ruleset

    app.enter_namespace()
    history = app.history()
    with history.locked():
        current = history.current()
        settings = current.ruleset.settings if isinstance(current, Record) else Ruleset().settings
        wish = reconcile.Wish(
            Ruleset((), settings), app.origin("remove", "--purge" if purge else ""), purge, replace_foreign
        )
        outcome = reconcile.change(app.backend(settings.backend), history, wish)
    if purge and not app.json:
        from redirector.output import say

        say("the table is gone; connections that it had redirected are reset at their next packet", sys.stderr)
    _report_outcome(app, outcome)
    return 0


def _report_outcome(app: App, outcome: Outcome) -> None:
    from redirector import output

    app.warn(app.findings)
    done = f"generation {outcome.generation}" if outcome.recorded else "drift mended" if outcome.plan else ""
    app.report(
        lambda: output.plan_text(outcome.plan, app.paint, done),
        lambda: output.outcome_json(outcome, app.findings),
    )


def _origin_path(file: str) -> str:
    return "<stdin>" if file == "-" else os.path.abspath(file)


def _saved_plan(files: list[SourceFile]) -> SavedPlan | None:
    """The plan that a file holds, None for a mapping file: no TOML starts with a brace."""
    if len(files) != 1 or files[0].data[:1] != b"{":
        return None
    from redirector import saved

    return saved.read(files[0])
