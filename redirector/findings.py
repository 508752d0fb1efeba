"""What a look at the host found: one type for all commands that look, and how it is told. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redirector.errors import printable
from redirector.records import NamedTuple

Paint = Callable[[str, str], str]  # text and colour → text for the terminal
ERROR, WARNING, NOTE = "error", "warning", "note"
COLOURS = {ERROR: "red", WARNING: "yellow", NOTE: "blue"}


class Finding(NamedTuple):
    """`id` is for scripts; `severity` error, warning or note; `message` one sentence; `fix` commands or steps; `port`
    the one that it is about, 0 for all of them, or none; `about` the file or unit, "" where the port says enough."""

    id: str
    severity: str
    message: str
    fix: tuple[str, ...] = ()
    port: int = 0
    about: str = ""


def lines(findings: Sequence[Finding], paint: Paint) -> Iterator[str]:
    """Each finding behind an empty line, with what mends it below."""
    for found in findings:
        label = paint(f"{found.severity}:", COLOURS[found.severity])
        yield from ("", f"{label} {printable(found.message)} [{found.id}]")
        yield from (f"  {paint('fix:', 'blue')} {printable(step)}" for step in found.fix)


def data(found: Finding) -> dict[str, Any]:
    """A finding as JSON has it, the port aside."""
    return {"id": found.id, "severity": found.severity, "message": found.message, "fix": list(found.fix)}
