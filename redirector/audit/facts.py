"""What was gathered, as plain data: each mechanism adds rows of its own types, and findings ask for rows by type."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from redirector.host.listeners import Listener
from redirector.model import Mapping as PortMapping
from redirector.model import Ports, Ruleset
from redirector.records import NamedTuple

T = TypeVar("T")
_NONE: MappingProxyType[Any, Any] = MappingProxyType({})
MANY = 1000  # ports, from which on it is cheaper to look at every rule
PRIVILEGED = 1024  # what net.ipv4.ip_unprivileged_port_start is unless somebody changed it (PROT_SOCK)


class Where(NamedTuple):
    """A place in a configuration; `line` 0: the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Holder(NamedTuple):
    """A process that holds a socket. `uid` is its effective user; capability sets are masks as /proc/PID/status has
    them; `unit` the systemd unit that its cgroup names, "" for none; `authbind`: libauthbind is loaded in it."""

    pid: int
    command: str
    uid: int
    parent: int = 0
    executable: str = ""
    permitted: int = 0
    effective: int = 0
    ambient: int = 0
    unit: str = ""
    authbind: bool = False


class Socket(NamedTuple):
    """A listening socket and every process that could be seen to hold it, in order of their ids."""

    listener: Listener
    holders: tuple[Holder, ...] = ()


class Rule(NamedTuple):
    """A NAT rule that takes connections to `ports` of this host.

    `owner` is "redirector", or the table of others in words; `mapping` its name, where it is ours. `target` None: not
    to be told from the rule; `address` "": this host. `sides`: arriving, own. `certain`: it takes all connections of
    these families and sides, not only some. `priority` orders the rules of a hook. `table`: others' table in words.
    """

    owner: str
    text: str
    protocol: str
    ports: Ports
    target: Ports | None
    address: str = ""
    families: tuple[str, ...] = ("ipv4", "ipv6")
    sides: tuple[str, ...] = ("arriving", "own")
    certain: bool = True
    priority: int = 0
    mapping: str = ""
    where: Where = Where("")
    table: str = ""

    def target_of(self, port: int) -> int | None:
        """The port that a connection to `port` is led to."""
        if self.target is None:
            return None
        return self.target.first + (port - self.ports.first if self.target.size > 1 else 0)


class ProxyListen(NamedTuple):
    """A server's own configuration says that it listens: `program` is nginx, haproxy, caddy or apache."""

    program: str
    address: str
    port: int
    protocol: str
    where: Where


class Setting(NamedTuple):
    """What a mechanism's configuration says, as plain text: for scripts, and to be compared. `name`: of a file, a unit
    or a sysctl; by `mechanism` and name one is told from another."""

    mechanism: str
    name: str
    values: Mapping[str, str]
    where: Where = Where("")


class _FactsFields(NamedTuple):
    root: str = ""
    items: tuple[object, ...] = ()
    users: Mapping[int, str] = _NONE
    ruleset: Ruleset | None = None
    failures: tuple[str, ...] = ()
    port_start: int = PRIVILEGED
    ephemeral: Ports = Ports(32768, 60999)  # the kernel's default (Documentation/networking/ip-sysctl.rst)
    reserved: tuple[Ports, ...] = ()
    bounding: int = (1 << 41) - 1
    drift: str = ""
    groups: Mapping[int, str] = _NONE


class Facts(_FactsFields):
    """`items` are the rows of every mechanism; `users` and `groups` names by id; `ruleset` our mappings that are in
    force (or, in another root, in the file); `failures` say what could not be read. `port_start` is the first port
    that anybody may bind; `ephemeral` are the ports that outgoing connections take, but for those `reserved`;
    `bounding` the capabilities that a process here can have at all; `drift` says how our rules are not as they were
    applied.

    Hosts have ten thousand rules: what is asked for each port is looked up, not searched.
    """

    def of(self, kind: type[T]) -> Sequence[T]:
        """The rows of one type."""
        return self._by_type.get(kind, ())

    def user(self, uid: int) -> str:
        return self.users.get(uid, str(uid))

    def owned(self, uid: int, gid: int, mode: int) -> dict[str, str]:
        """Whose a file is, by name, and who may do what with it."""
        return {"owner": self.user(uid), "group": self.groups.get(gid, str(gid)), "mode": f"{mode:o}"}

    def on(self, protocol: str, ports: Ports) -> list[Socket]:
        """The sockets on any of these ports."""
        known = self._sockets.get(protocol, [])
        first = bisect_left(known, ports.first, key=_port)
        return known[first : bisect_right(known, ports.last, key=_port)]

    def taking(self, protocol: str, ports: Ports) -> list[Rule]:
        """The rules for any of these ports, in the order in which they are asked."""
        single, wide = self._rules
        if ports.size > MANY:
            found = [r for (p, port), rules in single.items() if p == protocol and _in(port, ports) for r in rules]
        else:
            found = [r for port in range(ports.first, ports.last + 1) for r in single.get((protocol, port), ())]
        found += [r for r in wide if r.protocol == protocol and _overlap(r.ports, ports)]
        return sorted(found, key=lambda rule: rule.priority)

    @cached_property
    def mappings(self) -> dict[str, PortMapping]:
        """Our enabled mappings by name."""
        return {mapping.name: mapping for mapping in self.ruleset.enabled} if self.ruleset else {}

    @cached_property
    def _by_type(self) -> dict[type, list[Any]]:
        found: dict[type, list[Any]] = {}
        for item in self.items:
            found.setdefault(type(item), []).append(item)
        return found

    @cached_property
    def _sockets(self) -> dict[str, list[Socket]]:
        found: dict[str, list[Socket]] = {}
        for socket in sorted(self.of(Socket), key=_port):
            found.setdefault(socket.listener.protocol, []).append(socket)
        return found

    @cached_property
    def _rules(self) -> tuple[dict[tuple[str, int], list[Rule]], list[Rule]]:
        """Rules of one port by protocol and port, and the others."""
        single: dict[tuple[str, int], list[Rule]] = {}
        for rule in self.of(Rule):
            if rule.ports.size == 1:
                single.setdefault((rule.protocol, rule.ports.first), []).append(rule)
        return single, [rule for rule in self.of(Rule) if rule.ports.size > 1]


def _port(socket: Socket) -> int:
    return socket.listener.port


def _in(port: int, ports: Ports) -> bool:
    return ports.first <= port <= ports.last


def _overlap(one: Ports, other: Ports) -> bool:
    return one.first <= other.last and other.first <= one.last
