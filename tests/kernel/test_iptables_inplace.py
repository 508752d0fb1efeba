"""On the iptables backends, too: counts are kept, what is established lives on, and what need not change is left."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector.backends.iptables import commands
from redirector.history import History
from redirector.model import FAMILIES
from tests.kernel.echo import PATIENCE, Answered, Refused
from tests.kernel.iptables import VARIANTS, both, iptables, program
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, LOOPBACK, Lab
from tests.kernel.product import Product, mapping, ruleset
from tests.kernel.traffic_watch import Watch

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]
WEB = mapping("web", 80, 8080, protocol=BOTH)
ROUNDS = 50  # with each variant
SCOPED = mapping("scoped", "1000-1009", "2000-2009", source=["192.0.2.0/24", "2001:db8:1::/64"], rewrite="redirect")
AT = mapping("at", 53, 5353, protocol=["udp", "sctp"], address=list(HOST_SECONDARY), exclusive=True)


@pytest.fixture(params=VARIANTS)
def product(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Product]:
    with Product(lab, request.param) as made:
        yield made


@pytest.fixture
def restored(product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each restore that is run."""
    log = tmp_path / "restored"
    log.touch()
    for family in FAMILIES:
        for verb in ("save", "restore"):
            name = program(product.backend.name, family, verb)
            tells = f"echo {family} >> {log}\n" if verb == "restore" else ""
            (tmp_path / name).write_text(f'#!/bin/sh\n{tells}exec /usr/sbin/{name} "$@"\n')
            (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(commands, "FOLDERS", (str(tmp_path),))
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
    def test_they_count_connections_by_mapping(self, lab: Lab, product: Product) -> None:
        scoped = mapping("scoped", 80, 8081, source="192.0.2.101")
        product.apply(mapping("web", [80, "8000-8009"], 8080, protocol=BOTH) + scoped + mapping("unused", 81, 8081))
        for address in ANY:
            for protocol in ("tcp", "udp"):
                lab.host.serve(protocol, address, 8080, 8081)
        for v in (0, 1):
            lab.client.ask_tcp(HOST[v], 80)
            lab.client.ask_udp(HOST[v], 80)
            lab.client.ask_tcp(HOST[v], 8009)
            lab.host.ask_tcp(LOOPBACK[v], 80)
            lab.client.ask_tcp(HOST[v], 8080)  # directly: nobody's
        lab.client.ask_tcp(HOST[0], 80, source="192.0.2.101")
        with lab.client.talk("tcp", HOST[0], 80) as conversation:
            for _ in range(5):
                conversation.ask()  # one connection
        assert taken(product) == {"web": 9, "scoped": 1, "unused": 0}
        told = product.json("status", "--counters")["mappings"]
        assert {found["name"]: found["connections"] for found in told} == taken(product)

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


class TestNoGap:
    """New connections never fail because an apply is running, and existing ones survive it."""

    def watched(self, lab: Lab, product: Product, stack: contextlib.ExitStack, patience: float = PATIENCE) -> Watch:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        product.history = History(f"{folder}/state")
        product.apply(WEB)
        for address in ANY:
            for protocol in ("tcp", "udp"):
                lab.host.serve(protocol, address, 8080)
        lasting = [stack.enter_context(lab.client.talk("tcp", address, 80)) for address in HOST]
        return stack.enter_context(Watch(lab.client, list(HOST), 80, lasting, patience))

    def test_others_change_all_the_time(self, lab: Lab, product: Product) -> None:
        files = [ruleset(WEB + mapping("other", 81, 8081) + AT), ruleset(WEB + SCOPED)]
        with contextlib.ExitStack() as stack:
            watch = self.watched(lab, product, stack)
            for number in range(ROUNDS):
                watch.go_on(4)
                product.apply(files[number % 2])
            assert watch.asked >= ROUNDS
            assert watch.failures == {}

    def test_a_gap_would_be_seen(self, lab: Lab, product: Product) -> None:
        with contextlib.ExitStack() as stack:
            watch = self.watched(lab, product, stack, patience=0.2)
            while not watch.failures:
                watch.go_on(4)
                for family in FAMILIES:
                    iptables(lab.host, product.backend.name, family, "-t nat -F PREROUTING")
                product.apply(WEB)


@pytest.mark.parametrize("v", [0, 1], ids=FAMILIES)
def test_what_is_established_lives_on(lab: Lab, product: Product, v: int) -> None:
    product.apply(WEB + AT)
    lab.host.serve("tcp", ANY[v], 8080, 8081)
    remote, local = lab.client.talk("tcp", HOST[v], 80), lab.host.talk("tcp", LOOPBACK[v], 80)
    with remote, local:
        for text in (WEB, mapping("web", 80, 8081), mapping("web", 80, 8081, rewrite="redirect"), SCOPED, None):
            if text is None:
                product.remove()
            else:
                product.apply(text)
            assert remote.ask() == Answered(8080, CLIENT[v], HOST[v])
            assert local.ask() == Answered(8080, LOOPBACK[v], LOOPBACK[v])
        assert product.status().state == "drained"
        assert lab.client.ask_tcp(HOST[v], 80) == Refused()
    product.remove(purge=True)
    assert not any("REDIRECTOR" in line for lines in both(lab.host, product.backend.name).values() for line in lines)
