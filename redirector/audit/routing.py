"""What becomes of a client's first packet to a port of this host: rules, filters, and the socket at the end. Pure.

Theory of operation. The NAT chains of a hook run in the order of their priorities and the first verdict wins. Ours is
what the mapping file means (`decide`); of a rule of others' it is known which ports it takes, and whether it takes them
from everybody: one that takes some only leaves the answer uncertain, and is told. A packet that no rule takes is as it
came. Then the filters of the input hook see it, with the port that NAT gave it. Among the sockets the kernel takes the
most specific: the address itself before every address, the packet's own family before [::] that serves both.
"""

from __future__ import annotations

from collections.abc import Iterable

from redirector.audit.facts import Facts, Rule, Socket
from redirector.audit.nat import OURS, words
from redirector.decide import Packet, decide
from redirector.model import Ports, Ruleset
from redirector.naming import GUARD_CHAIN
from redirector.others import Question, Table
from redirector.passage import stopped
from redirector.records import NamedTuple

LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}


class Stop(NamedTuple):
    """Where a filter ends the way: `table` in words (OURS for ours), `chain` the base chain, `text` what decides."""

    table: str
    chain: str
    text: str


class Fate(NamedTuple):
    """`outcome`: served, refused (nobody listens, or an exclusive target), dropped (by a filter), elsewhere (another
    address), unknown (the rule does not say where to). `sure`: no rule that takes some only was `passed`, and ours are
    as they were applied. `stop`: the filter that refuses or drops it."""

    packet: Packet
    outcome: str
    reason: str
    port: int
    address: str
    rules: tuple[Rule, ...] = ()
    passed: tuple[Rule, ...] = ()
    socket: Socket | None = None
    sure: bool = True
    stop: Stop | None = None


class Host(NamedTuple):
    """Of the interface where the packet arrives: `primary` its first address of that family, `number` its own."""

    primary: str = ""
    number: int = 0


def fate(packet: Packet, facts: Facts, host: Host) -> Fate:
    """The whole way of a packet."""
    took, passed, port, address = _translated(packet, facts, host)
    sure = not passed and not facts.drift
    base = Fate(packet, "", "", port, address, tuple(took), tuple(passed), sure=sure)
    for rule in took:
        if rule.address:
            return base._replace(outcome="elsewhere", reason=f"it is led to {rule.address}", address=rule.address)
        if rule.target is None:
            return base._replace(outcome="unknown", reason="the rule does not say where it leads in words known here")
    if not took and facts.ruleset is not None:
        decision = decide(facts.ruleset, packet)
        if decision.action == "refuse" and any(rule.mapping == decision.mapping for rule in facts.of(Rule)):
            reason = f'mapping "{decision.mapping}" is exclusive: its target is not for clients'
            return base._replace(outcome="refused", reason=reason, stop=Stop(OURS, GUARD_CHAIN, reason))
    drop = _dropped(packet, port, bool(took), facts.of(Table))
    if drop:
        return base._replace(outcome="dropped", reason=f"by a filter: {drop.table}: {drop.text}", stop=drop)
    socket = receiver(facts.on(packet.protocol, Ports(port, port)), packet, address, port, host.number)
    if socket is None:
        where = f"[{address}]:{port}" if packet.family == "ipv6" else f"{address}:{port}"
        return base._replace(outcome="refused", reason=f"nobody listens on {packet.protocol} {where}")
    return base._replace(outcome="served", reason="", socket=socket)


def _translated(packet: Packet, facts: Facts, host: Host) -> tuple[list[Rule], list[Rule], int, str]:
    """(the rule that takes it, rules passed that may have taken it, port, address)."""
    passed: list[Rule] = []
    rules = facts.taking(packet.protocol, Ports(packet.port, packet.port))
    names = {rule.mapping for rule in rules}
    mappings = facts.ruleset.enabled if facts.ruleset else ()
    ours = Ruleset(tuple(mapping for mapping in mappings if mapping.name in names))  # those that the kernel has
    known = {mapping.name for mapping in ours.mappings}
    for rule in rules:
        if packet.side not in rule.sides or packet.family not in rule.families:
            continue
        if rule.owner == OURS and rule.mapping in known:
            decision = decide(ours, packet)
            if decision.action != "translate" or decision.mapping != rule.mapping:
                continue
            return [rule], passed, decision.port, _address(packet, decision.rewrite, host)
        if not rule.certain:
            passed.append(rule)
            continue
        redirects = "REDIRECT" in rule.text or "redirect" in rule.text
        target = rule.target_of(packet.port)
        rewrite = "redirect" if redirects else "port"
        return [rule], passed, packet.port if target is None else target, _address(packet, rewrite, host)
    return [], passed, packet.port, packet.address


def _address(packet: Packet, rewrite: str, host: Host) -> str:
    if rewrite != "redirect":
        return packet.address
    return host.primary or packet.address if packet.interface else LOOPBACK[packet.family]


def _dropped(packet: Packet, port: int, translated: bool, tables: Iterable[Table]) -> Stop | None:
    """The rule or chain that drops what comes from outside for certain."""
    if not packet.interface:
        return None
    question = Question(packet.protocol, packet.family, (Ports(port, port),), translated)
    for table in tables:
        for base, where in table.bases.items():
            if (where.type, where.hook) == ("filter", "input"):
                for hit in stopped(table, base, question):
                    text = hit.clause.text if hit.clause else f"the policy of {base}"
                    return Stop(words(table), base, text)
    return None


def receiver(sockets: Iterable[Socket], packet: Packet, address: str, port: int, interface: int) -> Socket | None:
    """The socket that gets it: highest score, as __inet_lookup_listener has it."""
    best: tuple[tuple[int, int, int], Socket] | None = None
    for socket in sockets:
        one = socket.listener
        if (one.protocol, one.port) != (packet.protocol, port) or not one.accepts(packet.family):
            continue
        if not one.wildcard and one.address != address:
            continue
        if one.interface and one.interface != interface:
            continue
        score = (int(not one.wildcard), int(one.family == packet.family), int(bool(one.interface)))
        if best is None or score > best[0]:
            best = score, socket
    return best[1] if best else None
