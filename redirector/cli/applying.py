"""The command apply."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, choosing_backend, command, file_argument, insisting, unsafe_option, verify_option
from redirector.errors import OutcomeUnknown, Refused, RolledBack, TryAgain, Usage, printable

if TYPE_CHECKING:
    from redirector.backends.base import Backend
    from redirector.history import History
    from redirector.pending import Pending
    from redirector.reconcile import Arm
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
        ruleset = made.ruleset if made else app.resolved(mappings.parse(files, app.wanted_backend))
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
    app.report_outcome(outcome, waiting)
    if waiting and probe:
        _probe(app, backend, history, waiting, probe)
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


def _origin_path(file: str) -> str:
    return "<stdin>" if file == "-" else os.path.abspath(file)


def _saved_plan(files: list[SourceFile]) -> SavedPlan | None:
    """The plan that a file holds, None for a mapping file: no TOML starts with a brace."""
    if len(files) != 1 or files[0].data[:1] != b"{":
        return None
    from redirector import saved

    return saved.read(files[0])
