"""By which mechanism a socket came to its port, and which ways there are to a port. Pure.

The kernel keeps who *made* a socket (sock_diag's uid) and who holds it now. A socket of root's that others hold, too,
was handed on: by systemd if process 1 holds it, else by a parent that bound it and then gave up its rights. A socket of
a plain user's below the first free port was bound by a capability (from the file, or ambient from a unit), or by
authbind's helper, which binds another process's socket and so leaves no other trace than its library in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.capability import BIND
from redirector.audit.facts import PRIVILEGED, Facts, Holder, ProxyListen, Socket, Where
from redirector.audit.mechanisms.authbind import Grant
from redirector.audit.mechanisms.capabilities import Capable
from redirector.audit.mechanisms.sysctl import PortStart
from redirector.audit.mechanisms.units import SocketListen, Unit, binds_by_ambient
from redirector.host.processes import INIT
from redirector.model import Ports
from redirector.records import NamedTuple

# comm of a server's processes → the name under which its configuration was read.
PROGRAMS = {"nginx": "nginx", "haproxy": "haproxy", "caddy": "caddy", "apache2": "apache", "httpd": "apache"}
UNDO = {
    "redirect": "take the mapping out of {where}, and: redirector apply",
    "socket-unit": "systemctl disable --now {name}",
    "authbind": "rm '{where}'",
    "proxy": "take the port out of {where}",
    "ambient": "take CAP_NET_BIND_SERVICE out of {where}",
    "capability": "setcap -r '{where}'",
}


class Means(NamedTuple):
    """How a socket came to its port: `mechanism` is for scripts, `why` a phrase for people, `where` what configures
    it."""

    mechanism: str
    why: str
    where: Where = Where("")


class Way(NamedTuple):
    """Something that is set up to give a port away. `by` tells one from another of the same mechanism."""

    mechanism: str
    by: str
    where: Where

    @property
    def undo(self) -> str:
        pattern = UNDO.get(self.mechanism, "")
        return pattern.format(where=self.where, name=self.by) if self.where.file else ""


def means(socket: Socket, facts: Facts) -> Means:
    """The mechanism that let a socket have its port."""
    port = socket.listener.port
    if port >= facts.port_start:
        if port < PRIVILEGED:
            said = next((row for row in facts.of(PortStart) if row.configured is not None), None)
            why = f"every user may bind from {facts.port_start} on (net.ipv4.ip_unprivileged_port_start)"
            return Means("sysctl", why, said.where if said else Where(""))
        return Means("unprivileged", f"a port from {PRIVILEGED} on needs no privilege", _server(socket, facts))
    if any(h.pid == INIT for h in socket.holders):
        unit = _socket_unit(socket, facts)
        name = unit.unit.name if unit else "a socket unit that has no file any more"
        return Means("socket-unit", f"systemd opened it for {name}", unit.where if unit else Where(""))
    plain = [h for h in socket.holders if h.uid]
    if socket.listener.uid == 0:
        if plain:
            return Means(
                "parent", "root opened it, and handed it to processes without privileges", _server(socket, facts)
            )
        return Means("root", "root opened it", _server(socket, facts))
    for one in socket.holders:
        found = _granted(one, socket, facts)
        if found:
            return found
    if not socket.holders:
        return Means("unseen", "the process that holds it cannot be seen")
    return Means("unknown", "its process has no right to it now: it was handed the socket, or gave the right up")


def _granted(holder: Holder, socket: Socket, facts: Facts) -> Means | None:
    """What gives one process the right."""
    if holder.ambient & BIND:
        unit = unit_named(facts, holder.unit)
        if unit is not None and binds_by_ambient(unit):
            return Means("ambient", f"AmbientCapabilities= of {unit.name}", unit.where("AmbientCapabilities"))
        return Means("ambient", "an ambient capability, which whoever started it has set")
    capable = next((row.file for row in facts.of(Capable) if row.file.path == holder.executable), None)
    if capable is not None and capable.caps is not None and capable.caps.permitted & BIND:
        return Means("capability", f"the capability of the file: {capable.caps.text}", Where(capable.path))
    if holder.permitted & BIND:
        return Means("inherited", "a capability that it has kept from whoever started it", _server(socket, facts))
    if holder.authbind:
        grant = next((g for g in grants(facts, socket.listener.port)), None)
        return Means("authbind", "authbind's helper bound it", grant.where if grant else Where(""))
    return None


def unit_named(facts: Facts, name: str) -> Unit | None:
    """The service unit of a process; an instance without a file of its own has its template's."""
    stem, at, _ = name.partition("@")
    for wanted in (name, f"{stem}@.service" if at else ""):
        found = next((unit for unit in facts.of(Unit) if wanted and unit.name == wanted), None)
        if found:
            return found
    return None


def grants(facts: Facts, port: int) -> list[Grant]:
    """authbind's grants for a port that it looks at."""
    return [g for g in facts.of(Grant) if g.ports.first <= port <= g.ports.last and g.looked_at]


def _socket_unit(socket: Socket, facts: Facts) -> SocketListen | None:
    wanted = (socket.listener.port, socket.listener.protocol)
    return next((row for row in facts.of(SocketListen) if (row.port, row.protocol) == wanted), None)


def _server(socket: Socket, facts: Facts) -> Where:
    """Where the server is told to listen: its own configuration, else the unit that starts it."""
    programs = {PROGRAMS[h.command] for h in socket.holders if h.command in PROGRAMS}
    for row in facts.of(ProxyListen):
        if row.program in programs and row.port == socket.listener.port:
            return row.where
    for one in socket.holders:
        unit = unit_named(facts, one.unit)
        if unit is not None:
            return unit.where("ExecStart")
    return Where("")


def ways(facts: Facts, protocol: str, port: int) -> list[Way]:
    """Everything that is set up to give this port away, each once."""
    found: dict[tuple[str, str], Way] = {}
    for way in _ways(facts, protocol, port):
        found.setdefault((way.mechanism, way.by), way)
    return list(found.values())


def _ways(facts: Facts, protocol: str, port: int) -> Iterator[Way]:
    for rule in facts.taking(protocol, Ports(port, port)):
        if rule.address or rule.target_of(port) != port:
            yield Way("redirect", rule.owner, rule.where)
    for listen in facts.of(SocketListen):
        if (listen.protocol, listen.port) == (protocol, port):
            yield Way("socket-unit", listen.unit.name, listen.where)
    programs = set()
    for row in facts.of(ProxyListen):
        if (row.protocol, row.port) == (protocol, port):
            programs.add(row.program)
            yield Way("proxy", row.program, row.where)
    granted = grants(facts, port) if port < facts.port_start else []
    if granted:
        yield Way("authbind", "authbind", granted[0].where)
    for socket in facts.on(protocol, Ports(port, port)):
        how = means(socket, facts)
        command = socket.holders[0].command if socket.holders else ""
        if how.mechanism in ("capability", "ambient") and PROGRAMS.get(command) not in programs:
            yield Way(how.mechanism, command, how.where)
