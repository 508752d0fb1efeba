"""Rules out of nft's JSON (libnftables-json(5)) → clauses. Pure.

Whatever is not understood makes its rule uncertain: nothing here trusts the shape of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from redirector.others import ALL, Base, Clause, Spans, Table, overlap, spans, without

VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "queue": "accept"}
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
FAMILIES = {"ip": "ipv4", "ip6": "ipv6"}
NEUTRAL = frozenset({"counter", "log", "mangle", "notrack", "flow", "ct helper", "ct timeout"})
Elements = list[Any]


class _Never(Exception):
    """The rule is not for a new connection from outside to this host."""


def table(family: str, name: str, objects: tuple[Any, ...], texts: Mapping[int, str]) -> Table:
    """A table as `others` has it, from the objects of `nft -j list table`, and its rules' text by handle."""
    bases: dict[str, Base] = {}
    chains: dict[str, list[Clause]] = {}
    sets: dict[str, Elements] = {}
    for kind, body in _bodies(objects):
        if kind in ("set", "map"):
            elements = body.get("elem")
            sets[str(body.get("name"))] = elements if isinstance(elements, list) else []
        elif kind == "chain":
            chain = str(body.get("name"))
            chains.setdefault(chain, [])
            priority = body.get("prio")
            if isinstance(priority, int) and "hook" in body and "dev" not in body:
                bases[chain] = Base(str(body.get("type")), str(body["hook"]), priority, str(body.get("policy")))
    for kind, body in _bodies(objects):
        if kind == "rule":
            handle = body.get("handle", 0)
            text = texts.get(handle, f"the rule with handle {handle}") if isinstance(handle, int) else "a rule"
            statements = body.get("expr")
            found = clauses(statements if isinstance(statements, list) else [], text, sets)
            chains.setdefault(str(body.get("chain")), []).extend(found)
    return Table("nftables", family, name, bases, {chain: tuple(rules) for chain, rules in chains.items()})


def _items(objects: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(kind, body) of each of nft's objects: mostly dictionaries of one item."""
    return (item for one in objects if isinstance(one, dict) for item in one.items())


def _bodies(objects: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((kind, body) for kind, body in _items(objects) if isinstance(body, dict))


def clauses(statements: list[Any], text: str, sets: Mapping[str, Elements]) -> list[Clause]:
    """The clauses of a rule: one for each verdict of a verdict map; none where it decides nothing."""
    clause = Clause("", text)
    try:
        for kind, body in _items(statements):
            if kind == "match":
                clause = _match(clause, body, sets)
            elif kind == "vmap":
                return list(_verdict_map(clause, body, sets))
            elif kind in ("dnat", "redirect") or (kind == "xt" and _is_nat_target(body)):
                return [_nat(clause, body, sets)._replace(verdict="nat")]
            elif kind in VERDICTS or kind in ("jump", "goto"):
                return [_verdict(clause, kind, body)]
            elif kind not in NEUTRAL:
                clause = clause._replace(certain=False)
    except _Never:
        pass
    return []


def _is_nat_target(body: Any) -> bool:
    return isinstance(body, dict) and body.get("name") in ("DNAT", "REDIRECT")


def _verdict(clause: Clause, kind: str, body: Any) -> Clause:
    if kind in ("jump", "goto"):
        return clause._replace(verdict=kind, chain=str(body.get("target")) if isinstance(body, dict) else "")
    return clause._replace(verdict=VERDICTS.get(kind, ""))


def _verdict_map(clause: Clause, body: Any, sets: Mapping[str, Elements]) -> Iterator[Clause]:
    key, data = (body.get("key"), body.get("data")) if isinstance(body, dict) else (None, None)
    for element in _elements(data, sets):
        if not (isinstance(element, list) and len(element) == 2 and isinstance(element[1], dict)):
            continue
        try:
            narrowed = _equal(clause, key, [element[0]])
        except _Never:
            continue
        for kind, target in element[1].items():
            found = _verdict(narrowed, kind, target)
            if found.verdict:
                yield found


def _nat(clause: Clause, body: Any, sets: Mapping[str, Elements]) -> Clause:
    """A look-up in the target ("to :tcp dport map …") misses, and the rule with it, for what is not in the map."""
    for part in ("addr", "port"):
        value = body.get(part) if isinstance(body, dict) else None
        if isinstance(value, dict) and isinstance(value.get("map"), dict):
            found = value["map"]
            keys = [e[0] for e in _elements(found.get("data"), sets) if isinstance(e, list) and e]
            clause = _equal(clause, found.get("key"), keys)
    return clause


def _elements(right: Any, sets: Mapping[str, Elements]) -> Elements:
    """The values that a right side stands for."""
    if isinstance(right, str) and right.startswith("@"):
        return sets.get(right[1:], [])
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return list(right["set"])
    if isinstance(right, list):
        return right
    return [right]


def _match(clause: Clause, body: Any, sets: Mapping[str, Elements]) -> Clause:
    if not isinstance(body, dict):
        return clause._replace(certain=False)
    left, right, op = body.get("left"), body.get("right"), body.get("op")
    values = [_plain(value) for value in _elements(right, sets)]
    masked = left.get("&") if isinstance(left, dict) else None
    if isinstance(masked, list) and len(masked) == 2:
        return _masked(clause, masked, op, values)
    if op in ("==", "in"):
        return _equal(clause, left, values)
    if op == "!=":
        return _unequal(clause, left, values)
    return clause._replace(certain=False)


def _masked(clause: Clause, masked: list[Any], op: Any, values: Elements) -> Clause:
    """The two that firewalls use: the flags of TCP that make a new connection, and `ct status & dnat`."""
    left, mask = masked
    if _place(left) == "tcp flags" and set(mask if isinstance(mask, list) else [mask]) == {"fin", "syn", "rst", "ack"}:
        if (op == "==") != (values == ["syn"]):
            raise _Never
        return clause
    if _place(left) == "ct status" and mask == "dnat":
        return clause._replace(dnat=(op == "==") == (values != [0]))
    return clause._replace(certain=False)


def _place(left: Any) -> str:
    """What a left side looks at, as nft's language calls it; "" for anything that matters to nothing here."""
    if not isinstance(left, dict):
        return ""
    for kind in ("payload", "meta", "ct", "fib"):
        body = left.get(kind)
        if isinstance(body, dict):
            if kind == "payload":
                return f"{body.get('protocol')} {body.get('field')}"
            if kind == "fib":
                return f"fib {body.get('result')} {body.get('flags')}"
            return f"{kind} {body.get('key')}"
    return ""


def _plain(value: Any) -> Any:
    """An element without its counter, timeout or comment."""
    inner = value.get("elem") if isinstance(value, dict) else None
    return inner.get("val") if isinstance(inner, dict) else value


def _ports(values: Elements) -> Spans | None:
    """The ports of values; None where one is something else."""
    found = []
    for value in map(_plain, values):
        bounds = value.get("range") if isinstance(value, dict) else [value, value]
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(n, int) for n in bounds)):
            return None
        found.append((bounds[0], bounds[1]))
    return spans(found)


def _equal(clause: Clause, left: Any, values: Elements) -> Clause:
    """The clause where `left` is one of `values`."""
    values = [_plain(value) for value in values]
    parts = left.get("concat") if isinstance(left, dict) else None
    if isinstance(parts, list):
        # Part by part, which is exact where at most one part varies; elsewhere it takes more than what is there.
        rows = [v["concat"] for v in values if isinstance(v, dict) and isinstance(v.get("concat"), list)]
        columns = [[row[index] for row in rows if index < len(row)] for index in range(len(parts))]
        for part, column in zip(parts, columns, strict=True):
            clause = _equal(clause, part, column)
        varying = sum(any(value != column[0] for value in column) for column in columns)
        return clause if varying < 2 else clause._replace(certain=False)
    place = _place(left)
    protocol, _, field = place.partition(" ")
    if field == "dport" and protocol in (*PROTOCOLS, "th"):
        return _at_ports(clause, protocol, _ports(values))
    if place in ("meta l4proto", "ip protocol", "ip6 nexthdr"):
        clause = _only(clause, PROTOCOLS & {v for v in values if isinstance(v, str)})
        return _family(clause, {protocol} if protocol != "meta" else set(FAMILIES))
    if place == "meta nfproto":
        return _family(clause, {{"ipv4": "ip", "ipv6": "ip6"}.get(str(v), "") for v in values})
    if place in ("meta iif", "meta iifname"):
        if values == ["lo"]:
            raise _Never
        return clause._replace(certain=False)
    if place == "ct state":
        if "new" not in values:
            raise _Never
        return clause
    if place == "ct status":
        return clause._replace(dnat=True) if values == ["dnat"] else clause._replace(certain=False)
    if place.startswith("fib type") and "daddr" in place and "iif" not in place:
        if "local" not in values:
            raise _Never
        return clause
    if protocol in FAMILIES:
        clause = _family(clause, {protocol})
    elif protocol in PROTOCOLS:
        clause = _only(clause, frozenset({protocol}))
    return clause._replace(certain=False)


def _unequal(clause: Clause, left: Any, values: Elements) -> Clause:
    """The clause where `left` is none of `values`."""
    place = _place(left)
    protocol, _, field = place.partition(" ")
    if field == "dport" and protocol in (*PROTOCOLS, "th"):
        found = _ports(values)
        return _at_ports(clause, protocol, None if found is None else without(ALL, found))
    if place in ("meta l4proto", "ip protocol"):
        return _only(clause, PROTOCOLS - {v for v in values if isinstance(v, str)})
    if place in ("meta iif", "meta iifname"):
        return clause if values == ["lo"] else clause._replace(certain=False)
    if place == "ct state":
        if "new" in values:
            raise _Never
        return clause
    if place == "ct status":
        return clause._replace(dnat=False) if values == ["dnat"] else clause._replace(certain=False)
    if place.startswith("fib type") and "daddr" in place and "iif" not in place:
        if "local" in values:
            raise _Never
        return clause
    return clause._replace(certain=False)


def _at_ports(clause: Clause, protocol: str, found: Spans | None) -> Clause:
    """The clause where a port of `protocol` ("th": of any) is one of those found; None: nobody knows which."""
    clause = _only(clause, PROTOCOLS & {protocol} if protocol != "th" else PROTOCOLS)
    if found is None:
        return clause._replace(certain=False)
    return clause._replace(ports=found if clause.ports is None else overlap(clause.ports, found))


def _only(clause: Clause, protocols: frozenset[str]) -> Clause:
    return clause._replace(protocols=protocols if clause.protocols is None else clause.protocols & protocols)


def _family(clause: Clause, words: set[str]) -> Clause:
    families = frozenset(FAMILIES[word] for word in words if word in FAMILIES)
    return clause._replace(families=families if clause.families is None else clause.families & families)
