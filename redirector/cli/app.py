"""What all commands share: the options that may stand before or after a command's name, and the guards' say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redirector.errors import Refused, TryAgain, plural, printable
from redirector.model import BACKENDS

if TYPE_CHECKING:
    from redirector.backends.base import Backend, Snapshot
    from redirector.guards import Finding
    from redirector.history import History
    from redirector.model import Ruleset
    from redirector.pending import Pending
    from redirector.plan import Plan
    from redirector.reconcile import Judge, Origin, Outcome
    from redirector.source import SourceFile
    from redirector.terminal import Paint

DEFAULT_FILE = "/etc/redirector/mappings.toml"
DEFAULT_STATE = "/var/lib/redirector"
F = TypeVar("F", bound=Callable[..., Any])


class App:
    """What all commands share: the options that may stand before or after the command's name."""

    def __init__(self) -> None:
        self.state_dir = ""
        self.netns = ""
        self.json = False
        self.wanted_backend = ""
        self._history: History | None = None
        self.findings: list[Finding] = []
        self.allowed: set[str] = set()

    @property
    def paint(self) -> Paint:
        from redirector.terminal import paint_for

        return paint_for(sys.stdout)

    def state_folder(self) -> str:
        """The folder of the history, of the network namespace that is worked on."""
        folder = os.path.abspath(self.state_dir or os.environ.get("REDIRECTOR_STATE_DIR") or DEFAULT_STATE)
        return os.path.join(folder, "netns", self.netns) if self.netns else folder

    def history(self) -> History:
        from redirector import journal
        from redirector.history import History

        if self._history is None:  # one for all: it remembers what it has read
            self._history = History(self.state_folder(), journal.tell)
        return self._history

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
        """The backend to work on; `wanted` is that of the ruleset, which --backend overrides."""
        from redirector.selection import backend_for

        return backend_for(self.wanted_backend or wanted, self.history())

    def resolved(self, ruleset: Ruleset) -> Ruleset:
        """The ruleset of a file with what it takes of the host's facts; after `enter_namespace`."""
        if not any(mapping.forwards for mapping in ruleset.enabled):
            return ruleset
        from redirector import neighbours
        from redirector.host.addresses import connected_networks

        try:
            return neighbours.resolved(ruleset, connected_networks())
        except OSError as error:
            message = f"the networks of this host cannot be read: {error.strerror or error}"
            raise TryAgain(message, "try again in a moment") from None

    def backend_of(self, ruleset: Ruleset, files: list[SourceFile]) -> Backend:
        """The backend for a mapping file. Raises InvalidFile, with the line, for what it cannot do."""
        from redirector import mappings
        from redirector.model import backend_problems

        backend = self.backend(ruleset.settings.backend)
        if any(backend_problems(ruleset.settings, backend.name)):
            mappings.parse(files, backend.name)
        return backend

    def settle(self, backend: Backend, history: History) -> Pending | None:
        """What waits for confirm. If its time is over and its watchdog gone, it is taken back here."""
        from redirector import pending

        found = pending.load(history)
        if found is None or found.seconds_left > 0:
            return found
        with history.locked():
            return pending.settle(backend, history)

    def origin(self, action: str, source: str, stamp: str = "") -> Origin:
        from redirector.host.facts import author
        from redirector.reconcile import Origin

        return Origin(action, source, author(os.environ), stamp)

    def findings_of(self, ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> list[Finding]:
        """Everything that the guards say; of a plan that does nothing, only whether there is nothing to do it for."""
        from redirector import guards
        from redirector.host import facts

        if not plan:
            return list(guards.empty(ruleset, snapshot.occupied))
        found = facts.gather(ruleset, guards.captured_ports(ruleset), os.environ)
        return [*guards.empty(ruleset, snapshot.occupied), *guards.findings(ruleset, found)]

    def judge(self, insist: dict[str, bool]) -> Judge:
        """The guards as `reconcile` calls them: raises Refused for what no flag insists on, keeps the rest to tell."""
        self.allowed = {"--" + name.replace("_", "-") for name, given in insist.items() if given}

        def judge(ruleset: Ruleset, plan: Plan, snapshot: Snapshot) -> None:
            self.findings = self.findings_of(ruleset, plan, snapshot)
            refused = [found for found in self.findings if found.flag and found.flag not in self.allowed]
            if refused:
                lines = [f"{found.mapping}: {found.message}" if found.mapping else found.message for found in refused]
                flags = " ".join(sorted({found.flag for found in refused}))
                raise Refused("; ".join(lines), f"nothing was changed; to insist: {flags}")

        return judge

    def report(self, text: Callable[[], str], data: Callable[[], Any]) -> None:
        """Print one result, as text or as JSON; only the one that is wanted is made."""
        from redirector.terminal import as_json, say

        say(as_json(data()) if self.json else text())

    def report_outcome(self, outcome: Outcome, waiting: Pending | None = None) -> None:
        """Print what a change came to; `waiting` is what is still to be confirmed of it."""
        from redirector import output

        self.warn(self.findings)
        done = f"generation {outcome.generation}" if outcome.recorded else "drift mended" if outcome.plan else ""
        if outcome.flows:
            done += f"; {plural(outcome.flows, 'UDP flow')} on the old way will begin anew"
        elif outcome.flows is None:
            done += "; UDP flows may stay on the old way until they end (conntrack could not be read)"
        if waiting:
            done += f", to be confirmed within {waiting.seconds_left:.0f} s: redirector confirm"
        self.report(
            lambda: output.plan_text(outcome.plan, self.paint, done),
            lambda: output.outcome_json(outcome, self.findings) | {"pending": output.pending_json(waiting)},
        )

    def warn(self, findings: list[Finding]) -> None:
        """Print findings to standard error (in JSON they are part of the result)."""
        from redirector.output import findings_text
        from redirector.terminal import paint_for, say

        if findings and not self.json:
            say(findings_text(findings, paint_for(sys.stderr), self.allowed), sys.stderr)


def shared(function: F) -> F:
    """The options that every command takes, before its name or after."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(App), parameter.name or "", value)

    options = (
        click.option("--json", is_flag=True, expose_value=False, callback=keep, help="Print JSON for scripts."),
        click.option(
            "--netns", metavar="NAME", expose_value=False, callback=keep, help="Work on this network namespace."
        ),
        click.option(
            "--state-dir", metavar="DIR", expose_value=False, callback=keep, help=f"Generations [{DEFAULT_STATE}]."
        ),
    )
    for option in options:
        function = option(function)
    return function


def choosing_backend(function: F) -> F:
    """The option that overrides the file's choice of a backend."""

    def keep(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        context.ensure_object(App).wanted_backend = value or ""

    words = "Instead of the one that the settings name."
    choice = click.Choice(BACKENDS[1:])
    return click.option("--backend", type=choice, expose_value=False, callback=keep, help=words)(function)


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


pass_app = click.make_pass_decorator(App, ensure=True)
unsafe_option = click.option("--allow-unsafe-file", is_flag=True, help="Use a file that others may write.")
file_argument = click.argument("file", default=DEFAULT_FILE)
verify_option = click.option("--verify", is_flag=True, help="Read everything back, even after proof.")


def command(function: Callable[..., int]) -> click.Command:
    """A command of ours: the shared options, and `App` as its first argument."""
    return click.command()(shared(pass_app(function)))
