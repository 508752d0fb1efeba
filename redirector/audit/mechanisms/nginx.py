"""nginx: every `listen`, with file and line, through `include`, by crossplane's parser.

crossplane reads one file at a time here and the includes are followed by us: it would look for them in this system's
root. What it cannot parse is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redirector.audit.facts import ProxyListen, Where
from redirector.audit.mechanisms.addresses import endpoint
from redirector.audit.tree import Tree

MAIN = ("/etc/nginx/nginx.conf", "/usr/local/nginx/conf/nginx.conf")
DEPTH = 64  # of blocks and of includes; nginx itself has few kinds of blocks that nest
UDP = ("udp", "quic")


def gather(tree: Tree) -> Iterator[object]:
    """Rows of ProxyListen."""
    for path in MAIN:
        if tree.stat(path) is not None:
            yield from _file(tree, path, path.rpartition("/")[0], False, 0)


def _file(tree: Tree, path: str, folder: str, in_server: bool, depth: int) -> Iterator[ProxyListen]:
    import crossplane

    try:
        parsed = crossplane.parse(tree.real(path), single=True, comments=False, check_ctx=False, check_args=False)
    except OSError:
        return
    for config in parsed["config"]:
        yield from _block(tree, path, folder, config["parsed"], in_server, depth)


def _block(
    tree: Tree, path: str, folder: str, block: list[dict[str, Any]], in_server: bool, depth: int
) -> Iterator[ProxyListen]:
    for one in block:
        name, args = one["directive"], one.get("args", [])
        where = Where(path, one["line"])
        if name == "include" and args and depth < DEPTH:
            pattern = args[0] if args[0].startswith("/") else f"{folder}/{args[0]}"
            for found in tree.matching(pattern):
                yield from _file(tree, found, folder, in_server, depth + 1)
        elif name == "listen" and args and in_server:
            address, port = endpoint(args[0], 80)
            if port:
                yield ProxyListen("nginx", address, port, "udp" if set(args[1:]) & set(UDP) else "tcp", where)
        elif "block" in one and depth < DEPTH:
            inner = list(_block(tree, path, folder, one["block"], name == "server", depth + 1))
            yield from inner
            # A server of http without a listen has port 80, where nginx starts as root (ngx_http_core_module).
            if name == "server" and not args and not inner and not _has(one["block"], ("listen", "include")):
                yield ProxyListen("nginx", "", 80, "tcp", where)


def _has(block: list[dict[str, Any]], names: tuple[str, ...]) -> bool:
    return any(one["directive"] in names for one in block)
