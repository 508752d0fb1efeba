"""The commands, their options, and exit codes; the only package that imports click.

Each command is found by the table COMMANDS and imported when it is called: `redirector apply` costs what it uses.
A command gathers what it needs, calls one function of `reconcile`, prints by `output`, and returns its exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from redirector import __version__
from redirector.cli.app import shared
from redirector.errors import OutcomeUnknown, RedirectorError, Refused, Usage, plural, printable

# Command → module in this package that has it, in the order of --help.
COMMANDS = {
    "check": "looking",
    "plan": "looking",
    "apply": "applying",
    "status": "looking",
    "watch": "watching",
    "metrics": "measuring",
    "doctor": "doctoring",
    "graph": "drawing",
    "report": "drawing",
    "audit": "auditing",
    "explain": "auditing",
    "confirm": "changing",
    "cancel": "changing",
    "rollback": "changing",
    "remove": "changing",
    "migrate-backend": "changing",
    "history": "generations",
    "show": "generations",
    "compare": "generations",
    "render": "printing",
    "import": "importing",
    "schema": "printing",
    "service": "serving",
    "boot": "serving",
    "completion": "printing",
    "demo": "printing",
}


CONFIRM_DEFAULT = "60s"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f"redirector.cli.{COMMANDS[cmd_name]}")
        # What is called as a keyword of Python (import) has a function with "_" behind its name.
        found = getattr(module, name, None) or getattr(module, f"{name}_", None)
        return found if isinstance(found, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # An option's value is optional only behind "=": the next word is always the file.
        return super().resolve_command(ctx, [f"{a}={CONFIRM_DEFAULT}" if a == "--confirm" else a for a in args])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="redirector")
@shared
def group() -> None:
    """Own this host's port redirects: a file of mappings, and the kernel held to it."""


def main() -> NoReturn:
    """Run, and end the process with the exit code that the kernel's state deserves."""
    _prepare_streams()
    _end(run())


def run() -> int:
    """Do what sys.argv says; the exit code."""
    json_wanted = "--json" in sys.argv[1:]
    try:
        code = group.main(standalone_mode=False, prog_name="redirector")
    except click.exceptions.Abort:
        code = 130  # interrupted at a prompt
    except click.ClickException as error:
        code = _report_usage(error, json_wanted)
    except RedirectorError as error:
        code = _report_error(error, json_wanted)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _report_error(Refused(printable(f"{where}{error.strerror or error}")), json_wanted)
    except Exception as error:  # no person should meet a traceback; REDIRECTOR_TRACEBACK asks for it
        if os.environ.get("REDIRECTOR_TRACEBACK"):
            raise
        message = f"internal error, what became of the command is unknown: {type(error).__name__}: {error}"
        hint = "this is a bug: please report it, with what REDIRECTOR_TRACEBACK=1 prints; see: redirector status"
        code = _report_error(OutcomeUnknown(printable(message), hint), json_wanted)
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Standard streams that take whatever we print: none may be closed, none may choke on an arrow in a C locale."""
    if sys.stdout is None or sys.stderr is None:
        nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the life of the process)
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end(code: int) -> NoReturn:
    """End the process at once: everything is written and closed, and tearing the interpreter down takes 8 ms."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _report_usage(error: click.ClickException, as_json: bool) -> int:
    """As click tells it, with what people stumble over, and as JSON where that is wanted."""
    from redirector import terminal

    error.show()
    hint = ""
    if "--confirm" in sys.argv and "extra argument" in error.format_message():
        hint = f"the time goes behind an equals sign: --confirm={CONFIRM_DEFAULT}"
        terminal.say(f"  {terminal.paint_for(sys.stderr)('hint:', 'blue')} {hint}", sys.stderr)
    if as_json:
        _say_json(Usage(error.format_message(), hint), [])
    return Usage.exit_code


def _say_json(error: RedirectorError, problems: list[dict[str, Any]]) -> None:
    from redirector import terminal

    found = {"code": error.exit_code, "message": error.message, "hint": error.hint}
    terminal.say(terminal.as_json({"ok": False, "error": found, "problems": problems}))


def _report_error(error: RedirectorError, as_json: bool) -> int:
    from redirector import output, terminal

    paint = terminal.paint_for(sys.stderr)
    diagnostics = getattr(error, "diagnostics", [])
    for found in diagnostics:
        terminal.say(output.diagnostic_text(found, paint), sys.stderr)
    if diagnostics:
        terminal.say(paint(plural(len(diagnostics), "problem"), "bold"), sys.stderr)
    else:
        terminal.say(f"{paint('redirector:', 'red')} {error.message}", sys.stderr)
        if error.hint:
            terminal.say(f"  {paint('hint:', 'blue')} {error.hint}", sys.stderr)
    if as_json:
        _say_json(error, [output.diagnostic_json(found) for found in diagnostics])
    return error.exit_code
