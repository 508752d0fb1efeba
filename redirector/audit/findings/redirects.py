"""R: what leaks, or surprises, about NAT redirects: ours and everybody's. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import Facts, Rule, Socket
from redirector.audit.nat import OURS
from redirector.errors import printable
from redirector.findings import ERROR, WARNING, Finding
from redirector.host.listeners import Listener
from redirector.model import ARRIVING, FAMILIES, OWN, SIDES, Ports
from redirector.model import Mapping as PortMapping
from redirector.others import overlap, spans, without


def find(facts: Facts) -> Iterator[Finding]:
    """Rule by rule; a question that several rules of a port answer together is put to all of them."""
    if facts.drift:
        message = f"our mappings are not in force as they were applied: {printable(facts.drift)}"
        yield Finding("R-drifted", ERROR, message, ("redirector status tells how; mend it by: redirector apply",))
    for rule in facts.of(Rule):
        if rule.address or rule.target == rule.ports:  # to somebody else, or an exemption
            continue
        yield from _shadowed(facts, rule)
        yield from _reach(facts, rule)
        if rule.target is not None:
            yield from _target(facts, rule, rule.target)


def _name(rule: Rule) -> str:
    ports = f"{rule.protocol} {rule.ports}"
    return f'{ports} (mapping "{rule.mapping}")' if rule.mapping else f"{ports} ({printable(rule.owner)})"


def _mapping(facts: Facts, rule: Rule) -> PortMapping | None:
    return facts.mappings.get(rule.mapping) if rule.owner == OURS else None


def _who(socket: Socket, facts: Facts) -> str:
    if socket.holders:
        first = socket.holders[0]
        return f"{printable(first.command)} (process {first.pid}, user {printable(facts.user(first.uid))})"
    return f"a process of user {printable(facts.user(socket.listener.uid))}"


def _edit(rule: Rule, words: str) -> str:
    if rule.owner == OURS:
        return f"{words} in {rule.where if rule.where.file else 'the mapping file'}, and: redirector apply"
    return f"redirector import, {words} in that file, and: redirector apply"


def _shadowed(facts: Facts, rule: Rule) -> Iterator[Finding]:
    ends = {h.pid for s in facts.on(rule.protocol, rule.target or rule.ports) for h in s.holders}
    told: set[int] = set()
    for socket in facts.on(rule.protocol, rule.ports):
        port = socket.listener.port
        if port in told or rule.target_of(port) == port or not any(map(socket.listener.accepts, rule.families)):
            continue
        if rule.target and rule.target.first <= port <= rule.target.last:
            continue
        if ends & {holder.pid for holder in socket.holders}:  # one program that listens on both is meant so
            continue
        told.add(port)
        who = f"{_who(socket, facts)} listens on {rule.protocol} {port}"
        message = f"{who}, but a redirect takes its clients: {_name(rule)}"
        fix = (f"stop that server, or let it listen on {rule.target_of(port) or 'the target'}",)
        yield Finding("R-shadowed", WARNING, message, fix, port)


def _reach(facts: Facts, rule: Rule) -> Iterator[Finding]:
    """For whom the redirect is not."""
    if len(rule.sides) == len(SIDES) and len(rule.families) == len(FAMILIES):
        return
    together = [one for one in facts.taking(rule.protocol, rule.ports) if not one.address and one.target != one.ports]
    sides = {side for one in together for side in one.sides}
    families = {family for one in together for family in one.families}
    mapping = _mapping(facts, rule)
    narrowed = mapping is not None and bool(mapping.source or mapping.interface)
    if ARRIVING in sides and OWN not in sides and not narrowed:
        message = f"{_name(rule)} is not redirected for this host's own clients: localhost:{rule.ports.first} fails"
        yield Finding("R-not-local", WARNING, message, (_edit(rule, "say local = true"),), rule.ports.first)
    if families == {"ipv4"} and not (mapping and (mapping.source or mapping.address)):
        message = f"{_name(rule)} is not redirected over IPv6: clients that prefer it fail"
        yield Finding("R-no-ipv6", WARNING, message, (_edit(rule, 'say family = "both"'),), rule.ports.first)


def _target(facts: Facts, rule: Rule, target: Ports) -> Iterator[Finding]:
    port, where = rule.ports.first, f"{rule.protocol} {target}"
    sockets = [s for s in facts.on(rule.protocol, target) if any(map(s.listener.accepts, rule.families))]
    listening: list[Listener] = [socket.listener for socket in sockets]
    mapping = _mapping(facts, rule)
    if listening and all(one.loopback for one in listening) and ARRIVING in rule.sides:
        only = f"{where}, where the server listens on {listening[0].address} only"
        message = f"{_name(rule)} leads to {only}: nobody from outside is served"
        fix = (f"let {_who(sockets[0], facts)} listen on every address",)
        yield Finding("R-loopback-only", ERROR, message, fix, port)
    elif listening and ARRIVING in rule.sides and not (mapping and mapping.exclusive):
        message = (
            f"the target of {_name(rule)} is reachable directly, too: {where}, past what is decided about port {port}"
        )
        yield Finding("R-direct", WARNING, message, (_edit(rule, "say exclusive = true"),), port)
    if not facts.root and not listening and rule.protocol != "sctp":
        message = f"nothing listens on {where}, where {_name(rule)} leads: clients are refused"
        yield Finding("R-unserved", WARNING, message, ("start the server",), port)
    wanted = _owner(facts, mapping)
    for socket in sockets:
        if wanted is not None and mapping and socket.listener.uid != wanted:
            user = printable(facts.user(socket.listener.uid))
            message = (
                f"{where} is served by {_who(socket, facts)}, whose socket is {user}'s; {mapping.owner} is expected"
            )
            fix = (
                f"stop process {socket.holders[0].pid}"
                if socket.holders
                else f"find it: ss -lnp sport = :{target.first}",
            )
            yield Finding("R-owner", ERROR, message, fix, port)
            break
    taken = without(overlap((target,), (facts.ephemeral,)), facts.reserved)
    if taken:
        ports = ", ".join(map(str, taken))
        message = (
            f"{rule.protocol} {ports}, where {_name(rule)} leads, is in the range of ports that outgoing connections "
            f"take ({facts.ephemeral}): while one has it, the server cannot start"
        )
        keep = ",".join(map(str, spans([*facts.reserved, *taken])))
        yield Finding("R-ephemeral", WARNING, message, (f"sysctl -w net.ipv4.ip_local_reserved_ports={keep}",), port)


def _owner(facts: Facts, mapping: PortMapping | None) -> int | None:
    owner = mapping.owner if mapping else None
    if owner is None or isinstance(owner, int):
        return owner
    return next((uid for uid, name in facts.users.items() if name == owner), -1)
