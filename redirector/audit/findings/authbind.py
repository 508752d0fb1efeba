"""A: authbind's grants that grant nothing, or too much, and programs that it cannot help. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from redirector.audit.facts import Facts
from redirector.audit.mechanisms.authbind import GUARDED, Grant
from redirector.audit.mechanisms.started import Started
from redirector.errors import printable
from redirector.findings import ERROR, WARNING, Finding


def find(facts: Facts) -> Iterator[Finding]:
    """Grants, then programs that are started by authbind."""
    for grant in facts.of(Grant):
        yield from _of(grant)
    for row in facts.of(Started):
        file = row.file
        path = printable(file.path)
        if file.static or file.go:
            kind = "a Go program, whose system calls pass the C library by" if file.go else "static"
            message = f"{row.where}: {row.by} starts {path} by authbind, which cannot help it: it is {kind}"
            yield Finding(
                "A-static",
                ERROR,
                message,
                (f"setcap cap_net_bind_service=+ep {shlex.quote(file.path)}",),
                about=file.path,
            )


def _of(grant: Grant) -> Iterator[Finding]:
    port, path = grant.ports.first, printable(grant.where.file)
    quoted = shlex.quote(grant.where.file)
    if not grant.looked_at:
        folder, name = os.path.split(grant.where.file)
        right = name.removeprefix("!") if grant.bang else f"!{name}"
        when = (
            f"from {GUARDED.first} on only names that begin with ! count"
            if not grant.bang
            else "below 512 none may begin with !"
        )
        message = f"{grant.where} is never looked at: {when}"
        yield Finding(
            "A-no-bang", ERROR, message, (f"mv {quoted} {shlex.quote(f'{folder}/{right}')}",), port, grant.where.file
        )
    if grant.kind == "byuid":
        return
    if grant.mode & 0o001:
        message = f"{path} may be executed by everybody: every user may bind port {port}"
        yield Finding(
            "A-world", WARNING, message, (f"chgrp GROUP {quoted}", f"chmod 710 {quoted}"), port, grant.where.file
        )
    elif not (grant.uid and grant.mode & 0o100) and not (grant.gid and grant.mode & 0o010):
        owner = "owned by root" if not grant.uid else "and its owner may not execute it"
        why = f"its mode is {grant.mode:o}, {owner}, and only who may execute it may bind port {port}"
        message = f"{path} grants nothing: {why}"
        yield Finding(
            "A-not-executable", ERROR, message, (f"chown USER {quoted}", f"chmod 500 {quoted}"), port, grant.where.file
        )
