"""Commands that look at every way to a port: audit, explain."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import Refused, Usage, printable
from redirector.model import PROTOCOLS

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
        facts = gather(app, ports, root, everywhere)
        progress("comparing")
        found = findings(facts, ports)
        told = chains(facts, ports)
    app.report(
        lambda: output_audit.audit_text(facts, told, found, app.paint),
        lambda: output_audit.audit_json(facts, told, found, output_audit.Looked(ports, everywhere)),
    )
    return exit_code(found)


def gather(app: App, ports: tuple[int, ...], root: str, everywhere: bool) -> Facts:
    import os

    from redirector.audit import survey
    from redirector.audit.tree import Tree

    if root and not os.path.isdir(root):
        raise Refused(f"{printable(root)} {NO_FILE_SYSTEM}", "name the root folder of an image or a copy")
    if root and app.netns:
        raise Usage("--root has files only: it goes without --netns")
    tree = Tree(root, "everywhere" if everywhere else "usual")
    if not tree.live:
        return survey.below(tree)
    app.enter_namespace()
    return survey.running_system(app.history(), ports, tree)


@command
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--user", metavar="U", default="", help="Who would bind it: a name or a number [you].")
@click.option(
    "--binary", metavar="B", default="", help="The program that they would run: a path, or a name to look up."
)
@click.option("--from", "client", metavar="ADDRESS", default="", help="A client [this host, and somebody outside].")
@click.option("--protocol", type=click.Choice(tuple(PROTOCOLS)), default="tcp", show_default=True)
def explain(app: App, port: int, user: str, binary: str, client: str, protocol: str) -> int:
    """Say whether U running B could bind PORT, and why; and what becomes of a client's packet to PORT."""
    from redirector import output_explain, terminal
    from redirector.audit import asking, survey
    from redirector.audit.binding import verdict
    from redirector.audit.routing import fate
    from redirector.audit.tree import Tree

    with terminal.Progress(sys.stderr) as progress:
        progress("reading the host")
        who = asking.user(user)
        app.enter_namespace()
        facts = survey.running_system(app.history(), (port,), Tree(walk="nowhere"))
        tried = asking.attempt(port, who, binary, protocol, facts)
        packets = asking.packets(port, protocol, _canonical(client))
        progress("comparing")
        found = verdict(tried, facts)
        fates = [fate(packet, facts, host) for packet, host in packets]
    app.report(
        lambda: output_explain.explain_text(tried, found, fates, facts, app.paint),
        lambda: output_explain.explain_json(tried, found, fates, facts),
    )
    return 0


def _canonical(address: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(address)) if address else ""
    except ValueError:
        raise Usage(f"{printable(address)} is no address", "--from takes an IPv4 or IPv6 address") from None
