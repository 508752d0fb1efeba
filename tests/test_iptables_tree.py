"""Many rules of ports as a tree of chains: every port comes to its rule, past few others."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from redirector.backends.iptables.tree import FAN, FLAT, Items, match, tree

BOUNDS = {"tcp": 6 << 16, "udp": 17 << 16}


@st.composite
def items(draw: st.DrawFn) -> Items:
    """Hundreds of rules, of one port or several, close together in some places and far apart in others."""
    found: list[tuple[int, int]] = []
    for base in BOUNDS.values():
        near = draw(st.sets(st.integers(draw(st.integers(0, 60000)), 65535), max_size=40))
        start, step, count = draw(st.integers(0, 65535)), draw(st.integers(1, 40)), draw(st.integers(0, 600))
        cuts = sorted(near | {*range(start, 65536, step)[:count]})
        for first, following in pairwise([*cuts, 65536]):
            found.append((base + first, base + draw(st.sampled_from([first, first, following - 1]))))
    texts = [f"{match(first, last)} {index}" for index, (first, last) in enumerate(found)]
    return Items([first for first, _ in found], [last for _, last in found], texts)


def passed(chains: dict[str, list[str]], chain: str, protocol: str, port: int) -> tuple[str, int]:
    """The rule that a packet comes to ("" where there is none), and how many it passes on the way."""
    count = 0
    for text in chains[chain]:
        count += 1
        words = text.split(" ")
        first, _, last = words[words.index("--dport") + 1].partition(":") if "--dport" in words else ("0", "", "65535")
        if words[1] == protocol and int(first) <= port <= int(last or first):
            if words[-2] != "-j":
                return text, count
            rule, more = passed(chains, words[-1], protocol, port)
            count += more
            if rule:
                return rule, count
    return "", count


@given(items())
def test_every_port_comes_to_its_rule(found: Items) -> None:
    grown = tree("top", found)
    chains = {"top": grown.rules, **grown.below}
    assert all(0 < len(rules) <= FLAT + FAN for name, rules in chains.items() if name != "top")
    assert sorted(text for rules in chains.values() for text in rules if "-j" not in text) == sorted(found.texts)
    ends = set(found.lasts)
    for first, last, text in zip(*found, strict=True):
        protocol = next(name for name, base in BOUNDS.items() if base >> 16 == first >> 16)
        for key in {first, (first + last) // 2, last}:
            rule, count = passed(chains, "top", protocol, key & 0xFFFF)
            assert rule == text
            assert count <= 2 + 3 * (FLAT + FAN)
        if first & 0xFFFF and first - 1 not in ends:  # no rule is for the port before
            assert passed(chains, "top", protocol, (first & 0xFFFF) - 1)[0] == ""


def test_one_that_comes_changes_one_chain() -> None:
    keys = [BOUNDS["tcp"] + port for port in range(1000, 31000, 3)]
    more = sorted([*keys, BOUNDS["tcp"] + 15002])
    before, after = (tree("top", Items(k, k, [match(key, key) for key in k])) for k in (keys, more))
    assert before.rules == after.rules
    assert before.below.keys() == after.below.keys()
    changed = [name for name, rules in after.below.items() if before.below[name] != rules]
    assert changed == [name for name, rules in after.below.items() if "-p tcp -m tcp --dport 15002" in rules]
