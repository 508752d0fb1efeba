"""Commands that look: check, plan, status."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import DEFAULT_FILE, App, choosing_backend, command, file_argument
from redirector.errors import RedirectorError, plural, printable

if TYPE_CHECKING:
    from redirector.pending import Pending
    from redirector.report import Status


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
        ruleset = app.resolved(ruleset)
        backend = app.backend_of(ruleset, files)
        progress("reading the kernel's tables")
        app.settle(backend, app.history())
        snapshot, found = reconcile.look(backend, app.history(), ruleset, replace_foreign=replace_foreign)
        progress("comparing")
        findings = app.findings_of(ruleset, found, snapshot)
    if out:
        from redirector import saved

        saved.write(out, ruleset, snapshot.program, backend, file)
    app.warn(findings)
    app.report(lambda: output.plan_text(found, app.paint), lambda: output.plan_json(found, findings))
    return 2 if found else 0


@command
@click.argument("file", required=False)
@click.option("--full", is_flag=True, help="Compare everything, also where the kernel's genid proves it in sync.")
@click.option("--counters", is_flag=True, help="Show each mapping with its connections; reads everything, too.")
def status(app: App, file: str | None, full: bool, counters: bool) -> int:
    """Compare the kernel with the last applied generation. Exits 0 in sync, 2 drift, 3 nothing, 4 unknown."""
    from redirector import layout, output, source, terminal

    with terminal.Progress(sys.stderr) as progress:
        progress("reading the kernel's tables")
        app.enter_namespace()
        folder = app.state_folder()
        quiet = not (full or counters or os.path.lexists(os.path.join(folder, layout.NOTE)))
        found, waiting = (_proven(folder) if quiet else None), None
        if found is None:
            found, waiting = compared(app)
        origin, path = found.head.origin if found.head else "", _path(file, found)
        same, stamp = os.path.abspath(path) == origin, source.stamp(path)
        changed: bool | None = False
        fault = ""
        if not (found.proof and same and stamp and stamp == found.proof.stamp):
            progress("comparing")
            changed, fault = _file_state(app, path, found, asked=file is not None)
        if found.proof and not waiting:
            _save(folder, found, stamp if same and changed is False else found.proof.stamp)
    note = output.file_words(path, changed, fault)
    app.report(
        lambda: output.status_text(found, note, app.paint, waiting, counters=counters),
        lambda: output.status_json(found, path, changed, fault) | {"pending": output.pending_json(waiting)},
    )
    if found.state == "pending":
        return 2 if found.drift else 0
    return {"in-sync": 0, "drifted": 2, "drained": 3, "absent": 3, "unknown": 4}[found.state]


def _proven(folder: str) -> Status | None:
    """What the last proof says, if it still holds: one question to the kernel, however large its tables."""
    from redirector import proof
    from redirector.backends.nftables import message
    from redirector.backends.place import Place
    from redirector.report import by_proof

    found = proof.load(folder)
    if found is None:
        return None
    try:
        with contextlib.closing(Place()) as place:
            if found.holds(place.identity(), message.genid(place.netfilter)):
                return by_proof(found)
    except OSError:  # which the comparison will explain
        pass
    return None


def _save(folder: str, found: Status, stamp: str) -> None:
    """Write down what the comparison has proven, or that the mapping file was compared, too."""
    from redirector import proof

    known = found.proof if found.compared else proof.load(folder, whole=True)
    if known and (found.compared or stamp != known.stamp):
        proof.save(folder, known._replace(stamp=stamp))


def compared(app: App) -> tuple[Status, Pending | None]:
    """What comparing everything says, and what waits for confirm."""
    from redirector import status as against

    backend, history = app.backend(), app.history()
    waiting = app.settle(backend, history)
    return against.status(backend, history, waiting=waiting is not None), waiting


def _path(file: str | None, found: Status) -> str:
    """The mapping file that is meant: the one that was named, or that it comes from."""
    origin = found.head.origin if found.head else ""
    return file or (origin if origin.startswith("/") else "") or DEFAULT_FILE


def file_note(app: App, file: str | None, found: Status) -> tuple[str, bool | None, str]:
    """The mapping file, whether it differs from what was applied, and why that cannot be told."""
    path = _path(file, found)
    return (path, *_file_state(app, path, found, asked=file is not None))


def _file_state(app: App, path: str, found: Status, *, asked: bool) -> tuple[bool | None, str]:
    """Whether a mapping file differs from what was applied, and why that cannot be told."""
    if found.head is None or (not asked and not os.path.exists(path)):
        return None, ""
    from redirector import mappings
    from redirector.history import Record

    try:
        record = app.history().read(found.head.generation)
        return mappings.load(path) != record.ruleset.written if isinstance(record, Record) else None, ""
    except RedirectorError as error:
        return None, error.message
