"""systemd: services that get the capability by AmbientCapabilities=, or start something by authbind, and socket units.

A unit is read as systemd does (see `host.units`): the first file of its name, its drop-ins in order, resets, masks;
each value keeps the file and line that it comes from. An instance has the files of its template, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.capability import ALL, BIND, mask
from redirector.audit.facts import Facts, Setting, Socket, Where
from redirector.audit.mechanisms.started import Started, started
from redirector.audit.tree import Tree
from redirector.host.units import UNIT_FOLDERS, LoadPath, load_path, settings, sources, stream_port, unit_names
from redirector.records import NamedTuple

KINDS = (".service", ".socket")
# Any of these implies NoNewPrivileges where the service runs as another user than root (systemd.exec(5)).
_RESTRICTIONS = """
SystemCallFilter SystemCallArchitectures RestrictAddressFamilies RestrictNamespaces PrivateDevices ProtectKernelTunables
ProtectKernelModules ProtectKernelLogs ProtectClock MemoryDenyWriteExecute RestrictRealtime RestrictSUIDSGID
LockPersonality
"""
IMPLYING = tuple(_RESTRICTIONS.split())
# What decides about ports, and who may have them: of the first the last value counts, of the others all do.
_SINGLE = """
User Group DynamicUser NoNewPrivileges PrivateUsers Service Accept BindIPv6Only BindToDevice FreeBind ReusePort
"""
_LISTS = """
ExecStart AmbientCapabilities CapabilityBoundingSet SupplementaryGroups IPAddressAllow IPAddressDeny SocketBindAllow
SocketBindDeny
"""


class Said(NamedTuple):
    """An assignment and where it stands."""

    section: str
    key: str
    value: str
    where: Where


class Unit(NamedTuple):
    """An effective unit: what is said, in order, after resets; `file` its main file."""

    name: str
    file: str
    said: tuple[Said, ...]
    masked: bool = False

    def values(self, key: str) -> list[Said]:
        """Every assignment of a list, after the last reset."""
        found: list[Said] = []
        for one in self.said:
            if one.key == key:
                found = [*found, one] if one.value else []
        return found

    def last(self, key: str) -> str:
        found = self.values(key)
        return found[-1].value if found else ""

    def where(self, key: str) -> Where:
        found = self.values(key)
        return found[-1].where if found else Where(self.file)

    def capabilities(self, key: str) -> tuple[int, list[tuple[str, Where]]]:
        """(mask, misspelt words with their places) of AmbientCapabilities= or CapabilityBoundingSet=."""
        total, unknown, touched = 0, [], False
        for one in self.values(key):
            inverted = one.value.startswith("~")
            found, bad = mask(one.value.removeprefix("~").split())
            unknown += [(word, one.where) for word in bad]
            if inverted:
                total = (total if touched else ALL) & ~found
            else:
                total |= found
            touched = True
        if not touched and key == "CapabilityBoundingSet" and not self._emptied(key):
            total = ALL
        return total, unknown

    def _emptied(self, key: str) -> bool:
        return any(one.key == key for one in self.said)

    @property
    def ambient(self) -> int:
        """What its processes have from the start; what the bounding set lacks can be in no other set."""
        return self.capabilities("AmbientCapabilities")[0] & self.capabilities("CapabilityBoundingSet")[0]

    @property
    def bounded(self) -> bool:
        """Whether its processes can have at most what they need."""
        return self.capabilities("CapabilityBoundingSet")[0] != ALL

    @property
    def no_new_privileges(self) -> bool:
        if self.true("NoNewPrivileges") or self.true("DynamicUser"):
            return True
        return bool(self.last("User")) and any(self.last(key) not in ("", *FALSE) for key in IMPLYING)

    @property
    def about_ports(self) -> dict[str, str]:
        """What it says that has to do with ports, by key."""
        said = {key: self.last(key) for key in _SINGLE.split()}
        said |= {key: " ".join(one.value for one in self.values(key)) for key in _LISTS.split()}
        return {key: value for key, value in said.items() if value} | ({"masked": "yes"} if self.masked else {})

    def true(self, key: str) -> bool:
        return self.last(key).lower() in ("yes", "true", "1", "on", "y", "t")

    @property
    def commands(self) -> list[tuple[list[str], Where]]:
        """The words of each ExecStart=, without systemd's prefixes, and where it stands."""
        found = []
        for one in self.values("ExecStart"):
            words = one.value.lstrip("@-:+!|").split()
            if words:
                found.append((words, one.where))
        return found


FALSE = ("no", "false", "0", "off", "n", "f")


class SocketListen(NamedTuple):
    """A socket unit listens on `port`; `starts` is the service unit, whether there is a file of it or not."""

    unit: Unit
    port: int
    protocol: str
    address: str
    starts: str
    has_service: bool
    where: Where


def gather(tree: Tree) -> Iterator[object]:
    """Rows of Unit (services), SocketListen, and Started."""
    listed = load_path([tree.real(folder) for folder in dict.fromkeys(map(tree.inside, UNIT_FOLDERS))])
    names = {kind: unit_names(listed, kind) for kind in KINDS}
    for name in names[".service"]:
        found = unit(tree, name, listed)
        if found is not None:
            yield found
            yield from started(tree, name, found.commands)
    services = set(names[".service"])
    for name in names[".socket"]:
        found = unit(tree, name, listed)
        if found is not None and not found.masked:
            yield from listens(found, services)


def configured(facts: Facts) -> Iterator[Setting]:
    """The socket units, and those services that have to do with ports."""
    listening: dict[str, list[SocketListen]] = {}
    for row in facts.of(SocketListen):
        listening.setdefault(row.unit.name, []).append(row)
    for rows in listening.values():
        first = rows[0]
        listens = ", ".join(f"{row.protocol} {row.address or 'any'} {row.port}" for row in rows)
        said = {"listens": listens, "starts": first.starts} | first.unit.about_ports
        yield Setting("socket-unit", first.unit.name, said, Where(first.unit.file))
    matter = {row.starts for row in facts.of(SocketListen)} | {row.by for row in facts.of(Started)}
    matter |= {holder.unit for socket in facts.of(Socket) for holder in socket.holders}
    matter |= {f"{name.partition('@')[0]}@.service" for name in matter if "@" in name}
    for found in facts.of(Unit):
        if found.name in matter or binds_by_ambient(found) or found.capabilities("AmbientCapabilities")[1]:
            yield Setting("unit", found.name, found.about_ports, Where(found.file))


def unit(tree: Tree, name: str, listed: LoadPath) -> Unit | None:
    """The effective unit; None where no file has its name."""
    stem, at, rest = name.partition("@")
    template = f"{stem}@.{rest.rpartition('.')[2]}" if at and not rest.startswith(".") else ""
    paths = [tree.outside_in(path) for one in (template, name) if one for path in sources(one, listed)]
    main = next((path for path in paths if not path.endswith(".conf")), "")
    if not main:
        return None
    masked = tree.inside(main) == "/dev/null"
    said = [] if masked else [Said(*parts) for path in paths for parts in _said(path, tree.read(path) or "")]
    return Unit(name, main, tuple(said), masked)


def _said(path: str, text: str) -> Iterator[tuple[str, str, str, Where]]:
    for one in settings(text):
        yield one.section, one.key, one.value, Where(path, one.line)


LISTENS = {"ListenStream": "tcp", "ListenDatagram": "udp"}


def listens(found: Unit, services: set[str]) -> Iterator[SocketListen]:
    """What a socket unit listens on, in IPv4 or IPv6."""
    stem = found.name.rpartition(".")[0]
    accept = found.true("Accept")
    starts = found.last("Service") or f"{stem.partition('@')[0]}{'@' if accept or '@' in stem else ''}.service"
    held: list[tuple[str, Said]] = []
    for one in found.said:
        if one.key.startswith("Listen"):
            held = [*held, (one.key, one)] if one.value else []
    template = f"{starts.partition('@')[0]}@.service" if "@" in starts else starts
    for key, one in held:
        port = stream_port(one.value) if key in LISTENS else None
        if port:
            address = one.value.rpartition(":")[0].strip("[]")
            has = starts in services or template in services
            yield SocketListen(found, port, LISTENS[key], address, starts, has, one.where)


def binds_by_ambient(found: Unit) -> bool:
    return bool(found.ambient & BIND)
