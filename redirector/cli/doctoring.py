"""The command that looks at the company that our rules are in: doctor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import DEFAULT_FILE, App, command
from redirector.errors import printable

if TYPE_CHECKING:
    from redirector.choose import Choice
    from redirector.findings import Finding
    from redirector.model import Ruleset


@command
@click.argument("file", required=False)
def doctor(app: App, file: str | None) -> int:
    """Say which backend was picked and why, and what in others' firewalls is in the way. Exits 2 with findings."""
    from redirector import mappings, output_doctor, terminal

    with terminal.Progress(sys.stderr) as progress:
        # Without a file there is still the host to look at; one that was named has to be there.
        path = file or (DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else None)
        progress(f"reading {printable(path or '')}")
        ruleset = mappings.load(path) if path else None
        app.enter_namespace()
        progress("reading the firewalls of this host")
        choice, found = examined(app, ruleset)
    app.report(
        lambda: output_doctor.doctor_text(choice, found, path, app.paint),
        lambda: output_doctor.doctor_json(choice, found, path),
    )
    return 2 if found else 0


def examined(app: App, ruleset: Ruleset | None) -> tuple[Choice, list[Finding]]:
    """The backend that is picked for these mappings, and everything that there is to say of it."""
    from redirector import neighbours
    from redirector.choose import choose
    from redirector.diagnose import findings
    from redirector.host import firewalls, forwarding
    from redirector.selection import last_backend

    gathered = firewalls.gather(listing=True)
    wanted = ruleset.settings.backend if ruleset else "auto"
    choice = choose(gathered, wanted, last_backend(app.history()))
    targets = neighbours.targets(ruleset) if ruleset else set()
    return choice, list(findings(ruleset, gathered, choice, forwarding.gather(targets)))
