"""Caddy: the addresses of the sites of a Caddyfile; a name without a port means 80 and 443, which Caddy then opens.

Only the addresses at the top are read, and the global options http_port and https_port. A file in JSON is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import ProxyListen, Where
from redirector.audit.mechanisms.addresses import endpoint
from redirector.audit.tree import Tree

FILE = "/etc/caddy/Caddyfile"


def gather(tree: Tree) -> Iterator[object]:
    """Rows of ProxyListen."""
    text = tree.read(FILE) or ""
    seen = set()
    for number, port in sites(text):
        if port not in seen:
            seen.add(port)
            yield ProxyListen("caddy", "", port, "tcp", Where(FILE, number))


def sites(text: str) -> Iterator[tuple[int, int]]:
    """(line, port) of what each site opens."""
    ports = {"http": 80, "https": 443}
    depth, head = 0, ""
    for number, raw in enumerate(text.split("\n"), 1):
        words = _words(raw)
        if not words:
            continue
        if depth:
            if depth == 1 and not head and len(words) == 2 and words[0] in ("http_port", "https_port"):
                ports[words[0].removesuffix("_port")] = int(words[1]) if words[1].isdigit() else 0
            depth += sum(word == "{" for word in words) - sum(word == "}" for word in words)
            continue
        depth = int(words[-1] == "{")
        head = " ".join(words[:-1] if depth else words)
        if head.startswith(("import ", "(", "&(")):  # a file elsewhere, a snippet, a named route
            continue
        for address in head.replace(",", " ").split():
            yield from ((number, port) for port in _ports(address, ports))
        if head and not depth and not head.endswith(","):
            return  # a file without braces is one site, and what follows are its directives


def _words(line: str) -> list[str]:
    found = []
    for word in line.split():
        if word.startswith("#"):
            break
        found.append(word)
    return found


def _ports(address: str, ports: dict[str, int]) -> list[int]:
    scheme, there, rest = address.partition("://")
    rest = (rest if there else address).partition("/")[0]
    name, port = endpoint(rest)
    if port:
        return [port]
    if there:
        return [ports[scheme]] if ports.get(scheme) else []
    return [port for port in ports.values() if port] if name or rest in ("*", "") else []
