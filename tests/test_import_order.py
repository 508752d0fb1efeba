"""Imported rules decide as the rules did: a simulation of iptables, which takes the first rule that matches, against
`decide`, which takes the narrowest mapping. A packet whose rule was left over is nobody's business."""

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from redirector import importers
from redirector.decide import Packet, decide, within
from redirector.importers import Text

PORTS = (1, 2, 3, 4, 5)


class Rule(NamedTuple):
    """One rule of a chain; "" and () stand for any."""

    source: str
    address: str
    interface: str
    ports: tuple[int, int] | tuple[()]
    verdict: str
    to: str

    def matches(self, packet: Packet) -> bool:
        wild = self.interface.endswith("+")
        return (
            (not self.source or within(packet.source, self.source))
            and (not self.address or packet.address == self.address)
            and (not self.interface or wild or packet.interface == self.interface)
            and (not wild or packet.interface.startswith(self.interface[:-1]))
            and (not self.ports or self.ports[0] <= packet.port <= self.ports[1])
        )

    def text(self) -> str:
        words = []
        for option, value in (
            ("-s", self.source),
            ("-d", self.address and f"{self.address}/32"),
            ("-i", self.interface),
        ):
            words += [option, value] if value else []
        words += ["-p tcp"] if self.ports or self.verdict in ("REDIRECT", "DNAT") else []
        words += [f"--dport {self.ports[0]}:{self.ports[1]}"] if self.ports else []
        words += ["-j", self.verdict, self.to]
        return " ".join(filter(None, words))


def _rule(source: str, address: str, interface: str, ports: Any, verdict: tuple[str, str]) -> Rule:
    name, to = verdict
    if name == "SHIFT":
        name, to = (
            ("DNAT", f"--to-destination :{ports[0] + 100}-{ports[1] + 100}/{ports[0]}") if ports else ("ACCEPT", "")
        )
    return Rule(source, address, interface, ports, name, to)


VERDICTS = (
    ("REDIRECT", "--to-ports 81"),
    ("REDIRECT", "--to-ports 82"),
    ("DNAT", "--to-destination :83"),
    ("DNAT", "--to-destination 192.0.2.99:80"),
    ("SHIFT", ""),
    ("REDIRECT", ""),
    ("ACCEPT", ""),
    ("RETURN", ""),
    ("LOG", ""),
)
ranges = st.one_of(
    st.just(()), st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda p: tuple(sorted(p)))
)


def some_rules(interfaces: tuple[str, ...], *chains: str) -> st.SearchStrategy[list[Rule]]:
    verdicts = (*VERDICTS, *((name, "") for name in chains for _ in range(3)))
    rule = st.builds(
        _rule,
        st.sampled_from(("", "", "10.0.0.0/8", "10.1.0.0/16")),
        st.sampled_from(("", "", "192.0.2.1", "192.0.2.2")),
        st.sampled_from(interfaces),
        ranges,
        st.sampled_from(verdicts),
    )
    return st.lists(rule, max_size=6)


INTERFACES = ("", "", "eth0", "eth+", "e+")
tables = st.fixed_dictionaries(
    {
        "PREROUTING": some_rules(INTERFACES, "ONE", "TWO"),
        "OUTPUT": some_rules(("",), "ONE", "TWO"),
        "ONE": some_rules(INTERFACES, "TWO"),
        "TWO": some_rules(INTERFACES),
    }
)
packets = st.builds(
    Packet,
    st.sampled_from(("", "eth0", "eth1", "enp1", "wlan0")),
    st.sampled_from(("10.1.0.1", "10.2.0.1", "198.51.100.1")),
    st.sampled_from(("192.0.2.1", "192.0.2.2", "192.0.2.3")),
    st.just("tcp"),
    st.sampled_from(PORTS),
)


def first_match(table: dict[str, list[Rule]], chain: str, packet: Packet) -> tuple[str, int, Rule] | None:
    """The rule that decides, and where it stands; None where the end of the chain is reached (or returned from)."""
    for index, rule in enumerate(table[chain]):
        if not rule.matches(packet) or rule.verdict == "LOG":
            continue
        if rule.verdict in table:
            found = first_match(table, rule.verdict, packet)
            if found:
                return found
        elif rule.verdict == "RETURN" and chain in ("ONE", "TWO"):
            return None
        else:
            return chain, index, rule
    return None


def goes_to(rule: Rule, port: int) -> tuple[str, int]:
    """(address, "" for this host; port)."""
    if "/" in rule.to:
        return "", port + 100
    address, _, to = rule.to.rpartition(" ")[2].rpartition(":")
    return address, int(to or port)


@given(tables, st.lists(packets, min_size=1, max_size=20))
def test_the_first_match_decides(table: dict[str, list[Rule]], some: list[Packet]) -> None:
    texts = [(chain, index, f"-A {chain} {rule.text()}") for chain in table for index, rule in enumerate(table[chain])]
    lines = ["*nat", *(f":{chain} - [0:0]" for chain in table), *(text for _, _, text in texts), "COMMIT"]
    found = importers.read([("iptables-save", Text("x", "\n".join(lines), "ipv4"))])
    left = {(place.line, place.text) for place, _ in found.left}
    numbers = {(chain, index): (5 + i, text) for i, (chain, index, text) in enumerate(texts, 1)}
    for packet in some:
        hook = "PREROUTING" if packet.interface else "OUTPUT"
        decides = first_match(table, hook, packet)
        if met_leftover(table, hook, packet, numbers, left):
            continue
        decision = decide(found.ruleset, packet)
        if decides is None:
            assert decision.action == "pass"
        else:
            assert decision.action == "translate"
            assert (decision.address, decision.port) == goes_to(decides[2], packet.port)


def met_leftover(
    table: dict[str, list[Rule]], chain: str, packet: Packet, numbers: Any, left: set[tuple[int, str]]
) -> bool:
    """Whether a packet meets a rule that was left over, on its way to the rule that decides."""
    for index, rule in enumerate(table[chain]):
        if not rule.matches(packet) or rule.verdict == "LOG":
            continue
        if numbers[chain, index] in left:
            return True
        if rule.verdict in table:
            if met_leftover(table, rule.verdict, packet, numbers, left):
                return True
            if first_match(table, rule.verdict, packet):
                return False
        else:
            return False
    return False
