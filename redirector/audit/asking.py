"""Gather what one question needs: who, which program, from where."""

from __future__ import annotations

import os

from redirector.audit.binding import Attempt, User, may
from redirector.audit.executables import chain, executable, find
from redirector.audit.facts import Facts
from redirector.audit.mechanisms.units import Unit
from redirector.audit.routing import Host
from redirector.audit.tree import Tree
from redirector.decide import Packet
from redirector.errors import Refused, Usage, printable

AUTHBIND = "/usr/lib/authbind/helper"
OWN = {"ipv4": "127.0.0.1", "ipv6": "::1"}
# Nobody in particular: an address that is in no client's network.
SOMEBODY = {"ipv4": "0.0.0.0", "ipv6": "::"}  # noqa: S104 - asked about, never bound


def user(name: str) -> User:
    """A user by name or number, "" for whoever asks. Raises Usage for a name that is no user's."""
    import pwd

    number = os.getuid() if not name else int(name) if name.isascii() and name.isdigit() else None
    try:
        entry = pwd.getpwnam(name) if number is None else pwd.getpwuid(number)
    except KeyError:
        if number is None:
            raise Usage(f"there is no user {printable(name)}") from None
        return User(str(number), number)
    return User(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def attempt(port: int, who: User, binary: str, protocol: str, facts: Facts) -> Attempt:
    """A bind of this user's with this program ("": any); `facts` have the units that may start it."""
    tree = Tree()
    helper = executable(tree, AUTHBIND)
    asked = Attempt(port, who, (), protocol, authbind=helper is not None and helper.setuid_root and not helper.nosuid)
    if not binary:
        return asked
    path = find(tree, binary)
    programs = tuple(chain(tree, path)) if path else ()
    if not programs:
        return asked._replace(missing=printable(binary))
    closed = next((folder for folder in _folders(path, programs[0].path) if not _may_enter(who, folder)), "")
    if closed:
        return asked._replace(unreachable=printable(closed))
    paths = {one.path for one in programs}
    started = {words[0] for unit in facts.of(Unit) for words, _ in unit.commands}
    names = frozenset(name for name in started if name.startswith("/") and tree.inside(name) in paths)
    return asked._replace(programs=programs, names=names)


def _folders(*paths: str) -> list[str]:
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")[:-1]
        found |= dict.fromkeys("/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1))
    return list(found)


def _may_enter(who: User, folder: str) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return who.uid == 0 or may(who, status.st_mode & 0o777, status.st_uid, status.st_gid, 1)


def packets(port: int, protocol: str, client: str) -> list[tuple[Packet, Host]]:
    """The packets that are asked about: of a client at an address; without one, of this host itself and of somebody
    outside, over both families. Raises Refused for an address to which there is no way."""
    from redirector.host.routes import outward, towards

    if client:
        try:
            way = towards(client)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Refused(f"there is no way to {printable(client)}: {reason}") from None
        # This host's own clients use the address that they have themselves.
        return [(Packet(way.interface, client, way.source, protocol, port), Host(way.primary, way.number))]
    found = [(Packet("", own, own, protocol, port), Host()) for own in OWN.values()]
    for way in outward():
        family = "ipv6" if ":" in way.source else "ipv4"
        packet = Packet(way.interface, SOMEBODY[family], way.source, protocol, port)
        found.append((packet, Host(way.primary, way.number)))
    return found
