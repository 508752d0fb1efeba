"""How two environments differ: two audits in, their differences out. Pure.

Theory of operation. An audit is laid out flat: for each (kind, about, key) the values that it has there, so that a
difference is a value that one has and the other has not, and nothing else. `kind` is "port" for what is at work on one
(rules, sockets, processes), the mechanism for what is configured, or "finding".

What two hosts never have in common is not laid out: process ids, how many workers there are, the line at which
something stands in a file, the counters in the text of a rule. Findings are told by what they are about, and not by
their words, in which such things stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from redirector.audit.document import Document
from redirector.records import NamedTuple

FINDING, PORT = "finding", "port"
_COUNTED = re.compile(r"\bcounter packets \d+ bytes \d+")  # as nft lists it
_MOUTHFUL = "; "


class Difference(NamedTuple):
    """What the one (`a`) has at a place and the other (`b`) has not; "" for nothing."""

    kind: str
    about: str
    key: str
    a: str
    b: str


class _Value(NamedTuple):
    """`same` is compared, `shown` told."""

    kind: str
    about: str
    key: str
    same: str
    shown: str


def unlike(one: Document, other: Document) -> str:
    """Why two audits cannot be compared, in words; "" where they can: both have to have looked at the same things."""
    if (one["root"] == "/") != (other["root"] == "/"):
        return "one is of a running system, the other of files alone"
    if one["asked"] != other["asked"]:
        return "they were asked about other ports"
    if one["everywhere"] != other["everywhere"]:
        return "one has looked for capabilities everywhere, the other has not"
    return ""


def differences(one: Document, other: Document) -> tuple[Difference, ...]:
    """Ports, then mechanisms, then findings, each in the order of `one`, and then of `other`."""
    first, second = _flat(one), _flat(other)
    both = {**first, **second}
    order = {place: at for at, place in enumerate(dict.fromkeys(key[:2] for key in both))}
    found = []
    for key in sorted(both, key=lambda key: (_ORDER.get(key[0], 1), order[key[:2]])):
        a, b = first.get(key, {}), second.get(key, {})
        gone = _MOUTHFUL.join(shown for same, shown in a.items() if same not in b)
        new = _MOUTHFUL.join(shown for same, shown in b.items() if same not in a)
        if gone or new:
            found.append(Difference(*key, gone, new))
    return tuple(found)


_ORDER = {PORT: 0, FINDING: 2}


def _flat(document: Document) -> dict[tuple[str, str, str], dict[str, str]]:
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for value in _values(document):
        if value.same:
            found.setdefault((value.kind, value.about, value.key), {})[value.same] = value.shown
    return found


def _values(document: Document) -> Iterator[_Value]:
    for port in document["ports"]:
        about = f"{port['protocol']} {port['ports']}"
        for key, text in _at_work(port):
            yield _Value(PORT, about, key, text, text)
    for one in document["settings"]:
        for key, text in [*one["values"].items(), ("file", one["file"] or "")]:
            yield _Value(one["mechanism"], one["name"], key, text, text)
    for one in document["findings"]:
        place = one["about"] or (f"port {one['port']}" if one["port"] else "")
        about = " ".join(filter(None, (one["id"], place)))
        yield _Value(FINDING, about, one["severity"], one["severity"], one["message"])


def _at_work(port: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, value) of what is at work on a port."""
    for rule in port["rules"]:
        yield f"rule of {rule['owner']}", _rule(rule)
        yield f"file of {rule['owner']}", rule["file"] or ""
    if port["leads_to"]:
        yield "leads to", str(port["leads_to"])
    for key, note in (("sockets", ""), ("shadowed", ", shadowed")):
        for socket in port[key]:
            yield from _socket(socket, note)
    for way in port["ways"]:
        if way["mechanism"] != "redirect":  # its rule has said it
            yield f"set up by {way['mechanism']}", " in ".join(filter(None, (way["by"], way["file"])))


def _rule(rule: dict[str, Any]) -> str:
    words = [_COUNTED.sub("counter", rule["text"])]
    words += [f"to {rule['address'] or ''}:{rule['to'] or ''}"] if rule["address"] or rule["to"] else []
    words += [f"over {' and '.join(rule['families'])}", f"for {' and '.join(rule['sides'])} connections"]
    words += [] if rule["certain"] else ["for some"]
    return ", ".join([*words, f"priority {rule['priority']}"])


def _socket(socket: dict[str, Any], note: str) -> Iterator[tuple[str, str]]:
    name = f"[{socket['address']}]" if ":" in socket["address"] else socket["address"]
    name = f"{name}:{socket['port']}{note}"
    yield f"{name} user", socket["user"]
    yield f"{name} mechanism", socket["mechanism"]
    yield f"{name} file", socket["file"] or ""
    yield f"{name} families", ", ".join(socket["families"])
    for process in socket["processes"]:
        for key in ("user", "executable", "unit", "permitted", "effective", "ambient"):
            yield f"{name} {process['command']} {key}", process[key] or ""
