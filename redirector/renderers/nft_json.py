"""Program → libnftables' JSON, for `nft -j -f`: libnftables-json(5). Pure.

Each object is on a line of its own. Counters and chains come before the maps that lead to them, and rules last, since
objects are added one by one, unlike in nft's own language (and unlike `nft -j list`, which cannot be loaded as it is).

Limits of libnftables (src/parser_json.c): a string that starts with "@" is a set, and the name of a protocol is its
number, so that interfaces which are called like that cannot be named. The data of a map is of one type, and 1.0.6
crashes at a rule that looks an address and a port up: targets with an address cannot be written. And the table's
comment, which is our mark, is read by later versions than 1.0.6; with that one make the table first:
`nft add table inet redirector '{ comment "made by redirector"; }'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from redirector.backends.nftables.encode import MARK
from redirector.backends.nftables.rules import comment_of
from redirector.errors import Refused, printable
from redirector.model import PROTOCOLS, Ruleset
from redirector.naming import TABLE
from redirector.program import (
    COUNTS,
    FORWARDS,
    INTERFACES,
    PORTS,
    SETS,
    Count,
    Dispatch,
    Guard,
    Jump,
    Keep,
    LocalJump,
    Map,
    Program,
    Refuse,
    Rule,
    Translate,
)
from redirector.renderers import Options
from redirector.renderers.nft import DATA_TYPES, HEADERS, KEY_TYPES, check, identifier, key_parts, mask, plain, size

Json = dict[str, Any]

# Strings that libnftables takes for a number of inet_proto or icmp_type wherever they stand (json_parse_constant).
CONSTANTS = frozenset({"tcp", "udp", "udplite", "esp", "ah", "icmp", "icmpv6", "comp", "dccp", "sctp", "redirect"})

FAMILY: Json = {"meta": {"key": "nfproto"}}
INTERFACE: Json = {"meta": {"key": "iifname"}}
PROTOCOL: Json = {"meta": {"key": "l4proto"}}
PORT: Json = {"payload": {"protocol": "th", "field": "dport"}}


def render(_: Ruleset, program: Program, _options: Options) -> str:
    """The document. Raises errors.Refused for foreign parts (see `nft.check`), interfaces that cannot be named, and
    targets with an address."""
    check(program)
    if any(wanted.kind in FORWARDS.values() for wanted in program.maps.values()):
        message = "libnftables' JSON has no maps of address and port, as targets with an address need"
        raise Refused(message, "render it as nft")
    lines = [json.dumps(found, ensure_ascii=False) for found in _objects(program)]
    return '{"nftables": [\n' + ",\n".join(lines) + "\n]}\n"


def _objects(program: Program) -> Iterator[Json]:
    yield {"metainfo": {"json_schema_version": 1}}
    yield {"table": {"family": "inet", "name": TABLE, "comment": MARK}}
    for name, chain in program.chains.items():
        found: Json = {"family": "inet", "table": TABLE, "name": identifier(name)}
        if chain.hook:
            place = chain.hook
            found |= {"type": place.type, "hook": place.hook, "prio": place.priority, "policy": place.policy}
        yield {"chain": found}
    for name in sorted(program.counters):
        yield {"counter": {"family": "inet", "table": TABLE, "name": identifier(name)}}
    for name, wanted in program.maps.items():
        yield {"set" if wanted.kind in SETS else "map": _map(name, wanted)}
    for name, chain in program.chains.items():
        for rule in chain.rules:
            found = {"family": "inet", "table": TABLE, "chain": identifier(name)}
            if comment_of(rule):
                found["comment"] = comment_of(rule)
            yield {"rule": found | {"expr": list(statements(rule))}}


def _map(name: str, wanted: Map) -> Json:
    types = KEY_TYPES[wanted.kind]
    found: Json = {"family": "inet", "table": TABLE, "name": identifier(name)}
    found["type"] = types[0] if len(types) == 1 else list(types)
    if wanted.kind not in SETS:
        found["map"] = DATA_TYPES[wanted.kind][0]
    found["size"] = size(wanted)
    if wanted.entries:
        found["elem"] = list(_elements(wanted))
    return found


def _elements(wanted: Map) -> Iterator[Any]:
    for key, (value, mapping) in wanted.entries.items():
        parts = key_parts(wanted.kind, key)
        found: Any = parts[0] if len(parts) == 1 else {"concat": parts}
        if wanted.kind == INTERFACES:
            found = _interface(key)
        if mapping:
            found = {"elem": {"val": found, "comment": plain(mapping)}}
        if wanted.kind in SETS:
            yield found
        else:
            yield [found, _data(wanted.kind, value)]


def _data(kind: str, value: Any) -> Any:
    if kind == PORTS:
        return value
    return identifier(value) if kind == COUNTS else _jump(value)


def statements(rule: Rule) -> Iterator[Json]:
    """The "expr" of a rule. Raises errors.Refused for a rule that we did not write."""
    match rule:
        case LocalJump(chain):
            yield _match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
            yield _jump(chain)
        case Dispatch("interface", _, _, name):
            yield _look_up("vmap", INTERFACE, name)
        case Dispatch(field, family, prefix, name):
            key: Json = _address(family, "saddr" if field == "source" else "daddr")
            netmask = mask(family, prefix) if field == "source" else ""
            yield _look_up("vmap", {"&": [key, netmask]} if netmask else key, name)
        case Jump(family, interface, chain):
            yield from _family(family)
            if interface:
                yield _match(INTERFACE, _interface(interface))
            yield _jump(chain)
        case Count(family, name):
            yield from _family(family)
            yield {"counter": _look_up("map", {"concat": [PROTOCOL, PORT]}, name)}
        case Translate(rewrite, family, name):
            yield from _family(family)
            yield _match(PROTOCOL, {"set": list(PROTOCOLS)})
            port = _look_up("map", {"concat": [PROTOCOL, PORT]}, name)
            yield {"dnat" if rewrite == "port" else "redirect": {"port": port}}
        case Guard(family, at, name, chain):
            yield _match(INTERFACE, "lo", "!=")
            yield _match({"ct": {"key": "state"}}, "new", "in")
            yield _match({"&": [{"ct": {"key": "status"}}, "dnat"]}, "dnat", "!=")
            if not at:
                yield from _family(family)
            address = [_address(family, "daddr")] if at else []
            yield _match({"concat": [*address, PROTOCOL, PORT]}, f"@{identifier(name)}")
            yield _jump(chain)
        case Refuse("reset"):
            flags = {"payload": {"protocol": "tcp", "field": "flags"}}
            yield _match({"&": [flags, ["fin", "syn", "rst", "ack"]]}, "syn")
            yield {"reject": {"type": "tcp reset"}}
        case Refuse("unreachable"):
            yield _match(PROTOCOL, {"set": ["udp", "sctp"]})
            yield {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
        case Keep():
            yield _match({"ct": {"key": "state"}}, "new", "in")
            yield {"accept": None}
        case _:
            raise Refused(f"a rule that is not ours cannot be written down: {printable(str(rule))}")


def _match(left: Json, right: Any, operator: str = "==") -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _look_up(what: str, key: Json, name: str) -> Json:
    return {what: {"key": key, "data": f"@{identifier(name)}"}}


def _jump(chain: str) -> Json:
    return {"jump": {"target": identifier(chain)}}


def _family(family: str) -> Iterator[Json]:
    if family:
        yield _match(FAMILY, family)


def _address(family: str, field: str) -> Json:
    return {"payload": {"protocol": HEADERS[family], "field": field}}


def _interface(name: str) -> str:
    if name.startswith("@") or name in CONSTANTS:
        message = f'libnftables\' JSON cannot name the interface "{printable(name)}": that has another meaning there'
        raise Refused(message, "render it as nft")
    return plain(name)
