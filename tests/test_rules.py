"""Rules ↔ expressions: each form is read back as what was written, and whatever is not ours is Foreign."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from redirector.backends.nftables import wire
from redirector.backends.nftables.rules import (
    ANONYMOUS,
    Expression,
    comment_of,
    decode_rule,
    encode_expressions,
    expressions,
    parse_expressions,
)
from redirector.backends.nftables.wire import be32
from redirector.netlink import attr, attributes, nest, table
from redirector.program import Count, Foreign, Guard, Jump, Keep, LocalJump, Refuse, Rule, Translate
from tests.strategies import rules


def dumped(found: list[Expression], *, numbers: int = 3) -> tuple[bytes, dict[str, frozenset[int]]]:
    """(NFTA_RULE_EXPRESSIONS, anonymous sets) as the kernel dumps what it was sent.

    It has numbered the anonymous sets, and leaves out the id that they had within the transaction (NFTA_LOOKUP_SET_ID).
    """
    members: dict[str, frozenset[int]] = {}
    sent = encode_expressions(found, list(range(7, 20)))
    elements = []
    ids = iter(found)
    for _, element in attributes(table(sent)[wire.RULE_EXPRESSIONS]):
        expression = next(ids)
        parts = table(element)
        values = list(attributes(parts[wire.EXPR_DATA]))
        if expression.members:
            name = f"__set{numbers + len(members)}"
            members[name] = expression.members
            assert dict(values)[1] == wire.text(ANONYMOUS)
            assert 4 in dict(values)
            values = [(1, wire.text(name)) if kind == 1 else (kind, value) for kind, value in values if kind != 4]
        # The kernel does not set the nested flag, and orders attributes as it likes.
        data = b"".join(attr(kind, value) for kind, value in reversed(values))
        elements.append(attr(wire.LIST_ELEM, attr(wire.EXPR_NAME, parts[wire.EXPR_NAME]) + attr(wire.EXPR_DATA, data)))
    return b"".join(elements), members


@settings(max_examples=200)
@given(rules())
def test_each_form_of_rule_is_read_back_as_what_was_written(rule: Rule) -> None:
    event(type(rule).__name__)
    data, members = dumped(expressions(rule))
    assert decode_rule(parse_expressions(data, members), comment_of(rule) or None) == rule


@given(rules(), st.text(max_size=10))
def test_another_comment_makes_it_foreign(rule: Rule, comment: str) -> None:
    data, members = dumped(expressions(rule))
    found = decode_rule(parse_expressions(data, members), comment)
    assert (found == rule) == (comment == comment_of(rule))
    assert found == rule or isinstance(found, Foreign)


@given(rules(), rules())
def test_different_rules_have_different_expressions(one: Rule, other: Rule) -> None:
    assert (expressions(one) == expressions(other)) == (one == other)


@st.composite
def _tampered(draw: st.DrawFn, rule: Rule) -> list[Expression]:
    """A rule's expressions with one of them left out, doubled, moved, or changed in one attribute."""
    found = list(expressions(rule))
    at = draw(st.integers(0, len(found) - 1))
    match draw(st.sampled_from(("drop", "double", "move", "value", "attribute", "name", "members", "other"))):
        case "drop":
            del found[at]
        case "double":
            found.insert(at, found[at])
        case "move":
            found.insert(draw(st.integers(0, len(found) - 1)), found.pop(at))
        case "value" if found[at].attributes:
            values = list(found[at].attributes)
            index = draw(st.integers(0, len(values) - 1))
            size = len(values[index][1])
            values[index] = (values[index][0], draw(st.one_of(st.binary(min_size=size, max_size=size), st.binary())))
            found[at] = found[at]._replace(attributes=tuple(values))
        case "attribute" if found[at].attributes:
            values = list(found[at].attributes)
            del values[draw(st.integers(0, len(values) - 1))]
            found[at] = found[at]._replace(attributes=tuple(values))
        case "name":
            names = st.sampled_from(
                ("limit", "counter", "objref", "log", "payload", "cmp", "ct", "lookup", "immediate", "fib")
            )
            found[at] = found[at]._replace(name=draw(names))
        case "members":
            found[at] = found[at]._replace(members=frozenset({6, 17}))
        case _:
            found[at:at] = draw(st.sampled_from(OTHERS))
    return found


# What people add by hand: `counter`, `limit`, `tcp flags syn`, `iifname "\xff*"`.
OTHERS = (
    [Expression("counter", ((1, bytes(8)), (2, bytes(8))))],
    [Expression("objref", ((1, be32(1)), (2, b"taken_web\0")))],
    [Expression("objref", ((3, be32(1)), (4, b"counts\0")))],
    [Expression("limit", ((1, bytes(8)),))],
    [Expression("payload", ((1, be32(1)), (2, be32(2)), (3, be32(13)), (4, be32(1))))],
    [
        Expression("meta", ((1, be32(1)), (2, be32(6)))),
        Expression("cmp", ((1, be32(1)), (2, be32(0)), (3, wire.data_value(b"\xff")))),
    ],
    [Expression("ct", ((1, be32(1)), (2, be32(0))))],
)


@settings(max_examples=400)
@given(st.data())
def test_a_rule_that_was_tampered_with_is_that_rule_or_another_or_foreign_but_never_ours_by_mistake(
    data: st.DataObject,
) -> None:
    rule: Rule = data.draw(rules())
    found = data.draw(_tampered(rule))
    read = decode_rule(found, comment_of(rule))
    if not isinstance(read, Foreign):
        assert expressions(read) == found
        assert comment_of(read) == comment_of(rule)
    assert found == expressions(rule) or read != rule


@pytest.mark.parametrize(
    "rule",
    [LocalJump("own"), Jump("ipv4", "eth*", "own"), Guard("", False, "guards", "refuse"), Keep(), Refuse("reset")],
)
def test_the_text_of_a_foreign_rule_is_printable(rule: Rule) -> None:
    for other in OTHERS:
        read = decode_rule([*expressions(rule), *other], "\x1b[31m")
        assert isinstance(read, Foreign)
        assert read.text.isprintable()


def test_foreign_rules_are_told_in_words() -> None:
    drop = Expression("immediate", ((1, be32(0)), (2, wire.verdict(0))))
    accept = Expression("immediate", ((1, be32(0)), (2, wire.verdict(1))))
    assert decode_rule([Expression("counter", ()), drop], None) == Foreign("counter drop")
    assert decode_rule([accept], "mine") == Foreign('accept comment "mine"')
    (lookup,) = (e for e in expressions(Translate("port", "", "elsewhere")) if e.name == "lookup" and not e.members)
    assert decode_rule([lookup, drop], None) == Foreign("lookup @elsewhere drop")
    assert decode_rule([], None) == Foreign("")


def test_interfaces_of_any_bytes_keep_them() -> None:
    for name in (b"\xff", b"\xff*", b"a;b"):
        rule = Jump("", wire.untext(name), "own")
        data, members = dumped(expressions(rule))
        assert decode_rule(parse_expressions(data, members), None) == rule
        assert name.rstrip(b"*") in b"".join(value for e in expressions(rule) for _, value in e.attributes)


def test_attributes_that_only_a_newer_kernel_knows_are_passed_over() -> None:
    data, members = dumped(expressions(Keep()))
    newer = b"".join(
        attr(
            wire.LIST_ELEM,
            attr(wire.EXPR_NAME, table(element)[wire.EXPR_NAME])
            + attr(wire.EXPR_DATA, table(element)[wire.EXPR_DATA] + attr(60, b"new")),
        )
        for _, element in attributes(data)
    )
    assert decode_rule(parse_expressions(newer, members), comment_of(Keep())) == Keep()


def test_members_of_anonymous_sets_count() -> None:
    data, members = dumped(expressions(Translate("port", "", "ports")))
    (name,) = members
    assert members[name] == frozenset({6, 17, 132})
    for other in (frozenset({6}), frozenset({6, 17, 132, 33}), frozenset({-1})):
        assert isinstance(decode_rule(parse_expressions(data, {name: other}), "new port"), Foreign)
    # A named set in its place is another rule, too.
    assert isinstance(decode_rule(parse_expressions(data, {}), "new port"), Foreign)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_some_rule(data: bytes, wrapped: bool) -> None:
    if wrapped:
        inner = attr(wire.EXPR_NAME, b"lookup\0") + nest(wire.EXPR_DATA, data)
        data = attr(wire.LIST_ELEM, inner) + attr(wire.LIST_ELEM, data)
    assert decode_rule(parse_expressions(data, {}), None) is not None


def test_foreign_rules_are_never_written() -> None:
    with pytest.raises(TypeError):
        expressions(Foreign("drop"))


def test_expressions_as_nft_prints_them() -> None:
    """`nft --debug=netlink` of: meta l4proto { tcp, udp, sctp } dnat to :meta l4proto . th dport map @ports.

    And of: counter name meta l4proto . th dport map @counts.
    """
    found = expressions(Translate("port", "", "ports"))
    assert [e.name for e in found] == ["meta", "lookup", "meta", "payload", "lookup", "nat"]
    assert found[3] == Expression("payload", ((1, be32(9)), (2, be32(2)), (3, be32(2)), (4, be32(2))))
    assert found[4] == Expression("lookup", ((1, b"ports\0"), (2, be32(1)), (3, be32(1)), (5, be32(0))))
    counting = expressions(Count("", "counts"))
    assert counting[:2] == found[2:4]
    assert counting[2:] == [Expression("objref", ((3, be32(1)), (4, b"counts\0")))]
    assert found[5] == Expression("nat", tuple((n, be32(v)) for n, v in ((1, 1), (2, 1), (5, 1), (6, 1), (7, 2))))


def test_a_look_up_in_nothing_is_foreign() -> None:
    """Without the name of a set, where there is a set without a name: the fuzzer found it."""
    data = table(encode_expressions([Expression("lookup", ())], []))[wire.RULE_EXPRESSIONS]
    assert isinstance(decode_rule(parse_expressions(data, {"": frozenset({6})}), None), Foreign)
