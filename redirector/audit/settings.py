"""What every mechanism's configuration says, in plain text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from redirector.audit import CONFIGURED
from redirector.audit.facts import Facts, Setting


def settings(facts: Facts) -> list[Setting]:
    """Each thing once; what several places say of it stands together, and the first of them is its place."""
    found: dict[tuple[str, str], Setting] = {}
    for name in CONFIGURED:
        for one in import_module(f"redirector.audit.mechanisms.{name}").configured(facts):
            key = (one.mechanism, one.name)
            before = found.get(key)
            found[key] = before._replace(values=_together(before.values, one.values)) if before else one
    return list(found.values())


def _together(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """The values of both; in whichever order they were found, they read alike."""
    return {
        key: ", ".join(sorted({*one.get(key, "").split(", "), *other.get(key, "").split(", ")} - {""}))
        for key in {**one, **other}
    }
