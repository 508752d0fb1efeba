"""What the configurations of servers have in common: addresses with ports, and how a `listen` is told."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import Facts, ProxyListen, Setting
from redirector.host.units import port_number


def configured(facts: Facts) -> Iterator[Setting]:
    """Where each server is told to listen, whichever of them it is."""
    for row in facts.of(ProxyListen):
        name = f"{row.program}, {row.protocol} {row.port}"
        yield Setting("proxy", name, {"address": row.address or "any"}, row.where)


def endpoint(text: str, default: int = 0) -> tuple[str, int]:
    """(address, port) of "80", "192.0.2.1:80", "[::]:80", "*:80", ":80", "name"; address "" for any, port 0 for
    none (sockets of the file system, variables, names without a port where there is no default)."""
    if text.startswith(("unix:", "/", "$", "abns@", "fd@")):
        return "", 0
    address, colon, port = text.rpartition(":")
    if not colon and port_number(text):
        return "", port_number(text) or 0
    if not colon or (text.startswith("[") and text.endswith("]")):
        address, port = text, str(default)
    address = address.strip("[]")
    return "" if address == "*" else address, port_number(port) or 0
