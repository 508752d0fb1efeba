"""S: units that do not do what they say, or give more than they need. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from redirector.audit.capability import NAMES
from redirector.audit.facts import Facts, Socket
from redirector.audit.mechanisms.units import SocketListen, Unit, binds_by_ambient
from redirector.audit.ways import unit_named
from redirector.errors import printable
from redirector.findings import ERROR, WARNING, Finding

KEYS = ("AmbientCapabilities", "CapabilityBoundingSet")
LOCAL = ("localhost", "127.0.0.0/8", "127.0.0.1", "::1", "::1/128", "link-local")
EVERYTHING = ("any", "0.0.0.0/0", "::/0")


def find(facts: Facts) -> Iterator[Finding]:
    """Services, then sockets."""
    for unit in facts.of(Unit):
        yield from _misspelt(unit)
        if binds_by_ambient(unit):
            yield from _unbounded(unit)
    for unit, port in _listening(facts):
        yield from _local_only(unit, port)
    for listen in facts.of(SocketListen):
        yield from _local_only(listen.unit, listen.port)
        if not listen.has_service:
            name = printable(listen.unit.name)
            what = f"{name} listens on {listen.protocol} {listen.port} ({listen.where})"
            message = f"{what} for {listen.starts}, which does not exist"
            fix = (f"write {listen.starts}, or: systemctl disable --now {name}",)
            yield Finding("S-no-service", ERROR, message, fix, listen.port, listen.unit.name)


def _listening(facts: Facts) -> Iterator[tuple[Unit, int]]:
    """Services that listen, or are made to, and the port where it is known."""
    seen: set[str] = set()
    for socket in facts.of(Socket):
        for holder in socket.holders:
            unit = unit_named(facts, holder.unit)
            if unit is not None and unit.name not in seen:
                seen.add(unit.name)
                yield unit, socket.listener.port
    yield from ((unit, 0) for unit in facts.of(Unit) if binds_by_ambient(unit) and unit.name not in seen)


def _misspelt(unit: Unit) -> Iterator[Finding]:
    for key in KEYS:
        for word, where in unit.capabilities(key)[1]:
            close = difflib.get_close_matches(word.upper(), [f"CAP_{name.upper()}" for name in NAMES], 1, 0.7)
            meant = f"; did you mean {close[0]}?" if close else ""
            message = (
                f"{where}: {key}= of {unit.name} names {printable(word)}, which is no capability, and is ignored{meant}"
            )
            fix = (
                f"write {close[0]} there, and: systemctl daemon-reload" if close else "see: systemd-analyze capability"
            )
            yield Finding("S-misspelt", ERROR, message, (fix,), about=f"{unit.name} {key}={word}")


def _unbounded(unit: Unit) -> Iterator[Finding]:
    lacking = [] if unit.bounded else ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE"]
    lacking += [] if unit.no_new_privileges else ["NoNewPrivileges=yes"]
    if lacking:
        where = unit.where("AmbientCapabilities")
        message = f"{where}: {unit.name} has an ambient capability without {' and '.join(lacking)}"
        fix = f"systemctl edit {unit.name}: [Service], then {', then '.join(lacking)}"
        yield Finding("S-unbounded", WARNING, message, (fix,), about=unit.name)


def _local_only(unit: Unit, port: int) -> Iterator[Finding]:
    denied = {word for one in unit.values("IPAddressDeny") for word in one.value.split()}
    allowed = {word for one in unit.values("IPAddressAllow") for word in one.value.split()}
    if denied & set(EVERYTHING) and not allowed - set(LOCAL):
        message = f"{unit.where('IPAddressDeny')}: IPAddressDeny= of {unit.name} drops every packet that is not local"
        fix = f"systemctl edit {unit.name}: IPAddressAllow=any, or the networks of the clients"
        yield Finding("S-local-only", WARNING, message, (fix,), port, unit.name)
