"""What is too dangerous to do unasked, and what is probably a mistake. Pure: from a ruleset and facts of the host.

A `Finding` with a flag is a refusal that the flag overrides; one without is a warning. Facts come from `host.facts`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redirector.errors import plural, printable
from redirector.model import Mapping, Ports, Ruleset
from redirector.records import NamedTuple

if TYPE_CHECKING:  # `check` asks nothing of the host
    from redirector.host.facts import Facts
    from redirector.host.listeners import Listener
    from redirector.host.ssh import SshUse

ALLOW_EMPTY = "--allow-empty"
ALLOW_SSH = "--allow-ssh"
ALLOW_OWNER = "--allow-owner"
REPLACE_FOREIGN = "--replace-foreign"


class Finding(NamedTuple):
    """`flag` is what overrides it ("": only a warning); `mapping` is "" where it concerns no single one."""

    flag: str
    mapping: str
    message: str


def captured_ports(ruleset: Ruleset) -> set[int]:
    """The ports of which connections are taken elsewhere, or refused: what ssh must not be on."""
    found: set[int] = set()
    for mapping in ruleset.enabled:
        for ports in mapping.listen:
            taken = set(range(ports.first, ports.last + 1))
            if mapping.forwards:
                pass
            elif mapping.shifted:
                taken = set() if ports == mapping.to else taken
            else:
                taken.discard(mapping.to.first)
            found |= taken
        if mapping.exclusive:
            found.update(range(mapping.to.first, mapping.to.last + 1))
    return found


def empty(ruleset: Ruleset, held: bool) -> Iterator[Finding]:
    """Nothing enabled; `held` tells whether the kernel holds mappings that would vanish."""
    if not ruleset.enabled:
        effect = "every mapping that is in force would vanish" if held else "there is nothing to apply"
        yield Finding(ALLOW_EMPTY, "", f"no mapping is enabled: {effect}")


def findings(ruleset: Ruleset, facts: Facts) -> Iterator[Finding]:
    """Refusals and warnings, mapping by mapping."""
    listened = _listened_targets(ruleset)
    sockets = _Sockets(facts.listeners)
    for mapping in ruleset.enabled:
        yield from _ssh(mapping, facts.ssh)
        yield from _targets(mapping, facts, sockets)
        yield from _shadowed(mapping, facts, sockets)
        yield from _chained(mapping, listened)
        for address in mapping.address if facts.addresses is not None else ():
            if facts.addresses is not None and address not in facts.addresses:
                message = f"{address} is no address of this host (yet): until it is, this does nothing there"
                yield Finding("", mapping.name, message)
    yield from _beyond_loopback(ruleset)
    if facts.forwarding is not None:
        from redirector.passage import unforwarded

        yield from (Finding("", found.mapping, found.message) for found in unforwarded(ruleset, facts.forwarding))


def static_findings(ruleset: Ruleset) -> Iterator[Finding]:
    """What can be said without knowing the host."""
    listened = _listened_targets(ruleset)
    for mapping in ruleset.enabled:
        yield from _chained(mapping, listened)
    yield from _beyond_loopback(ruleset)


def _beyond_loopback(ruleset: Ruleset) -> Iterator[Finding]:
    """What people try first, and wonder about; told once."""
    found = [m for m in ruleset.enabled if m.forwards and m.local and not m.address]
    if found:
        more = f" (nor for {plural(len(found) - 1, 'other mapping')})" if len(found) > 1 else ""
        message = (
            f"this host's own connections to 127.0.0.1 and ::1 are not forwarded{more}: use another of its addresses"
        )
        yield Finding("", found[0].name, message)


def _ssh(mapping: Mapping, uses: tuple[SshUse, ...]) -> Iterator[Finding]:
    if "tcp" not in mapping.protocol:
        return
    for use in uses:
        if use.address and mapping.address and use.address not in mapping.address:
            continue
        if use.address and ("ipv6" if ":" in use.address else "ipv4") not in mapping.families:
            continue
        listened = any(p.first <= use.port <= p.last for p in mapping.listen)
        if listened and not mapping.exempts(use.port):
            message = f"it would take port {use.port} away from ssh: {use.why}"
            yield Finding(ALLOW_SSH, mapping.name, message)
        elif mapping.exclusive and not listened and mapping.to.first <= use.port <= mapping.to.last:
            message = f"exclusive would refuse direct connections to port {use.port}, which ssh needs: {use.why}"
            yield Finding(ALLOW_SSH, mapping.name, message)


class _Sockets:
    """The listening sockets by protocol and port; ports sorted, so that a range costs a bisection."""

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self._by_port: dict[str, dict[int, list[Listener]]] = {}
        for listener in listeners:
            self._by_port.setdefault(listener.protocol, {}).setdefault(listener.port, []).append(listener)
        self._ports = {protocol: sorted(ports) for protocol, ports in self._by_port.items()}

    def knows(self, protocol: str) -> bool:
        return protocol in self._ports

    def within(self, protocol: str, ports: Ports) -> Iterator[Listener]:
        """The listeners on any of `ports`."""
        known = self._ports.get(protocol, [])
        for port in known[bisect_left(known, ports.first) : bisect_right(known, ports.last)]:
            yield from self._by_port[protocol][port]


def _reached(mapping: Mapping, listener: Listener) -> bool:
    """Whether connections to the mapping's addresses, over its families, are for this listener."""
    if not any(listener.accepts(family) for family in mapping.families):
        return False
    return listener.wildcard or not mapping.address or listener.address in mapping.address


def _serving(mapping: Mapping, protocol: str, sockets: _Sockets) -> list[Listener]:
    """The listeners on the mapping's targets that it could reach."""
    if mapping.forwards:
        return []
    found = sockets.within(protocol, Ports(mapping.to.first, mapping.to.last))
    return [x for x in found if _reached(mapping, x) or mapping.rewrite == "redirect"]


def _targets(mapping: Mapping, facts: Facts, sockets: _Sockets) -> Iterator[Finding]:
    if mapping.forwards:
        return  # who listens on another machine is not for us to say
    for protocol in mapping.protocol:
        if protocol == "sctp" and not sockets.knows("sctp"):
            continue  # most kernels cannot be asked
        serving = _serving(mapping, protocol, sockets)
        where = f"{protocol} {mapping.to}"
        if not serving:
            yield Finding("", mapping.name, f"nothing listens on {where}: connections would be refused")
            continue
        if all(listener.loopback for listener in serving) and mapping.interface != ("lo",):
            message = f"{where} is listened on at {serving[0].address} only: it can never be reached from outside"
            yield Finding("", mapping.name, message)
        missing = [f for f in mapping.families if not any(listener.accepts(f) for listener in serving)]
        if missing and not mapping.address:
            yield Finding("", mapping.name, f"nothing listens on {where} over {missing[0]}")
        yield from _owner(mapping, where, serving, facts)


def _owner(mapping: Mapping, where: str, serving: list[Listener], facts: Facts) -> Iterator[Finding]:
    if mapping.owner is None:
        return
    wanted = facts.users.get(mapping.owner)
    if wanted is None:
        yield Finding(ALLOW_OWNER, mapping.name, f"owner {mapping.owner} is no user of this host")
        return
    for other in serving:
        if other.uid != wanted:
            message = f"{where} is listened on by user id {other.uid}{_who(other, facts)}, not by {mapping.owner}"
            yield Finding(ALLOW_OWNER, mapping.name, message)
            return


def _shadowed(mapping: Mapping, facts: Facts, sockets: _Sockets) -> Iterator[Finding]:
    """Somebody listens on the mapped port itself, and will not be reached there any more."""
    for protocol in mapping.protocol:
        there = [x for ports in mapping.listen for x in sockets.within(protocol, ports)]
        if not there:
            continue
        holders = {p.pid for x in _serving(mapping, protocol, sockets) for p in facts.processes.get(x.inode, ())}
        told: set[int] = set()
        for listener in there:
            if mapping.exempts(listener.port) or not _reached(mapping, listener):
                continue
            # One program that listens on both is meant so.
            if listener.port in told or holders & {p.pid for p in facts.processes.get(listener.inode, ())}:
                continue
            told.add(listener.port)
            who = _who(listener, facts) or f" (user id {listener.uid})"
            message = f"somebody{who} listens on {protocol} {listener.port} itself, and will no longer be reached there"
            yield Finding("", mapping.name, message)


def _who(listener: Listener, facts: Facts) -> str:
    found = facts.processes.get(listener.inode, [])
    return f" ({printable(found[0].command)}, process {found[0].pid})" if found else ""


def _listened_targets(ruleset: Ruleset) -> list[tuple[Ports, Mapping]]:
    """The listened ranges that touch any target at all: few, and found without comparing all with all."""
    merged: list[list[int]] = []
    for first, last in sorted({(m.to.first, m.to.last) for m in ruleset.enabled if not m.forwards}):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(last, merged[-1][1])
        else:
            merged.append([first, last])
    starts = [first for first, _ in merged]
    found = []
    for mapping in ruleset.enabled:
        for ports in mapping.listen:
            at = bisect_right(starts, ports.last) - 1
            if at >= 0 and merged[at][1] >= ports.first:
                found.append((ports, mapping))
    return found


def _chained(mapping: Mapping, listened: list[tuple[Ports, Mapping]]) -> Iterator[Finding]:
    """The target is another mapping's listened port. NAT acts once, so that other one is not followed."""
    if mapping.forwards:
        return
    for ports, other in listened:
        if other is mapping or not (ports.first <= mapping.to.last and mapping.to.first <= ports.last):
            continue
        if not set(mapping.protocol) & set(other.protocol) or not set(mapping.families) & set(other.families):
            continue
        shared = max(ports.first, mapping.to.first)
        if not other.exempts(shared):
            message = f'its target {shared} is also what "{other.name}" listens on: NAT acts once, that is not followed'
            yield Finding("", mapping.name, message)
            return
