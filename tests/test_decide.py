"""Which mapping a packet meets: the mapping file's decisions as tables, and the compiled Program held against them."""

from typing import Any

import pytest
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from redirector import naming
from redirector.compile import compile_ruleset
from redirector.decide import Decision, Packet, covers, decide, within
from redirector.model import Mapping, Ruleset, Scope, Target
from tests.simulate import travel, walk
from tests.strategies import (
    ARRIVING_ON,
    CLIENTS_V4,
    CLIENTS_V6,
    LOCAL_V4,
    LOCAL_V6,
    mapping,
    packets,
    rebuilt,
    rulesets,
)

OUTSIDE = Packet("eth0", "203.0.113.9", "192.0.2.7", "tcp", 80)
OUTSIDE_V6 = Packet("eth0", "2001:db8::9", "2001:db8::7", "tcp", 80)
ITSELF = Packet("", "192.0.2.7", "192.0.2.7", "tcp", 80)
ITSELF_V6 = Packet("", "::1", "::1", "tcp", 80)


def winner(packet: Packet, *mappings: Mapping) -> str:
    """The name of the mapping that gets the packet, "" for none; whatever the order in the file."""
    found = {decide(Ruleset(order), packet).mapping for order in (mappings, mappings[::-1])}
    assert len(found) == 1
    compiled = walk(compile_ruleset(Ruleset(mappings)), packet)
    assert found == {compiled.mapping}
    return compiled.mapping


def test_everybody_everywhere_is_the_default() -> None:
    plain = mapping("plain")
    for packet in (OUTSIDE, OUTSIDE_V6, ITSELF, ITSELF_V6):
        assert decide(Ruleset((plain,)), packet) == Decision("translate", 8080, "plain", "port")
    for other in (OUTSIDE._replace(port=81), OUTSIDE._replace(protocol="udp")):
        assert decide(Ruleset((plain,)), other) == Decision("pass", other.port)


@pytest.mark.parametrize(
    ("wins", "loses"),
    [
        ({"source": ("203.0.113.9/32",)}, {"source": ("203.0.113.0/24",)}),
        ({"source": ("203.0.112.0/23",)}, {"source": ("203.0.0.0/16",)}),
        ({"source": ("0.0.0.0/0",)}, {}),
        # A source of any length goes before every address and interface …
        ({"source": ("0.0.0.0/0",)}, {"address": ("192.0.2.7",)}),
        ({"source": ("0.0.0.0/0",)}, {"address": ("192.0.2.7",), "interface": ("eth0",)}),
        ({"source": ("203.0.113.0/24",)}, {"source": ("203.0.0.0/16",), "address": ("192.0.2.7",)}),
        # … then an address before none, then the interface.
        ({"address": ("192.0.2.7",)}, {}),
        ({"address": ("192.0.2.7",)}, {"interface": ("eth0",)}),
        ({"address": ("192.0.2.7",), "interface": ("e*",)}, {"address": ("192.0.2.7",)}),
        ({"interface": ("eth0",)}, {"interface": ("eth0*",)}),
        ({"interface": ("eth0*",)}, {"interface": ("eth*",)}),
        ({"interface": ("eth*",)}, {"interface": ("e*",)}),
        ({"interface": ("e*",)}, {}),
        ({"source": ("203.0.0.0/16",), "address": ("192.0.2.7",)}, {"source": ("203.0.0.0/16",)}),
        ({"source": ("203.0.0.0/16",), "interface": ("e*",)}, {"source": ("203.0.0.0/16",)}),
    ],
)
def test_the_narrower_mapping_wins(wins: dict[str, Any], loses: dict[str, Any]) -> None:
    assert winner(OUTSIDE, mapping("wins", "80", "1", **wins), mapping("loses", "80", "2", **loses)) == "wins"


def test_the_same_order_holds_for_ipv6() -> None:
    narrow, wide = (
        mapping("narrow", "80", "1", source=("2001:db8::/47",)),
        mapping("wide", "80", "2", source=("2001:db8::/32", "::/0")),
    )
    assert winner(OUTSIDE_V6, narrow, wide) == "narrow"
    assert winner(OUTSIDE_V6._replace(source="2001:db8:2::1"), narrow, wide) == "wide"
    assert winner(OUTSIDE_V6._replace(source="2001:db9::1"), narrow, wide) == "wide"
    assert winner(OUTSIDE, narrow, wide) == ""


def test_a_miss_in_a_narrow_scope_falls_through_to_the_wider_ones() -> None:
    other_port = mapping("narrow", "81", "1", source=("203.0.113.9/32",), address=("192.0.2.7",), interface=("eth0",))
    other_protocol = mapping("middle", "80", "2", protocol=("udp",), source=("203.0.0.0/16",))
    assert winner(OUTSIDE, other_port, other_protocol, mapping("wide", "80", "3")) == "wide"
    assert (
        winner(
            OUTSIDE, other_port, other_protocol, mapping("on", "80", "4", interface=("e*",)), mapping("wide", "80", "3")
        )
        == "on"
    )


def test_width_protocol_family_and_rewrite_do_not_decide() -> None:
    wide = mapping("wide", "1-1000", "9", protocol=("tcp", "udp"), source=("203.0.113.0/24",))
    exact = mapping("exact", "80", "1", family="ipv4", rewrite="redirect", address=("192.0.2.7",))
    assert winner(OUTSIDE, wide, exact) == "wide"


@pytest.mark.parametrize(
    ("scope", "local", "outside", "itself"),
    [
        ({}, True, True, True),
        ({}, False, True, False),
        ({"address": ("192.0.2.7",)}, True, True, True),
        ({"address": ("192.0.2.8",)}, True, False, False),
        # local adds the host's own whatever source and interface say; the address still applies.
        ({"source": ("10.0.0.0/8",)}, True, False, True),
        ({"source": ("10.0.0.0/8",)}, False, False, False),
        ({"source": ("192.0.2.7/32",)}, False, False, False),
        ({"interface": ("wg0",)}, True, False, True),
        ({"interface": ("wg0",), "address": ("192.0.2.8",)}, True, False, False),
        ({"interface": ("eth0",)}, False, True, False),
        # "lo" means the host's own only: prerouting never sees them.
        ({"interface": ("lo",)}, False, False, True),
        ({"interface": ("lo",)}, True, False, True),
        ({"interface": ("lo", "eth0")}, False, True, True),
        ({"interface": ("lo",), "source": ("192.0.2.0/24",)}, False, False, True),
        ({"interface": ("lo",), "source": ("10.0.0.0/8",)}, False, False, False),
        ({"interface": ("lo",), "address": ("192.0.2.8",)}, False, False, False),
        # A wildcard that covers the letters of "lo" is about arriving traffic all the same.
        ({"interface": ("l*",)}, False, False, False),
    ],
)
def test_who_is_meant(scope: dict[str, Any], local: bool, outside: bool, itself: bool) -> None:
    only = mapping("only", local=local, **scope)
    assert winner(OUTSIDE, only) == ("only" if outside else "")
    assert winner(ITSELF, only) == ("only" if itself else "")


def test_lo_is_narrower_than_local() -> None:
    own, everybody = mapping("own", "80", "1", interface=("lo",)), mapping("everybody", "80", "2")
    assert winner(ITSELF, own, everybody) == "own"
    assert winner(OUTSIDE, own, everybody) == "everybody"
    at = mapping("at", "80", "3", address=("192.0.2.7",))
    assert winner(ITSELF, own, at) == "at"  # an address goes before an interface, for the host's own as well


def test_families() -> None:
    four, six = mapping("four", "80", "1", family="ipv4"), mapping("six", "80", "2", family="ipv6")
    assert winner(OUTSIDE, four, six) == "four"
    assert winner(OUTSIDE_V6, four, six) == "six"
    assert winner(ITSELF_V6, four) == ""
    # An address or a source of one family says so too.
    assert winner(OUTSIDE_V6, mapping("at", address=("192.0.2.7",))) == ""
    assert winner(OUTSIDE, mapping("from", source=("::/0",))) == ""


def test_disabled_mappings_get_nothing() -> None:
    off = mapping("off", "80", "1", source=("203.0.113.9/32",), enabled=False, exclusive=True)
    assert winner(OUTSIDE, off, mapping("on", "80", "2")) == "on"
    assert decide(Ruleset((off,)), OUTSIDE._replace(port=1)).action == "pass"


def test_ranges_are_shifted_one_to_one_or_go_to_one_port() -> None:
    shifted = mapping("shifted", "190-199", "9090-9099")
    assert [shifted.target(port) for port in (190, 195, 199)] == [9090, 9095, 9099]
    many = mapping("many", "1-5 7", "9")
    assert {many.target(port) for port in (1, 5, 7)} == {9}
    for port, found in ((190, "translate"), (199, "translate"), (189, "pass"), (200, "pass")):
        assert decide(Ruleset((shifted,)), OUTSIDE._replace(port=port)).action == found


EXCLUSIVE = mapping("web", "80", "8080", exclusive=True)
DIRECT = OUTSIDE._replace(port=8080)


@pytest.mark.parametrize(
    ("packet", "others", "action"),
    [
        (DIRECT, (), "refuse"),
        (OUTSIDE, (), "translate"),
        (ITSELF._replace(port=8080), (), "pass"),  # the host's own are not refused
        (DIRECT._replace(protocol="udp"), (), "pass"),
        (DIRECT._replace(address="10.0.0.1"), (), "refuse"),  # no address: all of them
        # Never a target that is itself mapped to itself, whoever does so …
        (DIRECT, (mapping("same", "8080", "8080"),), "translate"),
        (DIRECT, (mapping("same", "8080", "8080", source=("10.0.0.0/8",)),), "pass"),
        (DIRECT, (mapping("same", "8080", "8080", family="ipv6"),), "refuse"),
        (DIRECT, (mapping("same", "8080", "8080", protocol=("udp",)),), "refuse"),
        (DIRECT, (mapping("same", "8080", "8080", enabled=False),), "refuse"),
        (DIRECT, (mapping("same", "8000-8100", "8000-8100"),), "translate"),
        (DIRECT, (mapping("same", "8000-8100", "8050", source=("10.0.0.0/8",)),), "refuse"),
        # … and one that another mapping takes elsewhere never gets as far as the guard.
        (DIRECT, (mapping("on", "8080", "9000"),), "translate"),
    ],
)
def test_exclusive_targets(packet: Packet, others: tuple[Mapping, ...], action: str) -> None:
    ruleset = Ruleset((EXCLUSIVE, *others))
    assert decide(ruleset, packet).action == action
    assert walk(compile_ruleset(ruleset), packet).action == action


def test_exclusive_guards_only_the_addresses_of_the_mapping() -> None:
    at = mapping("at", "80", "8080", address=("192.0.2.7", "2001:db8::7"), exclusive=True)
    for packet, action in (
        (DIRECT, "refuse"),
        (DIRECT._replace(address="10.0.0.1"), "pass"),
        (OUTSIDE_V6._replace(port=8080), "refuse"),
        (OUTSIDE_V6._replace(port=8080, address="fd00::1"), "pass"),
    ):
        assert decide(Ruleset((at,)), packet) == Decision(action, 8080, "at" if action == "refuse" else "")
        assert walk(compile_ruleset(Ruleset((at,))), packet).action == action


def test_exclusive_guards_whatever_source_and_interface_say() -> None:
    scoped = mapping("scoped", "80", "8080", source=("10.0.0.0/8",), interface=("wg0",), exclusive=True)
    assert decide(Ruleset((scoped,)), DIRECT) == Decision("refuse", 8080, "scoped")


def test_nat_acts_once() -> None:
    swap = Ruleset((mapping("there", "80", "8080"), mapping("back", "8080", "80")))
    assert decide(swap, OUTSIDE) == Decision("translate", 8080, "there", "port")
    assert decide(swap, DIRECT) == Decision("translate", 80, "back", "port")


@pytest.mark.parametrize(
    ("address", "network", "inside"),
    [
        ("10.0.0.127", "10.0.0.0/25", True),
        ("10.0.0.128", "10.0.0.0/25", False),
        ("10.0.0.1", "0.0.0.0/0", True),
        ("10.0.0.1", "10.0.0.1/32", True),
        ("10.0.0.2", "10.0.0.1/32", False),
        ("fd00::7fff", "fd00::/113", True),
        ("fd00::8000", "fd00::/113", False),
        ("::1", "::/0", True),
        ("::1", "0.0.0.0/0", False),
        ("10.0.0.1", "::/0", False),
    ],
)
def test_within(address: str, network: str, inside: bool) -> None:
    assert within(address, network) is inside


def test_covers_by_interface() -> None:
    for pattern, name, wanted in (
        ("veth*", "veth0", True),
        ("veth*", "veth", True),
        ("veth*", "vet", False),
        ("veth-b", "veth-b1", False),
        ("", "anything", True),
    ):
        assert covers(Scope(interface=pattern), OUTSIDE._replace(interface=name)) is wanted


def _around(packet: Packet) -> list[Packet]:
    """The packet from every client, to every address of the host, on every interface, in its family."""
    local, clients = (LOCAL_V4, CLIENTS_V4) if packet.family == "ipv4" else (LOCAL_V6, CLIENTS_V6)
    arriving = [(name, source) for name in ARRIVING_ON for source in clients]
    ways = [*arriving, *(("", source) for source in local)]
    return [packet._replace(interface=i, source=s, address=a) for i, s in ways for a in local]


@settings(max_examples=100)
@given(st.data())
def test_the_program_does_what_decide_says(data: st.DataObject) -> None:
    ruleset = data.draw(rulesets())
    program = compile_ruleset(ruleset)
    for _ in range(3):
        packet = data.draw(packets(ruleset))
        event(decide(ruleset, packet).action)
        for other in _around(packet):
            said, (done, counted) = decide(ruleset, other), travel(program, other)
            assert counted == ([naming.counter(said.mapping)] if said.action == "translate" else [])
            if said.action == "refuse":  # several may guard one target; who is named is the file's order
                guarding = {m.name for m in ruleset.enabled if m.exclusive}
                assert said.mapping in guarding
                done = done._replace(mapping=said.mapping)
            if said != done:
                note(str(other))
            assert said == done


def test_each_mapping_of_a_map_is_counted_as_itself() -> None:
    program = compile_ruleset(Ruleset((mapping("a", "80", "8080"), mapping("b", "81", "8080"))))
    for port, counted in ((80, ["taken_a"]), (81, ["taken_b"]), (82, []), (8080, [])):
        for packet in (OUTSIDE, OUTSIDE_V6, ITSELF, ITSELF_V6):
            assert travel(program, packet._replace(port=port))[1] == counted


AWAY = {"to": Target(9, 9, ("10.88.0.5", "fd00:88::5"))}


@pytest.mark.parametrize(
    ("packet", "decision"),
    [
        (OUTSIDE, Decision("translate", 9, "away", "forward", "10.88.0.5")),
        (OUTSIDE_V6, Decision("translate", 9, "away", "forward", "fd00:88::5")),
        (ITSELF, Decision("translate", 9, "away", "forward", "10.88.0.5")),
        # What is on loopback cannot leave the host: it goes where it would go without the mapping.
        (ITSELF._replace(address="127.0.0.1"), Decision("translate", 1, "wide", "port")),
        (ITSELF._replace(address="127.8.7.6"), Decision("translate", 1, "wide", "port")),
        (ITSELF_V6, Decision("translate", 1, "wide", "port")),
    ],
)
def test_targets_on_another_address(packet: Packet, decision: Decision) -> None:
    away = rebuilt(mapping("away", address=("192.0.2.7", "2001:db8::7")), **AWAY)
    wide = mapping("wide", to="1")
    ruleset = Ruleset((away, wide))
    assert decide(ruleset, packet) == walk(compile_ruleset(ruleset), packet) == decision


def test_a_narrower_mapping_that_leaves_loopback_out_lets_it_through_to_the_wider() -> None:
    away = rebuilt(mapping("away", source=("0.0.0.0/0",), local=True), to=Target(9, 9, ("10.88.0.5",)))
    assert winner(ITSELF, away) == "away"
    assert winner(ITSELF._replace(address="127.0.0.1"), away) == ""
