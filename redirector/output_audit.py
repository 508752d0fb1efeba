"""What an audit says, as text and JSON. Pure; see `output`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from redirector import findings
from redirector.audit.capability import told
from redirector.audit.document import FORMAT
from redirector.audit.settings import settings
from redirector.errors import plural, printable
from redirector.model import FAMILIES
from redirector.output_generations import differences_text
from redirector.records import NamedTuple

if TYPE_CHECKING:
    from redirector.audit.chains import Chain, Served
    from redirector.audit.drift import Difference
    from redirector.audit.facts import Facts, Where
    from redirector.findings import Finding
    from redirector.terminal import Paint


class Looked(NamedTuple):
    """What an audit was asked: two answers can only be compared where that is the same."""

    ports: tuple[int, ...] = ()
    everywhere: bool = False


def audit_text(facts: Facts, chains: Sequence[Chain], found: Sequence[Finding], paint: Paint) -> str:
    """Each port with its chain, then each finding with what mends it."""
    lines: list[str] = []
    for chain in chains:
        lines += [
            *([""] if lines else []),
            paint(f"{chain.protocol} {chain.ports}", "bold"),
            *_chain(chain, facts, paint),
        ]
    if not chains:
        lines.append("no rule, no listener and no configuration for a privileged port was found")
    lines += findings.lines(found, paint)
    told = sum(one.severity != findings.NOTE for one in found)
    lines += ["", paint(plural(told, "finding") if told else "nothing to say", "bold")]
    return "\n".join(lines)


def _chain(chain: Chain, facts: Facts, paint: Paint) -> Iterator[str]:
    for rule in chain.rules:
        some = "" if rule.certain else " (for some)"
        owner = printable(rule.owner)
        yield f"  {paint('rule', 'blue')}     {owner}: {printable(rule.text)}{some}{_at(rule.where)}"
    for served in chain.served:
        yield from _served(served, facts, paint, "")
    for served in chain.shadowed:
        yield from _served(served, facts, paint, ", which the rule keeps its clients from")
    if not chain.served and not facts.root:
        yield f"  {paint('socket', 'blue')}   nobody listens{f' on {chain.leads_to}' if chain.leads_to else ''}"
    for way in chain.ways:
        if way.mechanism != "redirect":
            yield f"  {paint('set up', 'blue')}   {printable(way.by)} ({way.mechanism}){_at(way.where)}"


def _served(served: Served, facts: Facts, paint: Paint, note: str) -> Iterator[str]:
    one = served.socket.listener
    place = f"[{one.address}]" if one.family == "ipv6" else one.address
    yield f"  {paint('socket', 'blue')}   {one.protocol} {place}:{one.port} of user {_user(facts, one.uid)}{note}"
    for holder in served.socket.holders:
        unit = f", {printable(holder.unit)}" if holder.unit else ""
        path = f", {printable(holder.executable)}" if holder.executable else ""
        who = f"{printable(holder.command)}, process {holder.pid}, user {_user(facts, holder.uid)}"
        yield f"  {paint('process', 'blue')}  {who}{path}{unit}"
    how = served.means
    yield f"  {paint('by', 'blue')}       {how.mechanism}: {printable(how.why)}{_at(how.where)}"


def _user(facts: Facts, uid: int) -> str:
    return printable(facts.user(uid))


def _at(where: Where) -> str:
    return f"  [{printable(str(where))}]" if where.file else ""


def audit_json(facts: Facts, chains: Sequence[Chain], found: Sequence[Finding], looked: Looked) -> dict[str, Any]:
    """As `audit.document` checks it when it is read back."""
    return {
        "redirector_audit": FORMAT,
        "root": facts.root or "/",
        "asked": sorted(set(looked.ports)),
        "everywhere": looked.everywhere,
        "ports": [_chain_json(chain, facts) for chain in chains],
        "settings": [
            {"mechanism": one.mechanism, "name": one.name, "values": dict(one.values), **_where(one.where)}
            for one in settings(facts)
        ],
        "findings": [findings.data(one) | {"port": one.port or None, "about": one.about or None} for one in found],
    }


def _chain_json(chain: Chain, facts: Facts) -> dict[str, Any]:
    return {
        "protocol": chain.protocol,
        "port": chain.ports.first,
        "ports": str(chain.ports),
        "leads_to": chain.leads_to,
        "rules": [
            {
                "owner": rule.owner,
                "mapping": rule.mapping or None,
                "text": rule.text,
                "to": rule.target_of(chain.ports.first),
                "address": rule.address or None,
                "families": list(rule.families),
                "sides": list(rule.sides),
                "certain": rule.certain,
                "priority": rule.priority,
                **_where(rule.where),
            }
            for rule in chain.rules
        ],
        "sockets": [_served_json(one, facts) for one in chain.served],
        "shadowed": [_served_json(one, facts) for one in chain.shadowed],
        "ways": [{"mechanism": way.mechanism, "by": way.by, **_where(way.where)} for way in chain.ways],
    }


def _served_json(served: Served, facts: Facts) -> dict[str, Any]:
    one = served.socket.listener
    return {
        "protocol": one.protocol,
        "address": one.address,
        "families": [family for family in FAMILIES if one.accepts(family)],
        "port": one.port,
        "user": facts.user(one.uid),
        "mechanism": served.means.mechanism,
        "why": served.means.why,
        **_where(served.means.where),
        "processes": [
            {
                "pid": holder.pid,
                "command": holder.command,
                "user": facts.user(holder.uid),
                "executable": holder.executable or None,
                "unit": holder.unit or None,
                "permitted": told(holder.permitted, facts.bounding) or None,
                "effective": told(holder.effective, facts.bounding) or None,
                "ambient": told(holder.ambient, facts.bounding) or None,
            }
            for holder in served.socket.holders
        ],
    }


def drift_text(found: Sequence[Difference], paint: Paint) -> str:
    """As the difference of two generations is told."""
    shown = printable
    rows = [(shown(f"{d.kind} {d.about}"), shown(d.key), shown(d.a), shown(d.b)) for d in found]
    return differences_text(rows, paint)


def drift_json(found: Sequence[Difference]) -> dict[str, Any]:
    rows = [
        {"kind": one.kind, "about": one.about, "key": one.key, "a": one.a or None, "b": one.b or None} for one in found
    ]
    return {"equal": not found, "differences": rows}


def _where(where: Where) -> dict[str, Any]:
    return {"file": where.file or None, "line": where.line or None}
