"""What the kernel holds, in words for people, and ports joined to ranges."""

from hypothesis import given
from hypothesis import strategies as st

from redirector.model import Ports
from redirector.program import port_key, protocol_name, runs
from tests.strategies import quick


@quick
@given(st.dictionaries(st.integers(1, 30), st.integers(1, 30), max_size=20), st.sampled_from((6, 17)))
def test_runs_cover_exactly_what_they_were_made_of(entries: dict[int, int], protocol: int) -> None:
    pairs = sorted((port_key(protocol, port), to) for port, to in entries.items())
    unfolded = {}
    found = list(runs([*pairs]))
    for number, ports, targets in found:
        assert number == protocol
        assert targets is not None
        assert targets.size in (1, ports.size)
        for port in range(ports.first, ports.last + 1):
            unfolded[port] = targets.first + (port - ports.first if targets.size > 1 else 0)
    assert unfolded == entries
    assert [ports for _, ports, _ in found] == sorted(ports for _, ports, _ in found)


def test_runs_join_what_they_can() -> None:
    shifted = [(port_key(6, p), p + 100) for p in range(10, 20)]
    many = [(port_key(6, p), 7) for p in range(20, 30)]
    other = [(port_key(17, 30), 7)]
    guards: list[tuple[int, int | None]] = [(port_key(132, p), None) for p in (1, 2, 4)]
    assert list(runs([*shifted, *many, *other])) == [
        (6, Ports(10, 19), Ports(110, 119)),
        (6, Ports(20, 29), Ports(7, 7)),
        (17, Ports(30, 30), Ports(7, 7)),
    ]
    assert list(runs(guards)) == [(132, Ports(1, 2), None), (132, Ports(4, 4), None)]
    # The last port of one protocol and the first of the next are neighbours as numbers.
    edge: list[tuple[int, int | None]] = [(port_key(6, 65535), 7), (port_key(7, 0), 7)]
    assert len(list(runs(edge))) == 2


def test_protocols_that_are_none_of_ours_have_a_name_too() -> None:
    assert [protocol_name(number) for number in (6, 17, 132, 47)] == ["tcp", "udp", "sctp", "protocol-47"]
