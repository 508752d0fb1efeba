"""The keys of a mapping file: one table from which parsing, suggestions and the JSON Schema are made.

Each `Field` has a parser (from `values`) that reports every problem that it finds. Parsing inverts `document`:
`parse_mapping(document(m)) == m`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redirector.model import (
    BACKENDS,
    DEFAULT_PRIORITY,
    FAMILIES,
    PROTOCOLS,
    REWRITES,
    Mapping,
    Ports,
    Problem,
    Settings,
    Target,
    family_problems,
    forward_problems,
    listen_problems,
)
from redirector.records import NamedTuple
from redirector.values import (
    NAME,
    PRIORITIES,
    Report,
    address,
    boolean,
    choice,
    comment,
    interface,
    is_name,
    kind,
    name,
    nearest,
    network,
    owner,
    ports,
    priority,
    quoted,
    several,
    target,
)

Schema = dict[str, Any]


class Field(NamedTuple):
    """One key: its parser, whether it must be there, its JSON Schema, and a sentence for people."""

    parse: Callable[[Any, Report], Any]
    schema: Schema
    doc: str
    required: bool = False


def _one_or_many(item: Schema) -> Schema:
    return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}]}


PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PORTS: Schema = {"oneOf": [PORT, {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"}]}
TARGET: Schema = {"type": "string", "pattern": r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}(-[0-9]{1,5})?$"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}

FIELDS: dict[str, Field] = {
    "name": Field(name, {"type": "string", "pattern": f"^{NAME}$"}, "how people refer to it", True),
    "listen": Field(several(ports), _one_or_many(PORTS), "the port or ports that clients use", True),
    "to": Field(
        target,
        {"oneOf": [*PORTS["oneOf"], TARGET, {"type": "array", "items": TARGET, "minItems": 1, "maxItems": 2}]},
        "the target: one port, or a range of the same length as listen; with an address, on another machine",
        True,
    ),
    "protocol": Field(
        several(choice(tuple(PROTOCOLS), "protocol")),
        _one_or_many({"enum": list(PROTOCOLS)}) | {"default": "tcp"},
        "transport protocol or protocols",
    ),
    "family": Field(
        choice(("both", "ipv4", "ipv6"), "family"),
        {"enum": ["both", "ipv4", "ipv6"], "default": "both"},
        "address family",
    ),
    "address": Field(several(address), _one_or_many(TEXT), "local addresses; default: every address of the host"),
    "interface": Field(several(interface), _one_or_many(TEXT), 'where the traffic arrives: a name, or "veth*"'),
    "source": Field(several(network), _one_or_many(TEXT), "which clients: a network or a list of them"),
    "local": Field(
        boolean,
        FLAG,
        "also connections that this host makes to itself; default true, but false where interface or source is set",
    ),
    "exclusive": Field(
        boolean, FLAG | {"default": False}, "refuse clients from outside that connect to the target port directly"
    ),
    "rewrite": Field(
        choice(REWRITES, "rewrite"),
        {"enum": list(REWRITES), "default": "port"},
        "port: the address that the client used stays; redirect: it becomes the arriving interface's primary one",
    ),
    "owner": Field(
        owner,
        {"oneOf": [TEXT, {"type": "integer", "minimum": 0}]},
        "user name or id that is expected to listen on the target port",
    ),
    "enabled": Field(boolean, FLAG | {"default": True}, "false: validated, but not applied"),
    "comment": Field(comment, {"type": "string", "maxLength": 120}, "for people"),
}

SETTINGS: dict[str, Field] = {
    "backend": Field(
        choice(BACKENDS, "backend"), {"enum": list(BACKENDS), "default": "auto"}, "what carries the rules"
    ),
    "priority": Field(
        priority,
        {"type": "integer", "minimum": PRIORITIES[0], "maximum": PRIORITIES[1], "default": DEFAULT_PRIORITY},
        "nftables priority of the NAT base chains; Docker and firewalld have -100",
    ),
}


REQUIRED = tuple(key for key, spec in FIELDS.items() if spec.required)


def parse_table(
    table: object, fields: dict[str, Field], required: tuple[str, ...], what: str, report: Report
) -> dict[str, Any]:
    """The parsed values of a TOML table by `fields`; None for those that are wrong. What is wrong is reported."""
    if not isinstance(table, dict):
        report(f"{what} must be a table, not the {kind(table)} {quoted(table)}")
        return {}
    values: dict[str, Any] = {}
    misspelt: set[str] = set()
    for key, value in table.items():
        spec = fields.get(key)
        if spec is None:
            near = nearest(key, [name for name in fields if name not in table])
            misspelt.add(near)
            hint = f'did you mean "{near}"?' if near else "the keys are: " + ", ".join(fields)
            report.at(key)(f"unknown key {quoted(key)}", hint, at_key=True)
            continue
        values[key] = spec.parse(value, report.at(key))
    for key in required:
        if key not in table and key not in misspelt:
            called = f'mapping "{table["name"]}"' if is_name(table.get("name")) else what
            report(f"{called} has no {key}", f"add {key} = ... ({fields[key].doc})")
    return values


def parse_mapping(table: object, report: Report) -> Mapping | None:
    """One mapping from its TOML table; None if anything was wrong (and reported)."""
    before = len(report.problems)
    values = parse_table(table, FIELDS, REQUIRED, "this mapping", report)
    # What is wrong between keys is told even where another key is wrong by itself.
    between: list[Problem] = []
    listen, to = values.get("listen"), values.get("to")
    if listen and to:
        between += listen_problems(listen, to)
    address, source = values.get("address", ()), values.get("source", ())
    targets: tuple[str, ...] = ()
    if isinstance(to, Target):
        between += forward_problems(to, values)
        targets = to.addresses
    if address or source or targets:
        family = values.get("family", "both")
        if None not in (family, address, source):
            between += family_problems(family, address, source, targets)
    if _turned(to, table):
        between = [p._replace(path=("to", 1 - int(p.path[1]))) if p.path[:-1] == ("to",) else p for p in between]
    for problem in between:
        # A list of one may stand in the file as a plain value: positions fall back to the key's.
        report.problems.append(problem._replace(path=report.path + problem.path))
    if len(report.problems) != before or not values:
        return None
    if "local" not in values:
        values["local"] = not (values.get("interface") or source)
    return Mapping.checked(values)


def _turned(to: object, table: object) -> bool:
    """Whether the file names the two targets in the other order than the model."""
    written = table.get("to") if isinstance(table, dict) else None
    both = isinstance(to, Target) and to.families == FAMILIES
    return both and isinstance(written, list) and str(written[0]).startswith("[")


def parse_settings(table: object, report: Report) -> Settings | None:
    before = len(report.problems)
    values = parse_table(table, SETTINGS, (), "settings", report)
    return Settings(**values) if len(report.problems) == before else None


def _written(value: object) -> object:
    """A model value as TOML has it."""
    if isinstance(value, Ports):
        return value.first if value.first == value.last else str(value)
    if isinstance(value, Target):
        found = str(value).split(", ")
        return found[0] if len(found) == 1 else found
    if isinstance(value, tuple):
        items = [_written(item) for item in value]
        return items[0] if len(items) == 1 else items
    return value


def document(mapping: Mapping) -> dict[str, Any]:
    """The shortest TOML table (as a dict) that means this mapping: keys at their defaults are left out."""
    defaults = _NARROWED if mapping.interface or mapping.source else _DEFAULTS
    pairs = zip(FIELDS, mapping, defaults, strict=True)
    return {key: _written(value) for key, value, default in pairs if value != default}


# What leaves a key out; nothing does where it is required.
_DEFAULTS = tuple(Mapping._field_defaults.get(key) for key in FIELDS)
_NARROWED = tuple(False if key == "local" else default for key, default in zip(FIELDS, _DEFAULTS, strict=True))
