"""Gather what the guards need to know of the host, and no more than that: most rulesets need two socket dumps."""

from __future__ import annotations

import os
from collections.abc import Mapping as Environment
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redirector.host.listeners import Listener, listeners
from redirector.host.processes import Process, owners
from redirector.host.ssh import SshUse, ssh_ports
from redirector.model import Ruleset
from redirector.records import NamedTuple

if TYPE_CHECKING:
    from redirector.host.forwarding import Forwarding

_NONE: MappingProxyType[Any, Any] = MappingProxyType({})


class Facts(NamedTuple):
    """What the host says of itself. `addresses` is None where nobody needed them; `users` maps the owners named in
    the ruleset to user ids (None: no such user); `processes` who holds the listening sockets that matter, by inode;
    `forwarding` is None where no target is on another machine."""

    listeners: tuple[Listener, ...] = ()
    ssh: tuple[SshUse, ...] = ()
    addresses: frozenset[str] | None = None
    users: Environment[str | int, int | None] = _NONE
    processes: Environment[int, list[Process]] = _NONE
    forwarding: Forwarding | None = None


def gather(ruleset: Ruleset, captured: AbstractSet[int], environ: Environment[str, str]) -> Facts:
    """The facts for this ruleset, which captures these ports, in the network namespace of the caller."""
    protocols = sorted({protocol for mapping in ruleset.enabled for protocol in mapping.protocol})
    found = listeners(sorted({*protocols, "tcp"}))
    ssh = ssh_ports(environ, found, captured)
    # Who holds a socket costs a walk over /proc: only for those that a message may name.
    named = {listener.inode for listener in found if listener.port in captured and listener.protocol in protocols}
    if named or any(mapping.owner is not None for mapping in ruleset.enabled):
        wanted = {p for m in ruleset.enabled if not m.forwards for p in range(m.to.first, m.to.last + 1)}
        named |= {listener.inode for listener in found if listener.port in wanted}
    addresses = None
    if any(mapping.address for mapping in ruleset.enabled):
        from redirector.host.addresses import local_addresses

        addresses = frozenset(local_addresses())
    forwarding = None
    if any(mapping.forwards for mapping in ruleset.enabled):
        from redirector.host.forwarding import gather as ask
        from redirector.neighbours import targets

        forwarding = ask(targets(ruleset))
    return Facts(tuple(found), tuple(ssh), addresses, _users(ruleset), owners(named) if named else {}, forwarding)


def _users(ruleset: Ruleset) -> dict[str | int, int | None]:
    """The user ids of the owners that the ruleset names."""
    users: dict[str | int, int | None] = {}
    for owner in {mapping.owner for mapping in ruleset.enabled if mapping.owner is not None}:
        if isinstance(owner, int):
            users[owner] = owner
            continue
        import pwd

        try:
            users[owner] = pwd.getpwnam(owner).pw_uid
        except KeyError:
            users[owner] = None
    return users


def author(environ: Environment[str, str]) -> str:
    """Who runs this: the person behind sudo where there is one, else the user."""
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    behind = environ.get("SUDO_USER", "")
    return f"{behind} (sudo)" if behind.isprintable() and 0 < len(behind) <= 64 and behind != name else name
