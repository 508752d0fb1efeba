"""Where ssh lives: the TCP ports that must not be captured, lest the person who applies a mapping is locked out.

Theory of operation: no single source knows. SSH_CONNECTION names the connection in use, but sudo drops the variable; an
ancestor process that is an sshd holds that connection, but inside tmux no ancestor is; a listening sshd shows where the
next connection goes, but with socket activation it is systemd that listens, and only its units say for whom.
So all of these are asked, and each answer comes with its reason, for the message of the refusal.

Only facts are gathered here; what to refuse is decided elsewhere. To err is to name a port too many: the refusal can
be overridden, a lost connection cannot.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from redirector.errors import printable
from redirector.host.listeners import Connection, Listener, connections_of
from redirector.host.processes import INIT, Process, ancestors, owners, sockets
from redirector.host.units import UNIT_FOLDERS, port_number, socket_units
from redirector.records import NamedTuple

SSH_PORT = 22  # IANA service name ssh
# OpenSSH 9.8 split sshd-session off, 10.0 sshd-auth.
SSH_COMMANDS = frozenset({"sshd", "sshd-session", "sshd-auth", "dropbear"})
# What the units of Debian, Fedora and others are called, without type and instance.
SSH_UNITS = frozenset({"ssh", "sshd", "dropbear"})

_MAPPED = "::ffff:"  # what inet_ntop writes before an IPv4 address in IPv6 form


class SshUse(NamedTuple):
    """A TCP port that ssh uses, on `address` (canonical text) or on every address (""); `why` is part of a sentence,
    to be read after the port, such as "sshd (pid 700) listens on it"."""

    port: int
    address: str
    why: str


def ssh_ports(
    environ: Mapping[str, str],
    listeners: Iterable[Listener],
    candidates: AbstractSet[int],
    *,
    proc: str = "/proc",
    unit_folders: Sequence[str] = UNIT_FOLDERS,
    connections: Callable[[AbstractSet[int]], Iterable[Connection]] = connections_of,
) -> list[SshUse]:
    """The ports that ssh uses in this network namespace, one entry per port and address, the most telling reason first.

    `candidates` are the ports that matter to the caller: the owners of other listeners are not looked for, since that
    means reading all of /proc. Connections in use are reported whatever their port. `connections` finds the established
    TCP connections of socket inodes. Raises OSError as `connections` does.
    """
    uses: dict[tuple[int, str], SshUse] = {}
    ssh_ancestors = [process for process in ancestors(proc) if process.command in SSH_COMMANDS]
    here = [process for process in ssh_ancestors if _shares_namespace(process.pid, proc)]
    if here or not ssh_ancestors:  # otherwise the connection is one of another network namespace
        for use in _from_environment(environ):
            uses.setdefault((use.port, use.address), use)
    for use in _from_ancestors(here, proc, connections):
        uses.setdefault((use.port, use.address), use)
    for use in _from_listeners(listeners, candidates, proc, unit_folders):
        uses.setdefault((use.port, use.address), use)
    return list(uses.values())


def _from_environment(environ: Mapping[str, str]) -> Iterator[SshUse]:
    """SSH_CONNECTION (ssh(1)): client address, client port, server address, server port; nothing if it is junk."""
    fields = environ.get("SSH_CONNECTION", "").split()
    if len(fields) != 4:
        return
    client, server, port = _canonical(fields[0]), _canonical(fields[2]), port_number(fields[3])
    if client and server and port:
        yield SshUse(port, server, f"your ssh connection from {client} uses it (SSH_CONNECTION)")


def _from_ancestors(
    processes: list[Process], proc: str, connections: Callable[[AbstractSet[int]], Iterable[Connection]]
) -> Iterator[SshUse]:
    """The connections that ancestors hold, the nearest ancestor first."""
    holders: dict[int, Process] = {}
    for process in processes:
        for inode in sockets(process.pid, proc):
            holders.setdefault(inode, process)
    if not holders:
        return
    for connection in connections(holders.keys()):
        why = f"{_name(holders[connection.inode])}, an ancestor of this process, is connected on it"
        yield SshUse(connection.port, connection.address, why)


def _from_listeners(
    listeners: Iterable[Listener], candidates: AbstractSet[int], proc: str, unit_folders: Sequence[str]
) -> Iterator[SshUse]:
    """Listeners of ssh servers, of systemd for an ssh server, and those on ssh's port whose owner cannot be seen."""
    watched = [one for one in listeners if one.protocol == "tcp" and one.port in candidates]
    if not watched:
        return
    holders = owners({one.inode for one in watched}, proc)
    activated: dict[int, str] | None = None  # reading the units is put off until a listener needs it
    for one in watched:
        address = "" if one.wildcard else one.address
        processes = holders.get(one.inode, [])
        server = next((process for process in processes if process.command in SSH_COMMANDS), None)
        if server:
            yield SshUse(one.port, address, f"{_name(server)} listens on it")
            continue
        systemd = any(process.pid == INIT or process.command == "systemd" for process in processes)
        if processes and not systemd:
            continue
        if activated is None:
            activated = _activated_ports(unit_folders)
        if one.port in activated and systemd:
            yield SshUse(one.port, address, f"{activated[one.port]} is activated on it by systemd")
        elif one.port in activated:
            yield SshUse(one.port, address, f"{activated[one.port]} names it, and who listens on it cannot be seen")
        elif one.port == SSH_PORT and not processes:
            yield SshUse(one.port, address, "it is the port of ssh, and who listens on it cannot be seen")


def _activated_ports(unit_folders: Sequence[str]) -> dict[int, str]:
    """The socket unit that starts an ssh server, by TCP port."""
    found: dict[int, str] = {}
    for unit in socket_units(unit_folders):
        if unit.starts in SSH_UNITS:
            for port in unit.ports:
                found.setdefault(port, printable(unit.name))
    return found


def _shares_namespace(pid: int, proc: str) -> bool:
    """Whether a process is in the network namespace of this thread; where that cannot be seen, it counts as so."""
    try:
        return os.readlink(f"{proc}/{pid}/ns/net") == os.readlink(f"{proc}/thread-self/ns/net")
    except OSError:
        return True


def _canonical(text: str) -> str:
    """An address as canonical text, without zone, IPv4 in IPv4 form; "" for anything else."""
    text = text.partition("%")[0]
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        found = socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):  # ValueError: a NUL inside
        return ""
    return found.removeprefix(_MAPPED) if "." in found else found


def _name(process: Process) -> str:
    return f"{printable(process.command)} (pid {process.pid})"
