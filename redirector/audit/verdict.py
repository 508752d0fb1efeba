"""What there is to say of the facts: every family of findings, in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from redirector.audit import FAMILIES
from redirector.audit.facts import Facts
from redirector.findings import NOTE, WARNING, Finding


def findings(facts: Facts, asked: Iterable[int] = ()) -> list[Finding]:
    """Of all ports, or of those that are asked for and of what concerns every port; what cannot be read comes last."""
    ports = set(asked)
    found = [
        one
        for name in FAMILIES.values()
        for one in import_module(f"redirector.audit.findings.{name}").find(facts)
        if not ports or not one.port or one.port in ports
    ]
    found += [
        Finding("unread", WARNING, f"not everything could be read: {failure}", about=failure)
        for failure in facts.failures
    ]
    return list(dict.fromkeys(found))


def exit_code(found: Iterable[Finding]) -> int:
    """2 with findings; a note only says that something is as it should be."""
    return 2 if any(one.severity != NOTE for one in found) else 0
