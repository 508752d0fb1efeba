"""Commands that look: check, plan, status."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from redirector.cli.app import DEFAULT_FILE, App, choosing_backend, command, file_argument
from redirector.errors import RedirectorError, plural, printable


@command
@file_argument
@choosing_backend
def check(app: App, file: str) -> int:
    """Parse and validate FILE: every problem in one run."""
    from redirector import mappings, output, terminal
    from redirector.guards import static_findings

    with terminal.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        ruleset = mappings.load(file, backend=app.wanted_backend)
    findings = list(static_findings(ruleset))
    app.warn(findings)
    disabled = len(ruleset.mappings) - len(ruleset.enabled)
    words = plural(len(ruleset.mappings), "mapping") + (f" ({disabled} disabled)" if disabled else "")
    found = {"ok": True, "mappings": len(ruleset.mappings), "problems": []}
    found["findings"] = [output.finding_json(finding) for finding in findings]
    app.report(lambda: f"{printable(file)}: {words}, no problem", lambda: found)
    return 0


@command
@file_argument
@choosing_backend
@click.option("--out", metavar="PLAN", help="Save the plan, for apply.")
@click.option("--replace-foreign", is_flag=True, help="Plan to replace a table of our name that is not ours.")
def plan(app: App, file: str, out: str | None, replace_foreign: bool) -> int:
    """Show what apply would change, against the live kernel. Exits 0 in sync, 2 with changes."""
    from redirector import mappings, output, reconcile, source, terminal

    with terminal.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        files = source.read(file, insist=True)
        ruleset = mappings.parse(files, app.wanted_backend)
        app.enter_namespace()
        backend = app.backend_of(ruleset, files)
        progress("reading the kernel's tables")
        app.settle(backend, app.history())
        snapshot = backend.observe()
        progress("comparing")
        found = reconcile.plan_for(ruleset, snapshot, replace_foreign=replace_foreign)
        findings = app.findings_of(ruleset, found, snapshot)
    if out:
        from redirector import saved

        saved.write(out, ruleset, snapshot.program, backend, file)
    app.warn(findings)
    app.report(lambda: output.plan_text(found, app.paint), lambda: output.plan_json(found, findings))
    return 2 if found else 0


@command
@click.argument("file", required=False)
def status(app: App, file: str | None) -> int:
    """Compare the kernel with the last applied generation. Exits 0 in sync, 2 drift, 3 nothing, 4 unknown."""
    from redirector import output, terminal
    from redirector import status as against

    with terminal.Progress(sys.stderr) as progress:
        progress("reading the kernel's tables")
        app.enter_namespace()
        backend, history = app.backend(), app.history()
        waiting = app.settle(backend, history)
        found = against.status(backend, history, waiting=waiting is not None)
        progress("comparing")
        path, changed, error = _file_state(file, found.record.origin if found.record else "", found.record)
    note = ""
    if changed:
        note = f"{printable(path)} has changed since: redirector plan shows how"
    elif error:
        note = f"{printable(path)}: {error}"
    app.report(
        lambda: output.status_text(found, note, app.paint, waiting),
        lambda: output.status_json(found, path, changed, error) | {"pending": output.pending_json(waiting)},
    )
    if found.state == "pending":
        return 2 if found.drift else 0
    return {"in-sync": 0, "drifted": 2, "drained": 3, "absent": 3, "unknown": 4}[found.state]


def _file_state(file: str | None, origin: str, record: Any) -> tuple[str, bool | None, str]:
    """(path, whether it differs from what was applied, why that cannot be told)."""
    from redirector import mappings

    path = file or (origin if origin.startswith("/") else "") or DEFAULT_FILE
    if record is None or (not file and not os.path.exists(path)):
        return path, None, ""
    try:
        return path, mappings.load(path) != record.ruleset, ""
    except RedirectorError as error:
        return path, None, error.message
