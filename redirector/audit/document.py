"""An audit as `audit --json` writes it, read back. Pure.

What is read stays the plain document that was written; only its shape is checked, against the tables here, and every
part that is wrong is told. More keys than these are no fault: a later version may write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from redirector.errors import printable
from redirector.mappings import Diagnostic, InvalidFile
from redirector.records import NamedTuple
from redirector.source import SourceFile

FORMAT = 1
MAX_BYTES = 128 << 20  # ten thousand mappings with their servers make about 20 MiB
HINT = "name what `redirector audit --json` has written"
Document = dict[str, Any]


class Many(NamedTuple):
    """A list of values of one shape."""

    of: Any


class Maybe(NamedTuple):
    """A value of that shape, or null."""

    of: Any


class Named(NamedTuple):
    """Values of one shape by whatever names."""

    of: Any


# A shape is str, int, bool, a table of them by key, or one of the above.
PLACE = {"file": Maybe(str), "line": Maybe(int)}
RULE = {
    "owner": str,
    "mapping": Maybe(str),
    "text": str,
    "to": Maybe(int),
    "address": Maybe(str),
    "families": Many(str),
    "sides": Many(str),
    "certain": bool,
    "priority": int,
    **PLACE,
}
PROCESS = {
    "pid": int,
    "command": str,
    "user": str,
    "executable": Maybe(str),
    "unit": Maybe(str),
    "permitted": Maybe(str),
    "effective": Maybe(str),
    "ambient": Maybe(str),
}
SOCKET = {
    "protocol": str,
    "address": str,
    "families": Many(str),
    "port": int,
    "user": str,
    "mechanism": str,
    "why": str,
    "processes": Many(PROCESS),
    **PLACE,
}
WAY = {"mechanism": str, "by": str, **PLACE}
PORT = {
    "protocol": str,
    "port": int,
    "ports": str,
    "leads_to": Maybe(int),
    "rules": Many(RULE),
    "sockets": Many(SOCKET),
    "shadowed": Many(SOCKET),
    "ways": Many(WAY),
}
SETTING = {"mechanism": str, "name": str, "values": Named(str), **PLACE}
FINDING = {
    "id": str,
    "severity": str,
    "message": str,
    "fix": Many(str),
    "port": Maybe(int),
    "about": Maybe(str),
}
AUDIT = {
    "redirector_audit": int,
    "root": str,
    "asked": Many(int),
    "everywhere": bool,
    "ports": Many(PORT),
    "settings": Many(SETTING),
    "findings": Many(FINDING),
}
KINDS = {str: "text", int: "a whole number", bool: "true or false"}


def is_document(file: SourceFile) -> bool:
    """Whether a file is meant as JSON: no mapping file begins with that sign."""
    return file.data.lstrip().startswith(b"{")


def parse(file: SourceFile) -> Document:
    """The audit that a file holds. Raises InvalidFile with everything that is wrong with it."""
    try:
        found: Any = json.loads(file.data)
    except json.JSONDecodeError as error:
        text = error.doc.split("\n")[error.lineno - 1]
        place = Diagnostic(file.name, error.lineno, error.colno, 1, f"no JSON: {error.msg}", HINT, text)
        raise InvalidFile([place]) from None
    except (ValueError, RecursionError) as error:  # no Unicode, too many digits, nested too deeply
        raise InvalidFile([Diagnostic(file.name, 0, 0, 0, f"no JSON that can be read: {error}", HINT)]) from None
    if not isinstance(found, dict) or "redirector_audit" not in found:
        message = "this is JSON, but no audit: it has no redirector_audit"
        raise InvalidFile([Diagnostic(file.name, 0, 0, 0, message, HINT)])
    problems = [Diagnostic(file.name, 0, 0, 0, problem, HINT) for problem in wrong(found, AUDIT)]
    if not problems and found["redirector_audit"] != FORMAT:
        message = f"an audit of format {found['redirector_audit']}; this version of redirector reads {FORMAT}"
        problems = [Diagnostic(file.name, 0, 0, 0, message, "audit that host again, with this version")]
    if problems:
        raise InvalidFile(problems)
    return found


def wrong(value: Any, shape: Any, at: str = "") -> Iterator[str]:
    """Where a value is not of that shape, and how."""
    if isinstance(shape, Maybe):
        if value is not None:
            yield from wrong(value, shape.of, at)
    elif isinstance(shape, Many):
        if not isinstance(value, list):
            yield f"{at}: a list is wanted, not {_told(value)}"
        else:
            for index, one in enumerate(value):
                yield from wrong(one, shape.of, f"{at}[{index}]")
    elif isinstance(shape, Named | dict):
        if not isinstance(value, dict):
            yield f"{at}: an object is wanted, not {_told(value)}"
        elif isinstance(shape, Named):
            for key, one in value.items():
                yield from wrong(one, shape.of, f"{at}.{printable(key)}")
        else:
            for key, inner in shape.items():
                if key in value:
                    yield from wrong(value[key], inner, f"{at}.{key}".lstrip("."))
                else:
                    yield f"{at}.{key}".lstrip(".") + ": is missing"
    elif type(value) is not shape:
        yield f"{at}: {KINDS[shape]} is wanted, not {_told(value)}"


def _told(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, ensure_ascii=False)[:40])
