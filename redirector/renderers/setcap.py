"""As file capabilities: the server's program may bind every port below 1024, whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from redirector.errors import Refused, Usage, printable
from redirector.interpreters import interprets
from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import PRIVILEGED, privileged, spoken
from redirector.renderers.installing import head
from redirector.renderers.limits import Limits, require
from redirector.renderers.units import servers

OPTIONS = ("programs",)
LIMITS = Limits("a file capability", ("tcp", "udp", "sctp"), proxy=False, nested=False, sockets=0)
CAPABILITY = "cap_net_bind_service=+ep"
_CHECKS = """\
refuse() {
    echo "$program: $1: nothing was changed" >&2
    exit 1
}
# What would make the capability anybody's, or no use to anybody.
check() {
    [ -f "$program" ] && [ ! -L "$program" ] || refuse "no file, or a link: name the file itself"
    [ "$(head -c 2 "$program")" != '#!' ] || refuse "a script, for which the kernel ignores capabilities"
    [ "$(stat -c %u "$program")" = 0 ] || refuse "not root's: its owner could put anything into it"
    [ -z "$(find "$program" -perm /022)" ] || refuse "others may write it"
    case ",$(findmnt -n -o OPTIONS -T "$program")," in
    *,nosuid,*) refuse "on a file system that is mounted nosuid, where capabilities do not count" ;;
    esac
}
"""


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what a capability cannot do, errors.Usage where a program is missing, Refused for an
    interpreter, and where no port needs it."""
    require(ruleset, LIMITS)
    found = [server for server in servers(ruleset, options) if any(map(privileged, server.mappings))]
    if not found:
        raise Refused(f"no mapping has a port below {PRIVILEGED}: the servers can bind them as they are")
    programs = dict.fromkeys(_program(server.argv) for server in found)
    notes = [
        "The servers bind these ports themselves, instead of the targets of the redirects; configure them so:",
        *(f"  {mapping.name}: {spoken(mapping)}" for mapping in ruleset.enabled),
        "",
        f"What else it does: whoever may run the program may let it bind every port below {PRIVILEGED}.",
        "Whatever replaces the file (a package's upgrade, cp) takes the capability away.",
        "",
        "To undo: " + " && ".join(f"setcap -r {quote(program)}" for program in programs),
    ]
    return f"#!/bin/sh\n{head('setcap', notes)}set -eu\n{_CHECKS}{''.join(_commands(list(programs)))}"


def _program(argv: tuple[str, ...]) -> str:
    name = argv[0].rpartition("/")[2]
    if interprets(name):
        message = f"{printable(argv[0])} is an interpreter: with the capability every script of every user has it"
        raise Refused(message, "--as systemd-ambient gives it to one service alone")
    if len(argv) > 1:
        message = f"a capability belongs to a file, and cannot tell the arguments of {printable(argv[0])} apart"
        raise Usage(message, "name the program alone")
    return argv[0]


def _commands(programs: list[str]) -> Iterator[str]:
    for command in ("check", f'setcap -q {CAPABILITY} "$program"\nsetcap -q -v {CAPABILITY} "$program"'):
        yield "\n"
        for program in programs:
            yield f"program={quote(program)}\n{command}\n"
