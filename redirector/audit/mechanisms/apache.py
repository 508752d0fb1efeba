"""Apache: every Listen of the configuration, through Include and IncludeOptional.

Conditions (<IfModule>) are not asked: what stands in one counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import ProxyListen, Where
from redirector.audit.mechanisms.addresses import endpoint
from redirector.audit.tree import Tree

MAIN = ("/etc/apache2/apache2.conf", "/etc/httpd/conf/httpd.conf")
DEPTH = 16


def gather(tree: Tree) -> Iterator[object]:
    """Rows of ProxyListen."""
    for path in MAIN:
        base = path.rpartition("/conf/")[0] or path.rpartition("/")[0]
        yield from _file(tree, path, base, 0)


def _file(tree: Tree, path: str, base: str, depth: int) -> Iterator[ProxyListen]:
    for number, line in enumerate((tree.read(path) or "").split("\n"), 1):
        words = line.split()
        directive = words[0].lower() if len(words) > 1 else ""
        value = words[1].strip('"') if directive else ""
        if directive == "listen":
            address, port = endpoint(value)
            if port:
                yield ProxyListen("apache", address, port, "tcp", Where(path, number))
        elif directive in ("include", "includeoptional") and depth < DEPTH:
            pattern = value if value.startswith("/") else f"{base}/{value}"
            for found in tree.matching(pattern):
                yield from _file(tree, found, base, depth + 1)
