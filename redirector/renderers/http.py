"""Whether the clients of a mapping speak HTTP, which a mapping does not say, and what a proxy tells the server then."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Mapping, Problem, Ruleset
from redirector.renderers import Options

PORTS = (80, 8008, 8080)  # http, http-alt (IANA, service names and port numbers)


def speaks_http(mapping: Mapping, options: Options) -> bool:
    """By --http and --stream; else, whether it is TCP on ports of HTTP's alone. TLS is passed on as it is."""
    if mapping.name in options.http | options.stream:
        return mapping.name in options.http
    return mapping.protocol == ("tcp",) and all(ports.size == 1 and ports.first in PORTS for ports in mapping.listen)


def http_problems(ruleset: Ruleset, options: Options) -> Iterator[Problem]:
    """Mappings that --http names and that are not TCP alone."""
    for index, mapping in enumerate(ruleset.mappings):
        if mapping.enabled and mapping.name in options.http and mapping.protocol != ("tcp",):
            message = f"--http={mapping.name}: HTTP goes over tcp, not over {' and '.join(mapping.protocol)}"
            yield Problem(("mapping", index, "protocol"), message, "split the mapping, one for each protocol")


def about_clients(ruleset: Ruleset, options: Options) -> list[str]:
    """What the servers get to know of their clients, by mapping."""
    http = [m.name for m in ruleset.enabled if speaks_http(m, options)]
    rest = [m.name for m in ruleset.enabled if not speaks_http(m, options)]
    lines = []
    if http:
        lines.append(
            f"HTTP, the client in X-Forwarded-For and X-Real-IP: {', '.join(http)}. (What clients claim is dropped.)"
        )
    if rest:
        lines.append(f"Byte by byte, TLS included; the server sees the proxy as its client: {', '.join(rest)}.")
    return lines
