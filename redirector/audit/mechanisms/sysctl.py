"""net.ipv4.ip_unprivileged_port_start: what it is now, and what it will be after a boot (sysctl.d(5)).

Files of one name hide each other by folder; all are then read in the order of their names, and the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import Facts, Setting, Where
from redirector.audit.tree import Tree
from redirector.records import NamedTuple

NAME = "net.ipv4.ip_unprivileged_port_start"
FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")


class PortStart(NamedTuple):
    """`runtime` None: not running, or not readable; `configured` None: no file says it."""

    runtime: int | None
    configured: int | None = None
    where: Where = Where("")


def gather(tree: Tree) -> Iterator[object]:
    """One row."""
    configured, where = None, Where("")
    for path in files(tree):
        for number, line in enumerate((tree.read(path) or "").split("\n"), 1):
            value = assigned(line)
            if value is not None:
                configured, where = value, Where(path, number)
    yield PortStart(running(NAME) if tree.live else None, configured, where)


def configured(facts: Facts) -> Iterator[Setting]:
    """The one that there is."""
    for row in facts.of(PortStart):
        said = {"running": row.runtime, "configured": row.configured}
        yield Setting("sysctl", NAME, {k: str(v) for k, v in said.items() if v is not None}, row.where)


def files(tree: Tree) -> Iterator[str]:
    """The files that count, in the order in which they are read."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for name in tree.names(folder):
            if name.endswith(".conf"):
                found.setdefault(name, f"{folder}/{name}")
    yield from (path for _, path in sorted(found.items()))


def assigned(line: str) -> int | None:
    """The number that a line gives our sysctl, if it does."""
    key, equals, value = line.strip().partition("=")
    key = key.strip().removeprefix("-").replace("/", ".")
    if line.lstrip().startswith(("#", ";")) or not equals or key != NAME:
        return None
    text = value.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def running(name: str) -> int | None:
    """The number that a sysctl is; None where it cannot be read."""
    try:
        return int(text_of(name).split()[0])
    except (OSError, ValueError, IndexError):
        return None


def text_of(name: str) -> str:
    """The value of a sysctl in the network namespace of the calling thread. Raises OSError."""
    with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
        return file.read()
