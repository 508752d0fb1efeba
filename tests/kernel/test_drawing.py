"""What `graph` draws is what becomes of real packets: each case of `explain`, against a client's connection."""

import os
from typing import Any

import pytest

from redirector.decide import within
from tests.kernel.echo import Answered, Refused, Silent
from tests.kernel.lab import HOST, LOOPBACK, NEIGHBOUR, Lab
from tests.kernel.product import Product, on_nftables
from tests.kernel.test_explain_packets import CASES, Case, ask

pytestmark = on_nftables


def meant(way: Any, case: Case) -> int:
    """How well a way's clients are the client of a case: 0 is not at all, a scope is better than everybody."""
    side = "this host" if case.client in (*LOOPBACK, *HOST) else "outside"
    family = "ipv6" if ":" in case.client else "ipv4"
    best = 0
    for one in way["clients"]:
        if (one["side"], one["family"]) == (side, family):
            scope = one["scope"]
            source = scope.removeprefix("from ").partition(" ")[0] if scope.startswith("from ") else ""
            everybody = not scope or (scope == "on eth0" and case.client not in NEIGHBOUR)
            fits = within(case.client, source) if source else everybody
            best = max(best, fits * (2 if scope else 1))
    return best


@pytest.mark.parametrize("name", CASES)
def test_a_way_leads_where_packets_go(name: str, lab: Lab, product: Product) -> None:
    case = CASES[name]
    if case.mappings:
        product.apply(case.mappings)
    case.others(lab)
    for address, port in case.serving:
        lab.host.serve("udp" if case.protocol == "udp" else "tcp", address, port)
    found = product.json("graph", str(case.port))
    ways = [way for way in found["ways"] if way["protocol"] == case.protocol and meant(way, case)]
    way = max(ways, key=lambda way: meant(way, case))
    local = "127.0.0.1" if ":" not in case.client else "::1"
    here = case.client in (*LOOPBACK, *HOST)
    answer = ask(lab, case, local if here else HOST[":" in case.client])
    real = {Answered: "served", Refused: "nobody", Silent: "stopped"}[type(answer)]
    told = "nobody" if way["end"]["title"] == "refused" else way["end"]["kind"]
    assert told == real == {"refused": "nobody", "dropped": "stopped"}.get(case.outcome, case.outcome), way
    assert way["sure"] == case.sure
    if isinstance(answer, Answered):
        assert way["targets"] == [str(answer.port)]
        assert f"process {os.getpid()}" in way["end"]["detail"]
