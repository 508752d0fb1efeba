"""A zone of firewalld (/etc/firewalld/zones/NAME.xml): its forward-ports, and those of its rich rules.

Without an address to go to, firewalld writes a redirect for what arrives in the zone: by its interfaces, or from its
sources; of the host's own connections it takes none. What else a zone has (services, ports …) filters, and is not read.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from redirector.errors import BadConfiguration, printable
from redirector.importers.found import Beyond, Entry, Findings, Leftover, Place, Target, Text
from redirector.importers.rules import exact, network, single, span, valid
from redirector.importers.scopes import narrowed
from redirector.model import ARRIVING, FAMILIES, PROTOCOLS, Scope, family_of
from redirector.records import NamedTuple
from redirector.values import address


class _Forward(NamedTuple):
    """A forward-port, with what its rich rule adds: the attributes of its elements, by tag."""

    place: Place
    attributes: dict[str, str]
    rule: dict[str, dict[str, str]]


def read(text: Text) -> Findings:
    """Raises BadConfiguration for what is not XML, and for a document type (which could have entities)."""
    zone = _Zone(text)
    found = Findings([], zone.left, [], set())
    scopes = zone.scopes()
    forwards = sorted(zone.forwards, key=lambda f: _priority(f.rule.get("rule", {})))
    for forward in forwards:
        try:
            found.entries.extend(_entries(forward, scopes))
        except Beyond as beyond:
            found.left.append(Leftover(forward.place, str(beyond)))
    if forwards and not zone.bound:
        words = "the zone names no interface and no source: if it is not the default zone, narrow its mappings"
        found.hints.append(f"{printable(text.name)}: {words}")
    return found


class _Zone:
    """What a zone's file says: `bound` to interfaces and sources, `forwards`, and what is left over."""

    def __init__(self, text: Text) -> None:
        self.text, self.lines = text, text.text.split("\n")
        self.bound: list[tuple[Place, str, dict[str, str]]] = []
        self.forwards: list[_Forward] = []
        self.left: list[Leftover] = []
        self._path: list[str] = []
        self._rule: dict[str, dict[str, str]] = {}
        self._parser = parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        try:
            parser.Parse(text.text.encode("utf-8", "surrogateescape"), True)
        except expat.ExpatError as error:
            line = self.lines[error.lineno - 1] if error.lineno <= len(self.lines) else ""
            message = f"{printable(text.name)}:{error.lineno}: not XML: {printable(line.strip()[:200])}"
            raise BadConfiguration(message, "give a zone file, such as /etc/firewalld/zones/public.xml") from None

    def _refuse(self, *_: Any) -> None:
        line = self._parser.CurrentLineNumber
        message = f"{printable(self.text.name)}:{line}: a zone file has no document type, and this one is not read"
        raise BadConfiguration(message, "take <!DOCTYPE …> out")

    def _place(self) -> Place:
        line = self._parser.CurrentLineNumber
        return Place(self.text.name, line, self.lines[line - 1].strip())

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        match self._path[1:]:
            case ["interface" | "source"]:
                self.bound.append((self._place(), tag, attributes))
            case ["rule"]:
                self._rule = {"rule": attributes}
                self._pending: list[_Forward] = []
            case ["rule", "forward-port"]:
                self._pending.append(_Forward(self._place(), attributes, self._rule))
            case ["rule", _]:
                self._rule[tag] = attributes
            case ["forward-port"]:
                self.forwards.append(_Forward(self._place(), attributes, {}))

    def _end(self, tag: str) -> None:
        if self._path[1:] == ["rule"]:
            self.forwards += self._pending
        self._path.pop()

    def scopes(self) -> list[tuple[str, Scope]]:
        """(family, scope) of what arrives in the zone; family "" for both."""
        found: list[tuple[str, Scope]] = []
        for place, tag, attributes in self.bound:
            try:
                if tag == "interface":
                    found.append(("", Scope(interface=valid(exact, attributes.get("name", "")))))
                else:
                    found.append(_source(attributes))
            except Beyond as beyond:
                self.left.append(Leftover(place, str(beyond)))
        found.sort(key=lambda scope: not scope[1].source)  # firewalld looks at sources first
        return found if self.bound else [("", Scope())]


def _source(attributes: dict[str, str]) -> tuple[str, Scope]:
    text = attributes.get("address", "")
    if not text:
        raise Beyond("a mapping knows sources by address only")
    if _negated(attributes):
        raise Beyond("a mapping cannot say “not”")
    family = "ipv6" if ":" in text else "ipv4"
    found = network(text, family)
    return family, Scope(source="" if found.endswith("/0") else found)


def _negated(attributes: dict[str, str]) -> bool:
    return attributes.get("invert", "no").lower() in ("yes", "true", "1")


def _priority(rule: dict[str, str]) -> int:
    text = rule.get("priority", "0")
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 7 else 0


def _entries(forward: _Forward, scopes: list[tuple[str, Scope]]) -> list[Entry]:
    given = forward.attributes
    protocol = given.get("protocol", "").lower()
    if protocol not in PROTOCOLS:
        raise Beyond(f"a mapping knows no protocol {printable(protocol)}")
    there = valid(address, given["to-addr"]) if given.get("to-addr") else ""
    ports = (span(given.get("port", ""), "-"),)
    targets = span(given.get("to-port", ""), "-") if given.get("to-port") else ports[0]
    if targets == ports[0]:
        target = Target("redirect", 0, True)
    elif targets.size == 1:
        target = Target("redirect", targets.first)
    else:
        raise Beyond("of such a range the kernel takes the first port that is free; a mapping goes one to one")
    if there:
        target = target._replace(rewrite="port", address=there)
    family, scope = _rich(forward.rule)
    found = []
    for zone_family, zone in scopes:
        both = narrowed(zone, scope)
        for one in FAMILIES:
            fits = zone_family in ("", one) and family in ("", one) and (not there or family_of(there) == one)
            if both is not None and fits:
                group = (protocol, ports, target)
                found.append(
                    Entry(
                        forward.place, ARRIVING, one, protocol, ports, target, both,
                        transit=not both.address, group=group,
                    )
                )  # fmt: skip
    if scopes and not found:
        raise Beyond("never reached: what the rule is for does not arrive in the zone")
    return found


def _rich(rule: dict[str, dict[str, str]]) -> tuple[str, Scope]:
    """(family, scope) of a rich rule; ("", any) where there is none. Raises Beyond."""
    family = rule.get("rule", {}).get("family", "")
    scope = Scope()
    for tag, attributes in rule.items():
        match tag:
            case "rule":
                if family not in ("", *FAMILIES):
                    raise Beyond(f"a mapping knows no family {printable(family)}")
            case "source":
                other, scope_ = _source(attributes)
                if family not in ("", other):
                    raise Beyond("the source is of another family")
                family, scope = other, scope._replace(source=scope_.source)
            case "destination":
                if _negated(attributes) or not attributes.get("address"):
                    raise Beyond("a mapping takes single local addresses")
                family = "ipv6" if ":" in attributes["address"] else "ipv4"
                scope = scope._replace(address=single(attributes["address"], family))
            case "accept" | "log" | "audit":
                pass
            case _:
                raise Beyond(f"a mapping knows no {printable(tag)}")
    return family, scope
