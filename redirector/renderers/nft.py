"""Program → text for `nft -f`, in the very form in which nft lists a table. Pure.

The form is that of `nft --stateless --numeric-priority list table inet redirector`, as of nft 1.0.6. It adds to what is
there, as a listing does: to replace a table, delete it first in the same file.

What is written has been validated long before, when the mappings were parsed. Every name and every string goes through
`identifier` and `plain` all the same, because nft's language has no escapes: whatever follows a string's end is rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from redirector.backends.nftables import wire
from redirector.backends.nftables.encode import MARK
from redirector.backends.nftables.rules import comment_of
from redirector.errors import Refused, printable
from redirector.model import PROTOCOLS, Ruleset
from redirector.naming import TABLE
from redirector.plan import capacity_for
from redirector.program import (
    ADDRESSES,
    COUNTS,
    FORWARDS,
    GUARDS,
    GUARDS_AT,
    INTERFACES,
    PORTS,
    SETS,
    TRANSLATIONS,
    VERDICTS,
    Chain,
    Count,
    Dispatch,
    Guard,
    Jump,
    Keep,
    LocalJump,
    Map,
    Masquerade,
    Program,
    Refuse,
    Rule,
    Skip,
    Translate,
    endpoint_parts,
)
from redirector.renderers import Options

# nft's token for names (src/scanner.l, "string"), less the "\" that it also allows.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*", re.ASCII)
NEXT_ELEMENT = ",\n\t\t\t     "
COMMENT_BYTES = 128  # with the final NUL: NFTNL_UDATA_COMMENT_MAXLEN, libnftnl/udata.h

# Data types of key and value, as nft names them (`nft describe`).
PORT_KEY = ("inet_proto", "inet_service")
KEY_TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRANSLATIONS, PORT_KEY),
    COUNTS: PORT_KEY,
    GUARDS: PORT_KEY,
    GUARDS_AT["ipv4"]: ("ipv4_addr", *PORT_KEY),
    GUARDS_AT["ipv6"]: ("ipv6_addr", *PORT_KEY),
    ADDRESSES["ipv4"]: ("ipv4_addr",),
    ADDRESSES["ipv6"]: ("ipv6_addr",),
    INTERFACES: ("ifname",),
}
DATA_TYPES: dict[str, tuple[str, ...]] = {  # none for a set
    PORTS: ("inet_service",),
    FORWARDS["ipv4"]: ("ipv4_addr", "inet_service"),
    FORWARDS["ipv6"]: ("ipv6_addr", "inet_service"),
    COUNTS: ("counter",),
    **dict.fromkeys(VERDICTS, ("verdict",)),
}
LOOPBACK = {"ipv4": "127.0.0.0/8", "ipv6": "::1"}
HEADERS = {"ipv4": "ip", "ipv6": "ip6"}  # what nft calls the network header
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def render(_: Ruleset, program: Program, _options: Options) -> str:
    """The table as text. Raises errors.Refused for a Program that was not compiled but observed, with foreign parts."""
    check(program)
    blocks = [_block("counter", name, []) for name in sorted(program.counters)]
    blocks += [_map(name, found) for name, found in program.maps.items()]
    blocks += [_chain(name, chain) for name, chain in program.chains.items()]
    head = f"table inet {TABLE} {{\n\tcomment {quoted(MARK)}\n"
    return head + "\n\n".join(blocks) + "\n}\n"


def check(program: Program) -> None:
    """Raises errors.Refused where something is in the table that only others can have put there."""
    for name, found in program.maps.items():
        if found.kind not in KEY_TYPES or any(len(entry) != 2 for entry in found.entries.values()):
            raise Refused(f"map {printable(name)} is not ours, or has entries that are not: it cannot be written down")
    if program.flags or program.strays:
        raise Refused("the table has flags or objects that are not ours: it cannot be written down")


def identifier(name: str) -> str:
    """The name of a chain, map or counter as it is. Raises errors.Refused if nft would not read it as one word."""
    if not IDENTIFIER.fullmatch(name):
        raise Refused(f"{printable(name)} cannot be written as a name of nft's")
    return name


def plain(text: str) -> str:
    """`text` as it is. Raises errors.Refused if it would end a string of nft's, or is longer than a comment can be."""
    if not text.isprintable() or '"' in text or "\\" in text or len(text.encode()) >= COMMENT_BYTES:
        raise Refused(f"{printable(text)} cannot be written as a string of nft's")
    return text


def quoted(text: str) -> str:
    return f'"{plain(text)}"'


def size(found: Map) -> int:
    """How many entries the map can take: the kernel's number where it was observed, else what we would ask for."""
    return found.capacity or capacity_for(len(found.entries))


def mask(family: str, prefix: int) -> str:
    """The netmask of a prefix, "" for one that covers the whole address."""
    bits = 128 if family == "ipv6" else 32
    if prefix >= bits:
        return ""
    ones = (1 << bits) - (1 << bits - prefix)
    return wire.parse_address(ones.to_bytes(bits // 8, "big"))


def key_parts(kind: str, key: Any) -> list[str | int]:
    """The parts of a map's key: addresses and names as text (not quoted), ports as numbers."""
    if kind in TRANSLATIONS or kind in (COUNTS, GUARDS):
        return [PROTOCOL_NAMES.get(key >> 16, key >> 16), key & 0xFFFF]
    if kind in GUARDS_AT.values():
        return [key[0], *key_parts(GUARDS, key[1])]
    return [key]


def _map(name: str, found: Map) -> str:
    data = "" if found.kind in SETS else f" : {' . '.join(DATA_TYPES[found.kind])}"
    lines = [f"\ttype {' . '.join(KEY_TYPES[found.kind])}{data}", f"\tsize {size(found)}"]
    if found.entries:
        lines.append("\telements = { " + NEXT_ELEMENT.join(_elements(found)) + " }")
    return _block("set" if found.kind in SETS else "map", name, lines)


def _elements(found: Map) -> Iterator[str]:
    for key, (value, mapping) in found.entries.items():
        parts = key_parts(found.kind, key)
        text = quoted(key) if found.kind == INTERFACES else " . ".join(map(str, parts))
        if mapping:
            text += f" comment {quoted(mapping)}"
        if found.kind == PORTS:
            text += f" : {value}"
        elif found.kind in TRANSLATIONS:
            text += " : " + " . ".join(map(str, endpoint_parts(found.kind, value)))
        elif found.kind == COUNTS:
            text += f' : "{identifier(value)}"'
        elif found.kind in VERDICTS:
            text += f" : jump {identifier(value)}"
        yield text


def _chain(name: str, chain: Chain) -> str:
    lines = []
    if chain.hook:
        place = chain.hook
        lines.append(f"\ttype {place.type} hook {place.hook} priority {place.priority}; policy {place.policy};")
    for rule in chain.rules:
        comment = comment_of(rule)
        lines.append("\t" + " ".join(words(rule)) + (f" comment {quoted(comment)}" if comment else ""))
    return _block("chain", name, lines)


def _block(what: str, name: str, lines: list[str]) -> str:
    return "\n".join([f"\t{what} {identifier(name)} {{", *(f"\t{line}" for line in lines), "\t}"])


def words(rule: Rule) -> Iterator[str]:
    """A rule in nft's language, without its comment. Raises errors.Refused for one that we did not write."""
    port_key = "meta l4proto . th dport"
    match rule:
        case LocalJump(chain):
            yield f"fib daddr type local jump {identifier(chain)}"
        case Dispatch("interface", _, _, name):
            yield f"iifname vmap @{identifier(name)}"
        case Dispatch(field, family, prefix, name):
            yield f"{HEADERS[family]} {'saddr' if field == 'source' else 'daddr'}"
            netmask = mask(family, prefix) if field == "source" else ""
            if netmask:
                yield f"& {netmask}"
            yield f"vmap @{identifier(name)}"
        case Jump(family, interface, chain):
            yield from _family(family)
            if interface:
                yield f"iifname {quoted(interface)}"
            yield f"jump {identifier(chain)}"
        case Count(family, name):
            yield from _family(family)
            yield f"counter name {port_key} map @{identifier(name)}"
        case Skip(family):
            yield f"{HEADERS[family]} daddr {LOOPBACK[family]} return"
        case Translate(rewrite, family, name):
            yield from _family(family)
            # nft wants to know the transport header before it looks a port up.
            yield f"meta l4proto {{ {', '.join(PROTOCOLS)} }}"
            if rewrite == "forward":
                yield f"dnat {HEADERS[family]} to {port_key} map @{identifier(name)}"
            else:
                yield f"{'dnat' if rewrite == 'port' else 'redirect'} to :{port_key} map @{identifier(name)}"
        case Masquerade(name, family):
            yield "ct status dnat fib saddr type != local"
            yield f"{HEADERS[family]} daddr . {port_key} @{identifier(name)} masquerade"
        case Guard(family, at, name, chain):
            yield 'iifname != "lo" ct state new ct status & dnat != dnat'
            if at:
                yield f"{HEADERS[family]} daddr . {port_key}"
            else:
                yield from _family(family)
                yield port_key
            yield f"@{identifier(name)} jump {identifier(chain)}"
        case Refuse("reset"):
            yield "tcp flags syn / fin,syn,rst,ack reject with tcp reset"
        case Refuse("unreachable"):
            yield "meta l4proto { udp, sctp } reject"  # in the inet family: with icmpx port-unreachable
        case Keep():
            yield "ct state new accept"
        case _:
            raise Refused(f"a rule that is not ours cannot be written down: {printable(str(rule))}")


def _family(family: str) -> Iterator[str]:
    if family:
        yield f"meta nfproto {family}"
