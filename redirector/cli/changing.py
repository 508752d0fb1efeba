"""Commands that change the kernel, but for apply: rollback, remove, migrate-backend, confirm, cancel."""

from __future__ import annotations

import sys

import click

from redirector.cli.app import App, command, insisting, verify_option
from redirector.model import BACKENDS


@command
@click.argument("generation", type=int, required=False)
@verify_option
@insisting
def rollback(app: App, generation: int | None, verify: bool, **insist: bool) -> int:
    """Go back to the generation before the current one, or to GENERATION."""
    from redirector import pending, reconcile

    app.enter_namespace()
    history = app.history()
    # Whoever asks for a generation by name knows whether it is empty.
    judge = app.judge(insist | {"allow_empty": True})
    with history.locked():
        pending.require_none(app.backend(), history)
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
    app.report_outcome(outcome)
    return 0


@command
@click.option("--purge", is_flag=True, help="Take the table away too: established redirected connections are reset.")
@click.option("--replace-foreign", is_flag=True, help="Also when the table of our name is not ours.")
def remove(app: App, purge: bool, replace_foreign: bool) -> int:
    """Drain: no new redirects, while established connections live on."""
    from redirector import pending, reconcile
    from redirector.history import Record
    from redirector.model import Ruleset

    app.enter_namespace()
    history = app.history()
    with history.locked():
        pending.require_none(app.backend(), history)
        current = history.current()
        settings = current.ruleset.settings if isinstance(current, Record) else Ruleset().settings
        wish = reconcile.Wish(
            Ruleset((), settings), app.origin("remove", "--purge" if purge else ""), purge, replace_foreign
        )
        outcome = reconcile.change(app.backend(settings.backend), history, wish)
    if purge and outcome.plan and not app.json:
        from redirector.terminal import say

        say("the table is gone; connections that it had redirected are reset at their next packet", sys.stderr)
    app.report_outcome(outcome)
    return 0


@command
@click.argument("target", metavar="BACKEND", type=click.Choice(BACKENDS[1:]))
@verify_option
def migrate_backend(app: App, target: str, verify: bool) -> int:
    """Move the mappings that are in force to BACKEND, with no moment in which new connections fail."""
    from redirector import migrate, output, terminal

    app.enter_namespace()
    origin = app.origin("migrate-backend", f"the mappings to {target}")
    moved = migrate.migrate(app.history(), target, origin, verify=verify)
    if moved.file_names and not app.json:
        words = f'the file still says backend = "{moved.file_names}": say "{target}" there, or leave it out'
        terminal.say(f"note: {words}", sys.stderr)
    done = f"{', '.join(moved.left) or 'nothing'} → {target}"
    if moved.outcome.recorded:
        done += f"; generation {moved.outcome.generation}"
    app.report(
        lambda: done,
        lambda: output.outcome_json(moved.outcome) | {"backend": target, "left": list(moved.left)},
    )
    return 0


@command
def confirm(app: App) -> int:
    """Keep the change that waits for it (apply --confirm)."""
    from redirector import pending

    app.enter_namespace()
    history = app.history()
    with history.locked():
        generation = pending.keep(app.backend(), history, app.origin("confirm", "").author)
    app.report(lambda: f"generation {generation} is confirmed", lambda: {"confirmed": generation})
    return 0


@command
def cancel(app: App) -> int:
    """Take the change back that waits for confirm, now."""
    from redirector import pending

    app.enter_namespace()
    history = app.history()
    with history.locked():
        outcome = pending.cancel(app.backend(), history, app.origin("cancel", "").author)
    app.report_outcome(outcome)
    return 0
