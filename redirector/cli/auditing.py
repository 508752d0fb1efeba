"""Commands that look at every way to a port: audit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import Refused, Usage, printable

if TYPE_CHECKING:
    from redirector.audit.facts import Facts

NO_FILE_SYSTEM = "is no folder"


@command
@click.argument("ports", metavar="[PORT]…", nargs=-1, type=click.IntRange(1, 65535))
@click.option("--root", metavar="DIR", default="", help="Look at the files below DIR, not at the running system.")
@click.option("--everywhere", is_flag=True, help="Look for capabilities in every folder of the root file system.")
def audit(app: App, ports: tuple[int, ...], root: str, everywhere: bool) -> int:
    """Say for each PORT (or all that matter) what leads there, who listens, by what right. Exits 2 with findings."""
    from redirector import output_audit, terminal
    from redirector.audit.chains import chains
    from redirector.audit.verdict import exit_code, findings

    with terminal.Progress(sys.stderr) as progress:
        progress("reading the host")
        facts = _gather(app, ports, root, everywhere)
        progress("comparing")
        found = findings(facts, ports)
        told = chains(facts, ports)
    app.report(
        lambda: output_audit.audit_text(facts, told, found, app.paint),
        lambda: output_audit.audit_json(facts, told, found),
    )
    return exit_code(found)


def _gather(app: App, ports: tuple[int, ...], root: str, everywhere: bool) -> Facts:
    import os

    from redirector.audit import survey
    from redirector.audit.tree import Tree

    if root and not os.path.isdir(root):
        raise Refused(f"{printable(root)} {NO_FILE_SYSTEM}", "name the root folder of an image or a copy")
    if root and app.netns:
        raise Usage("--root has files only: it goes without --netns")
    tree = Tree(root, everywhere)
    if not tree.live:
        return survey.below(tree)
    app.enter_namespace()
    return survey.running_system(app.history(), ports, tree)
