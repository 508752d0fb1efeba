"""What stands between a mapping and its target on another machine: forwarding, routes, filters that forward. Pure.

Nothing here is ever changed by us. `apply` warns of the first two; `doctor` tells all, with the commands that mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from redirector.choose import known_by
from redirector.errors import printable
from redirector.host.forwarding import SYSCTLS
from redirector.model import Mapping, Ruleset, Target, family_of
from redirector.others import Hit, Question, Spans, Table, follow, spans, without
from redirector.others.openings import passing
from redirector.records import NamedTuple

if TYPE_CHECKING:  # `check` asks nothing of the host
    from redirector.host.forwarding import Forwarding


class Obstacle(NamedTuple):
    """`id` is for scripts; `mapping` one of those that it is about; `message` one sentence; `fix` the commands."""

    id: str
    mapping: str
    message: str
    fix: tuple[str, ...] = ()


def unforwarded(ruleset: Ruleset, forwarding: Forwarding) -> Iterator[Obstacle]:
    """What the host itself lacks."""
    led = dict(_led(ruleset))
    for family in sorted(forwarding.off):
        names = [names[0] for address, names in led.items() if family_of(address) == family]
        sysctl = f"sysctl -w {SYSCTLS[family]}=1"
        message = f"this host does not forward {family}: no other machine gets to targets of that family ({sysctl})"
        yield Obstacle("not-forwarding", names[0] if names else "", message, (sysctl,))
    for address, names in led.items():
        if address in forwarding.unreachable:
            message = f"no route leads to the target {address} (yet)"
            yield Obstacle(
                "no-route", names[0], message, (f"start what has that address; see: ip route get {address}",)
            )


def _led(ruleset: Ruleset) -> Iterator[tuple[str, list[str]]]:
    """(target, the mappings that lead there) by address."""
    found: dict[str, list[str]] = {}
    for mapping in ruleset.enabled:
        for address in mapping.to.addresses if isinstance(mapping.to, Target) else ():
            found.setdefault(address, []).append(mapping.name)
    yield from found.items()


def filtered(ruleset: Ruleset, tables: Iterable[Table]) -> Iterator[Obstacle]:
    """The filters that drop what is passed on to a target."""
    asked = list(_questions(ruleset))
    for table in tables:
        for base, where in table.bases.items():
            if (where.type, where.hook) != ("filter", "forward"):
                continue
            for address, question, names in asked:
                ports = spans([span for hit in stopped(table, base, question) for span in hit.ports])
                if ports:
                    yield _drops(table, base, address, question._replace(ports=ports), names)


def _questions(ruleset: Ruleset) -> Iterator[tuple[str, Question, list[str]]]:
    """(target, connections to it, mappings), by address and protocol."""
    found: dict[tuple[str, str], list[Mapping]] = {}
    for mapping in ruleset.enabled:
        for address in mapping.to.addresses if isinstance(mapping.to, Target) else ():
            for protocol in mapping.protocol:
                found.setdefault((address, protocol), []).append(mapping)
    for (address, protocol), mappings in found.items():
        ports = spans([(m.to.first, m.to.last) for m in mappings])
        yield address, Question(protocol, family_of(address), ports, True), [m.name for m in mappings]


def stopped(table: Table, base: str, question: Question) -> Iterator[Hit]:
    """What is dropped for certain, and for which no rule that names the port makes an exception for some."""
    if question.family not in table.families:
        return
    hits = list(follow(table, base, question))
    some = [h for h in hits if h.verdict == "accept" and not h.certain and h.clause and h.clause.ports is not None]
    excepted: Spans = spans([span for hit in some for span in hit.ports])
    for hit in hits:
        if hit.verdict == "drop" and hit.certain:
            left = without(hit.ports, excepted)
            if left:
                yield hit._replace(ports=left)


def _drops(table: Table, base: str, address: str, question: Question, names: list[str]) -> Obstacle:
    where = f"[{address}]" if ":" in address else address
    ports = ", ".join(map(str, question.ports))
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    place = f"{table.form} table {table.family} {printable(table.name)}, chain {printable(base)}"
    message = (
        f"connections that are passed on to {question.protocol} {where}:{ports} ({shown}) are dropped at the forward "
        f"hook by {place}, and no rule there is sure to accept them"
    )
    chain = "DOCKER-USER" if "DOCKER-USER" in table.chains else base  # Docker's own chain for rules of others
    ufw = "ufw" in known_by(dict.fromkeys(table.chains, "")) and chain == base
    return Obstacle("forward-drops", names[0], message, passing(table, chain, address, question, ufw=ufw))
