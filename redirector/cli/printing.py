"""Commands that print what others use, and the demo: render, schema, completion, demo."""

from __future__ import annotations

import json
import shlex

import click

from redirector.cli.app import App, command, file_argument
from redirector.errors import Usage, printable
from redirector.renderers import KINDS


@command
@file_argument
@click.option("--as", "kind", default="nft", show_default=True, help=f"One of: {', '.join(KINDS)}.")
@click.option(
    "--program", "programs", multiple=True, metavar="[NAME=]COMMAND", help="The server of a mapping, or of all."
)
@click.option("--http", multiple=True, metavar="NAME", help="The clients of this mapping speak HTTP.")
@click.option(
    "--stream", multiple=True, metavar="NAME", help="Pass this mapping on byte by byte, even if it is port 80."
)
def render(
    app: App, file: str, kind: str, programs: tuple[str, ...], http: tuple[str, ...], stream: tuple[str, ...]
) -> int:
    """Print the mappings of FILE as text for other tools: as rules, or by another mechanism than a redirect."""
    from redirector import mappings, renderers, source, terminal
    from redirector.compile import compile_ruleset
    from redirector.model import InvalidModel

    if app.json and kind in renderers.MECHANISMS:
        raise Usage(f"{kind} has no JSON", "leave --json out")
    kind = "json" if app.json else kind
    if kind not in renderers.KINDS:
        raise Usage(f"there is no rendering as {printable(kind)}", "the kinds are: " + ", ".join(renderers.KINDS))
    options = renderers.Options(dict(map(_program, programs)), frozenset(http), frozenset(stream))
    for name in renderers.unused(kind, options):
        raise Usage(f"--{name.removesuffix('s')} is of no use with --as {kind}", "leave it out")
    files = source.read(file)
    ruleset = mappings.parse(files)
    try:
        text = renderers.render(kind, ruleset, compile_ruleset(ruleset), options)
    except InvalidModel as error:
        raise mappings.refused(files, error.problems) from None
    terminal.say(text.rstrip("\n"))
    return 0


def _program(text: str) -> tuple[str, tuple[str, ...]]:
    """(mapping's name or "", program and arguments) of "NAME=/usr/bin/server --flag" or "/usr/bin/server"."""
    name, command = ("", text) if text.startswith("/") else text.split("=", 1) if "=" in text else ("", text)
    try:
        argv = tuple(shlex.split(command))
    except ValueError as error:
        raise Usage(f"--program {printable(text)}: {error}") from None
    if not argv or not argv[0].startswith("/") or not command.isprintable():
        raise Usage(
            f"--program {printable(text)}: a program is an absolute path",
            "write NAME=/usr/bin/server, or the path alone",
        )
    return name, argv


@command
def schema(_app: App) -> int:
    """Print the JSON Schema of the mapping file, for editors."""
    from redirector import terminal
    from redirector.schema import mapping_file_schema

    terminal.say(json.dumps(mapping_file_schema(), indent=2, ensure_ascii=False))
    return 0


@command
def demo(app: App) -> int:
    """Show everything on real packets, in private network namespaces; nothing of this machine is touched."""
    from redirector.demo import run

    if app.json:
        raise Usage("the demo is for people: it has no JSON")
    return run()


@command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(_app: App, shell: str) -> int:
    """Print the completion script for SHELL: eval it, or put it where the shell looks for completions."""
    from click.shell_completion import get_completion_class

    from redirector.cli import group

    found = get_completion_class(shell)
    if found is None:
        raise Usage(f"no completion for {shell}")
    click.echo(found(group, {}, "redirector", "_REDIRECTOR_COMPLETE").source())
    return 0
