"""NAT rules that take connections to this host's ports: ours, as the kernel has them, and everybody else's.

Ours: the kernel tells which ports are in force and for which mapping; what else the mapping says comes from the last
generation, and its line from the file that this was applied from. Others': each NAT base chain is asked for all ports
at once (see `others`), and what a rule translates to is read from its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from redirector.audit.facts import Rule, Where
from redirector.host.firewalls import Firewalls
from redirector.model import ARRIVING, FAMILIES, OWN, SIDES, Ports, Ruleset, Target, family_of
from redirector.model import Mapping as PortMapping
from redirector.others import ALL, Question, Table, follow, listed, saved
from redirector.program import TRANSLATIONS, Program, protocol_name, runs, targets_of

OURS = "redirector"
HOOKS = {"prerouting": ARRIVING, "output": OWN}
_TARGETS = (
    re.compile(r"--to-ports? (\d+)(?:-(\d+))?"),
    re.compile(r"--to-destination \[?([0-9A-Fa-f.:]*?)\]?(?::(\d+)(?:-(\d+))?)?(?:/\d+)?(?:\s|$)"),
    re.compile(r"\bredirect to :(\d+)(?:-(\d+))?"),
    re.compile(r"\bdnat (?:ip6? )?to \[?([0-9A-Fa-f.:]*?)\]?(?::(\d+)(?:-(\d+))?)?(?:\s|$)"),
)


def of_program(program: Program, ruleset: Ruleset, priority: int, places: Mapping[str, Where]) -> Iterator[Rule]:
    """Our rules that are in force, by mapping and range of ports."""
    known = {mapping.name: mapping for mapping in ruleset.enabled}
    told: set[tuple[str, str, Ports, str]] = set()
    for table in program.maps.values():
        for name, number, ports, found in runs(table.entries) if table.kind in TRANSLATIONS else ():
            target = targets_of(table.kind, found)
            key = (name, protocol_name(number), ports, table.kind)
            if key not in told:
                told.add(key)
                yield from _ours(name, key[1], ports, target, known.get(name), priority, places.get(name, Where("")))


def of_ruleset(ruleset: Ruleset, places: Mapping[str, Where]) -> Iterator[Rule]:
    """The rules that a mapping file asks for."""
    for mapping in ruleset.enabled:
        for protocol in mapping.protocol:
            for ports, first in mapping.pairs():
                target = mapping.to
                if mapping.shifted and not mapping.forwards:
                    target = Ports(first, first + ports.size - 1)
                where = places.get(mapping.name, Where(""))
                yield from _ours(mapping.name, protocol, ports, target, mapping, ruleset.settings.priority, where)


def _ours(
    name: str,
    protocol: str,
    ports: Ports,
    to: Ports | Target,
    mapping: PortMapping | None,
    priority: int,
    where: Where,
) -> Iterator[Rule]:
    """The rule; where it leads to other addresses, one for each."""
    if isinstance(to, Target):
        for address in to.addresses:
            one = to._replace(addresses=(address,))
            rule = _rule(name, protocol, ports, one, mapping, priority, where)
            yield rule._replace(target=Ports(to.first, to.last), address=address, families=(family_of(address),))
    else:
        yield _rule(name, protocol, ports, to, mapping, priority, where)


def _rule(
    name: str,
    protocol: str,
    ports: Ports,
    to: Ports | Target,
    mapping: PortMapping | None,
    priority: int,
    where: Where,
) -> Rule:
    target = Ports(to.first, to.last)
    text = f'mapping "{name}": {protocol} {ports} → {to}'
    if mapping is None:
        # In the kernel, and not in our books: for whom it is cannot be said.
        return Rule(OURS, text, protocol, ports, target, "", FAMILIES, SIDES, False, priority, name, where)
    scopes = dict.fromkeys(str(claim.scope) for claim in mapping.claims if str(claim.scope))
    sides = tuple(side for side in (ARRIVING, OWN) if any(claim.side == side for claim in mapping.claims))
    text += f" {'; '.join(scopes)}" if scopes else ""
    return Rule(OURS, text, protocol, ports, target, "", mapping.families, sides, not scopes, priority, name, where)


def others(tables: Iterable[Table]) -> Iterator[Rule]:
    """Everybody else's rules, by table and clause."""
    found: dict[tuple[object, ...], Rule] = {}
    for table in tables:
        for base, where in table.bases.items():
            if where.type != "nat" or where.hook not in HOOKS:
                continue
            for rule in _asked(table, base):
                key = rule._replace(families=(), sides=())
                before = found.get(key)
                families = tuple(f for f in FAMILIES if f in (*rule.families, *(before.families if before else ())))
                sides = tuple(s for s in SIDES if s in (*rule.sides, *(before.sides if before else ())))
                found[key] = rule._replace(families=families, sides=sides)
    yield from found.values()


def tables(firewalls: Firewalls) -> list[Table]:
    """The tables of others."""
    found = [saved.table(s.backend, s.family, s.name, s.table) for s in firewalls.saved]
    return found + [listed.table(one.family, one.name, one.objects, one.texts) for one in firewalls.listed]


def words(table: Table) -> str:
    return f"{table.form} table {table.family} {table.name}"


def _asked(table: Table, base: str) -> Iterator[Rule]:
    where = table.bases[base]
    for family in table.families:
        for protocol in ("tcp", "udp", "sctp"):
            for hit in follow(table, base, Question(protocol, family, ALL)):
                if hit.verdict != "nat" or hit.clause is None:
                    continue
                address, target = translation(hit.clause.text)
                for ports in hit.ports:
                    yield Rule(
                        f"{words(table)}, chain {hit.chain}",
                        hit.clause.text,
                        protocol,
                        ports,
                        target or (None if "map" in hit.clause.text else ports),
                        address,
                        (family,),
                        (HOOKS[where.hook],),
                        hit.certain,
                        where.priority,
                        table=words(table),
                    )


def translation(text: str) -> tuple[str, Ports | None]:
    """(address, ports) that a rule's text leads to; address "" for this host, ports None where it says none."""
    for pattern in _TARGETS:
        found = pattern.search(text)
        if found:
            *address, first, last = found.groups()
            there = address[0] if address and address[0] not in (None, "127.0.0.1", "::1") else ""
            return there, Ports(int(first), int(last or first)) if first else None
    return "", None
