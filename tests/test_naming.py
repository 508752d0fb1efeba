"""Names say what they are for, can be parsed back, and never collide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector import naming
from redirector.compile import compile_ruleset
from redirector.model import REWRITES, SIDES, Ruleset, Scope
from redirector.naming import PortMap, count_map, parse_count_map, parse_port_map, port_map
from tests.strategies import INTERFACE_POOL, LOCAL_V4, LOCAL_V6, NETWORKS_V4, NETWORKS_V6, quick, rulesets

# What `fields.interface` lets through, the characters that rule languages might trip over among them.
interfaces = st.one_of(
    st.sampled_from(("", *INTERFACE_POOL, "a_5f", "_ports", "x_ipv4", "!#$%&'();<=>?@", "^_`{|}~", "own_on_lo")),
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"*+,/:[\\]'), min_size=1, max_size=15
    ),
)
scopes = st.builds(
    Scope,
    st.sampled_from(("", *NETWORKS_V4, *NETWORKS_V6)),
    st.sampled_from(("", *LOCAL_V4, *LOCAL_V6)),
    st.builds(lambda name, star: name[:14] + star if name else "", interfaces, st.sampled_from(("", "*"))),
)
port_maps = st.builds(
    PortMap, st.sampled_from(("", *SIDES)), scopes, st.sampled_from(("", "ipv4", "ipv6")), st.sampled_from(REWRITES)
)


@given(port_maps)
def test_parsing_inverts_naming(wanted: PortMap) -> None:
    assert parse_port_map(port_map(wanted)) == parse_count_map(count_map(wanted)) == wanted
    assert parse_count_map(port_map(wanted)) is parse_port_map(count_map(wanted)) is None


@given(st.one_of(st.just("web"), st.text()), st.text())
def test_a_counter_tells_its_mapping(mapping: str, other: str) -> None:
    assert naming.counted(naming.counter(mapping)) == mapping
    assert naming.counted(other) == "" or naming.counter(naming.counted(other)) == other


@given(scopes, scopes, st.sampled_from(SIDES), st.sampled_from(SIDES))
def test_chains_of_different_scopes_have_different_names(one: Scope, other: Scope, side: str, opposite: str) -> None:
    assert (naming.chain(side, one) == naming.chain(opposite, other)) == ((side, one) == (opposite, other))


@given(scopes, port_maps, st.sampled_from(SIDES))
def test_verdict_maps_are_no_port_maps(scope: Scope, wanted: PortMap, side: str) -> None:
    kinds = ("sources_ipv4_24", "sources_ipv6_128", "addresses_ipv4", "addresses_ipv6", "interfaces")
    names = {naming.verdict_map(naming.chain(side, scope), kind) for kind in kinds}
    assert [parse_port_map(name) or parse_count_map(name) for name in names] == [None] * len(kinds)
    assert not {port_map(wanted), count_map(wanted)} & names


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (PortMap("", Scope(), "", "port"), "ports"),
        (PortMap("own", Scope(), "ipv6", "redirect"), "own_redirects_ipv6"),
        (
            PortMap("arriving", Scope("fd00::/8", "::1", "veth*"), "", "port"),
            "arriving_from_fd00--/8_at_--1_on_veth_2a_ports",
        ),
        (PortMap("arriving", Scope(interface="vlan_7.1"), "", "port"), "arriving_on_vlan_5f7.1_ports"),
    ],
)
def test_names_are_readable(wanted: PortMap, name: str) -> None:
    assert port_map(wanted) == name
    assert count_map(wanted) == name.replace("ports", "counts").replace("redirects", "redirect-counts")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "port",
        "ports_",
        "ports_ipv5",
        "_ports",
        "arriving",
        "guards",
        "on_a_b_ports",
        "from_10.0.0.0_ports",
        "portsX",
        "counts_",
        "redirect_counts",
        "taken_counts",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert parse_port_map(name) is None
    assert parse_count_map(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ports", ""),
        ("ports_ipv4", "ipv4"),
        ("own_ports", "for this host itself"),
        ("arriving_ports", "for others only"),
        ("arriving_from_10.0.0.0/8_on_eth_2a_ports", "from 10.0.0.0/8 on eth*"),
        ("arriving_at_fd00--1_redirects", "at fd00::1 for others only"),
        ("redirect-counts_ipv6", "ipv6"),
        ("own_counts", "for this host itself"),
        ("guards", ""),
        ("guards_ipv6_at", "ipv6"),
        ("anything else", ""),
    ],
)
def test_where_entries_count_in_words(name: str, words: str) -> None:
    assert naming.where(name) == words


@quick
@given(rulesets())
def test_no_name_stands_for_two_things(ruleset: Ruleset) -> None:
    """nft has one namespace for maps and one for chains: two maps of one name would have become one."""
    program = compile_ruleset(ruleset)
    leaves = [found for found in map(parse_port_map, program.maps) if found]
    assert len({port_map(found) for found in leaves}) == len(leaves)
    assert set(program.maps) & set(naming.GUARD_MAPS) == {name for name in program.maps if name.startswith("guards")}
