"""The JSON Schema of the mapping file, made from the same table of fields that parses it."""

from __future__ import annotations

from typing import Any

from redirector.fields import FIELDS, SETTINGS, Field
from redirector.mappings import VERSION


def mapping_file_schema() -> dict[str, Any]:
    """Draft 2020-12. What a schema cannot say (conflicts, lengths of ranges, addresses) `redirector check` does."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Redirector mapping file",
        "type": "object",
        "required": ["version"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": VERSION, "description": "version of this format"},
            "settings": _table(SETTINGS, "settings of the whole file"),
            "mapping": {"type": "array", "items": _table(FIELDS, "one port mapping")},
        },
    }


def _table(fields: dict[str, Field], doc: str) -> dict[str, Any]:
    required = [name for name, spec in fields.items() if spec.required]
    properties = {name: spec.schema | {"description": spec.doc} for name, spec in fields.items()}
    found: dict[str, Any] = {"type": "object", "description": doc, "additionalProperties": False}
    return found | ({"required": required} if required else {}) | {"properties": properties}
