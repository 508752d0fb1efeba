"""What the kernel holds, for people: entries joined to ranges of ports."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from redirector.model import Ports
from redirector.program import PORTS, Map, Program, port_key, protocol_name, runs
from tests.strategies import quick

Entries = dict[int, tuple[Any, ...]]


@quick
@given(
    st.dictionaries(
        st.builds(port_key, st.sampled_from((6, 17)), st.integers(1, 30)),
        st.tuples(st.integers(1, 30), st.sampled_from(("a", "b"))),
        max_size=30,
    )
)
def test_runs_cover_exactly_what_they_were_made_of(entries: dict[int, tuple[int, str]]) -> None:
    unfolded = {}
    for mapping, protocol, ports, targets in runs(dict(entries)):
        assert targets.size in (1, ports.size)
        for port in range(ports.first, ports.last + 1):
            target = targets.first + (port - ports.first if targets.size > 1 else 0)
            assert port_key(protocol, port) not in unfolded
            unfolded[port_key(protocol, port)] = (target, mapping)
    assert unfolded == entries


def test_runs_join_what_they_can_and_no_more() -> None:
    entries: Entries = {port_key(6, p): (p + 100, "a") for p in range(10, 20)}
    entries |= {port_key(6, p): (7, "a") for p in range(20, 30)}
    entries |= {port_key(6, p): (7, "b") for p in range(30, 32)}
    entries |= {port_key(6, 65535): (7, "b"), port_key(7, 0): (7, "b"), port_key(7, 1): (9, "b", "attribute 4")}
    assert list(runs(entries)) == [
        ("a", 6, Ports(10, 19), Ports(110, 119)),
        ("a", 6, Ports(20, 29), Ports(7, 7)),
        ("b", 6, Ports(30, 31), Ports(7, 7)),
        # The last port of one protocol and the first of the next are neighbours as numbers only.
        ("b", 6, Ports(65535, 65535), Ports(7, 7)),
        ("b", 7, Ports(0, 0), Ports(7, 7)),
        ("b", 7, Ports(1, 1), Ports(9, 9)),
    ]
    assert list(runs({})) == []


def test_protocols_that_are_none_of_ours_have_a_name_too() -> None:
    assert [protocol_name(number) for number in (6, 17, 132, 47)] == ["tcp", "udp", "sctp", "protocol-47"]


def test_the_capacity_of_a_map_is_a_fact_and_no_wish() -> None:
    kind = PORTS
    assert Map(kind, {}, 64) == Map(kind, {}, 128)
    assert (Map(kind, {}, 64) != Map(kind, {}, 128)) is False
    assert Map(kind, {1: (2, "a")}) != Map(kind, {1: (2, "b")})
    assert Program({}, {"ports": Map(kind, {}, 64)}) == Program({}, {"ports": Map(kind, {}, 128)})


def test_counters_are_part_of_what_a_program_is() -> None:
    assert Program({}, {}) == Program({}, {}, counters=frozenset())
    assert Program({}, {}, counters=frozenset({"taken_a"})) != Program({}, {}, counters=frozenset({"taken_b"}))
