"""`import`: what a host has already, as a mapping file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from redirector.cli.app import App, command
from redirector.errors import BadConfiguration, Refused, Usage, plural, printable
from redirector.importers import KINDS
from redirector.model import FAMILIES

if TYPE_CHECKING:
    from redirector.importers import Imported, Text

INCOMPLETE = 2


@command
@click.argument("files", nargs=-1, metavar="[FILE…|-]")
@click.option("--from", "kind", metavar="KIND", help=f"What it is, if its text does not tell: {', '.join(KINDS)}.")
@click.option(
    "--family", multiple=True, type=click.Choice(FAMILIES), help="Of rules that do not tell; once, or per FILE."
)
@click.option("-p", "--publish", multiple=True, metavar="SPEC", help='As for docker run, such as "8080:80/udp".')
@click.option("--out", metavar="FILE", help="Write the mapping file here, not to standard output.")
def import_(
    app: App,
    files: tuple[str, ...],
    kind: str | None,
    family: tuple[str, ...],
    publish: tuple[str, ...],
    out: str | None,
) -> int:
    """Turn what this host has (rules of iptables, firewalld, ufw; published ports) into a mapping file.

    Without FILE: what iptables has loaded now. What cannot be said in a mapping file stands at its end, as comments;
    the exit code is then 2.
    """
    from redirector import importers, mappings, terminal

    if kind is not None and kind not in KINDS:
        raise Usage(f"nothing can be imported from {printable(kind)}", "there is: " + ", ".join(KINDS))
    found = importers.read(_inputs(app, files, kind or "", family, publish))
    text = mappings.write(found.ruleset) + _comments(found)
    if out is not None:
        _save(out, text)
    if app.json:
        left = [{"file": at.file, "line": at.line, "text": at.text, "why": why} for at, why in found.left]
        count = len(found.ruleset.mappings)
        data = {"ok": not found.left, "mappings": count, "left": left, "hints": list(found.hints), "file": text}
        terminal.say(terminal.as_json(data))
    else:
        if out is None:
            terminal.say(text.rstrip("\n"))
        _tell(found, out)
    return INCOMPLETE if found.left else 0


def _inputs(
    app: App, files: tuple[str, ...], kind: str, families: tuple[str, ...], publish: tuple[str, ...]
) -> list[tuple[str, Text]]:
    """What is to be read, with its kind ("" where its text tells)."""
    from redirector import source
    from redirector.importers import Text

    if len(families) > 1 and len(families) != len(files):
        raise Usage(f"--family stands {len(families)} times for {len(files)} files", "say it once, or for each file")
    found = [("docker", Text("", "\n".join(publish)))] if publish else []
    if kind == "live" and files:
        raise Usage("the live tables are in no file", "leave FILE out, or --from live")
    if not files and not publish:
        if kind not in ("", "live"):
            raise Usage(f"there is nothing to read {kind} from", "name a file, or - for standard input")
        app.enter_namespace()
        return [("live", Text("", ""))]
    for index, name in enumerate(files):
        family = families[index] if len(families) > 1 else "".join(families)
        if os.path.isdir(name):
            raise BadConfiguration(f"{printable(name)}: a folder", "name the files to import, one by one")
        # Text of others may have any bytes; those that are no UTF-8 are shown escaped.
        found += [
            (kind, Text(file.name, file.data.decode("utf-8", "surrogateescape"), family)) for file in source.read(name)
        ]
    return found


def _comments(found: Imported) -> str:
    """What was left over, as comments of TOML."""
    lines = []
    several = len({place.file for place, _ in found.left}) > 1
    for place, why in found.left:
        where = f"{printable(place.file)} " if several else ""
        lines += [f"# {where}{printable(str(place))}: {printable(why)}"]
        lines += [f"#   {printable(place.text)}"] if place.line else []
    return "\n".join(["", "# Not in this file:", *lines, ""]) if lines else ""


def _save(path: str, text: str) -> None:
    """Raises Refused where that fails, or a file is there already."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise Refused(f"{printable(path)} is there already, and was left as it is", "name another file") from None
    except (OSError, ValueError) as error:
        raise Refused(f"the mapping file could not be written: {printable(str(error))}") from None


def _tell(found: Imported, out: str | None) -> None:
    """For people, to standard error."""
    from redirector import terminal

    paint = terminal.paint_for(sys.stderr)
    for hint in found.hints:
        terminal.say(f"  {paint('hint:', 'blue')} {printable(hint)}", sys.stderr)
    where = f" in {printable(out)}" if out else ""
    text = f"{plural(len(found.ruleset.mappings), 'mapping')}{where}"
    if found.left:
        text += paint(f"; {plural(len(found.left), 'rule')} could not be said: see the end of the file", "yellow")
    terminal.say(text, sys.stderr)
