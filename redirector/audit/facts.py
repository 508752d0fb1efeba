"""What was gathered, as plain data: each mechanism adds rows of its own types, and findings ask for rows by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from redirector.host.listeners import Listener
from redirector.model import Ports, Ruleset
from redirector.records import NamedTuple

T = TypeVar("T")
_NONE: MappingProxyType[Any, Any] = MappingProxyType({})
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
    these families and sides, not only some. `priority` orders the rules of a hook.
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


class Facts(NamedTuple):
    """`items` are the rows of every mechanism; `users` names by id; `ruleset` our mappings that are in force (or, in
    another root, in the file); `failures` say what could not be read. `port_start` is the first port that anybody may
    bind; `bounding` the capabilities that a process here can have at all."""

    root: str = ""
    items: tuple[object, ...] = ()
    users: Mapping[int, str] = _NONE
    ruleset: Ruleset | None = None
    failures: tuple[str, ...] = ()
    port_start: int = PRIVILEGED
    ephemeral: Ports = Ports(32768, 60999)  # the kernel's default (Documentation/networking/ip-sysctl.rst)
    bounding: int = (1 << 41) - 1

    def of(self, kind: type[T]) -> list[T]:
        """The rows of one type."""
        return [item for item in self.items if isinstance(item, kind)]

    def user(self, uid: int) -> str:
        return self.users.get(uid, str(uid))


def taking(rules: Iterable[Rule], protocol: str, port: int) -> list[Rule]:
    """The rules for a port, in the order in which they are asked."""
    found = [r for r in rules if r.protocol == protocol and r.ports.first <= port <= r.ports.last]
    return sorted(found, key=lambda rule: rule.priority)
