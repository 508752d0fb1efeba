"""What is said of one question about a port, as text and JSON. Pure; see `output`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from redirector.errors import printable

if TYPE_CHECKING:
    from redirector.audit.binding import Attempt, Step, Verdict
    from redirector.audit.facts import Facts, Rule
    from redirector.audit.routing import Fate
    from redirector.findings import Paint

SIGNS = {"yes": ("✓", "green"), "no": ("-", "dim"), "if": ("?", "yellow")}
COLOURS = {"served": "green", "refused": "red", "dropped": "red"}


def explain_text(attempt: Attempt, verdict: Verdict, fates: Sequence[Fate], facts: Facts, paint: Paint) -> str:
    """Whether it would get the port, and what becomes of clients' packets."""
    what = f" running {printable(attempt.programs[0].path)}" if attempt.programs else ""
    answer = paint("would", "green") if verdict.binds else paint("would not", "red")
    port = f"{attempt.protocol} {attempt.port}"
    lines = [paint(f"{printable(attempt.user.name)}{what} {answer} bind {port}: {printable(verdict.reason)}", "bold")]
    lines += [_step(step, paint) for step in verdict.steps]
    for fate in fates:
        lines += ["", *_fate(fate, facts, paint)]
    lines += [f"not everything could be read: {printable(failure)}" for failure in facts.failures]
    return "\n".join(lines)


def _step(step: Step, paint: Paint) -> str:
    sign, colour = SIGNS[step.works]
    at = f"  [{printable(str(step.where))}]" if step.where.file else ""
    return f"  {paint(sign, colour)} {step.mechanism}: {printable(step.why)}{at}"


def _fate(fate: Fate, facts: Facts, paint: Paint) -> Iterator[str]:
    packet = fate.packet
    yield paint(f"a client {client(fate)} of {packet.protocol} {_end(packet.address, packet.port)}", "bold")
    for rule in fate.passed:
        yield f"  perhaps taken by {_rule(rule)}"
    for rule in fate.rules:
        at = f"  [{printable(str(rule.where))}]" if rule.where.file else ""
        yield f"  taken by {_rule(rule)}: goes to {_end(fate.address, fate.port)}{at}"
    if not fate.rules:
        yield "  no rule takes it"
    sure = "" if fate.sure else " (unless one of the rules above takes it)" if fate.passed else " (as far as it shows)"
    yield f"  {paint(fate.outcome, COLOURS.get(fate.outcome, 'yellow'))}{sure}{_by(fate, facts)}"


def client(fate: Fate) -> str:
    """Who it is: this host, an address, or somebody."""
    packet = fate.packet
    if not packet.interface:
        return "on this host"
    who = "from anywhere" if packet.source in ("0.0.0.0", "::") else f"from {packet.source}"  # noqa: S104 - compared
    return f"{who}, on {printable(packet.interface)},"


def _by(fate: Fate, facts: Facts) -> str:
    if fate.socket is None:
        return f": {printable(fate.reason)}"
    holders = fate.socket.holders
    user = printable(facts.user(holders[0].uid if holders else fate.socket.listener.uid))
    return (
        f" by {printable(holders[0].command)} (process {holders[0].pid}), user {user}" if holders else f", user {user}"
    )


def _rule(rule: Rule) -> str:
    return f"{printable(rule.owner)}, priority {rule.priority}: {printable(rule.text)}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def explain_json(attempt: Attempt, verdict: Verdict, fates: Sequence[Fate], facts: Facts) -> dict[str, Any]:
    return {
        "port": attempt.port,
        "protocol": attempt.protocol,
        "user": attempt.user.name,
        "binary": attempt.programs[0].path if attempt.programs else attempt.missing or None,
        "binds": verdict.binds,
        "mechanism": verdict.mechanism or None,
        "reason": verdict.reason,
        "through": list(verdict.through),
        "mechanisms": [
            {"mechanism": s.mechanism, "works": s.works, "why": s.why, "file": s.where.file or None}
            for s in verdict.steps
        ],
        "clients": [_fate_json(fate, facts) for fate in fates],
        "failures": list(facts.failures),
    }


def _fate_json(fate: Fate, facts: Facts) -> dict[str, Any]:
    packet, holders = fate.packet, fate.socket.holders if fate.socket else ()
    uid = holders[0].uid if holders else fate.socket.listener.uid if fate.socket else None
    return {
        "from": packet.source,
        "to": packet.address,
        "interface": packet.interface or None,
        "outcome": fate.outcome,
        "sure": fate.sure,
        "reason": fate.reason or None,
        "address": fate.address,
        "port": fate.port,
        "rules": [{"owner": r.owner, "text": r.text, "priority": r.priority, "certain": r.certain} for r in fate.rules],
        "passed": [{"owner": r.owner, "text": r.text, "priority": r.priority} for r in fate.passed],
        "pid": holders[0].pid if holders else None,
        "command": holders[0].command if holders else None,
        "user": None if uid is None else facts.user(uid),
    }
