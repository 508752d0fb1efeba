"""The commands, their options, and exit codes; the only import of click.

Each command gathers what it needs, calls one function of `reconcile`, and prints by `output`. Modules are imported
inside the commands, because `redirector apply` should cost what it uses. Every command returns its exit code.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from redirector import __version__
from redirector.errors import RedirectorError, Refused, Unavailable, Usage, printable

if TYPE_CHECKING:
    from redirector.backends.base import Backend, Snapshot
    from redirector.guards import Finding
    from redirector.history import History
    from redirector.model import Ruleset
    from redirector.output import Paint
    from redirector.plan import Plan
    from redirector.reconcile import Origin, Outcome
    from redirector.saved import SavedPlan
    from redirector.source import SourceFile

DEFAULT_FILE = "/etc/redirector/mappings.toml"
DEFAULT_STATE = "/var/lib/redirector"
F = TypeVar("F", bound=Callable[..., Any])


class App:
    """What all commands share: the options that may stand before or after the command's name."""

    def __init__(self) -> None:
        self.state_dir = ""
        self.netns = ""
        self.json = False
        self.findings: list[Finding] = []

    @property
    def paint(self) -> Paint:
        from redirector.output import paint_for

        return paint_for(sys.stdout)

    def history(self) -> History:
        from redirector.history import History

        folder = os.path.abspath(self.state_dir or os.environ.get("REDIRECTOR_STATE_DIR") or DEFAULT_STATE)
        return History(os.path.join(folder, "netns", self.netns) if self.netns else folder)

    def enter_namespace(self) -> None:
        """Go into the namespace that --netns names; before anything else is opened."""
        if not self.netns:
            return
        from redirector.host.namespaces import enter

        try:
            enter(self.netns)
        except FileNotFoundError:
            raise Refused(f"there is no network namespace {printable(self.netns)}", "see: ip netns list") from None
        except OSError as error:
            raise Refused(f"network namespace {printable(self.netns)}: {error.strerror or error}") from None

    def backend(self, wanted: str = "auto") -> Backend:
        if wanted not in ("auto", "nftables"):
            raise Unavailable(f"backend {wanted} is not part of this version", 'say backend = "nftables", or leave it out')
        from redirector.backends.nftables.backend import NftablesBackend

        return NftablesBackend()

    def origin(self, action: str, source: str) -> Origin:
        from redirector.host.facts import author
        from redirector.reconcile import Origin

        return Origin(action, source, author(os.environ))

    def report(self, text: str, data: Any) -> None:
        """Print one result, as text or as JSON."""
        from redirector.output import say

        say(json.dumps(data, indent=2, ensure_ascii=False) if self.json else text)

    def warn(self, findings: list[Finding]) -> None:
        """Print findings to standard error (in JSON they are part of the result)."""
        from redirector.output import finding_text, paint_for, say

        if not self.json:
            for found in findings:
                say(finding_text(found, paint_for(sys.stderr)), sys.stderr)


def shared(function: F) -> F:
    """The options that every command takes, before its name or after."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(App), parameter.name or "", value)

    options = (
        click.option("--json", is_flag=True, expose_value=False, callback=keep, help="Print JSON for scripts."),
        click.option("--netns", metavar="NAME", expose_value=False, callback=keep, help="Work on this network namespace."),
        click.option(
            "--state-dir", metavar="DIR", expose_value=False, callback=keep, help=f"Generations [{DEFAULT_STATE}]."
        ),
    )
    for option in options:
        function = option(function)
    return function


def insisting(function: F) -> F:
    """The flags that override guards."""
    flags = (
        ("--replace-foreign", "Replace a table of our name that is not ours."),
        ("--allow-owner", "Allow a target on which another user than `owner` listens."),
        ("--allow-ssh", "Allow to capture or guard a port that ssh uses."),
        ("--allow-empty", "Allow to be left without any mapping."),
    )
    for flag, words in flags:
        function = click.option(flag, is_flag=True, help=words)(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="redirector")
@shared
def cli() -> None:
    """Own this host's port redirects: a file of mappings, and the kernel held to it."""


pass_app = click.make_pass_decorator(App, ensure=True)
unsafe_option = click.option("--allow-unsafe-file", is_flag=True, help="Use a file that others may write.")
file_argument = click.argument("file", default=DEFAULT_FILE)


@cli.command()
@file_argument
@shared
@pass_app
def check(app: App, file: str) -> int:
    """Parse and validate FILE: every problem in one run."""
    from redirector import mappings, output
    from redirector.guards import static_findings

    with output.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        ruleset = mappings.load(file)
    findings = list(static_findings(ruleset))
    app.warn(findings)
    disabled = len(ruleset.mappings) - len(ruleset.enabled)
    words = output.plural(len(ruleset.mappings), "mapping") + (f" ({disabled} disabled)" if disabled else "")
    found = {"ok": True, "mappings": len(ruleset.mappings), "problems": []}
    app.report(f"{printable(file)}: {words}, no problem", found | {"findings": [output.finding_json(f) for f in findings]})
    return 0


@cli.command()
@file_argument
@click.option("--out", metavar="PLAN", help="Save the plan, for apply.")
@click.option("--replace-foreign", is_flag=True, help="Plan to replace a table of our name that is not ours.")
@shared
@pass_app
def plan(app: App, file: str, out: str | None, replace_foreign: bool) -> int:
    """Show what apply would change, against the live kernel. Exits 0 in sync, 2 with changes."""
    from redirector import mappings, output, reconcile

    with output.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        ruleset = mappings.load(file)
        app.enter_namespace()
        backend = app.backend(ruleset.settings.backend)
        progress("reading the kernel's tables")
        snapshot = backend.observe()
        progress("comparing")
        found = reconcile.plan_for(ruleset, snapshot, replace_foreign=replace_foreign)
        findings = _findings(ruleset, found, snapshot)
    if out:
        from redirector import saved

        saved.write(out, ruleset, snapshot.program, backend, file)
    app.warn(findings)
    app.report(output.plan_text(found, app.paint), output.plan_json(found, findings))
    return 2 if found else 0


@cli.command()
@file_argument
@click.option("--dry-run", is_flag=True, help="Let the kernel validate everything and commit nothing.")
@click.option("--verify", is_flag=True, help="Read everything back, even after proof.")
@unsafe_option
@insisting
@shared
@pass_app
def apply(app: App, file: str, dry_run: bool, verify: bool, allow_unsafe_file: bool, **insist: bool) -> int:
    """Make the kernel hold FILE (or a saved PLAN), verify it, and record a generation."""
    from redirector import mappings, output, reconcile, source

    with output.Progress(sys.stderr) as progress:
        progress(f"reading {printable(file)}")
        files = source.read(file, insist=allow_unsafe_file)
        app.enter_namespace()
        made = _saved_plan(files)
        ruleset = made.ruleset if made else mappings.parse(files)
        backend = app.backend(ruleset.settings.backend)
        if made:
            made.require(backend)
        progress("applying")
        judge = _judge(app, insist)
        if dry_run:
            snapshot = backend.observe()
            found = reconcile.plan_for(ruleset, snapshot, replace_foreign=insist["replace_foreign"])
            if found:
                judge(ruleset, found, snapshot)
                backend.check(found.steps, {})
            app.warn(app.findings)
            app.report(output.plan_text(found, app.paint), output.plan_json(found, app.findings) | {"dry_run": True})
            return 0
        wish = reconcile.Wish(
            ruleset,
            app.origin("apply", made.origin if made else _origin_path(file)),
            replace_foreign=insist["replace_foreign"],
            verify=verify,
            expected=made.observed if made else "",
            judge=judge,
        )
        history = app.history()
        with history.locked():
            outcome = reconcile.change(backend, history, wish)
    _report_outcome(app, outcome)
    return 0


@cli.command()
@click.argument("generation", type=int, required=False)
@click.option("--verify", is_flag=True, help="Read everything back, even after proof.")
@insisting
@shared
@pass_app
def rollback(app: App, generation: int | None, verify: bool, **insist: bool) -> int:
    """Go back to the generation before the current one, or to GENERATION."""
    from redirector import reconcile

    app.enter_namespace()
    history = app.history()
    # Whoever asks for a generation by name knows whether it is empty.
    judge = _judge(app, insist | {"allow_empty": True})
    with history.locked():
        record = reconcile.rollback_target(history, generation)
        wish = reconcile.Wish(
            record.ruleset,
            app.origin("rollback", f"generation {record.generation}"),
            purge=record.purged,
            replace_foreign=insist["replace_foreign"],
            verify=verify,
            judge=judge,
        )
        outcome = reconcile.change(app.backend(record.ruleset.settings.backend), history, wish)
    _report_outcome(app, outcome)
    return 0


@cli.command()
@click.argument("file", required=False)
@shared
@pass_app
def status(app: App, file: str | None) -> int:
    """Compare the kernel with the last applied generation. Exits 0 in sync, 2 drift, 3 nothing applied, 4 unknown."""
    from redirector import output
    from redirector import status as against

    with output.Progress(sys.stderr) as progress:
        progress("reading the kernel's tables")
        app.enter_namespace()
        found = against.status(app.backend(), app.history())
        progress("comparing")
        path, changed, error = _file_state(file, found.record.origin if found.record else "", found.record)
    note = ""
    if changed:
        note = f"{printable(path)} has changed since: redirector plan shows how"
    elif error:
        note = f"{printable(path)}: {error}"
    app.report(output.status_text(found, note, app.paint), output.status_json(found, path, changed, error))
    return {"in-sync": 0, "drifted": 2, "drained": 3, "absent": 3, "unknown": 4}[found.state]


@cli.command()
@shared
@pass_app
def history(app: App) -> int:
    """List the generations, the oldest first."""
    from redirector import output

    records = app.history().all()
    app.report(output.history_text(records, app.paint), [output.record_json(record) for record in records])
    return 0


@cli.command()
@click.argument("generation", type=int, required=False)
@shared
@pass_app
def show(app: App, generation: int | None) -> int:
    """Print one generation (default: the current one) as a mapping file."""
    from redirector import output

    record = _record(app.history(), generation)
    app.report(output.show_text(record).rstrip(), output.show_json(record))
    return 0


@cli.command()
@click.argument("a")
@click.argument("b")
@shared
@pass_app
def compare(app: App, a: str, b: str) -> int:
    """Show in which mappings A and B differ: generations by number, or mapping files. Exits 2 if they do."""
    from redirector import mappings, output

    one, other = (
        _record(app.history(), int(word)).ruleset if word.isascii() and word.isdigit() else mappings.load(word) for word in (a, b)
    )
    found = output.differences(one, other)
    rows = [{"mapping": name, "key": key, "a": first or None, "b": second or None} for name, key, first, second in found]
    app.report(output.differences_text(found, app.paint), {"equal": not found, "differences": rows})
    return 2 if found else 0


@cli.command()
@click.option("--purge", is_flag=True, help="Take the table away too: established redirected connections are reset.")
@click.option("--replace-foreign", is_flag=True, help="Also when the table of our name is not ours.")
@shared
@pass_app
def remove(app: App, purge: bool, replace_foreign: bool) -> int:
    """Drain: no new redirects, while established connections live on."""
    from redirector import reconcile
    from redirector.history import Record
    from redirector.model import Ruleset

    app.enter_namespace()
    history = app.history()
    with history.locked():
        current = history.current()
        settings = current.ruleset.settings if isinstance(current, Record) else Ruleset().settings
        wish = reconcile.Wish(
            Ruleset((), settings), app.origin("remove", "--purge" if purge else ""), purge, replace_foreign
        )
        outcome = reconcile.change(app.backend(settings.backend), history, wish)
    if purge and not app.json:
        from redirector.output import say

        say("the table is gone; connections that it had redirected are reset at their next packet", sys.stderr)
    _report_outcome(app, outcome)
    return 0


@cli.command()
@file_argument
@click.option("--as", "kind", default="nft", show_default=True, help="nft or json.")
@shared
@pass_app
def render(app: App, file: str, kind: str) -> int:
    """Print the rules for FILE as text that other tools load."""
    from redirector import mappings, output, renderers
    from redirector.compile import compile_ruleset

    if kind not in renderers.KINDS:
        raise Usage(f"there is no rendering as {printable(kind)}", "the kinds are: " + ", ".join(renderers.KINDS))
    ruleset = mappings.load(file)
    output.say(renderers.render(kind, ruleset, compile_ruleset(ruleset)).rstrip("\n"))
    return 0


@cli.command()
@shared
@pass_app
def schema(app: App) -> int:
    """Print the JSON Schema of the mapping file, for editors."""
    from redirector import output
    from redirector.schema import mapping_file_schema

    output.say(json.dumps(mapping_file_schema(), indent=2, ensure_ascii=False))
    return 0


@cli.command()
@shared
@pass_app
def demo(app: App) -> int:
    """Show everything on real packets, in private network namespaces; nothing of this machine is touched."""
    from redirector import demo

    return demo.run()


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script for SHELL: eval it, or put it where the shell looks for completions."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise Usage(f"no completion for {shell}")
    click.echo(found(cli, {}, "redirector", "_REDIRECTOR_COMPLETE").source())
    return 0


def _findings(ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> list[Finding]:
    """Everything that the guards say; nothing where nothing would be done."""
    if not plan:
        return []
    from redirector import guards
    from redirector.host import facts

    held = bool(snapshot.program and any(name.endswith("ports") or "redirects" in name for name in snapshot.program.maps))
    return [*guards.empty(ruleset, held), *guards.findings(ruleset, facts.gather(ruleset, os.environ))]


def _judge(app: App, insist: dict[str, bool]) -> Callable[[Ruleset, Plan, Snapshot], None]:
    """The guards as `reconcile` calls them: raises Refused for what no flag insists on; keeps the rest to be told."""
    allowed = {"--" + name.replace("_", "-") for name, given in insist.items() if given}

    def judge(ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> None:
        app.findings = _findings(ruleset, plan, snapshot)
        refused = [found for found in app.findings if found.flag and found.flag not in allowed]
        if refused:
            lines = [f"{found.mapping}: {found.message}" if found.mapping else found.message for found in refused]
            flags = " ".join(sorted({found.flag for found in refused}))
            raise Refused("; ".join(lines), f"nothing was changed; to insist: {flags}")

    return judge


def _report_outcome(app: App, outcome: Outcome) -> None:
    from redirector import output

    app.warn(app.findings)
    if not outcome.plan:
        text = "in sync: nothing to do" if not outcome.recorded else f"in sync: recorded as generation {outcome.generation}"
    else:
        done = f"generation {outcome.generation}" if outcome.recorded else "drift mended"
        text = f"{output.plan_text(outcome.plan, app.paint)}; done: {done}"
    app.report(text, output.outcome_json(outcome, app.findings))


def _record(history: History, generation: int | None) -> Any:
    from redirector.errors import NotFound
    from redirector.history import Unreadable

    found = history.current() if generation is None else history.read(generation)
    if found is None:
        raise NotFound("nothing was applied yet")
    if isinstance(found, Unreadable):
        raise NotFound(f"generation {found.generation}: {found.reason}")
    return found


def _origin_path(file: str) -> str:
    return "<stdin>" if file == "-" else os.path.abspath(file)


def _saved_plan(files: list[SourceFile]) -> SavedPlan | None:
    """The plan that a file holds, None for a mapping file: no TOML starts with a brace."""
    if len(files) != 1 or files[0].data[:1] != b"{":
        return None
    from redirector import saved

    return saved.read(files[0])


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


def main() -> NoReturn:
    """Run, and end the process with the exit code that the kernel's state deserves."""
    # A process of milliseconds leaves no garbage worth collecting, and 60,000 entries are expensive to walk.
    gc.disable()
    json_wanted = "--json" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False, prog_name="redirector")
    except click.exceptions.Abort:
        code = 130  # interrupted at a prompt
    except click.ClickException as error:
        error.show()
        code = Usage.exit_code
    except RedirectorError as error:
        code = _report_error(error, json_wanted)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        code = _report_error(Refused(f"{error.strerror or error}"), json_wanted)
    _end(code if isinstance(code, int) else 0)


def _end(code: int) -> NoReturn:
    """End the process at once: everything is written and closed, and tearing the interpreter down takes 8 ms."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _report_error(error: RedirectorError, as_json: bool) -> int:
    from redirector import output

    paint = output.paint_for(sys.stderr)
    diagnostics = getattr(error, "diagnostics", [])
    for found in diagnostics:
        output.say(output.diagnostic_text(found, paint), sys.stderr)
    if diagnostics:
        output.say(paint(output.plural(len(diagnostics), "problem"), "bold"), sys.stderr)
    else:
        output.say(f"{paint('redirector:', 'red')} {error.message}", sys.stderr)
        if error.hint:
            output.say(f"  {paint('hint:', 'blue')} {error.hint}", sys.stderr)
    if as_json:
        problems = [output.diagnostic_json(found) for found in diagnostics]
        found = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        output.say(json.dumps({"ok": False, "error": found, "problems": problems}, indent=2, ensure_ascii=False))
    return error.exit_code
