"""systemd's socket units, as far as needed to tell for whom process 1 listens (systemd.unit(5), systemd.socket(5)).

A unit is the first file of its name in the load path, and then every *.conf of its NAME.socket.d folders in all of the
load path, sorted by file name; of several drop-ins of one name the first in the load path counts. A link to /dev/null
hides what comes later. An assignment of nothing empties a list.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import os
from collections.abc import Iterator, Sequence

from redirector.records import NamedTuple

# systemd.unit(5), "System Unit Search Path"; Debian before 12 and others without a merged /usr have /lib too.
UNIT_FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
MAX_SIZE = 1 << 20  # bytes; systemd refuses longer lines, and unit files are a few hundred bytes

LoadPath = list[tuple[str, set[str]]]

_UNREADABLE = (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError)


class SocketUnit(NamedTuple):
    """One effective socket unit: its TCP ports, and the unit that it starts, "" where the name alone tells."""

    name: str
    ports: frozenset[int]
    service: str

    @property
    def starts(self) -> str:
        """What it starts, without type and instance: "sshd" for sshd.socket as for Service=sshd@.service."""
        return (self.service or self.name).rpartition(".")[0].partition("@")[0]


class Setting(NamedTuple):
    """One assignment of a unit file; `line` is where it begins, from 1."""

    section: str
    key: str
    value: str
    line: int


def settings(text: str) -> Iterator[Setting]:
    """Every assignment of a unit file: continued lines joined, comments left out."""
    section = ""
    pending, begun = "", 0
    for number, raw in enumerate((*text.split("\n"), ""), 1):  # the last one ends a continued line at the file's end
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue  # also between the parts of a continued line
        begun = begun or number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, start = pending + line, begun
        pending, begun = "", 0
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        else:
            key, equals, value = line.partition("=")
            if equals:
                yield Setting(section, key.strip(), value.strip(), start)


def assignments(text: str, section: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each assignment in one section of a unit file."""
    return ((found.key, found.value) for found in settings(text) if found.section == section)


def port_number(text: str) -> int | None:
    """The port that `text` is in decimal, 1 to 65535; None for anything else."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    return number if 1 <= number <= 65535 else None


def stream_port(value: str) -> int | None:
    """The TCP port of a ListenStream= value: "22", "192.0.2.1:22", "[::]:22%eth0"; None for paths, vsock and junk."""
    address, colon, port = value.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        known = _is_address(socket.AF_INET6, address[1:-1])
        port = port.partition("%")[0]
    else:
        known = not colon or _is_address(socket.AF_INET, address)
    return port_number(port) if known else None


def socket_units(folders: Sequence[str] = UNIT_FOLDERS) -> list[SocketUnit]:
    """Every socket unit of the load path, effective or not; what cannot be read is passed over."""
    listed = load_path(folders)
    return [_effective(unit, listed) for unit in unit_names(listed, ".socket")]


def load_path(folders: Sequence[str] = UNIT_FOLDERS) -> LoadPath:
    """Each folder of the load path with the names in it."""
    return [(folder, set(_names(folder))) for folder in folders]


def unit_names(listed: LoadPath, kind: str) -> list[str]:
    """The units of a kind (".socket") that have a file, or a drop-in."""
    names = {name.removesuffix(".d") for _, found in listed for name in found if name.endswith((kind, f"{kind}.d"))}
    return sorted(names)


def _effective(unit: str, listed: LoadPath) -> SocketUnit:
    ports: list[int | None] = []
    service = ""
    for path in sources(unit, listed):
        for key, value in assignments(_read(path), "Socket"):
            if key == "ListenStream":
                ports = [*ports, stream_port(value)] if value else []
            elif key == "Service":
                service = value
            elif not value and key.startswith("Listen"):
                ports = []  # the kinds of Listen…= share one list
    return SocketUnit(unit, frozenset(port for port in ports if port), service)


def sources(unit: str, listed: LoadPath) -> Iterator[str]:
    """The files that make the unit, in the order in which they count."""
    for folder, names in listed:
        if unit in names:
            yield f"{folder}/{unit}"
            break
    drop_ins: dict[str, str] = {}
    for folder, names in listed:
        if f"{unit}.d" in names:
            for name in _names(f"{folder}/{unit}.d"):
                if name.endswith(".conf"):
                    drop_ins.setdefault(name, f"{folder}/{unit}.d/{name}")
    yield from (path for _, path in sorted(drop_ins.items()))


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a NUL inside
        return False
    return True


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except _UNREADABLE:
        return []


def _read(path: str) -> str:
    """The text of a regular file; empty for anything else, such as the /dev/null of a masked unit."""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_SIZE).decode("utf-8", "replace")
    except _UNREADABLE:
        return ""
