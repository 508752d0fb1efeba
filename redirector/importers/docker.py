"""Published ports, as `docker run -p` and Compose have them: "8080:80", "127.0.0.1:8000-8009:9000-9009/udp".

A container's address is not known, and a mapping has ports of this host only. So what is imported leads to the same
port on this host: right for a container in the host's network namespace, and for a rootless engine that publishes that
port as it is.
"""

from __future__ import annotations

import re
import shlex

from redirector.errors import printable
from redirector.importers.found import Beyond, Entry, Findings, Leftover, Place, Target, Text
from redirector.importers.rules import span, valid
from redirector.model import ARRIVING, FAMILIES, OWN, PROTOCOLS, Ports, Scope
from redirector.values import address

SPEC = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9]+\.[0-9.]+|::):)?"
    r"(?:(?P<host>[0-9]+(?:-[0-9]+)?)?:)?(?P<container>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>\w+))?"
)
HINT = (
    "a mapping leads to a port of this host, not of a container: {} fits a container in the host's network namespace "
    "(--network host), or a rootless engine that publishes the target ports as they are"
)


def read(text: Text) -> Findings:
    """The specs of a text: one to a line, or behind -p and --publish anywhere in it."""
    found = Findings.none()
    for number, line in enumerate(text.text.split("\n"), 1):
        for spec in _specs(line):
            place = Place(text.name, number if text.name else 0, spec)
            try:
                found.entries.extend(_entries(place))
            except Beyond as beyond:
                found.left.append(Leftover(place, str(beyond)))
    if found.entries:
        words = list(dict.fromkeys(str(entry.place.text) for entry in found.entries))
        shown = ", ".join(map(printable, words[:5])) + (" …" if len(words) > 5 else "")
        found.hints.append(HINT.format(shown))
    return found


def _specs(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return [line]
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("-p", "--publish"):
            found.append(word)
        elif word.startswith("--publish="):
            found.append(word.partition("=")[2])
        elif word.startswith("-p") and word != "-p" and not word.startswith("--"):
            found.append(word[2:].removeprefix("="))
    if found or any(word in ("run", "create", "-p", "--publish") for word in words):
        return found
    return [word for word in words if word != "-"]  # of a list in YAML


def _entries(place: Place) -> list[Entry]:
    match = SPEC.fullmatch(place.text)
    if not match:
        raise Beyond('not like "8080:80", "127.0.0.1:8080:80" or "8000-8009:9000-9009/udp"')
    if not match["host"]:
        raise Beyond("the engine picks the port of the host: name one")
    protocol = (match["protocol"] or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise Beyond(f"a mapping knows no protocol {printable(protocol)}")
    listen, to = span(match["host"], "-"), span(match["container"], "-")
    if listen == to:
        raise Beyond("both ports are the same: publish another one, and map this one to it")
    if to.size not in (1, listen.size) or (listen.size > 1 and to.size == 1):
        raise Beyond("the engine picks one of these ports; a mapping takes them all")
    families, scope = _where((match["ip"] or "").strip("[]"))
    target = Target("port", to.first - listen.first, True) if to.size > 1 else Target("port", to.first)
    ports: tuple[Ports, ...] = (listen,)
    return [
        Entry(place, side, family, protocol, ports, target, scope, group=(protocol, ports, target))
        for side in (ARRIVING, OWN)
        for family in families
    ]


def _where(host: str) -> tuple[tuple[str, ...], Scope]:
    """(families, scope) of the host's address in a spec."""
    if not host:
        return FAMILIES, Scope()
    family = "ipv6" if ":" in host else "ipv4"
    if host in ("0.0.0.0", "::"):  # noqa: S104 (what others wrote)
        return (family,), Scope()
    return (family,), Scope(address=valid(address, host))
