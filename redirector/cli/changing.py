"""Commands that change the kernel: apply, rollback, remove, migrate-backend, confirm, cancel."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, choosing_backend, command, file_argument, insisting, unsafe_option, verify_option
from redirector.errors import OutcomeUnknown, Refused, RolledBack, TryAgain, Usage, plural, printable
from redirector.model import BACKENDS

if TYPE_CHECKING:
    from redirector.backends.base import Backend
    from redirector.history import History
    from redirector.pending import Pending
    from redirector.reconcile import Arm, Outcome
    from redirector.saved import SavedPlan
    from redirector.source import SourceFile


def _seconds(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Seconds of "60", "60s", "2m" or "1h"; from 1 second to a day."""
    if value is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (value[:-1], value[-1]) if value[-1:] in units else (value, "s")
    if not (number.isascii() and number.isdigit()) or not 1 <= int(number[:9]) * units[unit] <= 86400:
        raise click.BadParameter(f"{value!r} is no time from 1 second to a day: write 60, 90s, 2m or 1h")
    return float(int(number) * units[unit])


@command
@file_argument
@click.option("--dry-run", is_flag=True, help="Let the kernel validate everything and commit nothing.")
@verify_option
@click.option("--confirm", callback=_seconds, metavar="[=SECONDS]", help="Take it back unless confirmed in time [60s].")
@click.option("--probe", metavar="COMMAND", help="With --confirm: run COMMAND afterwards; take it back if it fails.")
@choosing_backend
@unsafe_option
@insisting
def apply(
    app: App,
    file: str,
    dry_run: bool,
    verify: bool,
    confirm: float | None,
    probe: str | None,
    allow_unsafe_file: bool,
    **insist: bool,
) -> int:
    """Make the kernel hold FILE (or a saved PLAN), verify it, and record a generation."""
    from redirector import mappings, output, pending, reconcile, source, terminal

    if probe and not confirm:
        raise Usage("--probe goes with --confirm", "say --confirm too, or run the command afterwards yourself")

    with terminal.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        stamp = source.stamp(file)
        files = source.read(file, insist=allow_unsafe_file)
        app.enter_namespace()
        made = _saved_plan(files)
        ruleset = made.ruleset if made else mappings.parse(files, app.wanted_backend)
        backend = app.backend(ruleset.settings.backend) if made else app.backend_of(ruleset, files)
        if made:
            made.require(backend)
        progress("applying")
        history = app.history()
        judge = app.judge(insist)
        if dry_run:
            snapshot, found = reconcile.look(backend, history, ruleset, replace_foreign=insist["replace_foreign"])
            if found:
                judge(ruleset, found, snapshot)
                backend.check(found.steps)
            app.warn(app.findings)
            app.report(
                lambda: (
                    output.plan_text(found, app.paint) + "; the kernel accepts it, nothing was changed" * bool(found)
                ),
                lambda: output.plan_json(found, app.findings) | {"dry_run": True},
            )
            return 0
        wish = reconcile.Wish(
            ruleset,
            app.origin("apply", made.origin, "") if made else app.origin("apply", _origin_path(file), stamp),
            replace_foreign=insist["replace_foreign"],
            verify=verify,
            expected=made.observed if made else "",
            arm=_armed(history, confirm, backend.name, app.netns) if confirm else None,
            judge=judge,
        )
        with history.locked():
            pending.require_none(backend, history)
            outcome = reconcile.change(backend, history, wish)
            waiting = pending.load(history)
    _report_outcome(app, outcome, waiting)
    if waiting and probe:
        _probe(app, backend, history, waiting, probe)
    return 0


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
    _report_outcome(app, outcome)
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
    _report_outcome(app, outcome)
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
    _report_outcome(app, outcome)
    return 0


def _armed(history: History, seconds: float, backend: str, netns: str) -> Arm:
    """How `reconcile` makes sure that a change is taken back: a note, and a watchdog that stands before the commit."""

    def arm(generation: int) -> Callable[[], None]:
        from redirector import pending, watchdog

        note = pending.arm(history, generation, seconds)
        try:
            watchdog.start(history, note.token, backend, netns)
        except OSError as error:
            pending.disarm(history)
            raise Refused(f"no watchdog could be started ({error.strerror}); nothing was changed") from None
        return lambda: pending.disarm(history)

    return arm


def _probe(app: App, backend: Backend, history: History, waiting: Pending, probe: str) -> None:
    """Run the health check; raises RolledBack if it fails. The lock is free meanwhile: the watchdog may need it."""
    import shlex
    import subprocess

    from redirector import pending

    try:
        argv = shlex.split(probe)
        ran = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=waiting.seconds_left, check=False)
        fault = f"exit {ran.returncode}" if ran.returncode else ""
    except subprocess.TimeoutExpired:
        fault = "no end in time"
    except (OSError, ValueError, IndexError) as error:
        fault = str(error)
    if not fault:
        return
    try:
        with history.locked():
            found = pending.load(history)
            if found and found.token == waiting.token:
                pending.take_back(backend, history, found, app.origin("cancel", "").author)
    except TryAgain as error:
        message = f"the probe failed ({printable(fault)}), and the change is still in force: {error.message}"
        raise OutcomeUnknown(message, "redirector cancel takes it back; at its deadline it goes by itself") from None
    raise RolledBack(f"the probe failed ({printable(fault)}): the change was taken back", "see: redirector history")


def _report_outcome(app: App, outcome: Outcome, waiting: Pending | None = None) -> None:
    from redirector import output

    app.warn(app.findings)
    done = f"generation {outcome.generation}" if outcome.recorded else "drift mended" if outcome.plan else ""
    if outcome.flows:
        done += f"; {plural(outcome.flows, 'UDP flow')} on the old way will begin anew"
    elif outcome.flows is None:
        done += "; UDP flows may stay on the old way until they end (conntrack could not be read)"
    if waiting:
        done += f", to be confirmed within {waiting.seconds_left:.0f} s: redirector confirm"
    app.report(
        lambda: output.plan_text(outcome.plan, app.paint, done),
        lambda: output.outcome_json(outcome, app.findings) | {"pending": output.pending_json(waiting)},
    )


def _origin_path(file: str) -> str:
    return "<stdin>" if file == "-" else os.path.abspath(file)


def _saved_plan(files: list[SourceFile]) -> SavedPlan | None:
    """The plan that a file holds, None for a mapping file: no TOML starts with a brace."""
    if len(files) != 1 or files[0].data[:1] != b"{":
        return None
    from redirector import saved

    return saved.read(files[0])
