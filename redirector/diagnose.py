"""What is wrong, or will surprise, in the company of others' firewalls. Pure; `redirector doctor` prints it.

Two questions are put to others' rules (see `others`): who else maps a port of ours, before or after us; and whether a
filter lets the redirected connections in. A filter at the input hook sees a packet after NAT: what it must accept is
the port that a mapping goes *to*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from redirector.backends.nftables.backend import kernel_fault
from redirector.choose import Choice, foreign_rules, known_by, missing, ours
from redirector.errors import printable
from redirector.findings import ERROR, NOTE, WARNING, Finding
from redirector.host.firewalls import Firewalls
from redirector.host.forwarding import Forwarding
from redirector.model import ARRIVING, DEFAULT_PRIORITY, Mapping, Ports, Ruleset
from redirector.naming import TABLE
from redirector.others import Question, Spans, Table, follow, listed, overlap, saved, spans
from redirector.others.openings import opening
from redirector.passage import filtered, stopped, unforwarded
from redirector.records import NamedTuple

IPTABLES_PRIORITY = -100  # NF_IP_PRI_NAT_DST (linux/netfilter_ipv4.h): where the iptables backends are
NOTHING_ASKED = Forwarding()
SHOWN = 6  # ports, or names, in a sentence


class Taken(NamedTuple):
    """Another's NAT rule for `ports` of ours, in a base chain of this `priority`."""

    table: Table
    chain: str
    text: str
    priority: int
    protocol: str
    ports: Spans

    @property
    def place(self) -> str:
        return f"{_place(self.table)}, chain {printable(self.chain)}: {printable(self.text)[:300]}"


def findings(
    ruleset: Ruleset | None, firewalls: Firewalls, choice: Choice, forwarding: Forwarding = NOTHING_ASKED
) -> Iterator[Finding]:
    """Everything that there is to say of this choice; without a ruleset only what needs none."""
    yield from _platform(firewalls, choice)
    tables = [saved.table(s.backend, s.family, s.name, s.table) for s in firewalls.saved]
    tables += [listed.table(one.family, one.name, one.objects, one.texts) for one in firewalls.listed]
    priority = ruleset.settings.priority if ruleset else DEFAULT_PRIORITY
    priority = priority if choice.backend == "nftables" else IPTABLES_PRIORITY
    yield from _equal(firewalls, choice, priority)
    if ruleset is not None:
        yield from _mapped(ruleset, tables, choice, priority)
        yield from _filtered(ruleset, tables)
        for obstacle in (*unforwarded(ruleset, forwarding), *filtered(ruleset, tables)):
            yield Finding(obstacle.id, WARNING, obstacle.message, obstacle.fix)
    for failure in firewalls.failures:
        yield Finding("unread", NOTE, f"not everything could be read: {failure}")


# -- the host ----------------------------------------------------------------------------------------------------


def _platform(firewalls: Firewalls, choice: Choice) -> Iterator[Finding]:
    fault = kernel_fault(firewalls.kernel) if choice.backend == "nftables" else ""
    auto = 'leave [settings] backend out, or say "auto"'
    if not firewalls.nf_tables and choice.backend != "iptables-legacy":
        yield Finding("no-nf-tables", ERROR, f"this kernel has no nf_tables, which {choice.backend} needs", (auto,))
    elif fault:
        yield Finding("old-kernel", ERROR, fault, (auto,))
    lacking = missing(firewalls, choice.backend)
    if lacking:
        message = f"the backend {choice.backend} needs what is not there: {', '.join(lacking)}"
        yield Finding("missing-tools", ERROR, message, ("install the package iptables",))
    held = ours(firewalls)
    if len(held) > 1:
        message = f"mappings of ours are in force in {len(held)} backends: {', '.join(held)}"
        yield Finding("ours-twice", ERROR, message, ("see: redirector status", f"remove all but those in {held[0]}"))
    elif held and held[0] != choice.backend:
        message = f"our mappings are in force in {held[0]}, and {choice.backend} was picked"
        fix = f'move them by: redirector migrate-backend {choice.backend}; or say backend = "{held[0]}"'
        yield Finding("ours-elsewhere", WARNING, message, (fix,))
    variants = {s.backend: s for s in firewalls.saved if foreign_rules(s)}
    if len(variants) > 1:
        message = "both variants of iptables hold rules, and both run: whoever looks at one does not see the other"
        fix = "look with iptables-nft-save and iptables-legacy-save; keep one (update-alternatives --config iptables)"
        yield Finding("both-variants", WARNING, message, (fix,))


def _equal(firewalls: Firewalls, choice: Choice, priority: int) -> Iterator[Finding]:
    """Base chains of others that run at the same moment as ours: which is first depends on who came last."""
    unused = {
        ({"ipv4": "ip", "ipv6": "ip6"}[s.family], s.name)
        for s in firewalls.saved
        if s.backend == "iptables-nft" and not foreign_rules(s)
    }
    found = []
    for chain in firewalls.chains:
        own = (chain.family, chain.table) == ("inet", TABLE) or (
            choice.backend == "iptables-nft" and chain.family != "inet" and chain.table == "nat"
        )
        empty = (chain.family, chain.table) in unused  # an empty chain of iptables takes nothing
        if own or empty or chain.type != "nat" or chain.hook not in ("prerouting", "output"):
            continue
        if chain.priority == priority:
            found.append(f"{chain.family} {chain.table} {chain.name} ({chain.hook})")
    if choice.backend != "iptables-legacy" and priority == IPTABLES_PRIORITY:
        legacy = [s for s in firewalls.saved if (s.backend, s.name) == ("iptables-legacy", "nat") and foreign_rules(s)]
        found += [f"{_words(s.backend, s.family)} nat PREROUTING and OUTPUT" for s in legacy]
    if not found:
        return
    message = f"the order of NAT is chance, since others' chains have our priority {priority}: " + _few(found)
    used = {chain.priority for chain in firewalls.chains if chain.type == "nat"}
    free = next(number for number in range(priority - 1, priority - 1000, -1) if number not in used)
    fix = f"say another priority in the file: [settings] priority = {free}"
    if choice.backend != "nftables":
        fix = "the priority of iptables is fixed: use the backend nftables, or one variant of iptables only"
    yield Finding("equal-priority", WARNING, message, (fix,))


# -- who else maps our ports -------------------------------------------------------------------------------------


def _questions(ruleset: Ruleset, target: bool) -> Iterator[Question]:
    """What arrives for our mappings, and (`target`) with which ports a filter sees it."""
    asked: dict[tuple[str, str, bool], list[tuple[int, int]]] = {}
    for mapping in ruleset.enabled:
        if not any(claim.side == ARRIVING for claim in mapping.claims) or (target and mapping.forwards):
            continue
        for protocol, family, (translated, ports) in (
            (p, f, part) for p in mapping.protocol for f in _families(mapping) for part in _parts(mapping, target)
        ):
            asked.setdefault((protocol, family, translated), []).extend(ports)
    for (protocol, family, translated), ports in sorted(asked.items()):
        yield Question(protocol, family, spans(ports), translated and target)


def _families(mapping: Mapping) -> tuple[str, ...]:
    families = {"ipv6" if ":" in text else "ipv4" for text in mapping.address or mapping.source}
    return tuple(family for family in mapping.families if not families or family in families)


def _parts(mapping: Mapping, target: bool) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """(Whether NAT changes the port, the ports): what is mapped to itself is an exemption, and not translated."""
    if not target:
        yield True, [(ports.first, ports.last) for ports in mapping.listen]
        return
    same = mapping.listen[0] == mapping.to
    yield not same, [(mapping.to.first, mapping.to.last)]


def _taken(ruleset: Ruleset, tables: Iterable[Table]) -> Iterator[Taken]:
    """Each NAT rule of others that some connection to a port of ours meets, once for each protocol."""
    questions = list(_questions(ruleset, target=False))
    found: dict[tuple[int, str, str, str], Taken] = {}
    for number, table in enumerate(tables):
        for base, where in table.bases.items():
            if where.type != "nat" or where.hook not in ("prerouting", "output"):
                continue
            for question in questions:
                for hit in follow(table, base, question) if question.family in table.families else ():
                    if hit.verdict != "nat" or hit.clause is None:
                        continue
                    key = (number, hit.chain, hit.clause.text, question.protocol)
                    before = found[key].ports if key in found else ()
                    ports = spans([*before, *hit.ports])
                    found[key] = Taken(table, hit.chain, hit.clause.text, where.priority, question.protocol, ports)
    yield from found.values()


def _mapped(ruleset: Ruleset, tables: list[Table], choice: Choice, priority: int) -> Iterator[Finding]:
    found = list(_taken(ruleset, tables))
    legacy = [one for one in found if one.table.form == "iptables-legacy"]
    nft = [one for one in found if one.table.form != "iptables-legacy"]
    told: set[int] = set()
    for one in legacy:
        for other in nft:
            shared = overlap(one.ports, other.ports) if one.protocol == other.protocol else ()
            if shared:
                told |= {id(one), id(other)}
                yield _both(one.protocol, shared, one.place, other.place)
    our_form = "legacy" if choice.backend == "iptables-legacy" else "nft"
    for one in nft if our_form == "legacy" else legacy:
        if id(one) not in told:
            yield _both(one.protocol, one.ports, one.place, f"our own mappings ({choice.backend})")
            told.add(id(one))
    for one in found:
        what = f"{one.protocol} {_ports(one.ports)}"
        if one.priority <= priority and _apart(one.table, choice):
            when = "before us" if one.priority < priority else "at our priority, so perhaps before us"
            message = f"{what} is taken by another's NAT rule that runs {when} ({one.priority}): {one.place}"
            fix = f"let ours run first: [settings] priority = {one.priority - 1}; or take that rule away"
            if choice.backend != "nftables":
                fix = "use the backend nftables with a lower priority, or take that rule away"
            yield Finding("taken-first", ERROR, message, (fix,))
        elif id(one) not in told:
            message = f"{what} is also mapped by another's NAT rule, which is not reached while ours is: {one.place}"
            yield Finding("also-mapped", WARNING, message, ("take the port out of one of the two",))


def _apart(table: Table, choice: Choice) -> bool:
    """Whether a table is another one than that which our rules are in."""
    return not (choice.backend == table.form and table.form != "nftables")


def _both(protocol: str, ports: Spans, one: str, other: str) -> Finding:
    message = f"nft and legacy rules both map {protocol} {_ports(ports)}, and only the first that runs has a say: "
    return Finding("nft-and-legacy", WARNING, f"{message}{one}; and {other}", ("take the port out of one of the two",))


# -- filters that would stop the redirected port -----------------------------------------------------------------


def _filtered(ruleset: Ruleset, tables: Iterable[Table]) -> Iterator[Finding]:
    questions = list(_questions(ruleset, target=True))
    for table in tables:
        for base, where in table.bases.items():
            if (where.type, where.hook) != ("filter", "input"):
                continue
            # By what decides: one finding for a protocol and a rule (or the policy), over both families.
            dropped: dict[tuple[str, bool, str], list[Ports]] = {}
            for question in questions:
                for hit in stopped(table, base, question):
                    text = hit.clause.text if hit.clause else ""
                    key = (question.protocol, question.dnat, f"{hit.chain}\n{text}")
                    dropped.setdefault(key, []).extend(hit.ports)
            for (protocol, translated, decider), ports in dropped.items():
                yield _stop(ruleset, table, base, Question(protocol, "", spans(ports), translated), decider)


def _stop(ruleset: Ruleset, table: Table, base: str, stopped: Question, decider: str) -> Finding:
    chain, _, text = decider.partition("\n")
    ours = (
        m
        for m in ruleset.enabled
        if not m.forwards and stopped.protocol in m.protocol and (m.listen[0] != m.to) == stopped.dnat
    )
    names = [m.name for m in ours if overlap((Ports(m.to.first, m.to.last),), stopped.ports)]
    by = f"by the rule {printable(text)[:300]} of chain {printable(chain)}" if text else "by its policy drop"
    message = (
        f"connections that are redirected to {stopped.protocol} {_ports(stopped.ports)} ({_few(names)}) are dropped by "
        f"the filter of {_place(table)}, chain {printable(base)}, {by}, and no rule there is sure to accept them"
    )
    owners = {*known_by(dict.fromkeys(table.chains, "")), table.name}
    owner = next((name for name in ("firewalld", "ufw") if name in owners), "")
    return Finding("filter-drops", WARNING, message, opening(table, base, stopped, owner, by_rule=bool(text)))


# -- words -------------------------------------------------------------------------------------------------------


def _words(form: str, family: str) -> str:
    prefix = "ip6tables" if family in ("ipv6", "ip6") else "iptables"
    return form.replace("iptables", prefix)


def _place(table: Table) -> str:
    if table.form == "nftables":
        return f"nft table {table.family} {printable(table.name)}"
    return f"{_words(table.form, table.family)} table {printable(table.name)}"


def _ports(ports: Spans) -> str:
    return _few([str(span) for span in ports])


def _few(words: list[str]) -> str:
    """The first words, printable, and how many more there are."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(map(printable, words[:SHOWN])) + more
