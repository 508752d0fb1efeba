"""A table that an earlier version made, with a counter in each element: known as ours, and brought to today's form."""

import re
from collections.abc import Iterator

import pytest

from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, CLIENT_OTHER, HOST, Lab
from tests.kernel.product import Product, handles, mapping

FILE = mapping("web", [80, 81], 8080, exclusive=True) + mapping("staff", 80, 8090, source=CLIENT_OTHER[0])
SCOPE = f"arriving_from_{CLIENT_OTHER[0]}/32"
NEW_PORT = "meta l4proto { tcp, udp, sctp } dnat to :meta l4proto . th dport map"
# As that version had it for this file, after some connections.
FORMER = f"""table inet redirector {{
    comment "made by redirector"
    map ports {{
        type inet_proto . inet_service : inet_service
        size 64
        counter
        elements = {{ tcp . 80 counter packets 7 bytes 420 comment "web" : 8080,
                      tcp . 81 counter packets 0 bytes 0 comment "web" : 8080 }}
    }}
    map {SCOPE}_ports {{
        type inet_proto . inet_service : inet_service
        size 64
        counter
        elements = {{ tcp . 80 counter packets 2 bytes 120 comment "staff" : 8090 }}
    }}
    set guards {{
        type inet_proto . inet_service
        size 64
        counter
        elements = {{ tcp . 8080 counter packets 1 bytes 60 comment "web" }}
    }}
    map arriving_sources_ipv4_32 {{
        type ipv4_addr : verdict
        size 64
        elements = {{ {CLIENT_OTHER[0]} : jump {SCOPE} }}
    }}
    chain {SCOPE} {{
        {NEW_PORT} @{SCOPE}_ports comment "new port"
    }}
    chain arriving {{
        ip saddr vmap @arriving_sources_ipv4_32
        {NEW_PORT} @ports comment "new port"
    }}
    chain prerouting {{
        type nat hook prerouting priority -110; policy accept;
        fib daddr type local jump arriving comment "only what is addressed to this host"
    }}
    chain own {{
        {NEW_PORT} @ports comment "new port"
    }}
    chain output {{
        type nat hook output priority -110; policy accept;
        fib daddr type local jump own comment "only what is addressed to this host"
    }}
    chain refuse {{
        tcp flags syn / fin,syn,rst,ack reject with tcp reset
        meta l4proto {{ udp, sctp }} reject
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname != "lo" ct state new ct status & dnat != dnat meta l4proto . th dport @guards jump refuse comment "targets of exclusive mappings are not for direct use"
    }}
}}
"""  # noqa: E501 (nft's own words)


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    """FILE was applied; what the kernel holds is the former version's table for it."""
    with Product(lab) as made:
        made.apply(FILE)
        lab.host.nft(f"flush ruleset\n{FORMER}")
        lab.host.serve("tcp", "0.0.0.0", 8080, 8081, 8090)
        yield made


def listed(lab: Lab) -> list[str]:
    """Everything in the table but what was counted, whatever the order of chains, maps and elements."""
    return sorted(re.split(r"[\s,]+", lab.host.run("nft", "-s", "list", "table", "inet", "redirector")))


def test_it_is_told_as_what_it_is(product: Product) -> None:
    found = product.json("status", code=2)
    assert found["state"] == "drifted"
    told = [(one["mapping"], one["detail"]) for one in found["drift"]]
    for name in ("ports", f"{SCOPE}_ports", "guards"):
        (words,) = (detail for _, detail in told if detail.startswith(f"map {name} is of another kind"))
        assert "each element with a counter" in words
    for name in ("counts", f"{SCOPE}_counts"):
        assert any(detail.startswith(f"map {name} is missing") for _, detail in told)
    assert {"web", "staff"} <= {name for name, _ in told}
    # Nothing that it has is told as a stranger's.
    assert not [detail for _, detail in told if "not ours" in detail]


def test_one_ordinary_apply_brings_it_to_the_new_form(lab: Lab, product: Product) -> None:
    with lab.client.talk("tcp", HOST[0], 80) as conversation, lab.host.talk("tcp", HOST[0], 81) as own:
        for one in (conversation, own):
            assert isinstance(one.ask(), Answered)
        before = product.genid()
        told = product.json("apply", product.file(FILE))
        assert (told["changed"], told["recorded"]) == (True, False)
        assert product.genid() == before + 1
        found = product.json("status", "--counters")
        assert (found["state"], found["drift"]) == ("in-sync", [])
        assert {one["name"]: one["connections"] for one in found["mappings"]} == {"web": 0, "staff": 0}
        for one in (conversation, own):
            assert isinstance(one.ask(), Answered)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 80, CLIENT_OTHER[0]) == Answered(8090, CLIENT_OTHER[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 8080) == Refused()
    assert product.status().connections == {"web": 1, "staff": 1}

    migrated = listed(lab)
    lab.host.run("nft", "flush", "ruleset")
    product.apply(FILE)
    assert listed(lab) == migrated
    product.run("apply", product.file(FILE))  # … and there is nothing left to do
    assert product.genid() == before + 3


def test_a_changed_file_and_the_new_form_are_one_transaction(lab: Lab, product: Product) -> None:
    before = product.genid()
    product.run("apply", product.file(FILE + mapping("more", 90, 8081)))
    assert product.genid() == before + 1
    assert product.status().state == "in-sync"
    for port, target in ((80, 8080), (90, 8081)):
        assert lab.client.ask_tcp(HOST[0], port) == Answered(target, CLIENT[0], HOST[0])


def test_it_can_be_drained_and_taken_away(lab: Lab, product: Product) -> None:
    product.run("remove")
    assert "elements" not in handles(lab.host)
    assert product.status().state == "drained"
    lab.host.nft(f"flush ruleset\n{FORMER}")
    product.run("remove", "--purge")
    assert lab.host.nft_list() == ""
