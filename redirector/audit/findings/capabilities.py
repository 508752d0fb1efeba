"""C: capabilities of files that give more than was meant, or nothing at all. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from redirector.audit.capability import BIND, FileCaps, names
from redirector.audit.executables import Executable
from redirector.audit.facts import Facts
from redirector.audit.mechanisms.capabilities import Capable, Declared
from redirector.errors import printable
from redirector.findings import ERROR, WARNING, Finding

WANTED = "cap_net_bind_service=+ep"


def find(facts: Facts) -> Iterator[Finding]:
    """File by file."""
    for row in facts.of(Capable):
        yield from _of(row.file, facts)
    for said in facts.of(Declared):
        if not said.held:
            given = f"{said.where} gives {said.path} {said.caps}"
            message = f"{given}, but the file has no such capability: it was replaced since"
            yield Finding(
                "C-lost", WARNING, message, (f"setcap {said.caps} {shlex.quote(said.path)}",), about=said.path
            )


def _of(file: Executable, facts: Facts) -> Iterator[Finding]:
    path, quoted = printable(file.path), shlex.quote(file.path)
    if file.caps is None:
        return
    remove, right = f"setcap -r {quoted}", f"setcap {WANTED} {quoted}"
    inert = _inert(file, file.caps)
    if inert:
        kind, why, mend = inert
        yield Finding(kind, WARNING, f"the capability of {path} does nothing: {why}", (mend or right,), about=file.path)
    elif file.interprets:
        who = "any user" if file.mode & 0o001 else "whoever may execute it"
        message = f"{path} has {file.caps.text}: every script that {who} runs with it may bind every low port"
        yield Finding("C-interpreter", ERROR, message, (remove,), about=file.path)
    more = (file.caps.permitted | file.caps.inheritable) & ~BIND
    if more:
        message = f"{path} has more capabilities than a low port needs: {', '.join(names(more))}"
        yield Finding("C-excess", WARNING, message, (f"if the port is all that it needs: {right}",), about=file.path)
    writers = _writers(file, facts)
    if writers:
        message = (
            f"{path} may be written by {writers}: the kernel takes the capability away at the first write, and who "
            "replaces the file decides what has the port"
        )
        fix = (f"chown root:root {quoted}", f"chmod 755 {quoted}", right)
        yield Finding("C-writable", WARNING, message, fix, about=file.path)


def _inert(file: Executable, caps: FileCaps) -> tuple[str, str, str] | None:
    """(id, why, what mends it unless that is the usual setcap)."""
    quoted = shlex.quote(file.path)
    if file.shebang:
        interpreter = printable(file.shebang.split()[0]) if file.shebang.split() else "its interpreter"
        return "C-script", f"it is a script, and the kernel looks at {interpreter} instead", f"setcap -r {quoted}"
    if file.nosuid:
        return "C-nosuid", "its file system is mounted nosuid", "move the program to a file system that is not"
    if not caps.permitted & BIND:
        return "C-no-permitted", "it is inheritable only, and nothing is inherited", ""
    if not caps.effective:
        return "C-no-effective", "the effective bit is missing, so the program would have to raise it itself", ""
    return None


def _writers(file: Executable, facts: Facts) -> str:
    if file.mode & 0o002:
        return "everybody"
    if file.uid:
        return f"user {printable(facts.user(file.uid))}"
    return f"group {file.gid}" if file.gid and file.mode & 0o020 else ""
