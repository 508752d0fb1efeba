"""The rules engine: what a Ruleset becomes, and what it costs."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector import naming
from redirector.compile import GUARD_PRIORITY, compile_ruleset, skeleton
from redirector.decide import decide, within
from redirector.model import Mapping, Ruleset, Scope, Settings, Target
from redirector.neighbours import network_of
from redirector.program import (
    ADDRESSES,
    COUNTS,
    GUARDS,
    INTERFACES,
    NAMED,
    PORTS,
    SETS,
    TRANSLATIONS,
    VERDICTS,
    Chain,
    Count,
    Dispatch,
    Guard,
    Hook,
    Jump,
    Keep,
    LocalJump,
    Map,
    Program,
    Refuse,
    Translate,
    port_key,
    references,
)
from tests.simulate import masqueraded
from tests.strategies import mapping, packets, quick, rebuilt, rulesets


def rule_count(program: Program) -> int:
    return sum(len(chain.rules) for chain in program.chains.values())


def test_one_plain_mapping() -> None:
    program = compile_ruleset(Ruleset((mapping("web", "80", "8080", protocol=("tcp", "udp")),)))
    leaf = (Count("", "counts"), Translate("port", "", "ports"))
    web = ("taken_web", "")
    assert program == Program(
        chains={
            "prerouting": Chain(Hook("nat", "prerouting", -110), (LocalJump("arriving"),)),
            "arriving": Chain(None, leaf),
            "output": Chain(Hook("nat", "output", -110), (LocalJump("own"),)),
            "own": Chain(None, leaf),
        },
        maps={
            "ports": Map(PORTS, {port_key(6, 80): (8080, "web"), port_key(17, 80): (8080, "web")}),
            "counts": Map(COUNTS, {port_key(6, 80): web, port_key(17, 80): web}),
        },
        counters=frozenset({"taken_web"}),
    )


def test_nothing_drains() -> None:
    for ruleset in (Ruleset(), Ruleset((mapping("off", "80", "81", enabled=False, exclusive=True),))):
        assert compile_ruleset(ruleset) == Program(
            chains={
                "prerouting": Chain(Hook("nat", "prerouting", -110), (Keep(),)),
                "output": Chain(Hook("nat", "output", -110), ()),
            },
            maps={},
        )


def test_the_priority_is_that_of_the_settings() -> None:
    for mappings in ((), (mapping(),)):
        program = compile_ruleset(Ruleset(mappings, Settings(priority=-105)))
        hooks = {c.hook for c in program.chains.values() if c.hook}
        assert hooks == {Hook("nat", "prerouting", -105), Hook("nat", "output", -105)}


def test_every_part_of_a_scope_is_one_step_of_the_tree() -> None:
    scoped = mapping("a", "1", "2", source=("10.0.0.0/8",), address=("192.0.2.1",), interface=("eth0",))
    program = compile_ruleset(Ruleset((scoped,)))
    leaf = "arriving_from_10.0.0.0/8_at_192.0.2.1_on_eth0"
    by_source = "arriving_sources_ipv4_8"
    by_address = "arriving_from_10.0.0.0/8_addresses_ipv4"
    by_interface = "arriving_from_10.0.0.0/8_at_192.0.2.1_interfaces"
    assert program.maps == {
        by_source: Map(ADDRESSES["ipv4"], {"10.0.0.0": ("arriving_from_10.0.0.0/8", "")}),
        by_address: Map(ADDRESSES["ipv4"], {"192.0.2.1": ("arriving_from_10.0.0.0/8_at_192.0.2.1", "")}),
        by_interface: Map(INTERFACES, {"eth0": (leaf, "")}),
        f"{leaf}_ports": Map(PORTS, {port_key(6, 1): (2, "a")}),
        f"{leaf}_counts": Map(COUNTS, {port_key(6, 1): ("taken_a", "")}),
    }
    assert {name: chain.rules for name, chain in program.chains.items()} == {
        "prerouting": (LocalJump("arriving"),),
        "arriving": (Dispatch("source", "ipv4", 8, by_source),),
        "arriving_from_10.0.0.0/8": (Dispatch("address", "ipv4", 0, by_address),),
        "arriving_from_10.0.0.0/8_at_192.0.2.1": (Dispatch("interface", "", 0, by_interface),),
        leaf: (Count("", f"{leaf}_counts"), Translate("port", "", f"{leaf}_ports")),
        "output": (),
    }


def test_wildcards_and_every_network_are_jumps() -> None:
    wild = mapping("a", "1", "2", interface=("e*", "eth*", "eth0"))
    everywhere = mapping("b", "1", "3", source=("0.0.0.0/0", "::/0"))
    found = compile_ruleset(Ruleset((wild, everywhere))).chains["arriving"].rules
    assert set(found[:2]) == {
        Jump("ipv4", "", "arriving_from_0.0.0.0/0"),
        Jump("ipv6", "", "arriving_from_--/0"),
    }
    assert found[2:] == (
        Dispatch("interface", "", 0, "arriving_interfaces"),
        Jump("", "eth*", "arriving_on_eth_2a"),
        Jump("", "e*", "arriving_on_e_2a"),
    )


def test_sources_go_by_length_longest_first() -> None:
    ruleset = Ruleset((mapping("a", "1", "2", source=("10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "fd00::/48")),))
    found = compile_ruleset(ruleset)
    assert [rule.prefix for rule in found.chains["arriving"].rules if isinstance(rule, Dispatch)] == [48, 24, 8]
    assert set(found.maps["arriving_sources_ipv4_24"].entries) == {"10.0.0.0", "10.0.1.0"}


def test_families_and_rewrites_have_maps_of_their_own() -> None:
    ruleset = Ruleset(
        (
            mapping("both", "1", "9"),
            mapping("four", "2", "9", family="ipv4"),
            mapping("six", "2", "9", family="ipv6", rewrite="redirect"),
            mapping("others", "3", "9", local=False),
        )
    )
    program = compile_ruleset(ruleset)
    assert {name: list(found.entries.values()) for name, found in program.maps.items()} == {
        "ports": [(9, "both")],
        "counts": [("taken_both", "")],
        "ports_ipv4": [(9, "four")],
        "counts_ipv4": [("taken_four", "")],
        "redirects_ipv6": [(9, "six")],
        "redirect-counts_ipv6": [("taken_six", "")],
        "arriving_ports": [(9, "others")],
        "arriving_counts": [("taken_others", "")],
    }
    found = program.chains["own"].rules
    at = found.index(Translate("redirect", "ipv6", "redirects_ipv6"))
    assert found[at - 1] == Count("ipv6", "redirect-counts_ipv6")
    assert Translate("port", "", "arriving_ports") not in program.chains["own"].rules


def test_exclusive() -> None:
    everywhere = mapping("everywhere", "80", "8080", exclusive=True)
    again = mapping("again", "81", "8080", exclusive=True)
    four = mapping("four", "82", "8082", exclusive=True, family="ipv4")
    at = mapping("at", "83-84", "8083-8084", exclusive=True, address=("192.0.2.1", "::1"), protocol=("udp",))
    program = compile_ruleset(Ruleset((everywhere, again, four, at)))
    assert program.chains["input"] == Chain(
        Hook("filter", "input", GUARD_PRIORITY),
        (
            Guard("", False, "guards", "refuse"),
            Guard("ipv4", False, "guards_ipv4", "refuse"),
            Guard("ipv4", True, "guards_ipv4_at", "refuse"),
            Guard("ipv6", True, "guards_ipv6_at", "refuse"),
        ),
    )
    assert program.chains["refuse"] == Chain(None, (Refuse("reset"), Refuse("unreachable")))
    assert program.maps["guards"].entries == {port_key(6, 8080): (0, "everywhere")}  # the first in the file
    assert program.maps["guards_ipv4"].entries == {port_key(6, 8082): (0, "four")}
    assert program.maps["guards_ipv4_at"].entries == {("192.0.2.1", port_key(17, p)): (0, "at") for p in (8083, 8084)}
    assert program.maps["guards_ipv6_at"].entries == {("::1", port_key(17, p)): (0, "at") for p in (8083, 8084)}


def test_what_is_mapped_to_itself_is_not_guarded() -> None:
    guarded = mapping("guarded", "1-3", "81-83", exclusive=True)
    same = mapping("same", "81", "81", family="ipv4", source=("10.0.0.0/8",))
    shifted = mapping("shifted", "82-90", "82-90", protocol=("tcp",))
    program = compile_ruleset(Ruleset((guarded, same, shifted)))
    assert set(program.maps) & set(naming.GUARD_MAPS) == {"guards_ipv6"}
    assert program.maps["guards_ipv6"].entries == {port_key(6, 81): (0, "guarded")}


def test_no_guard_is_left_where_all_targets_are_exempt() -> None:
    program = compile_ruleset(Ruleset((mapping("same", "81", "81", exclusive=True),)))
    assert "input" not in program.chains
    assert "refuse" not in program.chains


@quick
@given(rulesets())
def test_references_lead_somewhere(ruleset: Ruleset) -> None:
    program = compile_ruleset(ruleset)
    rules = [rule for chain in program.chains.values() for rule in chain.rules]
    jumps = {rule.chain for rule in rules if isinstance(rule, LocalJump | Jump | Guard)}
    looked_up = {references(rule) for rule in rules} - {None}
    verdicts = [found for found in program.maps.values() if found.kind in VERDICTS]
    jumps |= {value[0] for found in verdicts for value in found.entries.values()}
    assert looked_up == set(program.maps)
    assert jumps == {name for name, chain in program.chains.items() if chain.hook is None}
    assert all(found.entries for found in program.maps.values())
    assert all(chain.rules for chain in program.chains.values() if chain.hook is None)


@quick
@given(rulesets())
def test_every_element_is_in_the_program_and_no_more(ruleset: Ruleset) -> None:
    program = compile_ruleset(ruleset)
    ports = sum(len(found.entries) for found in program.maps.values() if found.kind in TRANSLATIONS)
    unguarded = {m.name: rebuilt(m, exclusive=False).elements - hairpins(m) for m in ruleset.enabled}
    assert ports == sum(unguarded.values())
    counted = [value[0] for found in program.maps.values() if found.kind == COUNTS for value in found.entries.values()]
    assert Counter(counted) == Counter({naming.counter(name): n for name, n in unguarded.items()})
    assert program.counters == set(counted)
    guards = sum(len(found.entries) for found in program.maps.values() if found.kind in SETS)
    assert guards <= sum(m.elements - unguarded[m.name] for m in ruleset.enabled) * 2


def hairpins(found: Mapping) -> int:
    """How many targets it has that may have to be masqueraded."""
    return len(found.protocol) * found.to.size * (len(found.to.addresses) if isinstance(found.to, Target) else 0)


@quick
@given(st.data(), rulesets())
def test_a_neighbour_of_the_target_is_masqueraded_and_nobody_else(data: st.DataObject, ruleset: Ruleset) -> None:
    packet = data.draw(packets(ruleset).filter(lambda found: bool(found.interface)))
    decision = decide(ruleset, packet)
    near = bool(decision.address) and within(packet.source, network_of(decision.address, ruleset.networks))
    # A target that is the very address and port that the client used: nothing is translated, nothing masqueraded.
    moved = (decision.address, decision.port) != (packet.address, packet.port)
    assert masqueraded(compile_ruleset(ruleset), packet) == (near and moved)


@quick
@given(rulesets())
def test_the_frame_follows_from_the_names_alone(ruleset: Ruleset) -> None:
    program = compile_ruleset(ruleset)
    contents = {name: found for name, found in program.maps.items() if found.kind in NAMED or found.kind == COUNTS}
    leaves = [found for found in map(naming.parse_port_map, contents) if found]
    frame = skeleton(leaves, contents, ruleset.settings.priority)
    assert frame == Program(program.chains, {n: m for n, m in program.maps.items() if n not in contents})
    plain = (*TRANSLATIONS, COUNTS, GUARDS)
    assert all(m.kind in plain or "at" in n or naming.targets_network(n) for n, m in contents.items())


@quick
@given(rulesets(), st.randoms())
def test_the_order_in_the_file_only_names_guards(ruleset: Ruleset, random: Random) -> None:
    mappings = list(ruleset.mappings)
    random.shuffle(mappings)
    one, other = compile_ruleset(ruleset), compile_ruleset(ruleset._replace(mappings=tuple(mappings)))
    assert one.chains == other.chains
    assert {n: m for n, m in one.maps.items() if m.kind not in SETS} == {
        n: m for n, m in other.maps.items() if m.kind not in SETS
    }
    assert {n: set(m.entries) for n, m in one.maps.items()} == {n: set(m.entries) for n, m in other.maps.items()}


SCOPES: tuple[dict[str, Any], ...] = (
    {},
    {"source": ("10.0.0.0/8", "10.0.0.0/24", "fd00::/8")},
    {"address": ("192.0.2.1", "fd00::1")},
    {"interface": ("eth0", "veth*", "lo")},
    {"source": ("10.0.0.0/8",), "address": ("192.0.2.1",), "interface": ("eth0",)},
)


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: "+".join(scope) or "none")
def test_rules_do_not_grow_with_ports_or_mappings(scope: dict[str, Any]) -> None:
    def count(*mappings: Mapping) -> int:
        return rule_count(compile_ruleset(Ruleset(mappings)))

    one = count(mapping("one", "1", "9", **scope))
    assert one == count(mapping("wide", "1-10000", "20001-30000", protocol=("tcp", "udp", "sctp"), **scope))
    assert one == count(*(mapping(f"m{i}", f"{i}", "9", **scope) for i in range(1, 200)))
    guarded = count(mapping("one", "1", "9", exclusive=True, **scope))
    assert guarded == count(*(mapping(f"m{i}", f"{i}", f"{500 + i}", exclusive=True, **scope) for i in range(1, 200)))


def test_rules_do_not_grow_with_networks_of_one_length_nor_addresses_nor_interfaces_outside_their_leaves() -> None:
    """Each scope costs its own chain and rule; the chains above them stay as they are."""
    scopes: list[tuple[str, list[str]]] = [
        ("source", [f"10.{i}.0.0/16" for i in range(100)]),
        ("address", [f"10.0.0.{i}" for i in range(1, 101)]),
        ("interface", [f"eth{i}" for i in range(100)]),
    ]
    for key, values in scopes:
        more: list[dict[str, Any]] = [{key: tuple(values[:2])}, {key: tuple(values)}]
        few, many = (compile_ruleset(Ruleset((mapping(**scope),))) for scope in more)
        assert len(few.chains["arriving"].rules) == len(many.chains["arriving"].rules) == 1
        own = 2 if key == "address" else 1  # sides that have a tree
        assert rule_count(many) - rule_count(few) == 2 * own * 98  # a leaf has a counting rule and a translating one


@quick
@given(rulesets())
def test_names_are_ones_that_nft_takes_and_the_kernel_holds(ruleset: Ruleset) -> None:
    program = compile_ruleset(ruleset)
    for name in [*program.chains, *program.maps, *program.counters]:
        assert name[0].isalpha()
        assert all((c.isalnum() and c.isascii()) or c in "/-_." for c in name)
        assert len(name) < 256  # NFT_NAME_MAXLEN, linux/netfilter/nf_tables.h


def test_scope_names_the_chain() -> None:
    assert naming.chain("own", Scope()) == "own"
