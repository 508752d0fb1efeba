"""Drift in what leads to other addresses: told in mappings, healed, and nothing invented."""

from collections.abc import Iterator

import pytest

from redirector.output import drift_detail
from tests.kernel.containers import GATEWAY, WEB, Containers
from tests.kernel.echo import Answered
from tests.kernel.iptables import both, iptables
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping, on_iptables
from tests.kernel.test_drift import Tampering, element, tamper, words

TARGETS = [f"{WEB[0]}:8080", f"[{WEB[1]}]:8080"]
EVERYTHING = (
    mapping("web", 80, TARGETS, protocol=["tcp", "udp"])
    + mapping("staff", 80, f"{WEB[0]}:8090", source="198.51.100.0/24")
    + mapping("plain", 81, 8081)
)
MAPPINGS = {"web", "staff", "plain"}
NEIGHBOURS = "targets_10.88.0.0/16"


def structure(name: str, text: str, told: str, mappings: str) -> Tampering:
    return Tampering(name, text.replace("~", "inet redirector"), "structure", told, frozenset(mappings.split()))


TAMPERINGS = (
    element("deleted", "-forwards_ipv4 { tcp . 80 }", "changed", words="lacks tcp 80 → 10.88.0.5:8080"),
    element(
        "to another address",
        '-forwards_ipv4 { tcp . 80 } | +forwards_ipv4 { tcp . 80 comment "web" : 10.88.0.9 . 8080 }',
        "changed",
        words="has tcp 80 → 10.88.0.9:8080",
    ),
    element(
        "to another port",
        '-forwards_ipv6 { udp . 80 } | +forwards_ipv6 { udp . 80 comment "web" : fd00:88::5 . 22 }',
        "changed",
        words="has udp 80 → [fd00:88::5]:22",
    ),
    element(
        "added", '+forwards_ipv6 { tcp . 22 comment "web" : fd00:88::5 . 22 }', "changed", words="→ [fd00:88::5]:22"
    ),
    element("added by nobody", "+forwards_ipv4 { tcp . 22 : 10.88.0.5 . 22 }", "extra", "", "tcp 22 → 10.88.0.5:22"),
    element("counting deleted", "-forward-counts_ipv4 { tcp . 80 }", "changed", words="tcp 80 not counted"),
    element(
        "of a scope deleted",
        "-arriving_from_198.51.100.0/24_forwards_ipv4 { tcp . 80 }",
        "changed",
        "staff",
        "tcp 80 → 10.88.0.5:8090 from 198.51.100.0/24",
    ),
    element(
        "not masqueraded",
        f"-{NEIGHBOURS} {{ 10.88.0.5 . tcp . 8080 }}",
        "changed",
        words="lacks tcp 8080 masqueraded at 10.88.0.5 for 10.88.0.0/16",
    ),
    element(
        "masqueraded besides",
        f'+{NEIGHBOURS} {{ 10.88.0.6 . tcp . 80 comment "web" }}',
        "changed",
        words="has tcp 80 masqueraded at 10.88.0.6",
    ),
    structure(
        "another network is masqueraded",
        "add element ~ postrouting_sources_ipv4_16 { 10.89.0.0 : jump hairpin_10.88.0.0/16 }",
        "map postrouting_sources_ipv4_16 has an entry that is not ours: 10.89.0.0",
        "",
    ),
    structure(
        "the network is not masqueraded",
        "delete element ~ postrouting_sources_ipv4_16 { 10.88.0.0 }",
        "map postrouting_sources_ipv4_16 does not lead 10.88.0.0 to hairpin_10.88.0.0/16",
        "web staff",
    ),
    structure("nothing is masqueraded", "flush chain ~ postrouting", "chain postrouting lacks a rule", "web staff"),
    structure(
        "everything is masqueraded",
        "add rule ~ postrouting masquerade",
        "chain postrouting has a rule that is not ours: masq",
        "web staff",
    ),
    structure(
        "the condition is gone",
        "flush chain ~ hairpin_10.88.0.0/16\nadd rule ~ hairpin_10.88.0.0/16 "
        f"ip daddr . meta l4proto . th dport @{NEIGHBOURS} masquerade",
        "chain hairpin_10.88.0.0/16",
        "web staff",
    ),
    structure(
        "loopback is led away",
        "delete rule ~ own handle {own/2}",
        "chain own lacks a rule: skip family ipv4",
        "",
    ),
    structure(
        "another priority",
        "flush chain ~ postrouting; delete chain ~ postrouting\n"
        "add chain ~ postrouting {{ type nat hook postrouting priority 91; }}\n"
        "add rule ~ postrouting ip saddr & 255.255.0.0 vmap @postrouting_sources_ipv4_16\n"
        "add rule ~ postrouting ip6 saddr & ffff:ffff:ffff:ffff:: vmap @postrouting_sources_ipv6_64",
        "chain postrouting is nat at postrouting, priority 91",
        "web staff",
    ),
)


@pytest.fixture
def containers(lab: Lab) -> Iterator[Containers]:
    with Containers(lab) as made:
        yield made


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda one: one.name.replace(" ", "-"))
def test_tampering(lab: Lab, containers: Containers, tampering: Tampering) -> None:
    with Product(lab) as product:
        product.apply(EVERYTHING)
        untouched = words(lab.host)
        tamper(lab.host, tampering.text)
        found = product.status()
        assert found.state == "drifted"
        assert tampering.kind in {one.kind for one in found.drift}
        told = [f"{one.mapping} {drift_detail(one)}" for one in found.drift]
        assert any(tampering.words in line for line in told), told
        assert found.drifted & MAPPINGS == tampering.mappings
        outcome = product.apply(EVERYTHING)
        assert outcome.plan
        assert not outcome.recorded
        assert product.status().state == "in-sync"
        assert words(lab.host) == untouched
        containers.web.serve("tcp", WEB[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], WEB[0])
        assert containers.web.ask_tcp(HOST[0], 80) == Answered(8080, GATEWAY[0], WEB[0])


RULE = "-p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination"


@on_iptables
@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ("-F REDIRECTOR-POST", "lacks"),
        ("-F POSTROUTING", "POSTROUTING"),
        ("-I POSTROUTING 1 -p tcp -j ACCEPT", "our jump is not first"),
        ("-A REDIRECTOR-POST -j MASQUERADE", "is not ours"),
        ("-A REDIRECTOR-POST -s 10.89.0.0/16 -p tcp -j MASQUERADE", "is not ours"),
        ("-A REDIRECTOR-ALL -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.88.0.9:8080", "is not ours"),
        (f"-A REDIRECTOR-IN {RULE} 10.88.0.9:8080", "→ 10.88.0.9:8080"),
        ("-F REDIRECTOR-ALL", "lacks tcp, udp 80"),
    ],
)
def test_tampering_with_iptables(product: Product, containers: Containers, commands: str, told: str) -> None:
    product.apply(EVERYTHING)
    untouched = both(product.lab.host, product.backend.name)
    iptables(product.lab.host, product.backend.name, "ipv4", f"-t nat {commands}")
    found = product.status()
    assert found.state == "drifted"
    assert told in " ".join(f"{one.mapping} {drift_detail(one)}" for one in found.drift)
    product.apply(EVERYTHING)
    assert product.status().state == "in-sync"
    if "ACCEPT" in commands:
        iptables(product.lab.host, product.backend.name, "ipv4", "-t nat -D POSTROUTING -p tcp -j ACCEPT")
    assert both(product.lab.host, product.backend.name) == untouched


def test_what_was_saved_and_loaded_again(lab: Lab, containers: Containers) -> None:
    with Product(lab) as product:
        product.apply(EVERYTHING)
        for options in ((), ("-s",), ("-n",), ("-a",)):
            saved = lab.host.run("nft", *options, "list", "ruleset")
            lab.host.run("nft", "flush", "ruleset")
            lab.host.nft(saved)
            assert product.status().state == "in-sync"
