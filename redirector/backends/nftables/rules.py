"""Rules ↔ nf_tables expressions. Pure.

Theory of operation. A rule is a list of expressions, each a name and attributes; registers carry values from one to
the next. `encode_rule` writes every attribute that the kernel will dump, so that reading needs no second description
of the forms: `decode_rule` guesses from a dump which Rule it could be, encodes that guess, and compares. Equal means
that it *is* that rule, down to the last attribute; anything else is `Foreign`, told in words. Attributes that only a
newer kernel knows (numbers past what we send) are passed over, so that a kernel update invents no drift.

Registers: 1 is the first 16 bytes, 9 and 10 its second and third 4-byte parts; 2 is the next 16 bytes, 13 their second
4-byte part; 0 is the verdict.
"""

from __future__ import annotations

from itertools import pairwise

from redirector.backends.nftables import wire
from redirector.backends.nftables.wire import be32, data_value, text
from redirector.errors import printable
from redirector.model import PROTOCOLS
from redirector.netlink import NLA_F_NESTED, attr, attributes, nest, table
from redirector.program import (
    Count,
    Dispatch,
    Foreign,
    Guard,
    Jump,
    Keep,
    LocalJump,
    Masquerade,
    Refuse,
    Rule,
    Skip,
    Translate,
)
from redirector.records import NamedTuple

REG_VERDICT, REG_1, REG_2, REG32_01, REG32_02, REG32_05 = 0, 1, 2, 9, 10, 13
META_IIFNAME, META_NFPROTO, META_L4PROTO = 6, 15, 16  # enum nft_meta_keys
CT_STATE, CT_STATUS = 0, 2  # enum nft_ct_keys
CT_STATE_NEW = 8  # NF_CT_STATE_BIT(IP_CT_NEW), native order in a register
IPS_DST_NAT = 1 << 5  # linux/netfilter/nf_conntrack_common.h
EQ, NEQ = 0, 1  # NFT_CMP_EQ, NFT_CMP_NEQ
BASE_NETWORK, BASE_TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
FIB_SADDR, FIB_DADDR = 1, 1 << 1  # NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR
FIB_ADDRTYPE, RTN_LOCAL = 3, 2  # NFT_FIB_RESULT_ADDRTYPE, linux/rtnetlink.h
NAT_DNAT, MAP_IPS, PROTO_SPECIFIED = 1, 1, 1 << 1  # NFT_NAT_DNAT, NF_NAT_RANGE_MAP_IPS, …_PROTO_SPECIFIED
REJECT_RESET, REJECT_ICMPX, ICMPX_PORT_UNREACH = 1, 2, 1
# Offsets (bytes) in the IPv4 (RFC 791) and IPv6 (RFC 8200) header, and sizes.
SOURCE_AT = {"ipv4": (12, 4), "ipv6": (8, 16)}
DESTINATION_AT = {"ipv4": (16, 4), "ipv6": (24, 16)}
# What tells an address on loopback from others: the first byte of an IPv4 one, or all of an IPv6 one.
LOOPBACK = {"ipv4": b"\x7f", "ipv6": bytes(15) + b"\x01"}
# What holds the port in a register that begins with an address.
AFTER_ADDRESS = {"ipv4": REG32_01, "ipv6": REG_2}

ANONYMOUS = "__set%d"  # the kernel numbers anonymous sets by this pattern

COMMENTS = {
    LocalJump: "only what is addressed to this host",
    Count: "connections by mapping",
    Keep: "drained: keeps what was redirected alive",
    Skip: "loopback does not leave this host",
    Masquerade: "a neighbour's answer would not come back here",
    Guard: "targets of exclusive mappings are not for direct use",
}
TRANSLATED = {
    "port": "new port",
    "redirect": "new port at the interface's own address",
    "forward": "new address and port",
}


class Expression(NamedTuple):
    """A name, its attributes as (type, value) in ascending order, and for a look-up in an anonymous set its members."""

    name: str
    attributes: tuple[tuple[int, bytes], ...]
    members: frozenset[int] = frozenset()


def _expression(name: str, *parts: tuple[int, bytes]) -> Expression:
    return Expression(name, tuple(sorted(parts)))


def _meta(key: int, register: int = REG_1) -> Expression:
    return _expression("meta", (2, be32(key)), (1, be32(register)))


def _cmp(operator: int, value: bytes) -> Expression:
    return _expression("cmp", (1, be32(REG_1)), (2, be32(operator)), (3, data_value(value)))


def _payload(base: int, offset: int, length: int, register: int = REG_1) -> Expression:
    return _expression("payload", (1, be32(register)), (2, be32(base)), (3, be32(offset)), (4, be32(length)))


def _masked(mask: bytes) -> Expression:
    parts = (1, be32(REG_1)), (2, be32(REG_1)), (3, be32(len(mask))), (4, data_value(mask))
    return _expression("bitwise", *parts, (5, data_value(bytes(len(mask)))), (6, be32(0)))


def _lookup(name: str, destination: int | None) -> Expression:
    parts = [(1, text(name)), (2, be32(REG_1)), (5, be32(0))]
    if destination is not None:
        parts.append((3, be32(destination)))
    return _expression("lookup", *parts)


def _member_of(protocols: frozenset[int]) -> Expression:
    parts = (1, text(ANONYMOUS)), (2, be32(REG_1)), (5, be32(0))
    return Expression("lookup", tuple(sorted(parts)), protocols)


def _verdict(code: int, chain: str = "") -> Expression:
    return _expression("immediate", (1, be32(REG_VERDICT)), (2, wire.verdict(code, chain)))


def _jump(chain: str) -> Expression:
    return _verdict(wire.NFT_JUMP, chain)


def _ct(key: int) -> Expression:
    return _expression("ct", (2, be32(key)), (1, be32(REG_1)))


def _family(family: str) -> list[Expression]:
    return [_meta(META_NFPROTO), _cmp(EQ, bytes((wire.NFPROTO[family],)))] if family else []


def _native(number: int) -> bytes:
    """A value that the kernel puts into a register in the machine's own order."""
    import sys

    return number.to_bytes(4, sys.byteorder)


def _port_key(first: int, second: int) -> list[Expression]:
    """Protocol and destination port, in the registers that a concatenated key takes."""
    return [_meta(META_L4PROTO, first), _payload(BASE_TRANSPORT, 2, 2, second)]


def _endpoint_key(family: str) -> list[Expression]:
    """Destination address, protocol and port, in the registers that a concatenated key takes: the address the first 4
    or 16 bytes, then 4 bytes each."""
    after = AFTER_ADDRESS[family]
    port = REG32_02 if family == "ipv4" else REG32_05
    return [_payload(BASE_NETWORK, *DESTINATION_AT[family]), *_port_key(after, port)]


def expressions(rule: Rule) -> list[Expression]:
    """What the kernel gets for a rule, and dumps for it. Raises TypeError for a Foreign one."""
    match rule:
        case LocalJump(chain):
            fib = _expression("fib", (1, be32(REG_1)), (2, be32(FIB_ADDRTYPE)), (3, be32(FIB_DADDR)))
            return [fib, _cmp(EQ, _native(RTN_LOCAL)), _jump(chain)]
        case Dispatch("interface", _, _, name):
            return [_meta(META_IIFNAME), _lookup(name, REG_VERDICT)]
        case Dispatch(field, family, prefix, name):
            offset, length = (SOURCE_AT if field == "source" else DESTINATION_AT)[family]
            found = [*_family(family), _payload(BASE_NETWORK, offset, length)]
            if field == "source" and prefix < length * 8:
                ones = (1 << length * 8) - (1 << length * 8 - prefix)
                found.append(_masked(ones.to_bytes(length, "big")))
            return [*found, _lookup(name, REG_VERDICT)]
        case Jump(family, interface, chain):
            found = _family(family)
            if interface:
                # A wildcard compares only the bytes before the "*"; a name all of them.
                stem = text(interface[:-1])[:-1] if interface.endswith("*") else text(interface).ljust(16, b"\0")
                found += [_meta(META_IIFNAME), _cmp(EQ, stem)]
            return [*found, _jump(chain)]
        case Count(family, name):
            counted = _expression("objref", (3, be32(REG_1)), (4, text(name)))
            return [*_family(family), *_port_key(REG_1, REG32_01), counted]
        case Translate(rewrite, family, name):
            found = [*_family(family), _meta(META_L4PROTO), _member_of(frozenset(PROTOCOLS.values()))]
            found += [*_port_key(REG_1, REG32_01), _lookup(name, REG_1)]
            if rewrite == "redirect":
                return [
                    *found,
                    _expression("redir", *((n, be32(v)) for n, v in ((1, 1), (2, 1), (3, PROTO_SPECIFIED)))),
                ]
            if rewrite == "forward":
                port, parts = AFTER_ADDRESS[family], MAP_IPS | PROTO_SPECIFIED
                to = [(2, wire.NFPROTO[family]), (3, REG_1), (4, REG_1), (5, port), (6, port), (7, parts)]
            else:
                to = [(2, wire.NFPROTO_INET), (5, REG_1), (6, REG_1), (7, PROTO_SPECIFIED)]
            return [*found, _expression("nat", *((n, be32(v)) for n, v in [(1, NAT_DNAT), *to]))]
        case Skip(family):
            value = LOOPBACK[family]
            destination = _payload(BASE_NETWORK, DESTINATION_AT[family][0], len(value))
            return [*_family(family), destination, _cmp(EQ, value), _verdict(wire.NFT_RETURN)]
        case Masquerade(name, family):
            found = [_ct(CT_STATUS), _masked(_native(IPS_DST_NAT)), _cmp(NEQ, bytes(4))]
            fib = _expression("fib", (1, be32(REG_1)), (2, be32(FIB_ADDRTYPE)), (3, be32(FIB_SADDR)))
            found += [fib, _cmp(NEQ, _native(RTN_LOCAL)), *_family(family), *_endpoint_key(family)]
            return [*found, _lookup(name, None), _expression("masq")]
        case Guard(family, at, name, chain):
            found = [_meta(META_IIFNAME), _cmp(NEQ, text("lo").ljust(16, b"\0"))]
            found += [_ct(CT_STATE), _masked(_native(CT_STATE_NEW)), _cmp(NEQ, bytes(4))]
            found += [_ct(CT_STATUS), _masked(_native(IPS_DST_NAT)), _cmp(NEQ, _native(IPS_DST_NAT))]
            found += _family(family)
            found += _endpoint_key(family) if at else _port_key(REG_1, REG32_01)
            return [*found, _lookup(name, None), _jump(chain)]
        case Refuse("reset"):
            flags = [_payload(BASE_TRANSPORT, 13, 1), _masked(b"\x17"), _cmp(EQ, b"\x02")]
            reject = _expression("reject", (1, be32(REJECT_RESET)))
            # Of FIN, SYN, RST and ACK only SYN: a connection that begins. One that conntrack never saw goes on.
            return [_meta(META_L4PROTO), _cmp(EQ, bytes((PROTOCOLS["tcp"],))), *flags, reject]
        case Refuse("unreachable"):
            reject = _expression("reject", (1, be32(REJECT_ICMPX)), (2, bytes((ICMPX_PORT_UNREACH,))))
            return [_meta(META_L4PROTO), _member_of(frozenset({PROTOCOLS["udp"], PROTOCOLS["sctp"]})), reject]
        case Keep():
            return [_ct(CT_STATE), _masked(_native(CT_STATE_NEW)), _cmp(NEQ, bytes(4)), _verdict(wire.NFT_ACCEPT)]
    raise TypeError(f"no encoding for {rule!r}")


def comment_of(rule: Rule) -> str:
    """What stands behind the rule in a listing, "" for those that speak for themselves."""
    if isinstance(rule, Translate):
        return TRANSLATED[rule.rewrite]
    return COMMENTS.get(type(rule), "")


def encode_expressions(found: list[Expression], set_ids: list[int]) -> bytes:
    """The attribute NFTA_RULE_EXPRESSIONS; `set_ids` gives the transaction's id of each anonymous set, in order."""
    ids = iter(set_ids)
    encoded = []
    for expression in found:
        values = [
            attr(kind | (NLA_F_NESTED if _nested(expression.name, kind) else 0), v) for kind, v in expression.attributes
        ]
        if expression.members:
            values.append(attr(4, be32(next(ids))))  # NFTA_LOOKUP_SET_ID
        name = attr(wire.EXPR_NAME, text(expression.name))
        encoded.append(nest(wire.LIST_ELEM, name, nest(wire.EXPR_DATA, *values)))
    return nest(wire.RULE_EXPRESSIONS, *encoded)


def _nested(name: str, kind: int) -> int:
    """NLA_F_NESTED for the attributes that hold attributes, else 0."""
    return NLA_F_NESTED if (name, kind) in (("cmp", 3), ("bitwise", 4), ("bitwise", 5), ("immediate", 2)) else 0


# The highest attribute of each expression that this module knows (nf_tables.h as of Linux 6.12).
_KNOWN = {"meta": 3, "cmp": 3, "payload": 8, "bitwise": 7, "lookup": 5, "immediate": 2, "ct": 4, "fib": 3}
_KNOWN |= {"redir": 3, "nat": 7, "masq": 3, "reject": 2, "objref": 5}


def parse_expressions(data: bytes, members: dict[str, frozenset[int]]) -> list[Expression]:
    """The expressions of a dumped rule; `members` resolves anonymous sets, whose numbers mean nothing."""
    found = []
    for _, element in attributes(data):
        parts = table(element)
        name = wire.untext(parts.get(wire.EXPR_NAME, b""))
        highest = _KNOWN.get(name, 1 << 14)
        values = dict(_canonical(name, k, v) for k, v in attributes(parts.get(wire.EXPR_DATA, b"")) if k <= highest)
        contents: frozenset[int] = frozenset()
        looked_up = wire.untext(values.get(1, b"")) if name == "lookup" else ""
        if looked_up and looked_up in members:
            contents = members[looked_up]
            values[1] = text(ANONYMOUS)
        found.append(Expression(name, tuple(sorted(values.items())), contents))
    return found


def _canonical(name: str, kind: int, value: bytes) -> tuple[int, bytes]:
    """A dumped attribute as we would have written it (the kernel sets or leaves the nested bit as it likes)."""
    if not _nested(name, kind):
        return kind, value
    inner = table(value)
    if wire.DATA_VERDICT in inner:
        verdict = table(inner[wire.DATA_VERDICT])
        chain = wire.untext(verdict.get(wire.VERDICT_CHAIN, b""))
        return kind, wire.verdict(wire.number(verdict.get(wire.VERDICT_CODE)), chain)
    return kind, data_value(inner.get(wire.DATA_VALUE, b""))


def decode_rule(found: list[Expression], comment: str | None) -> Rule:
    """The rule that these expressions are; Foreign if they are none of ours."""
    guess = _guess(found)
    if guess is not None and expressions(guess) == found and (comment or "") == comment_of(guess):
        return guess
    note = f' comment "{printable(comment)}"' if comment else ""
    return Foreign(" ".join(printable(_words(expression)) for expression in found) + note)


def _guess(found: list[Expression]) -> Rule | None:
    """The only rule that these expressions could be, by their names and by what their attributes refer to."""
    named = {expression.name: dict(expression.attributes) for expression in found}
    names = [expression.name for expression in found]
    looked_up = wire.untext(named["lookup"].get(1, b"")) if "lookup" in named else ""
    chain = wire.jump_target(named["immediate"].get(2, b"")) if "immediate" in named else None
    family = _guess_family(found)
    if "objref" in named:
        return Count(family, wire.untext(named["objref"].get(4, b"")))
    if "fib" in named and chain:
        return LocalJump(chain)
    if "masq" in named:
        return Masquerade(looked_up, family) if family else None
    if "redir" in named or "nat" in named:
        forward = 3 in named.get("nat", ())  # NFTA_NAT_REG_ADDR_MIN
        if forward and not family:
            return None
        return Translate("redirect" if "redir" in named else "forward" if forward else "port", family, looked_up)
    if "reject" in named:
        return Refuse("reset" if "cmp" in named else "unreachable")
    if names[:1] == ["ct"]:
        return Keep()
    if "ct" in named and chain:
        at = names.count("payload") == 2
        return Guard(family, at, looked_up, chain) if family or not at else None
    if chain is None and family and names[-1:] == ["immediate"]:
        return Skip(family)
    if looked_up and "payload" in named:
        offset = wire.number(named["payload"].get(3))
        field = "source" if family in SOURCE_AT and offset == SOURCE_AT[family][0] else "address"
        mask = table(named["bitwise"].get(4, b"")).get(wire.DATA_VALUE, b"") if "bitwise" in named else b""
        full = 128 if family == "ipv6" else 32
        prefix = int.from_bytes(mask, "big").bit_count() if mask else full
        return Dispatch(field, family, prefix if field == "source" else 0, looked_up) if family else None
    if looked_up:
        return Dispatch("interface", "", 0, looked_up)
    if chain:
        return Jump(family, _guess_interface(found), chain)
    return None


def _guess_family(found: list[Expression]) -> str:
    for before, after in pairwise(found):
        if before == _meta(META_NFPROTO):
            value = table(dict(after.attributes).get(3, b"")).get(wire.DATA_VALUE, b"")
            return next((family for family, number in wire.NFPROTO.items() if value == bytes((number,))), "")
    return ""


def _guess_interface(found: list[Expression]) -> str:
    for before, after in pairwise(found):
        if before == _meta(META_IIFNAME):
            value = table(dict(after.attributes).get(3, b"")).get(wire.DATA_VALUE, b"")
            name = wire.untext(value)
            return name if len(value) == 16 else f"{name}*"
    return ""


def _words(expression: Expression) -> str:
    """A foreign expression, short: its name and what it refers to."""
    values = dict(expression.attributes)
    if expression.name == "lookup":
        return f"lookup @{wire.untext(values.get(1, b''))}"
    if expression.name == "objref":  # of one object, or of those of a map
        return f"object @{wire.untext(values[4])}" if 4 in values else f"object {wire.untext(values.get(2, b''))}"
    if expression.name == "immediate":
        chain = wire.jump_target(values.get(2, b""))
        code = wire.number(table(table(values.get(2, b"")).get(wire.DATA_VERDICT, b"")).get(wire.VERDICT_CODE))
        return f"jump {chain}" if chain else {0: "drop", 1: "accept"}.get(code, "verdict")
    return expression.name
