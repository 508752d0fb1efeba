"""Commands for the system that starts: boot, and service install, show, uninstall."""

from __future__ import annotations

import os
import sys

import click

from redirector.cli.app import DEFAULT_STATE, App, command, file_argument, shared
from redirector.errors import BadConfiguration, NotFound, Usage, printable

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
        terminal.say(f"redirector: {printable(booted.loaded)} is in force, but:", sys.stderr)
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
    """Install the systemd units that load the redirects at boot, show them, or uninstall them."""


@command
@file_argument
@root_option
@click.option("--watch", is_flag=True, help="Also the unit that runs redirector watch; once there, it stays.")
def install(app: App, file: str, root: str, watch: bool) -> int:
    """Write the units for FILE and enable them; again after migrate-backend, as each needs other permissions."""
    from redirector import service as units
    from redirector import store, terminal, trusted
    from redirector.unit import WATCH, unit_texts

    if app.netns:
        raise Usage("the units are for the host's own network: they know no --netns")
    if file == "-":
        raise Usage("at boot there is no standard input", "name a file or a folder")
    root, file, state_dir = _root(root), os.path.abspath(file), _state_dir(app)
    watch = watch or units.read(root, WATCH) is not None
    state = "" if state_dir == DEFAULT_STATE else state_dir
    texts = unit_texts(sys.executable, file, state, _backend(root + file, app), watch=watch)
    trusted.require(sys.executable, file, state_dir, root)
    if state_dir != DEFAULT_STATE:
        store.make_private(root + state_dir)  # the unit cannot: it may write inside, and nowhere else
    written = units.install(texts, root)
    fault = _fault(root + file)
    if fault:
        terminal.say(f"warning: at boot it would fail: {fault}", sys.stderr)
    where = units.path(root)
    words = "is installed" if written else "is installed already"
    now = "; to begin now: systemctl start redirector" if units.manages(root) else ""
    now += f" {WATCH}" * bool(now and watch)
    app.report(
        lambda: f"{printable(where)} {words}; it loads the redirects from the next boot on{now}",
        lambda: {"unit": where, "written": written, "watch": watch, "warning": fault},
    )
    return 0


@command
@root_option
def show(app: App, root: str) -> int:
    """Print the unit that is installed. Exits 7 if there is none."""
    from redirector import service as units

    where = units.path(_root(root))
    found = units.read(_root(root))
    if found is None:
        raise NotFound(f"{printable(where)}: no such unit", "see: redirector service install --help")
    app.report(lambda: found.rstrip("\n"), lambda: {"unit": where, "text": found})
    return 0


@command
@root_option
def uninstall(app: App, root: str) -> int:
    """Disable the units and remove them; the redirects that are in force stay."""
    from redirector import service as units

    where = units.path(_root(root))
    removed = units.uninstall(_root(root))
    app.report(
        lambda: f"{printable(where)} {'is removed' if removed else 'was not there'}",
        lambda: {"unit": where, "removed": removed},
    )
    return 0


for _command in (install, show, uninstall):
    service.add_command(_command)


def _root(root: str) -> str:
    """An absolute path without a slash at its end: "" is the running system."""
    return "" if not root else os.path.abspath(root).rstrip("/")


def _state_dir(app: App) -> str:
    return os.path.abspath(app.state_dir or os.environ.get("REDIRECTOR_STATE_DIR") or DEFAULT_STATE)


def _backend(file: str, app: App) -> str:
    """The backend that boot will work on."""
    from redirector import mappings, selection
    from redirector.errors import RedirectorError

    try:
        wanted = mappings.load(file).settings.backend
    except RedirectorError:  # which `_fault` tells
        wanted = "auto"
    return selection.name_for(wanted, app.history())


def _fault(file: str) -> str:
    """What boot would have against the file, where nothing was confirmed before."""
    from redirector import mappings, source

    try:
        mappings.parse(source.read(file, insist=False))
    except BadConfiguration as error:
        return error.message
    return ""
