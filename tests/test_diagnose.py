"""What the doctor finds in rules of others: tables of rules, in each of the forms that they come in."""

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.choose import Choice
from redirector.diagnose import findings
from redirector.findings import Finding
from redirector.host.firewalls import Firewalls, NftChain
from redirector.host.listings import Listed, Saved
from redirector.model import Mapping, Ports, Ruleset, Settings
from redirector.others import ALL, Question, follow, overlap, saved, spans, without
from redirector.others.openings import opening
from tests.strategies import mapping
from tests.test_choose import MODERN, OLD, OUR_TABLE, OURS, TOOLS
from tests.test_choose import saved as text_of

NFT = Choice("nftables", ())


def drop(text: str, backend: str = "iptables-nft", family: str = "ipv4", policy: str = "DROP") -> Saved:
    """The filter table with this policy at INPUT, and these rules."""
    found = text_of(backend, f"INPUT\n{text}", "filter", family)
    found.table.policies["INPUT"] = policy
    return found


def native(*rules: Any, policy: str = "drop", **sets: Any) -> Listed:
    """A table with an input filter, as nft lists it: each rule a list of statements."""
    chain = {"family": "inet", "table": "f", "name": "in", "type": "filter", "hook": "input", "prio": 0}
    objects: list[Any] = [{"metainfo": {}}, {"table": {"name": "f"}}, {"chain": {**chain, "policy": policy}}]
    objects += [{"set": {"name": name, "elem": elements}} for name, elements in sets.items()]
    objects += [{"rule": {"chain": "in", "handle": i, "expr": rule}} for i, rule in enumerate(rules, 1)]
    return Listed("inet", "f", tuple(objects), {i: json.dumps(rule) for i, rule in enumerate(rules, 1)})


DEFAULTS = Settings()


def found(
    *mappings: Mapping,
    saved: tuple[Saved, ...] = (),
    listed: tuple[Listed, ...] = (),
    choice: Choice = NFT,
    settings: Settings = DEFAULTS,
    **host: Any,
) -> list[Finding]:
    host = {"tools": TOOLS, **host}
    return list(findings(Ruleset(mappings, settings), Firewalls(MODERN, saved=saved, listed=listed, **host), choice))


def ids(*mappings: Mapping, **host: Any) -> list[str]:
    return [one.id for one in found(*mappings, **host)]


def match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def dport(right: Any, op: str = "==", protocol: str = "tcp") -> Any:
    return match({"payload": {"protocol": protocol, "field": "dport"}}, right, op)


STATE, STATUS = {"ct": {"key": "state"}}, {"ct": {"key": "status"}}
L4, IIF = {"meta": {"key": "l4proto"}}, {"meta": {"key": "iifname"}}
TH = {"payload": {"protocol": "th", "field": "dport"}}
ACCEPT, DROP = {"accept": None}, {"drop": None}
WEB = mapping("web", "80", "8080")
WEB4 = mapping("web", "80", "8080", family="ipv4")


class TestFilters:
    @pytest.mark.parametrize(
        "rules",
        [
            "",
            "INPUT -p tcp -m tcp --dport 80 -j ACCEPT",  # the port that clients use
            "INPUT -p udp -m udp --dport 8080 -j ACCEPT",
            "INPUT -i lo -p tcp --dport 8080 -j ACCEPT",
            "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "INPUT -m state --state ESTABLISHED -j ACCEPT",
            "INPUT -p tcp -m multiport --dports 22,80,8000:8079 -j ACCEPT",
            "INPUT -p tcp -m multiport ! --dports 8000:8100 -j ACCEPT",
            "INPUT ! -p tcp -j ACCEPT",
            "INPUT -p icmp -j ACCEPT",
            "INPUT -s 10.0.0.0/8 -j ACCEPT",  # for some, and nobody thought of this port
            "INPUT -i eth1 -j ACCEPT",
            "INPUT -p tcp --dport 8080 -j DROP\nINPUT -p tcp --dport 8080 -j ACCEPT",
            "INPUT -p tcp -j other\nother -p tcp --dport 8080 -j RETURN\nother -j ACCEPT",
            "INPUT -p tcp -g other\nINPUT -j ACCEPT\nother -p udp -j ACCEPT",
            "INPUT -j LOG\nINPUT -j MARK --set-xmark 0x1/0x1",
            "INPUT -m addrtype --dst-type MULTICAST -j ACCEPT",
            'INPUT -p tcp --dport 80 -m comment --comment "-j ACCEPT --dport 8080" -j ACCEPT',
            "INPUT -j loop\nloop -j loop",
            "INPUT -m conntrack ! --ctstate NEW -j ACCEPT",
            "INPUT -m conntrack ! --ctstate DNAT -j ACCEPT",
        ],
    )
    def test_dropped_by_iptables(self, rules: str) -> None:
        assert ids(WEB4, saved=(drop(rules),)) == ["filter-drops"]
        assert ids(WEB4, saved=(drop(rules, "iptables-legacy"),)) == ["filter-drops"]

    @pytest.mark.parametrize(
        "rules",
        [
            "INPUT -p tcp -m tcp --dport 8080 -j ACCEPT",
            "INPUT -j ACCEPT",
            "INPUT -p tcp -m multiport --dports 22,80,8000:8090 -j ACCEPT",
            "INPUT -p tcp -m multiport ! --dports 22 -j ACCEPT",
            "INPUT ! -p udp -j ACCEPT",
            "INPUT ! -i lo -p tcp -j ACCEPT",
            "INPUT -m conntrack --ctstate NEW -j ACCEPT",
            "INPUT -m conntrack --ctstate DNAT -j ACCEPT",
            "INPUT -m conntrack ! --ctstate INVALID -j ACCEPT",
            "INPUT -m addrtype --dst-type LOCAL -j ACCEPT",
            "INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
            "INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP\nINPUT -p tcp -j ACCEPT",
            "INPUT -s 10.0.0.0/8 -j DROP\nINPUT -p tcp --dport 8080: -j ACCEPT",
            "INPUT -m conntrack --ctstate INVALID -j DROP\nINPUT -p tcp -j in\nin -p tcp --dport :9000 -j ACCEPT",
            "INPUT -i lo -j DROP\nINPUT -j in\nin -p tcp --dport 80 -j RETURN\nin -j ACCEPT",
            "INPUT -s 10.0.0.0/8 -p tcp --dport 8080 -j ACCEPT",  # for some, on purpose
            "INPUT -i eth0 -j wan\nwan -p tcp --dport 8080 -j ACCEPT",
            "INPUT -j NFQUEUE --queue-num 1",  # who knows
            'INPUT -m comment --comment "-g" -j ACCEPT',
            "INPUT -j REDIRECTOR-GUARD\nINPUT -j ACCEPT\nREDIRECTOR-GUARD -j REJECT",
        ],
    )
    def test_let_in_by_iptables(self, rules: str) -> None:
        assert ids(WEB4, saved=(drop(rules),)) == []

    def test_a_rule_that_drops_the_rest(self) -> None:
        (one,) = found(WEB4, saved=(drop("INPUT -p tcp --dport 80 -j ACCEPT\nINPUT -j REJECT", policy="ACCEPT"),))
        assert "by the rule -A INPUT -j REJECT of chain INPUT" in one.message
        assert one.fix == ("iptables-nft -I INPUT -p tcp --dport 8080 -m conntrack --ctstate DNAT -j ACCEPT",)
        assert ids(WEB4, saved=(drop("INPUT -s 10.0.0.0/8 -j DROP", policy="ACCEPT"),)) == []

    def test_families(self) -> None:
        assert [one.fix[0].split()[0] for one in found(WEB, saved=(drop("", "iptables-legacy", "ipv6"),))] == [
            "ip6tables-legacy"
        ]
        assert ids(WEB4, saved=(drop("", family="ipv6"),)) == []
        assert ids(mapping("a", address=("192.0.2.1",)), saved=(drop("", family="ipv6"),)) == []
        assert ids(mapping("a", source=("2001:db8::/32",)), saved=(drop(""),)) == []
        assert ids(WEB, listed=(native(),)) == ["filter-drops"]  # one, for both

    def test_not_asked(self) -> None:
        for other in (mapping("off", enabled=False), mapping("own", interface=("lo",))):
            assert ids(other, saved=(drop(""),)) == []
        assert list(findings(None, Firewalls(MODERN, saved=(drop(""),)), NFT)) == []

    def test_names_and_ports_are_told(self) -> None:
        text = "INPUT -p tcp --dport 2002 -j ACCEPT"
        (one,) = found(mapping("range", "1000-1009", "2000-2009"), mapping("web"), saved=(drop(text),))
        assert "tcp 2000-2001, 2003-2009, 8080 (range, web)" in one.message
        assert "--dports 2000:2001,2003:2009,8080 " in one.fix[0]
        (one,) = found(*(mapping(f"m{i}", str(i), str(9000 + 2 * i)) for i in range(1, 21)), listed=(native(),))
        assert "and 14 more" in one.message
        assert one.fix[0].count(",") == 19

    def test_owners(self) -> None:
        ufw = drop("INPUT -j ufw-before-input\nufw-before-input -i lo -j ACCEPT\nDOCKER")
        both = mapping("web", "80-89", "8080-8089", protocol=("tcp", "udp"), family="ipv4")
        assert [one.fix for one in found(both, saved=(ufw,))] == [
            ("ufw allow 8080:8089/tcp",),
            ("ufw allow 8080:8089/udp",),
        ]
        zones = drop("INPUT -j INPUT_ZONES\nINPUT_ZONES")
        assert found(WEB4, saved=(zones,))[0].fix == (
            "firewall-cmd --permanent --add-port=8080/tcp && firewall-cmd --reload",
        )
        firewalld = native()._replace(name="firewalld")
        assert found(WEB, listed=(firewalld,))[0].fix[0].startswith("firewall-cmd")
        # firewalld as it is lets in what was redirected.
        assert ids(WEB, listed=(native([match(STATUS, "dnat", "in"), ACCEPT])._replace(name="firewalld"),)) == []

    @pytest.mark.parametrize(
        "rules",
        [
            [[dport(80), ACCEPT]],
            [[dport(8080, "!="), ACCEPT]],
            [[dport({"set": [22, {"range": [8000, 8079]}]}), ACCEPT]],
            [[dport("@s"), ACCEPT]],
            [[dport("@gone"), ACCEPT]],
            [[dport(8080, protocol="udp"), ACCEPT]],
            [[match(STATE, ["established", "related"], "in"), ACCEPT]],
            [[match(STATE, "new", "!="), ACCEPT]],
            [[match(STATUS, "dnat", "!="), ACCEPT]],
            [[match(IIF, "lo"), dport(8080), ACCEPT]],
            [[match(L4, {"set": ["udp", "icmp"]}), ACCEPT]],
            [[match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.0.0.1"), ACCEPT]],
            [[{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}]],
            [[{"vmap": {"key": dport(0)["match"]["left"], "data": {"set": [[22, ACCEPT], [8080, DROP]]}}}], [ACCEPT]],
            [[{"limit": {"rate": 1}}, ACCEPT]],
            [[{"counter": None}, {"log": None}]],
            [[{"unheard of": {}}, ACCEPT]],
            [["junk", {"match": 3}, {"match": {"op": "<"}}, ACCEPT]],
            [[{"jump": {"target": "in"}}]],
            [[{"jump": None}]],
            [[{"vmap": 5}], [{"vmap": {"key": 5, "data": {"set": [5, [1], [1, 2], [{"x": 1}, {"jump": 3}]]}}}]],
        ],
    )
    def test_dropped_by_nft(self, rules: list[Any]) -> None:
        assert ids(WEB, listed=(native(*rules, s=[22, {"range": [80, 90]}]),)) == ["filter-drops"]

    @pytest.mark.parametrize(
        "rules",
        [
            [[dport(8080), ACCEPT]],
            [[dport(80, "!="), {"counter": {}}, ACCEPT]],
            [[dport({"set": [22, {"range": [8000, 8089]}]}), ACCEPT]],
            [[dport("@s"), ACCEPT]],
            [[match({"concat": [L4, TH]}, "@pairs"), ACCEPT]],
            [[match(L4, {"set": ["tcp", "udp"]}), dport(8080, protocol="th"), ACCEPT]],
            [[match(STATUS, "dnat", "in"), ACCEPT]],
            [[match({"&": [STATUS, "dnat"]}, 0, "!="), ACCEPT]],
            [[match({"&": [STATUS, "dnat"]}, "dnat"), ACCEPT]],
            [[match(STATE, {"set": ["new", "established"]}), ACCEPT]],
            [[match(STATE, "invalid"), DROP], [match(L4, "tcp"), ACCEPT]],
            [[match(IIF, "lo", "!="), ACCEPT]],
            [[match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), ACCEPT]],
            [[{"vmap": {"key": {"concat": [L4, TH]}, "data": {"set": [[{"concat": ["tcp", 8080]}, ACCEPT]]}}}]],
            [[{"vmap": {"key": L4, "data": {"set": [["tcp", {"goto": {"target": "open"}}]]}}}], [DROP]],
            [[match({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn", "rst", "ack"]]}, "syn"),
              ACCEPT]],
            [[ACCEPT]],
        ],
    )  # fmt: skip
    def test_let_in_by_nft(self, rules: list[Any]) -> None:
        table = native(*rules, s=[22, {"elem": {"val": {"range": [8080, 8090]}, "comment": "x"}}])
        pairs = {"set": {"name": "pairs", "elem": [{"concat": ["tcp", {"range": [8000, 8099]}]}]}}
        more = (pairs, {"rule": {"chain": "open", "handle": 99, "expr": [ACCEPT]}})
        assert ids(WEB, listed=(table._replace(objects=table.objects + more),)) == []

    def test_nfts_families(self) -> None:
        only = native([match({"meta": {"key": "nfproto"}}, "ipv6"), dport(8080), ACCEPT])
        assert ids(WEB, listed=(only,)) == ["filter-drops"]
        assert ids(mapping("web", family="ipv6"), listed=(only,)) == []

    def test_exemption(self) -> None:
        table = native([match(STATUS, "dnat", "in"), ACCEPT])
        (one,) = found(mapping("own", "80", "80"), listed=(table,))
        assert one.fix == ("nft add rule inet f in tcp dport 80 accept",)

    def test_names_of_others(self) -> None:
        table = native()._replace(name="f; flush ruleset")
        (one,) = found(WEB, listed=(table,))
        assert "flush" not in "".join(one.fix)
        assert "\x1b" not in found(WEB, listed=(native()._replace(name="\x1b[2J"),))[0].message

    def test_a_maze_ends(self) -> None:
        """Chains that are entered along 2^16 ways, and more rules than anybody has."""
        lines = [f"c{i} -j c{i + 1}\nc{i} -j c{i + 1}" for i in range(16)]
        assert ids(WEB4, saved=(drop("\n".join(["INPUT -j c0", *lines, "c16 -p udp -j ACCEPT"])),)) in (
            [],
            ["filter-drops"],
        )


class TestMappings:
    LEGACY = text_of("iptables-legacy", "PREROUTING -p tcp -m multiport --dports 22,79:81 -j REDIRECT --to-ports 1")
    OTHER = text_of("iptables-nft", "PREROUTING -j DOCKER\nDOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to 10.0.0.1")

    def test_both_forms(self) -> None:
        host = (self.LEGACY, self.OTHER)
        got = {one.id: one.message for one in found(WEB, saved=host)}
        assert set(got) == {"both-variants", "nft-and-legacy"}
        for words in (
            "tcp 80,",
            "iptables-legacy table nat, chain PREROUTING: -A PREROUTING -p tcp -m multiport --dports 22,79:81 -j",
            "iptables-nft table nat, chain DOCKER: -A DOCKER ! -i docker0",
        ):
            assert words in got["nft-and-legacy"]
        assert ids(mapping("m", "82", "1"), saved=host) == ["both-variants"]
        assert ids(mapping("m", "80", "1", protocol=("udp",)), saved=host) == ["both-variants"]

    def test_ours_and_theirs(self) -> None:
        assert ids(WEB, saved=(self.LEGACY,)) == ["nft-and-legacy"]
        assert ids(WEB, saved=(self.OTHER,)) == ["also-mapped"]
        legacy = Choice("iptables-legacy", ())
        assert ids(WEB, saved=(self.LEGACY,), choice=legacy) == ["also-mapped"]
        assert "nft-and-legacy" in ids(WEB, saved=(self.OTHER,), choice=legacy)
        assert ids(WEB, saved=(text_of("iptables-legacy", OURS),), choice=legacy) == []

    @pytest.mark.parametrize(
        ("priority", "expected"), [(-111, "also-mapped"), (-110, "taken-first"), (0, "taken-first")]
    )
    def test_order(self, priority: int, expected: str) -> None:
        chain = {"name": "p", "type": "nat", "hook": "prerouting", "prio": -110, "policy": "accept"}
        ports = {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": "@m"}}
        objects = (
            {"chain": chain},
            {"map": {"name": "m", "elem": [[80, 8080], [81, 1]]}},
            {"rule": {"chain": "p", "handle": 7, "expr": [match(L4, "tcp"), {"redirect": {"port": ports}}]}},
        )
        table = Listed("inet", "x", objects, {7: "the text"})
        got = found(mapping("m", "80-89", "1"), listed=(table,), settings=Settings(priority=priority))
        assert [one.id for one in got] == [expected]
        assert "nft table inet x, chain p: the text" in got[0].message
        assert "80-81 " in got[0].message
        assert ids(mapping("m", "82", "1"), listed=(table,)) == []

    def test_equal_priority(self) -> None:
        at = NftChain("inet", "x", "p", "nat", "prerouting", -110, "accept")
        (one,) = found(WEB, chains=(at, OUR_TABLE))
        assert (one.id, one.fix) == (
            "equal-priority",
            ("say another priority in the file: [settings] priority = -111",),
        )
        assert "inet x p (prerouting)" in one.message
        others = (
            at._replace(hook="postrouting"),
            at._replace(type="filter"),
            at._replace(priority=-100),
            OUR_TABLE,
        )
        assert ids(WEB, chains=others) == []
        later = Settings(priority=-100)
        assert ids(WEB, chains=others, settings=later) == ["equal-priority"]
        assert "equal-priority" in ids(WEB, saved=(self.LEGACY,), settings=later)
        # Beside ours in the same chain there is an order; and a chain without rules takes nothing.
        nat = at._replace(family="ip", table="nat", name="PREROUTING", priority=-100)
        assert ids(WEB, chains=(nat,), saved=(self.OTHER,), choice=Choice("iptables-nft", ())) == ["also-mapped"]
        assert "equal-priority" in ids(WEB, chains=(nat,), saved=(self.OTHER,), choice=Choice("iptables-legacy", ()))
        assert ids(WEB, chains=(nat,), saved=(text_of("iptables-nft", "PREROUTING"),), settings=later) == []


class TestHost:
    def test_nothing_to_say(self) -> None:
        assert found(WEB) == []

    @pytest.mark.parametrize(
        ("host", "backend", "expected"),
        [
            (Firewalls(OLD), "nftables", ["old-kernel"]),
            (Firewalls(OLD, tools=TOOLS), "iptables-nft", []),
            (Firewalls(MODERN, nf_tables=False), "nftables", ["no-nf-tables"]),
            (Firewalls(MODERN, nf_tables=False), "iptables-nft", ["no-nf-tables", "missing-tools"]),
            (Firewalls(MODERN, nf_tables=False), "iptables-legacy", ["missing-tools"]),
            (Firewalls(MODERN, nf_tables=False, tools=TOOLS), "iptables-legacy", []),
            (Firewalls(MODERN, chains=(OUR_TABLE,), tools=TOOLS), "iptables-nft", ["ours-elsewhere"]),
            (
                Firewalls(MODERN, chains=(OUR_TABLE,), saved=(text_of("iptables-nft", OURS),)),
                "nftables",
                ["ours-twice"],
            ),
            (Firewalls(MODERN, failures=("nft is missing",)), "nftables", ["unread"]),
        ],
    )
    def test_platform(self, host: Firewalls, backend: str, expected: list[str]) -> None:
        got = list(findings(None, host, Choice(backend, ())))
        assert [one.id for one in got] == expected
        assert all(one.fix for one in got if one.id != "unread")


PORTS = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair)))
SPANS = st.lists(PORTS, max_size=6).map(spans)


@given(SPANS, SPANS)
def test_spans(one: Any, other: Any) -> None:
    def members(found: Any) -> set[int]:
        return {port for span in found for port in range(span.first, span.last + 1)}

    assert members(overlap(one, other)) == members(one) & members(other)
    assert members(without(one, other)) == members(one) - members(other)
    assert without(one, other) == spans(without(one, other))


@given(st.lists(st.tuples(PORTS, st.sampled_from(["ACCEPT", "DROP", "RETURN", "a", "b", "c"])), max_size=8), st.data())
def test_follow_decides_each_port_as_the_kernel_would(rules: Any, data: Any) -> None:
    """All ports at once give what one port after the other gives."""
    chains: dict[str, list[tuple[tuple[int, int], str]]] = {"INPUT": [], "a": [], "b": [], "c": []}
    for ports, verdict in rules:
        # Jumps go forward only: the kernel refuses loops.
        sources = [name for name in chains if verdict.isupper() or name == "INPUT" or name < verdict]
        chains[data.draw(st.sampled_from(sources))].append((ports, verdict))

    def verdict_of(chain: str, port: int) -> str:
        for (first, last), verdict in chains[chain]:
            if first <= port <= last:
                got = "" if verdict == "RETURN" else verdict.lower() if verdict.isupper() else verdict_of(verdict, port)
                if got or verdict == "RETURN":
                    return got
        return ""

    text = "\n".join(
        [
            *chains,
            *(f"{c} -p tcp --dport {p[0]}:{p[1]} -j {v}" for c, of in chains.items() for p, v in of),
        ]
    )
    filtered = drop(text)
    table = saved.table("iptables-nft", "ipv4", "filter", filtered.table)
    hits = list(follow(table, "INPUT", Question("tcp", "ipv4", ALL)))
    for port in range(42):
        got = [hit.verdict for hit in hits if overlap(hit.ports, (Ports(port, port),))]
        assert got == [verdict_of("INPUT", port) or "drop"]


def test_openings_fit_into_multiport() -> None:
    table = saved.table("iptables-legacy", "ipv6", "filter", drop("").table)
    ports = spans((n, n + n % 2) for n in range(100, 300, 3))
    lines = opening(table, "INPUT", Question("udp", "ipv6", ports, True), "", by_rule=False)
    told = []
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "ip6tables-legacy"
        listed = (
            words[words.index("--dports") + 1].split(",")
            if "--dports" in words
            else [words[words.index("--dport") + 1]]
        )
        assert sum(1 + (":" in one) for one in listed) <= 15
        told += listed
    assert told == [str(span).replace("-", ":") for span in ports]
