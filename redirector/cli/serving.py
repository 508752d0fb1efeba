"""Commands for the system that starts: boot, and service install, show, uninstall."""

from __future__ import annotations

import os
import sys

import click

from redirector.cli.app import DEFAULT_STATE, App, command, file_argument, shared
from redirector.errors import NotFound, Usage, printable

root_option = click.option("--root", default="", metavar="DIR", help="The system in this folder, as in an image.")


@command
@file_argument
def boot(app: App, file: str) -> int:
    """Load the last confirmed generation, or FILE where there is none (for the boot unit; asks no guards)."""
    from redirector import boot as booting
    from redirector import output, terminal

    app.enter_namespace()
    booted = booting.boot(app.backend, app.history(), os.path.abspath(file))
    for note in booted.notes:
        terminal.say(f"redirector: {printable(note)}", sys.stderr)
    if booted.fault:
        terminal.say(f"redirector: {booted.loaded} is in force; the file is broken:", sys.stderr)
        raise booted.fault
    outcome = booted.outcome
    app.report(
        lambda: output.plan_text(outcome.plan, app.paint, f"from {printable(booted.loaded)}"),
        lambda: output.outcome_json(outcome, []) | {"loaded": booted.loaded, "notes": booted.notes},
    )
    return 0


@click.group()
@shared
def service() -> None:
    """Install the systemd unit that loads the redirects at boot, show it, or uninstall it."""


@command
@file_argument
@root_option
def install(app: App, file: str, root: str) -> int:
    """Write the unit for FILE and enable it."""
    from redirector import service as unit
    from redirector import store

    _no_namespace(app)
    if file == "-":
        raise Usage("at boot there is no standard input", "name a file or a folder")
    unit.require_isolated_python(sys.executable)
    state_dir = _state_dir(app)
    text = unit.unit_text(sys.executable, os.path.abspath(file), state_dir)
    if state_dir != DEFAULT_STATE:
        store.make_private(_root(root) + state_dir)  # the unit cannot: it may write inside, and nowhere else
    written = unit.install(text, _root(root))
    words = "is installed" if written else "is installed already"
    where = unit.path(_root(root))
    app.report(
        lambda: f"{printable(where)} {words}; it loads the redirects from the next boot on",
        lambda: {"unit": where, "written": written},
    )
    return 0


@command
@root_option
def show(app: App, root: str) -> int:
    """Print the unit that is installed. Exits 7 if there is none."""
    from redirector import service as unit

    found = unit.read(_root(root))
    if found is None:
        raise NotFound(f"{printable(unit.path(_root(root)))}: no such unit", "see: redirector service install --help")
    where = unit.path(_root(root))
    app.report(lambda: found.rstrip("\n"), lambda: {"unit": where, "text": found})
    return 0


@command
@root_option
def uninstall(app: App, root: str) -> int:
    """Disable the unit and remove it; the redirects that are in force stay."""
    from redirector import service as unit

    removed = unit.uninstall(_root(root))
    where = unit.path(_root(root))
    app.report(
        lambda: f"{printable(where)} {'is removed' if removed else 'was not there'}",
        lambda: {"unit": where, "removed": removed},
    )
    return 0


for _command in (install, show, uninstall):
    service.add_command(_command)


def _root(root: str) -> str:
    return "" if not root or os.path.abspath(root) == "/" else os.path.abspath(root)


def _state_dir(app: App) -> str:
    return os.path.abspath(app.state_dir or os.environ.get("REDIRECTOR_STATE_DIR") or DEFAULT_STATE)


def _no_namespace(app: App) -> None:
    if app.netns:
        raise Usage("the unit is for the host's own network: it knows no --netns")
