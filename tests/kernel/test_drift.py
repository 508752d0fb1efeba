"""Drift is never missed and never invented: every kind of tampering that nft(8) can do, found, told and healed.

What iptables(8) can do is in test_iptables_drift; what is told of drift, and that none is invented, is asked here of
all backends.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from redirector import proving
from redirector.output import drift_detail
from redirector.plan import AddChain
from tests.kernel.admin import Admin
from tests.kernel.echo import Answered
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, Lab, Machine
from tests.kernel.product import Product, mapping, on_each, on_nftables

pytestmark = on_nftables

BOTH = ["tcp", "udp"]
NETWORKS = ["192.0.2.0/24", "2001:db8:1::/64"]
EVERYTHING = (
    mapping("web", [80, 81], 8080, protocol=BOTH, exclusive=True)
    + mapping("staff", 80, 8090, source=NETWORKS)
    + mapping("dns", 53, 5300, protocol=BOTH, address=list(HOST_SECONDARY), exclusive=True)
    + mapping("link", "1000-1003", "2000-2003", interface=["eth0", "veth*"], rewrite="redirect", family="ipv4")
    + mapping("own", 443, 8443, interface="lo")
)
MAPPINGS = ["web", "staff", "dns", "link", "own"]
COUNTING = 'counter name meta l4proto . th dport map @counts comment "connections by mapping"'
LEADS = "meta l4proto { tcp, udp, sctp }"


@dataclass(frozen=True, slots=True)
class Tampering:
    """`text` is for nft; `{chain/2}` stands for the handle of the chain's third rule. Then what `status` has to say:
    the `kind` of drift and some of the `words`, and which `mappings` are out of sync."""

    name: str
    text: str
    kind: str
    words: str
    mappings: frozenset[str]


def element(name: str, change: str, kind: str, mapping: str = "web", words: str = "") -> Tampering:
    """Changes of elements: "-map { … }" takes away, "+map { … }" adds, several after each other."""
    verbs = {"-": "delete element", "+": "add element"}
    text = "\n".join(f"{verbs[c[0]]} inet redirector {c[1:]}" for c in change.split(" | "))
    return Tampering(name, text, kind, words, frozenset(mapping.split()))


def structure(name: str, text: str, words: str = "", mappings: str = "") -> Tampering:
    """Anything else; "~" stands for our table. `mappings` are those that are served by what is damaged."""
    served = " ".join(MAPPINGS) if mappings == "all" else mappings
    return Tampering(name, text.replace("~", "inet redirector"), "structure", words, frozenset(served.split()))


REBUILT_MAP = f"""
    flush chain inet redirector arriving; flush chain inet redirector own; delete map inet redirector ports
    table inet redirector {{
        map ports {{
            type inet_proto . inet_service : inet_service
            size 64
            OPTIONS
            elements = {{ tcp . 80 comment "web" : 8080, udp . 80 comment "web" : 8080,
                          tcp . 81 comment "web" : 8080, udp . 81 comment "web" : 8080 }}
        }}
        chain arriving {{
            ip6 saddr & ffff:ffff:ffff:ffff:: vmap @arriving_sources_ipv6_64
            ip saddr & 255.255.255.0 vmap @arriving_sources_ipv4_24
            ip daddr vmap @arriving_addresses_ipv4
            ip6 daddr vmap @arriving_addresses_ipv6
            iifname vmap @arriving_interfaces
            iifname "veth*" jump arriving_on_veth_2a
            {COUNTING}
            {LEADS} dnat to :meta l4proto . th dport map @ports comment "new port"
        }}
        chain own {{
            ip daddr vmap @own_addresses_ipv4
            ip6 daddr vmap @own_addresses_ipv6
            jump own_on_lo
            {COUNTING}
            {LEADS} dnat to :meta l4proto . th dport map @ports comment "new port"
        }}
    }}"""

TAMPERINGS = (
    element("an element deleted", "-ports { tcp . 80 }", "changed", words="lacks tcp 80 → 8080"),
    element(
        "an element changed", '-ports { tcp . 80 } | +ports { tcp . 80 comment "web" : 8081 }', "changed", words="8081"
    ),
    element("an element added", '+ports { tcp . 22 comment "web" : 8080 }', "changed", words="has tcp 22 → 8080"),
    element("an element of nobody added", "+ports { tcp . 22 : 8080 }", "extra", "", "tcp 22"),
    element(
        "an element of a stranger added", '+ports { tcp . 22 comment "odd" : 8080 }', "extra", "", "odd has tcp 22"
    ),
    element(
        "a comment changed",
        '-ports { tcp . 80 } | +ports { tcp . 80 comment "wed" : 8080 }',
        "extra",
        "web",
        "wed has tcp 80",
    ),
    element("a comment deleted", "-ports { tcp . 80 } | +ports { tcp . 80 : 8080 }", "changed"),
    element("an element of another protocol", '+ports { dccp . 80 comment "web" : 8080 }', "changed"),
    element("an element of a scope deleted", "-arriving_from_192.0.2.0/24_ports { tcp . 80 }", "changed", "staff"),
    element("an element of one family deleted", "-at_2001-db8-1--2_ports { udp . 53 }", "changed", "dns"),
    element(
        "an element of a range changed",
        "-arriving_on_eth0_redirects_ipv4 { tcp . 1002 }"
        ' | +arriving_on_eth0_redirects_ipv4 { tcp . 1002 comment "link" : 22 }',
        "changed",
        "link",
    ),
    element("a guard deleted", "-guards { tcp . 8080 }", "changed"),
    element("a guard added", '+guards { tcp . 22 comment "web" }', "changed"),
    element("a guard of an address deleted", "-guards_ipv6_at { 2001:db8:1::2 . udp . 5300 }", "changed", "dns"),
    element("a guard of an address added", "+guards_ipv4_at { 192.0.2.1 . tcp . 5300 }", "extra", "", "tcp 5300"),
    element("a counting element deleted", "-counts { tcp . 80 }", "changed", words="web tcp 80 not counted"),
    element(
        "a counting element of a scope deleted",
        "-arriving_on_veth_2a_redirect-counts_ipv4 { tcp . 1002 }",
        "changed",
        "link",
        "tcp 1002 on veth* ipv4 not counted",
    ),
    element(
        "a counting element turned",
        '-counts { udp . 81 } | +counts { udp . 81 : "taken_staff" }',
        "changed",
        words="web udp 81 counted by taken_staff",
    ),
    element(
        "a counting element turned to a counter of others",
        '-counts { udp . 81 }\nadd counter inet redirector mine | +counts { udp . 81 : "mine" }',
        "changed",
        words="web udp 81 counted by mine",
    ),
    element(
        "a counting element added",
        '+counts { tcp . 22 : "taken_web" }',
        "changed",
        words="web tcp 22 counted by taken_web and not redirected",
    ),
    element(
        "a counting element with a comment",
        '-counts { tcp . 80 } | +counts { tcp . 80 comment "web" : "taken_web" }',
        "changed",
        words="web tcp 80 counted by taken_web, attribute 6",
    ),
    Tampering(
        "a counting map flushed",
        "flush map inet redirector counts",
        "changed",
        "tcp 80-81, udp 80-81 not counted",
        frozenset({"web"}),
    ),
    Tampering(
        "a counter deleted",
        "flush map inet redirector arriving_from_192.0.2.0/24_counts\n"
        "flush map inet redirector arriving_from_2001-db8-1--/64_counts\n"
        "delete counter inet redirector taken_staff",
        "structure",
        "counter taken_staff is missing",
        frozenset({"staff"}),
    ),
    Tampering("a map flushed", "flush map inet redirector ports", "changed", "80-81 → 8080", frozenset({"web"})),
    Tampering("a set flushed", "flush set inet redirector guards", "changed", "8080 refused", frozenset({"web"})),
    structure(
        "an element of a verdict map deleted",
        "delete element ~ arriving_sources_ipv4_24 { 192.0.2.0 }",
        mappings="staff",
    ),
    structure(
        "an element of a verdict map added",
        'add element ~ arriving_interfaces { "eth1" : jump arriving_on_eth0 }',
        "eth1",
    ),
    structure(
        "an element of a verdict map turned",
        "delete element ~ own_addresses_ipv4 { 192.0.2.2 }\n"
        "add element ~ own_addresses_ipv4 { 192.0.2.2 : jump own_on_lo }",
        mappings="dns",
    ),
    structure(
        "an element of a verdict map made a drop",
        'delete element ~ arriving_interfaces { "eth0" }\nadd element ~ arriving_interfaces { "eth0" : drop }',
        mappings="link",
    ),
    structure(
        "an element of a verdict map made a goto",
        'delete element ~ arriving_interfaces { "eth0" }\n'
        'add element ~ arriving_interfaces { "eth0" : goto arriving_on_eth0 }',
        mappings="link",
    ),
    structure("a verdict map flushed", "flush map ~ arriving_addresses_ipv6", mappings="dns"),
    structure("a rule deleted", "delete rule ~ arriving handle {arriving/7}", mappings="web"),
    structure(
        "a counting rule deleted",
        "delete rule ~ arriving handle {arriving/6}",
        "chain arriving lacks a rule: count map counts (serves web)",
        mappings="web",
    ),
    structure(
        "a counting rule that names one counter",
        'replace rule ~ own handle {own/3} counter name "taken_staff" comment "connections by mapping"',
        "chain own has a rule that is not ours",
        mappings="web dns own",
    ),
    structure(
        "a counting rule behind the one that translates",
        f"delete rule ~ own handle {{own/3}}\nadd rule ~ own {COUNTING}",
        "chain own has its rules in another order",
        mappings="web dns own",
    ),
    structure(
        "a counting map replaced",
        f"flush chain ~ own_on_lo; delete map ~ own_on_lo_counts\n"
        "add map ~ own_on_lo_counts {{ type inet_proto . inet_service : quota; size 64; }}\n"
        f'add rule ~ own_on_lo {LEADS} dnat to :meta l4proto . th dport map @own_on_lo_ports comment "new port"',
        "map own_on_lo_counts is of another kind",
        mappings="own",
    ),
    structure("a dispatching rule deleted", "delete rule ~ arriving handle {arriving/1}", mappings="staff"),
    structure("a wildcard's rule deleted", "delete rule ~ arriving handle {arriving/5}", mappings="link"),
    structure("the rule at a hook deleted", "delete rule ~ output handle {output/0}", mappings="web dns own"),
    structure(
        "a guarding rule deleted", "delete rule ~ input handle {input/0}", "chain input lacks a rule", mappings="web"
    ),
    structure("a refusing rule deleted", "delete rule ~ refuse handle {refuse/0}", "chain refuse lacks a rule"),
    structure(
        "a rule added",
        "add rule ~ arriving tcp dport 80 accept",
        "chain arriving has a rule that is not ours",
        mappings="web staff dns link",
    ),
    structure(
        "a rule inserted",
        "insert rule ~ prerouting return",
        "chain prerouting has a rule that is not ours",
        mappings="web staff dns link",
    ),
    structure("a rule without effect added", "add rule ~ refuse counter", "chain refuse has a rule that is not ours"),
    structure(
        "a rule doubled",
        "add rule ~ own jump own_on_lo",
        "chain own has its rules in another order or twice",
        mappings="web dns own",
    ),
    structure(
        "rules in another order",
        f"delete rule ~ own handle {{own/4}}\n"
        f'insert rule ~ own {LEADS} dnat to :meta l4proto . th dport map @ports comment "new port"',
        "chain own has its rules in another order",
        mappings="web dns own",
    ),
    structure(
        "a rule's comment changed",
        'replace rule ~ prerouting handle {prerouting/0} fib daddr type local jump arriving comment "mine"',
        "chain prerouting",
        mappings="web staff dns link",
    ),
    structure(
        "a rule's condition dropped",
        "replace rule ~ prerouting handle {prerouting/0} jump arriving",
        "chain prerouting",
        mappings="web staff dns link",
    ),
    structure(
        "a rule's prefix changed",
        "replace rule ~ arriving handle {arriving/1} ip saddr & 255.255.0.0 vmap @arriving_sources_ipv4_24",
        mappings="web staff dns link",
    ),
    structure(
        "a rule's interface changed",
        'replace rule ~ arriving handle {arriving/5} iifname "vet*" jump arriving_on_veth_2a',
        mappings="web staff dns link",
    ),
    structure(
        "a rule's rewrite changed",
        "replace rule ~ own handle {own/4} "
        f'{LEADS} redirect to :meta l4proto . th dport map @ports comment "new port"',
        mappings="web dns own",
    ),
    structure(
        "a rule's protocols changed",
        "replace rule ~ own handle {own/4} "
        'meta l4proto { tcp, udp } dnat to :meta l4proto . th dport map @ports comment "new port"',
        mappings="web dns own",
    ),
    structure(
        "a guard's condition changed",
        "replace rule ~ input handle {input/0} "
        'iifname != "lo" ct status & dnat != dnat meta l4proto . th dport @guards jump refuse '
        'comment "targets of exclusive mappings are not for direct use"',
        "chain input",
        mappings="web dns",
    ),
    structure("a chain flushed", "flush chain ~ arriving_from_192.0.2.0/24", mappings="staff"),
    structure("a chain deleted", "delete rule ~ own handle {own/2}; delete chain ~ own_on_lo", mappings="own"),
    structure("a chain added", "add chain ~ mine", "chain mine is not ours"),
    structure(
        "a base chain added",
        "add chain ~ mine {{ type filter hook forward priority 0; policy drop; }}",
        "chain mine is not ours",
    ),
    structure("a policy changed", "add chain ~ input {{ policy drop; }}", "policy drop", mappings="web dns"),
    structure(
        "a policy of a nat chain changed",
        "add chain ~ prerouting {{ policy drop; }}",
        "policy drop",
        mappings="web staff dns link",
    ),
    structure(
        "a hook gone",
        "flush chain ~ prerouting; delete chain ~ prerouting",
        "chain prerouting is missing",
        mappings="web staff dns link",
    ),
    structure(
        "a chain off its hook",
        "flush chain ~ prerouting; delete chain ~ prerouting; add chain ~ prerouting\n"
        'add rule ~ prerouting fib daddr type local jump arriving comment "only what is addressed to this host"',
        "chain prerouting is at no hook",
        mappings="web staff dns link",
    ),
    structure(
        "another priority",
        "flush chain ~ prerouting; delete chain ~ prerouting\n"
        "add chain ~ prerouting {{ type nat hook prerouting priority -109; }}\n"
        'add rule ~ prerouting fib daddr type local jump arriving comment "only what is addressed to this host"',
        "priority -109",
        mappings="web staff dns link",
    ),
    structure(
        "another hook",
        "flush chain ~ output; delete chain ~ output\n"
        "add chain ~ output {{ type nat hook prerouting priority -110; }}\n"
        'add rule ~ output fib daddr type local jump own comment "only what is addressed to this host"',
        "nat at prerouting",
        mappings="web dns own",
    ),
    structure(
        "another type",
        "flush chain ~ input; delete chain ~ input; add chain ~ input {{ type nat hook input priority -10; }}",
        "chain input is nat at input",
        mappings="web dns",
    ),
    structure("a set added", "add set ~ mine {{ type ipv4_addr; }}", "map mine is not ours"),
    structure("a map added", "add map ~ mine {{ type inet_service : verdict; }}", "map mine is not ours"),
    structure(
        "a map like ours added",
        "add map ~ mine {{ type inet_proto . inet_service : inet_service; size 64; counter; }}",
        "map mine is not ours",
    ),
    structure("a counter added", "add counter ~ mine", "counter mine is not ours"),
    structure("a counter of a mapping that there is not", "add counter ~ taken_off", "counter taken_off is not ours"),
    structure("a counter in a rule", 'add counter ~ mine\nadd rule ~ own counter name "mine"', mappings="web dns own"),
    structure("a quota added", "add quota ~ mine {{ over 10 mbytes; }}", "object mine"),
    structure(
        "a map with timeouts",
        REBUILT_MAP.replace("OPTIONS", "flags timeout;"),
        "map ports is of another kind",
        mappings="web",
    ),
    structure(
        "a map with counters", REBUILT_MAP.replace("OPTIONS", "counter"), "map ports is of another kind", mappings="web"
    ),
    structure("the table asleep", "add table ~ {{ flags dormant; }}", "dormant", mappings="all"),
    structure("the table flushed", "flush table ~", "chain prerouting lacks a rule", mappings="all"),
    structure("the table deleted", "delete table ~", "the table is gone", mappings="all"),
    structure("everything flushed", "flush ruleset", "the table is gone", mappings="all"),
)


def words(machine: Machine) -> list[str]:
    """Everything in our table, whatever the order of chains, maps and elements (those of a hash have none)."""
    return sorted(re.split(r"[\s,]+", machine.nft_list("table inet redirector")))


def tamper(machine: Machine, text: str) -> None:
    def handle(place: re.Match[str]) -> str:
        listing = machine.run("nft", "-a", "list", "chain", "inet", "redirector", place[1])
        rules = [
            line
            for line in listing.splitlines()
            if "# handle" in line and not line.lstrip().startswith(("table", "chain"))
        ]
        return rules[int(place[2])].rpartition(" ")[2]

    text = re.sub(r"\{(\w+)/(\d)\}", handle, text).replace("{{", "{").replace("}}", "}")
    machine.nft("\n".join(line.strip() for line in text.split("; ")) if "{" not in text.split("; ")[0] else text)


every_tampering = pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda one: one.name.replace(" ", "-"))


@pytest.fixture(scope="module")
def untouched(shared_product: Product) -> list[str]:
    shared_product.lab.host.serve("tcp", HOST[0], 8080, 8090)
    shared_product.apply(EVERYTHING)
    return words(shared_product.lab.host)


@every_tampering
def test_tampering(shared_product: Product, untouched: list[str], tampering: Tampering) -> None:
    lab, product = shared_product.lab, shared_product
    lab.host.flush()
    product.apply(EVERYTHING)
    generation = product.status().head

    assert proving.known(product.backend, product.history) is not None
    tamper(lab.host, tampering.text)
    assert proving.known(product.backend, product.history) is None
    found = product.status()
    assert found.state == "drifted"
    assert tampering.kind in {one.kind for one in found.drift}
    assert found.drifted & set(MAPPINGS) == tampering.mappings
    told = [f"{one.mapping} {drift_detail(one)}" for one in found.drift]
    assert any(tampering.words in line for line in told), told
    assert not any(line.endswith(" ") for line in told)

    outcome = product.apply(EVERYTHING)
    assert outcome.plan
    assert not outcome.recorded
    found = product.status()
    assert (found.state, found.drift, found.head) == ("in-sync", (), generation)
    assert words(lab.host) == untouched
    # Healed, down to where the packets go.
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8090, CLIENT[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 81) == Answered(8080, CLIENT[0], HOST[0])


@on_each
def test_by_the_commands(product: Product) -> None:
    file = product.file(EVERYTHING + mapping("alone", 90, 9090))
    product.run("apply", file)
    assert product.json("status")["drift"] == []
    deeds: tuple[tuple[Callable[[Admin], None], tuple[str, str | None], set[str]], ...] = (
        (lambda admin: admin.deletes(90), ("missing", "alone"), {"alone"}),
        (lambda admin: admin.adds_a_chain(), ("structure", None), set()),
        (lambda admin: admin.flushes(), ("missing", "link"), {*MAPPINGS, "alone"}),
    )
    for deed, told_as, drifted in deeds:
        deed(product.admin)
        assert product.json("plan", file, code=2)["changes"]
        found = product.json("status", code=2)
        assert found["state"] == "drifted"
        assert told_as in {(one["kind"], one["mapping"]) for one in found["drift"]}
        assert {one["name"] for one in found["mappings"] if not one["in_sync"]} == drifted
        assert "drifted" in product.run("status", code=2)
        told = product.json("apply", file)
        assert (told["changed"], told["recorded"], told["generation"]) == (True, False, 1)
        assert product.json("status")["state"] == "in-sync"
        assert product.json("plan", file)["in_sync"]


def test_names_that_nft_cannot_write(lab: Lab, product: Product) -> None:
    """The kernel takes any bytes for a name: they are told without harm to a terminal, and taken away."""
    product.apply(EVERYTHING)
    before = words(lab.host)
    product.backend.commit((AddChain("mine\x1b[2J\n; flush ruleset", None),), product.genid())
    told = product.run("status", code=2)
    assert "mine\\x1b[2J\\n; flush ruleset" in told
    assert "\x1b" not in told
    product.run("apply", product.file(EVERYTHING))
    assert product.status().state == "in-sync"
    assert words(lab.host) == before


class TestNotInvented:
    @on_each
    def test_what_was_saved_and_loaded_again(self, lab: Lab, product: Product) -> None:
        product.run("apply", product.file(EVERYTHING))
        lab.host.serve("tcp", HOST[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 81) == Answered(8080, CLIENT[0], HOST[0])
        for options in ((), ("-s",), ("-n",), ("-a",)) if product.backend.name == "nftables" else ((), ("-c",)):
            saved = product.admin.saves(*options)
            product.admin.flushes()
            assert product.status().state == "drifted"
            product.admin.loads(saved)
            found = product.json("status")
            assert (found["state"], found["drift"]) == ("in-sync", [])
            assert product.json("plan", product.file(EVERYTHING)) == {"in_sync": True, "changes": [], "findings": []}
            assert lab.client.ask_tcp(HOST[0], 81) == Answered(8080, CLIENT[0], HOST[0])

    @on_each
    def test_counters_and_connections(self, lab: Lab, product: Product) -> None:
        product.apply(EVERYTHING)
        lab.host.serve("tcp", HOST[0], 8080)
        with lab.client.talk("tcp", HOST[0], 81) as conversation:
            conversation.ask()
            found = product.json("status", "--counters")
            assert (found["state"], found["drift"]) == ("in-sync", [])
            assert {one["name"]: one["connections"] for one in found["mappings"]}["web"] == 1
            product.admin.counts_from_zero()
            found = product.json("status", "--counters")
        assert (found["state"], found["drift"]) == ("in-sync", [])
        assert {one["name"]: one["connections"] for one in found["mappings"]}["web"] == 0

    @on_each
    def test_links_and_addresses_that_go(self, lab: Lab, product: Product) -> None:
        product.apply(EVERYTHING)
        lab.host.run("ip", "address", "flush", "dev", "eth0")
        lab.host.run("ip", "link", "delete", "eth0")
        assert product.json("status")["state"] == "in-sync"

    def test_what_others_do_in_tables_of_their_own(self, lab: Lab, product: Product) -> None:
        product.apply(EVERYTHING)
        for table in ("inet other", "ip redirector", "ip6 redirector", "arp redirector", "bridge redirector"):
            lab.host.nft(
                f"add table {table}; add chain {table} arriving; add chain {table} mine\n"
                f"add rule {table} arriving counter; add rule {table} mine drop"
            )
        lab.host.nft(
            "add map inet other ports { type inet_proto . inet_service : inet_service; }\nadd counter inet other c"
        )
        assert product.json("status")["state"] == "in-sync"

    def test_a_map_that_has_another_size(self, lab: Lab, product: Product) -> None:
        product.apply(EVERYTHING)
        lab.host.nft(REBUILT_MAP.replace("OPTIONS", "").replace("size 64", "size 1000"))
        assert product.json("status")["state"] == "in-sync"


def test_a_changed_file_is_told_and_is_no_drift(lab: Lab, product: Product) -> None:
    file = product.file(EVERYTHING)
    product.run("apply", file)
    assert product.json("status")["file_changed"] is False
    product.file(EVERYTHING + mapping("more", 90, 9090))
    assert product.json("status")["file_changed"] is True
    assert "has changed since" in product.run("status")
    product.file(EVERYTHING + "[[mapping]]\nname = 7")
    found = product.json("status")
    assert (found["state"], found["file_changed"]) == ("in-sync", None)
    assert found["file_error"]
    product.run("plan", file, code=78)
