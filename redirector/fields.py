"""The keys of a mapping file: one table from which parsing, suggestions and the JSON Schema are made.

Each `Field` has a parser from a TOML value to the model's value. A parser reports every problem that it finds through
the `Report` that it is given, and returns None if there was one; it never raises. Parsing inverts `document`:
`parse_mapping(document(m)) == m`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from redirector.model import (
    BACKENDS,
    DEFAULT_PRIORITY,
    PROTOCOLS,
    REWRITES,
    InvalidModel,
    Mapping,
    Ports,
    Problem,
    Settings,
)

Path = tuple[str | int, ...]
Schema = dict[str, Any]

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
RANGE = "([0-9]{1,5})-([0-9]{1,5})"
# What the kernel accepts as an interface name (dev_valid_name: no "/", ":", white space), less what rule languages
# give a meaning: quotes, backslash, "*" and iptables' "+".
INTERFACE = r"[!#-)\-.0-9;-Z^-~]+"
IFNAMSIZ = 16  # linux/if.h, with the final NUL
# Priorities at or below NF_IP_PRI_CONNTRACK (-200, linux/netfilter_ipv4.h) are refused for NAT by the kernel.
PRIORITIES = (-199, 32767)


class Report:
    """Collects problems under one path."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = problems

    def at(self, *more: str | int) -> Report:
        return Report(self.path + more, self.problems)

    def __call__(self, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """None, so that a parser can end with `return report(…)`."""
        self.problems.append(Problem(self.path, message, hint, at_key))


class Field(NamedTuple):
    """One key: its parser, whether it must be there, its JSON Schema, and a sentence for people."""

    parse: Callable[[Any, Report], Any]
    schema: Schema
    doc: str
    required: bool = False


def kind(value: object) -> str:
    """What TOML calls the type of `value`."""
    names = ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (list, "array"), (dict, "table"))
    return next((name for type_, name in names if isinstance(value, type_)), "date or time")


def suggestion(word: str, words: object) -> str:
    """A "did you mean" for a misspelt word, "" where nothing is near."""
    import difflib  # only after an error

    near = difflib.get_close_matches(word.lower()[:80], list(words), n=1, cutoff=0.55)  # type: ignore[call-overload]
    return f'did you mean "{near[0]}"?' if near else ""


def quoted(value: object) -> str:
    """A value as the file has it, cut to a readable length."""
    try:
        text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # more digits than Python writes (sys.set_int_max_str_digits); TOML's 0x… may have them
        return "with a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _not_text(value: object, report: Report, what: str) -> None:
    hint = f'write "{quoted(value)}" in quotes' if isinstance(value, int | float) else ""
    return report(f"{what} is text, not the {kind(value)} {quoted(value)}", hint)


def port(value: object, report: Report) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return report(f"port {quoted(value)} must be a number", f"write {value[:8]} without quotes")
    if isinstance(value, bool) or not isinstance(value, int):
        return report(f"a port is a number from 1 to 65535, not the {kind(value)} {quoted(value)}")
    if not 1 <= value <= 65535:
        return report(f"port {quoted(value)} is out of range: ports go from 1 to 65535")
    return value


def ports(value: object, report: Report) -> Ports | None:
    """A port, or "first-last"."""
    if isinstance(value, str) and not value.isdigit():
        match = re.fullmatch(RANGE, value)
        if not match:
            likely = re.fullmatch(r"([0-9]{1,5})\D{1,3}([0-9]{1,5})", value)
            hint = f'write "{likely[1]}-{likely[2]}"' if likely else ""
            return report(f'{quoted(value)} is no port range: write "first-last", such as "8000-8099"', hint)
        first, last = int(match[1]), int(match[2])
        if not (1 <= first <= 65535 and 1 <= last <= 65535):
            return report(f"range {quoted(value)} is out of range: ports go from 1 to 65535")
        if first > last:
            return report(f"range {quoted(value)} ends before it starts", f'write "{last}-{first}"')
        return Ports(first, last)
    single = port(value, report)
    return None if single is None else Ports(single, single)


def choice(words: tuple[str, ...], what: str) -> Callable[[object, Report], str | None]:
    def parse(value: object, report: Report) -> str | None:
        if isinstance(value, str) and value in words:
            return value
        expected = ", ".join(f'"{w}"' for w in words)
        hint = suggestion(value, words) if isinstance(value, str) else ""
        return report(f"{what} must be one of {expected}, not {quoted(value)}", hint)

    return parse


def boolean(value: object, report: Report) -> bool | None:
    if isinstance(value, bool):
        return value
    return report(f"must be true or false, not {quoted(value)}", "without quotes" if isinstance(value, str) else "")


def name(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "a name")
    if re.fullmatch(NAME, value):
        return value
    return report(
        f"{quoted(value)} is no name: letters, digits, '.', '_' and '-', starting with a letter or digit, at most 63"
    )


def several(parse: Callable[[Any, Report], Any]) -> Callable[[object, Report], tuple[Any, ...] | None]:
    """One value or a list of them, none twice."""

    def parse_all(value: object, report: Report) -> tuple[Any, ...] | None:
        if not isinstance(value, list):
            one = parse(value, report)
            return None if one is None else (one,)
        if not value:
            return report("this list is empty", "leave the key out instead")
        found: dict[Any, int] = {}
        bad = False
        for i, item in enumerate(value):
            one = parse(item, report.at(i))
            if one is None:
                bad = True
            elif one in found:
                bad = True
                report.at(i)(f"{quoted(item)} stands in this list already")
            else:
                found[one] = i
        return None if bad else tuple(found)

    return parse_all


def _packed(text: str) -> tuple[int, bytes] | None:
    """(address family, packed bytes) of an address without prefix or zone."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a NUL inside
        return None


def _mapped(packed: bytes) -> bool:
    return len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff"


def address(value: object, report: Report) -> str | None:
    """One unicast address, canonical (RFC 5952)."""
    if not isinstance(value, str):
        return _not_text(value, report, "an address")
    if "/" in value:
        return report(f"{quoted(value)} is a network; address takes single addresses", "source takes networks")
    if "%" in value:
        return report(f"{quoted(value)} has a zone", "leave the zone out and name the interface")
    found = _packed(value)
    if not found:
        return report(f"{quoted(value)} is no IPv4 or IPv6 address")
    family, packed = found
    if _mapped(packed):
        plain = socket.inet_ntop(socket.AF_INET, packed[12:])
        return report(f"{quoted(value)} is an IPv4 address in IPv6 form", f'write "{plain}"')
    if not any(packed):
        return report(f"{quoted(value)} stands for every address", "leave address out instead")
    if (packed[0] >= 224 and family == socket.AF_INET) or packed[0] == 0xFF:
        return report(f"{quoted(value)} is a multicast or broadcast address: only a host's own can be mapped")
    return socket.inet_ntop(family, packed)


def network(value: object, report: Report) -> str | None:
    """A network in CIDR form, canonical; a single address is its /32 or /128."""
    if not isinstance(value, str):
        return _not_text(value, report, "a source")
    text, slash, length = value.partition("/")
    found = _packed(text)
    if not found:
        return report(f'{quoted(value)} is no network: write it like "10.0.0.0/8", "192.0.2.7" or "fd00::/8"')
    family, packed = found
    bits = len(packed) * 8
    if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits):
        return report(f"{quoted(value)} has no valid prefix length: 0 to {bits}")
    if _mapped(packed):
        return report(f"{quoted(value)} is an IPv4 address in IPv6 form", "write the IPv4 network")
    prefix = int(length) if slash else bits
    number = int.from_bytes(packed, "big")
    base = number >> (bits - prefix) << (bits - prefix)
    canonical = socket.inet_ntop(family, base.to_bytes(len(packed), "big")) + f"/{prefix}"
    if base != number:
        return report(f"{quoted(value)} has bits beyond its prefix length", f'write "{canonical}", or "{text}/{bits}"')
    return canonical


def interface(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "an interface")
    if "+" in value:
        hint = f'write "{value[:-1]}*"' if value.endswith("+") and len(value) > 1 else ""
        return report(f"{quoted(value)}: the wildcard here is a final *, not +", hint)
    if value == "*":
        return report('"*" alone would be every interface', "leave interface out instead")
    if len(value) >= IFNAMSIZ:
        return report(f"{quoted(value)} is longer than an interface name can be ({IFNAMSIZ - 1})")
    stem = value.removesuffix("*")
    if not re.fullmatch(INTERFACE, stem) or value in (".", ".."):
        return report(f"{quoted(value)} cannot be the name of an interface")
    return value


def owner(value: object, report: Report) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return report(f"an owner is a user name or id, not the {kind(value)} {quoted(value)}")
    if isinstance(value, int):
        return value if 0 <= value < 2**32 - 1 else report(f"{quoted(value)} is no user id")
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}\$?", value, re.ASCII) and not value.isdigit():
        return value
    return report(f"{quoted(value)} is no user name", f"write {value} without quotes" if value.isdigit() else "")


def comment(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "a comment")
    if len(value) > 120:
        return report(f"this comment has {len(value)} characters; it may have 120")
    if not value.isprintable():
        return report("a comment may hold printable characters only")
    return value


def priority(value: object, report: Report) -> int | None:
    low, high = PRIORITIES
    if isinstance(value, bool) or not isinstance(value, int):
        return report(f"priority is a number, not the {kind(value)} {quoted(value)}")
    if low <= value <= high:
        return value
    return report(f"priority {quoted(value)} is out of range: NAT chains may have {low} to {high}")


def _one_or_many(item: Schema) -> Schema:
    return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}]}


PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PORTS: Schema = {"oneOf": [PORT, {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"}]}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}

FIELDS: dict[str, Field] = {
    "name": Field(name, {"type": "string", "pattern": f"^{NAME}$"}, "how people refer to it", True),
    "listen": Field(several(ports), _one_or_many(PORTS), "the port or ports that clients use", True),
    "to": Field(ports, PORTS, "the target: one port, or a range of the same length as listen", True),
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


def parse_table(table: object, fields: dict[str, Field], what: str, report: Report) -> dict[str, Any] | None:
    """The parsed values of a TOML table by `fields`; None if anything was wrong (and reported)."""
    if not isinstance(table, dict):
        return report(f"{what} must be a table, not the {kind(table)} {quoted(table)}")
    before = len(report.problems)
    values: dict[str, Any] = {}
    for key, value in table.items():
        spec = fields.get(key)
        if spec is None:
            missing = [f for f in fields if f not in table]
            hint = suggestion(key, missing) or "the keys are: " + ", ".join(fields)
            report.at(key)(f"unknown key {quoted(key)}", hint, at_key=True)
            continue
        values[key] = spec.parse(value, report.at(key))
    for key, spec in fields.items():
        if spec.required and key not in table:
            report(f"{what} has no {key}", f"add {key} = ... ({spec.doc})")
    return values if len(report.problems) == before else None


def parse_mapping(table: object, report: Report) -> Mapping | None:
    """One mapping from its TOML table; None if anything was wrong (and reported)."""
    label = f'mapping "{table["name"]}"' if isinstance(table, dict) and _is_name(table.get("name")) else "this mapping"
    values = parse_table(table, FIELDS, label, report)
    if values is None:
        return None
    values.setdefault("local", not (values.get("interface") or values.get("source")))
    try:
        return Mapping(**values)
    except InvalidModel as error:
        for problem in error.problems:
            # A list of one may stand in the file as a plain value: positions fall back to the key's.
            report.problems.append(problem._replace(path=report.path + problem.path))
        return None


def parse_settings(table: object, report: Report) -> Settings | None:
    values = parse_table(table, SETTINGS, "settings", report)
    return None if values is None else Settings(**values)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def _written(value: object) -> object:
    """A model value as TOML has it."""
    if isinstance(value, Ports):
        return value.first if value.size == 1 else str(value)
    if isinstance(value, tuple):
        items = [_written(item) for item in value]
        return items[0] if len(items) == 1 else items
    return value


def document(mapping: Mapping) -> dict[str, Any]:
    """The shortest TOML table (as a dict) that means this mapping: keys at their defaults are left out."""
    table: dict[str, Any] = {}
    for key, spec in FIELDS.items():
        value = getattr(mapping, key)
        default = Mapping._field_defaults.get(key)
        if key == "local":
            default = not (mapping.interface or mapping.source)
        if spec.required or value != default:
            table[key] = _written(value)
    return table
