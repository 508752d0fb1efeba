"""What a mapping and a ruleset refuse, and what they mean."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.decide import Packet, covers
from redirector.model import (
    ARRIVING,
    MAX_ELEMENTS,
    OWN,
    Claim,
    InvalidModel,
    Mapping,
    Ports,
    Problem,
    Ruleset,
    Scope,
    Target,
    family_problems,
    ruleset_problems,
)
from tests.strategies import mapping, mappings_, packets, quick, rebuilt, rulesets


def refused(**values: Any) -> list[Problem]:
    with pytest.raises(InvalidModel) as caught:
        Mapping(name="m", **values)
    return caught.value.problems


def clash(*mappings: Mapping) -> list[Problem]:
    """The problems of a ruleset that must have some."""
    with pytest.raises(InvalidModel) as caught:
        Ruleset(mappings)
    assert caught.value.problems == ruleset_problems(mappings)
    return caught.value.problems


def test_listen_must_hold_something() -> None:
    assert [p.path for p in refused(listen=(), to=Ports(1, 1))] == [("listen",)]


def test_overlap_within_listen_is_told_at_the_later_one() -> None:
    problems = refused(listen=(Ports(90, 99), Ports(1, 1), Ports(80, 95)), to=Ports(1, 1))
    assert [p.path for p in problems] == [("listen", 2)]
    assert "80-95 overlaps 90-99" in problems[0].message
    assert [p.path for p in refused(listen=(Ports(5, 5), Ports(5, 5)), to=Ports(1, 1))] == [("listen", 1)]


def test_neighbours_within_listen_do_not_overlap() -> None:
    assert Mapping("m", (Ports(81, 89), Ports(80, 80), Ports(90, 90)), Ports(1, 1)).elements == 11


def test_a_range_in_to_needs_one_range_of_its_length() -> None:
    several = refused(listen=(Ports(1, 2), Ports(4, 5)), to=Ports(11, 12))
    assert [p.path for p in several] == [("to",)]
    longer = refused(listen=(Ports(1, 3),), to=Ports(11, 12))
    assert [(p.path, p.hint) for p in longer] == [(("to",), 'to = "11-13" has the length of listen')]
    beyond = refused(listen=(Ports(1, 9),), to=Ports(65534, 65535))
    assert [(p.path, p.hint) for p in beyond] == [(("to",), "")]


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({"family": "ipv6", "address": ("192.0.2.1",)}, [("address", 0)]),
        ({"family": "ipv4", "source": ("10.0.0.0/8", "fd00::/8")}, [("source", 1)]),
        ({"address": ("192.0.2.1",), "source": ("fd00::/8",)}, [("address", 0), ("source", 0)]),
        ({"address": ("192.0.2.1", "fd00::1"), "source": ("fd00::/8",)}, [("address", 0)]),
        ({"address": ("fd00::1",), "source": ("10.0.0.0/8", "fd00::/8")}, [("source", 0)]),
    ],
)
def test_families_must_fit(values: dict[str, Any], paths: list[tuple[str, int]]) -> None:
    assert [p.path for p in refused(listen=(Ports(1, 1),), to=Ports(1, 1), **values)] == paths


def test_all_problems_of_a_mapping_are_told() -> None:
    problems = refused(listen=(Ports(1, 5), Ports(5, 6)), to=Ports(1, 3), family="ipv4", address=("::1",))
    assert [p.path[0] for p in problems] == ["listen", "to", "address"]


def test_claims_are_every_source_at_every_address_of_its_family_on_every_interface() -> None:
    places = [("10.0.0.0/8", "192.0.2.1"), ("fd00::/8", "fd00::1")]
    sources, addresses = zip(*places, strict=True)
    found = mapping(source=sources, address=addresses, interface=("eth0", "lo"))
    expected = {Claim(ARRIVING, Scope(*place, "eth0")) for place in places}
    assert set(found.claims) == expected | {Claim(OWN, Scope(*place, "lo")) for place in places}
    assert len(found.claims) == 4


def test_local_claims_the_addresses_only() -> None:
    found = mapping(source=("10.0.0.0/8",), address=("192.0.2.1",), interface=("eth0",), local=True)
    assert set(found.claims) == {
        Claim(ARRIVING, Scope("10.0.0.0/8", "192.0.2.1", "eth0")),
        Claim(OWN, Scope("", "192.0.2.1", "")),
    }


def test_names_are_unique_even_when_disabled() -> None:
    problems = clash(mapping("a"), mapping("b", "81"), mapping("a", "82", enabled=False))
    assert [(p.path, p.related) for p in problems] == [(("mapping", 2, "name"), ("mapping", 0, "name"))]


def test_equal_scopes_conflict_and_both_are_named() -> None:
    problems = clash(mapping("a", "80-90"), mapping("b", "100"), mapping("c", "90-95"))
    assert [(p.path, p.related) for p in problems] == [(("mapping", 2, "listen"), ("mapping", 0, "listen"))]
    assert '"c" and "a" both claim tcp 90 of everybody' in problems[0].message


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ({}, {}, True),
        ({}, {"rewrite": "redirect"}, True),
        ({}, {"exclusive": True}, True),
        ({}, {"protocol": ("udp",)}, False),
        ({}, {"protocol": ("sctp", "udp", "tcp")}, True),
        ({"family": "ipv4"}, {"family": "ipv6"}, False),
        ({"family": "ipv4"}, {}, True),
        ({}, {"source": ("0.0.0.0/0",)}, False),
        ({"source": ("10.0.0.0/8",)}, {"source": ("10.0.0.0/8", "::/0")}, True),
        ({"source": ("10.0.0.0/8",)}, {"source": ("10.0.0.0/9",)}, False),
        # Both also claim the host's own connections, whatever their sources are.
        ({"source": ("10.0.0.0/8",), "local": True}, {"source": ("10.0.0.0/9",), "local": True}, True),
        ({"interface": ("lo",)}, {"interface": ("lo",), "local": True}, True),
        ({"interface": ("lo",)}, {}, False),
        ({"address": ("192.0.2.1",)}, {}, False),
        ({"address": ("192.0.2.1",)}, {"address": ("192.0.2.2", "192.0.2.1")}, True),
        ({"address": ("192.0.2.1",)}, {"address": ("192.0.2.1",), "family": "ipv4"}, True),
        ({"interface": ("eth*",)}, {"interface": ("eth0",)}, False),
        ({}, {"enabled": False}, False),
    ],
)
def test_what_conflicts(one: dict[str, Any], other: dict[str, Any], conflict: bool) -> None:
    mappings = [mapping("one", **one), mapping("other", **other)]
    assert bool(ruleset_problems(mappings)) is conflict
    assert bool(ruleset_problems(mappings[::-1])) is conflict


def test_a_conflict_over_the_hosts_own_connections_says_so() -> None:
    one, other = (mapping(f"m{n}", source=(f"10.0.0.0/{n}",), local=True) for n in (8, 9))
    problem = clash(one, other)[0]
    assert "of this host's own connections" in problem.message
    assert problem.hint == "say local = false in one of them"


def test_each_pair_is_told_once() -> None:
    many: dict[str, Any] = {"protocol": ("tcp", "udp", "sctp"), "address": ("192.0.2.1", "fd00::1")}
    problems = clash(mapping("a", "1-50", **many), mapping("b", "1-50", **many), mapping("c", "50-60", **many))
    assert sorted((p.path[1], p.related[1]) for p in problems) == [(1, 0), (2, 0), (2, 1)]


def test_size_is_bounded_and_the_mapping_named() -> None:
    four = mapping("four", "1-65535", "1-65535", address=("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
    assert four.elements == 262_140 <= MAX_ELEMENTS
    Ruleset((four,))
    five = rebuilt(four, name="five", address=(*four.address, "10.0.0.5"))
    assert [p.path for p in clash(five)] == [("mapping", 0, "listen")]
    guarded = rebuilt(four, exclusive=True)  # the guards count as well
    assert guarded.elements == 2 * 262_140
    assert [p.path for p in clash(guarded)] == [("mapping", 0, "listen")]


def test_size_is_counted_and_not_made() -> None:
    """Every source meets every address on every interface: 8 billion scopes of 6,000 words, which no memory holds."""
    words = range(2_000)
    sources, addresses = (tuple(f"10.{i >> 8}.{i & 255}.{end}" for i in words) for end in ("0/24", "1"))
    vast = mapping("vast", source=sources, address=addresses, interface=tuple(f"eth{i}" for i in words))
    assert vast.elements == 2_000**3
    assert [p.path for p in clash(vast, mapping("other", "1-9"))] == [("mapping", 0, "listen")]


def test_the_size_of_all_together_is_bounded_and_told_once() -> None:
    every = tuple(mapping(f"m{i}", "1-65535", "1-65535", address=(f"10.0.0.{i}",)) for i in range(1, 20))
    Ruleset(every[:16])
    (problem,) = clash(*every)
    assert problem.path == ("mapping", 16, "listen")
    assert "1,048,576" in problem.message
    # What is not in force takes no room.
    Ruleset((*every[:16], *(rebuilt(found, enabled=False) for found in every[16:])))


def test_families_of_long_lists_are_compared_quickly() -> None:
    """50,000 addresses of one family and as many networks of the other: each is told, none is compared with all."""
    sources = tuple(f"10.{i >> 8}.{i & 255}.0/24" for i in range(50_000))
    addresses = tuple(f"fd00::{i:x}" for i in range(1, 50_001))
    assert len(list(family_problems("both", addresses, sources))) == 100_000


def test_what_does_not_overlap_is_found_quickly() -> None:
    """20,000 mappings: comparing all with all would take minutes, and the time limit of a test is two."""
    assert ruleset_problems(mapping(f"m{i}", f"{i}") for i in range(1, 20_001)) == []


def test_specificity_is_source_then_address_then_interface() -> None:
    order = [
        Scope(),
        Scope(interface="e*"),
        Scope(interface="eth*"),
        Scope(interface="eth0"),
        Scope(address="192.0.2.1"),
        Scope(address="192.0.2.1", interface="e*"),
        Scope(source="0.0.0.0/0"),
        Scope(source="0.0.0.0/0", address="192.0.2.1", interface="eth0"),
        Scope(source="10.0.0.0/8"),
        Scope(source="10.0.0.0/8", interface="lo"),
        Scope(source="fd00::/48"),
        Scope(source="fd00::1/128"),
    ]
    assert sorted(order, key=lambda s: s.specificity) == order
    assert len({s.specificity for s in order}) == len(order)


@quick
@given(mappings_())
def test_elements_is_what_the_claims_come_to(found: Mapping) -> None:
    ports = sum(p.size for p in found.listen)
    scopes = {scope for _, scope in found.claims}
    guards = len(found.protocol) * (len(found.address) or 1) * found.to.size if found.exclusive else 0
    maps = len(scopes)
    if isinstance(found.to, Target):  # a map for each family, and a set for hairpins
        maps = sum(1 if scope.family else len(found.to.addresses) for scope in scopes)
        guards = len(found.protocol) * len(found.to.addresses) * found.to.size
    assert found.elements == ports * len(found.protocol) * maps + guards


@quick
@given(st.data())
def test_no_packet_is_claimed_twice_at_one_specificity(data: st.DataObject) -> None:
    ruleset: Ruleset = data.draw(rulesets())
    packet: Packet = data.draw(packets(ruleset))
    claiming = [
        (scope.specificity, mapping.name)
        for mapping in ruleset.enabled
        for side, scope in mapping.claims
        if side == packet.side
        and covers(scope, packet)
        and packet.protocol in mapping.protocol
        and packet.family in mapping.families
        and any(p.first <= packet.port <= p.last for p in mapping.listen)
    ]
    by_specificity = {specificity: {name for s, name in claiming if s == specificity} for specificity, _ in claiming}
    assert all(len(names) == 1 for names in by_specificity.values())


def test_a_changed_copy_is_validated_as_well() -> None:
    """Named tuples offer _replace, which makes the tuple directly."""
    with pytest.raises(InvalidModel):
        mapping()._replace(listen=())
    with pytest.raises(InvalidModel):
        Ruleset((mapping(),))._replace(mappings=(mapping("a"), mapping("b")))
