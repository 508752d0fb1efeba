"""Generations as text and JSON, and the difference of two of them. Pure; see `output`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redirector.errors import plural, printable
from redirector.history import Record, Unreadable
from redirector.mappings import to_document, write

if TYPE_CHECKING:
    from redirector.model import Ruleset
    from redirector.terminal import Paint


def record_json(record: Record | Unreadable) -> dict[str, Any]:
    if isinstance(record, Unreadable):
        return {"generation": record.generation, "unreadable": record.reason}
    return {
        "generation": record.generation,
        "applied_at": record.applied_at,
        "digest": record.digest,
        "confirmed": record.confirmed,
        "mappings": len(record.ruleset.mappings),
        "action": record.action,
        "origin": record.origin,
        "author": record.author,
        "backend": record.backend,
    }


def history_text(records: list[Record | Unreadable], paint: Paint) -> str:
    if not records:
        return "nothing was applied yet"
    lines = []
    for record in records:
        if isinstance(record, Unreadable):
            lines.append(f"{record.generation:>6}  {paint('unreadable', 'red')}: {record.reason}")
            continue
        count = plural(len(record.ruleset.mappings), "mapping")
        origin = f"{record.action} of {printable(record.origin)}" if record.origin else record.action
        state = "" if record.confirmed else paint("  not confirmed", "yellow")
        words = f"{record.generation:>6}  {record.applied_at}  {record.digest[:8]}"
        lines.append(f"{words}  {count}, {origin}, by {printable(record.author)}{state}")
    return "\n".join(lines)


def show_text(record: Record) -> str:
    """A generation as a mapping file that can be applied again."""
    head = f"# generation {record.generation}: {record.action} of {printable(record.origin)}"
    return f"{head}\n# {record.applied_at}, by {printable(record.author)}\n{write(record.ruleset)}"


def show_json(record: Record) -> dict[str, Any]:
    return record_json(record) | {"ruleset": to_document(record.ruleset)}


def differences(one: Ruleset, other: Ruleset) -> list[tuple[str, str, str, str]]:
    """(mapping, key, one's value, other's value) for everything in which two rulesets differ; "" where absent."""
    found = []
    if one.settings != other.settings:
        first, second = to_document(one).get("settings", {}), to_document(other).get("settings", {})
        found += [
            ("[settings]", k, _value(first, k), _value(second, k))
            for k in sorted(first.keys() | second.keys())
            if first.get(k) != second.get(k)
        ]
    tables = [{m["name"]: m for m in to_document(r)["mapping"]} for r in (one, other)]
    for name in [*tables[0], *(n for n in tables[1] if n not in tables[0])]:
        first, second = tables[0].get(name, {}), tables[1].get(name, {})
        keys = [*first, *(k for k in second if k not in first)]
        found += [(name, k, _value(first, k), _value(second, k)) for k in keys if first.get(k) != second.get(k)]
    return found


def _value(table: dict[str, Any], key: str) -> str:
    import json

    return json.dumps(table[key], ensure_ascii=False) if key in table else ""


def differences_text(found: list[tuple[str, str, str, str]], paint: Paint) -> str:
    lines: list[str] = []
    last = ""
    for name, key, one, other in found:
        if name != last:
            lines.append(paint(name, "bold"))
            last = name
        lines += [f"  {paint('-', 'red')} {key} = {one}"] if one else []
        lines += [f"  {paint('+', 'green')} {key} = {other}"] if other else []
    return "\n".join(lines) or "no difference"


def differences_json(found: list[tuple[str, str, str, str]]) -> dict[str, Any]:
    rows = [{"mapping": name, "key": key, "a": one or None, "b": other or None} for name, key, one, other in found]
    return {"equal": not found, "differences": rows}
