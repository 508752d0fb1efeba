"""Commands that print what others use, and the demo: render, schema, completion, demo."""

from __future__ import annotations

import json

import click

from redirector.cli.app import App, command, file_argument
from redirector.errors import Usage, printable
from redirector.renderers import KINDS


@command
@file_argument
@click.option("--as", "kind", default="nft", show_default=True, help=f"One of: {', '.join(KINDS)}.")
def render(app: App, file: str, kind: str) -> int:
    """Print the rules for FILE as text that other tools load."""
    from redirector import mappings, renderers, terminal
    from redirector.compile import compile_ruleset

    kind = "json" if app.json else kind
    if kind not in renderers.KINDS:
        raise Usage(f"there is no rendering as {printable(kind)}", "the kinds are: " + ", ".join(renderers.KINDS))
    ruleset = mappings.load(file)
    terminal.say(renderers.render(kind, ruleset, compile_ruleset(ruleset)).rstrip("\n"))
    return 0


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
