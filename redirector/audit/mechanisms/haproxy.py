"""haproxy: every `bind`, and the ports that stand behind `listen` and `frontend` in old files."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import ProxyListen, Where
from redirector.audit.mechanisms.addresses import endpoint
from redirector.audit.tree import Tree

FILES = ("/etc/haproxy/haproxy.cfg", "/etc/haproxy/conf.d/*.cfg")
UDP = ("quic4@", "quic6@", "udp@", "udp4@", "udp6@")
PREFIXES = (*UDP, "ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@", "sockpair@")


def gather(tree: Tree) -> Iterator[object]:
    """Rows of ProxyListen."""
    for pattern in FILES:
        for path in tree.matching(pattern):
            for number, line in enumerate((tree.read(path) or "").split("\n"), 1):
                for address, port, protocol in binds(line):
                    yield ProxyListen("haproxy", address, port, protocol, Where(path, number))


def binds(line: str) -> Iterator[tuple[str, int, str]]:
    """(address, port, protocol) of each address of a line: they stand behind commas, ranges of ports as "80-89"."""
    words = line.partition("#")[0].split()
    if not words or words[0] not in ("bind", "listen", "frontend"):
        return
    at = 1 if words[0] == "bind" else 2
    for text in words[at].split(",") if len(words) > at and (at == 1 or ":" in words[at]) else ():
        protocol = "udp" if text.startswith(UDP) else "tcp"
        for prefix in PREFIXES:
            text = text.removeprefix(prefix)  # noqa: PLW2901 (a prefix of a prefix is none)
        base, dash, last = text.rpartition("-")
        address, first = endpoint(base if dash and last.isdigit() else text)
        end = int(last) if dash and last.isdigit() else first
        for port in range(first, min(end, 65535) + 1) if first else ():
            yield address, port, protocol
