"""On the iptables backends a restore of one family is one process: none where there is nothing to do, and what each
rule has counted goes over into the rules that take its place. What is promised on each backend is in test_inplace.
"""

from pathlib import Path

import pytest

from redirector.model import FAMILIES
from tests.kernel.echo import Answered
from tests.kernel.iptables import Programs, iptables
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, Lab
from tests.kernel.product import Product, mapping, on_iptables

pytestmark = on_iptables

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]
WEB = mapping("web", 80, 8080, protocol=BOTH)
SCOPED = mapping("scoped", "1000-1009", "2000-2009", source=["192.0.2.0/24", "2001:db8:1::/64"], rewrite="redirect")
AT = mapping("at", 53, 5353, protocol=["udp", "sctp"], address=list(HOST_SECONDARY), exclusive=True)


@pytest.fixture
def restored(programs: Programs, tmp_path: Path) -> Path:
    """A file with a line for each restore that is run."""
    log = tmp_path / "restored"
    log.touch()
    for family in FAMILIES:
        programs.replace(family, "restore", f'#!/bin/sh\necho {family} >> {log}\nexec $REAL "$@"\n')
    return log


class TestNothingToDo:
    def test_nothing_is_restored(self, lab: Lab, product: Product, restored: Path) -> None:
        product.remove()
        product.remove(purge=True)
        assert restored.read_text() == ""
        product.apply(WEB + SCOPED + AT)
        assert sorted(restored.read_text().split()) == list(FAMILIES)
        product.apply(WEB + SCOPED + AT)
        product.apply(WEB + SCOPED + AT, verify=True)
        product.apply(WEB + SCOPED + AT + 'comment = "recorded, and not sent"\n')
        assert product.status().state == "in-sync"
        assert sorted(restored.read_text().split()) == list(FAMILIES)
        assert product.history.numbers() == [1, 2]

    def test_of_one_family_the_other_is_left_alone(self, lab: Lab, product: Product, restored: Path) -> None:
        product.apply(WEB + SCOPED)
        for family in FAMILIES:
            restored.write_text("")
            iptables(lab.host, product.backend.name, family, "-t nat -F REDIRECTOR-IN")
            product.apply(WEB + SCOPED)
            assert restored.read_text().split() == [family]
        restored.write_text("")
        product.apply(WEB + SCOPED + mapping("more", 90, 9090, family="ipv6"))
        assert restored.read_text().split() == ["ipv6"]


def taken(product: Product) -> dict[str, int]:
    return product.status().connections or {}


class TestCounters:
    def test_a_change_of_one_mapping_leaves_the_others_alone(self, lab: Lab, product: Product) -> None:
        kept = mapping("a", 80, 8080) + mapping("b", "1000-1009", "2000-2009", protocol=BOTH, exclusive=True)
        product.apply(kept + mapping("c", [81, 82], 8080))
        for address in ANY:
            lab.host.serve("tcp", address, 8080, 8081, 2000)
        for v in (0, 1):
            for port in (80, 80, 1000, 81, 82):
                assert isinstance(lab.client.ask_tcp(HOST[v], port), Answered)
        assert taken(product) == {"a": 4, "b": 2, "c": 4}
        # ip6tables-nft 1.8.9 gives no rule a count to begin with, however it is told to.
        lost = 2 if product.backend.name == "iptables-nft" else 0
        product.apply(kept + mapping("c", [81, 82], 8081))  # of the same chain
        assert taken(product) == {"a": 4, "b": 2, "c": 4 - lost}
        assert lab.client.ask_tcp(HOST[0], 81) == Answered(8081, CLIENT[0], HOST[0])
        product.apply(kept + mapping("c", [81, 82], 8081, source=["192.0.2.0/24", "2001:db8:1::/64"]))  # another chain
        assert taken(product) == {"a": 4, "b": 2, "c": 5 - lost}
        product.apply(kept + mapping("d", [70, 90], 8081) + SCOPED)
        assert taken(product) == {"a": 4, "b": 2, "d": 0, "scoped": 0}
        iptables(lab.host, product.backend.name, "ipv6", "-t nat -F OUTPUT", "-t nat -D REDIRECTOR-IN 2")
        product.apply(kept)
        assert {name: count for name, count in taken(product).items() if name == "a"} == {"a": 4}

    def test_they_are_carried_over_into_a_chain_that_is_written_anew(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080)
        product.apply(mapping("a", 80, 8080))
        assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
        many = mapping("many", [*range(1000, 1400, 2)], 9000, protocol=BOTH)
        for text in (many, "", mapping("z", 79, 79, rewrite="redirect")):
            product.apply(mapping("a", 80, 8080) + text)
            assert taken(product)["a"] == 1
