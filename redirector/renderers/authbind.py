"""As authbind's files: a user whose program runs behind authbind may bind the port.

authbind asks access(2) whether the *calling user* may execute /etc/authbind/byport/PORT: a file of root's with mode
500, as tutorials have it, grants nothing to anybody else. So the file is the user's own, with mode 500, and root's
group. A mapping with addresses has files in byaddr instead. For ports from 512 to 1023 the name begins with "!".
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from redirector.errors import Refused
from redirector.model import Mapping, Problem, Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import PRIVILEGED, bindings, spoken
from redirector.renderers.installing import MARK, OURS, head
from redirector.renderers.limits import Limits, require

OPTIONS = ("programs",)
LIMITS = Limits("authbind", ("tcp", "udp"), proxy=False, nested=False, sockets=0)
DANGEROUS = 512  # from here on some protocols take a client's port for a proof of who it is (authbind(1))
# authbind looks at a file's mode and never into it: there is room for our mark.
_GRANT = f"""\
grant() {{
    file=$root$2
    echo '{MARK}' > "$file.new"
    chown "$1:0" "$file.new"
    chmod 500 "$file.new"
    mv "$file.new" "$file"
}}
"""


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what authbind cannot do, Refused where no port needs it."""
    require(ruleset, LIMITS, _problems(ruleset))
    grants = {grant: None for mapping in ruleset.enabled for grant in _grants(mapping)}
    if not grants:
        raise Refused(f"no mapping has a port below {PRIVILEGED}: the servers can bind them as they are")
    paths = " ".join(quote(path) for _, path in grants)
    notes = [
        "The servers bind these ports themselves, instead of the targets of the redirects, and each is started as its",
        "owner and behind authbind, `authbind --deep PROGRAM`:",
        *(f"  {m.name}: {spoken(m)}{_started(m, options)}" for m in ruleset.enabled),
        "It helps programs that call bind(2) through the C library: none that is linked statically, no Go program.",
        "",
        f"To undo: rm {paths}",
    ]
    lines = "".join(f"grant {quote(owner)} {quote(path)}\n" for owner, path in grants)
    return f"#!/bin/sh\n{head('authbind', notes)}set -eu\numask 077\n{OURS}{_GRANT}\nours {paths}\n{lines}"


def _started(mapping: Mapping, options: Options) -> str:
    argv = options.programs.get(mapping.name, options.programs.get("", ()))
    return f"; {' '.join(map(quote, ('authbind', '--deep', *argv)))}" if argv else ""


def _problems(ruleset: Ruleset) -> Iterator[Problem]:
    for index, mapping in enumerate(ruleset.mappings):
        if not mapping.enabled:
            continue
        if mapping.owner is None:
            message = f'authbind lets a user have a port, and "{mapping.name}" names none'
            yield Problem(("mapping", index, "name"), message, 'add owner = "…", the user that the server runs as')
        for i, ports in enumerate(mapping.listen):
            if ports.size > 1:
                message = f"authbind has a file for each port, and none for the range {ports}"
                yield Problem(("mapping", index, "listen", i), message, "name the ports one by one")


def _grants(mapping: Mapping) -> Iterator[tuple[str, str]]:
    """(user, path) of each port that needs a permission."""
    for binding in bindings(mapping):
        port = binding.ports.first
        if port < PRIVILEGED:
            sign = "!" if port >= DANGEROUS else ""
            name = f"byaddr/{sign}{binding.address},{port}" if mapping.address else f"byport/{sign}{port}"
            yield str(mapping.owner), f"/etc/authbind/{name}"
