"""Targets with an address: containers behind a bridge, reached from everywhere, each by the client's own address."""

from collections.abc import Iterator

import pytest

from tests.kernel.containers import BRIDGE, DB, GATEWAY, WEB, Containers
from tests.kernel.echo import SILENCE, Answer, Answered, Protocol, Refused, Silent
from tests.kernel.lab import CLIENT, HOST, HOST_B, HOST_SECONDARY, LOOPBACK, NEIGHBOUR, Lab, Machine
from tests.kernel.product import Product, mapping

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@pytest.fixture
def containers(lab: Lab) -> Iterator[Containers]:
    with Containers(lab) as made:
        yield made


def udp(name: str, listen: int, to: object) -> str:
    return mapping(name, listen, to, protocol="udp")


def at(addresses: tuple[str, str], ports: object) -> list[str]:
    """A target in both families."""
    return [f"{addresses[0]}:{ports}", f"[{addresses[1]}]:{ports}"]


def ask(machine: Machine, protocol: Protocol, address: str, port: int, patience: float = 5.0) -> Answer:
    how = machine.ask_tcp if protocol == "tcp" else machine.ask_udp
    return how(address, port, patience=patience)


@families
@protocols
class TestReaching:
    def test_remote_clients_keep_their_address(
        self, lab: Lab, product: Product, containers: Containers, protocol: Protocol, v: int
    ) -> None:
        product.apply(mapping("web", 80, at(WEB, 8080), protocol=BOTH))
        containers.web.serve(protocol, ANY[v], 8080)
        for address in (HOST[v], HOST_SECONDARY[v], HOST_B[v], GATEWAY[v]):
            assert ask(lab.client, protocol, address, 80) == Answered(8080, CLIENT[v], WEB[v])
        assert ask(lab.neighbour, protocol, HOST_B[v], 80) == Answered(8080, NEIGHBOUR[v], WEB[v])
        assert ask(lab.client, protocol, HOST[v], 81) == Refused()
        # What is on its way to somebody else is left alone.
        containers.db.serve(protocol, ANY[v], 80)
        assert ask(lab.client, protocol, DB[v], 80) == Answered(80, CLIENT[v], DB[v])

    def test_the_host_itself_keeps_its_address(
        self, lab: Lab, product: Product, containers: Containers, protocol: Protocol, v: int
    ) -> None:
        product.apply(mapping("web", 80, at(WEB, 8080), protocol=BOTH))
        containers.web.serve(protocol, ANY[v], 8080)
        for address in (HOST[v], HOST_B[v], GATEWAY[v]):
            assert ask(lab.host, protocol, address, 80) == Answered(8080, address, WEB[v])
        # From loopback nothing can leave: who listens there is reached as if there were no mapping.
        assert ask(lab.host, protocol, LOOPBACK[v], 80) == Refused()
        lab.host.serve(protocol, LOOPBACK[v], 80)
        assert ask(lab.host, protocol, LOOPBACK[v], 80) == Answered(80, LOOPBACK[v], LOOPBACK[v])

    def test_hairpins(self, lab: Lab, product: Product, containers: Containers, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, at(WEB, 8080), protocol=BOTH))
        containers.web.serve(protocol, ANY[v], 8080)
        for machine in (containers.web, containers.db):
            for address in (HOST[v], GATEWAY[v]):
                assert ask(machine, protocol, address, 80) == Answered(8080, GATEWAY[v], WEB[v])
        # Nobody's own connections past the host are touched.
        assert ask(containers.db, protocol, WEB[v], 8080) == Answered(8080, DB[v], WEB[v])

    def test_hairpins_fail_without(
        self, lab: Lab, containers: Containers, product: Product, protocol: Protocol, v: int
    ) -> None:
        """The control: what the masquerading is for."""
        product.apply(mapping("web", 80, at(WEB, 8080), protocol=BOTH))
        containers.web.serve(protocol, ANY[v], 8080)
        unmasquerade(lab, product, v)
        for machine in (containers.web, containers.db):
            assert ask(machine, protocol, HOST[v], 80, SILENCE) in (Silent(), Refused())
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], WEB[v])

    def test_ranges(self, lab: Lab, product: Product, containers: Containers, protocol: Protocol, v: int) -> None:
        product.apply(mapping("many", "1000-1009", at(WEB, "2000-2009"), protocol=BOTH))
        containers.web.serve(protocol, ANY[v], *range(2000, 2010))
        for machine, peer in ((lab.client, CLIENT[v]), (lab.host, HOST[v])):
            for port in (1000, 1001, 1005, 1009):
                assert ask(machine, protocol, HOST[v], port) == Answered(port + 1000, peer, WEB[v])
            for port in (999, 1010):
                assert ask(machine, protocol, HOST[v], port) == Refused()


def test_the_host_is_no_neighbour_of_its_containers(lab: Lab, product: Product, containers: Containers) -> None:
    """Its own addresses on their network are kept, too, whichever it is."""
    product.apply(mapping("web", 80, at(WEB, 8080)))
    containers.web.serve("tcp", ANY[0], 8080)
    lab.host.run("ip", "address", "add", "10.88.0.2/16", "dev", BRIDGE)
    for own in (GATEWAY[0], "10.88.0.2"):
        assert lab.host.ask_tcp(HOST[0], 80, own) == Answered(8080, own, WEB[0])


@families
def test_a_busy_flow_follows_its_mapping(lab: Lab, product: Product, containers: Containers, v: int) -> None:
    lab.host.serve("udp", ANY[v], 53, 5353)
    containers.web.serve("udp", ANY[v], 53, 54)
    containers.db.serve("udp", ANY[v], 53)
    product.apply(udp("other", 7, 7000))  # from now on there is connection tracking
    ways: tuple[tuple[str, Answered], ...] = (
        (udp("dns", 53, at(WEB, 53)), Answered(53, CLIENT[v], WEB[v])),
        (udp("dns", 53, at(DB, 53)), Answered(53, CLIENT[v], DB[v])),  # as of a container that was restarted
        (udp("dns", 53, at(WEB, 54)), Answered(54, CLIENT[v], WEB[v])),
        (udp("dns", 53, 5353), Answered(5353, CLIENT[v], HOST[v])),
        (udp("dns", 53, at(WEB, 53)), Answered(53, CLIENT[v], WEB[v])),
    )
    with lab.client.talk("udp", HOST[v], 53) as flow:
        assert flow.ask() == Answered(53, CLIENT[v], HOST[v])
        for text, answer in ways:
            assert product.apply(text).flows == 1
            assert flow.ask() == answer
            assert product.apply(text + udp("more", 99, at(DB, 99))).flows == 0
            assert flow.ask() == answer
        assert product.remove().flows == 1
        assert flow.ask() == Answered(53, CLIENT[v], HOST[v])


@families
def test_flows_of_another_programs_nat_stay(lab: Lab, product: Product, containers: Containers, v: int) -> None:
    containers.web.serve("udp", ANY[v], 53)
    containers.db.serve("udp", ANY[v], 53)
    family, host = ("ip", "ip6")[v], (DB[0], f"[{DB[1]}]")[v]
    lab.host.nft(
        f"table {family} theirs {{\nchain c {{\ntype nat hook prerouting priority -105;\n"
        f"{family} daddr {HOST[v]} udp dport 53 dnat to {host}:53\n}}\n}}"
    )
    with lab.client.talk("udp", HOST[v], 53) as flow:
        assert flow.ask() == Answered(53, CLIENT[v], DB[v])
        assert product.apply(udp("dns", 53, at(WEB, 53))).flows == 0
        assert flow.ask() == Answered(53, CLIENT[v], DB[v])


def test_connections_are_counted(lab: Lab, product: Product, containers: Containers) -> None:
    text = mapping("web", 80, at(WEB, 8080)) + mapping("staff", 80, f"{DB[0]}:8080", source="198.51.100.0/24")
    product.apply(text + mapping("plain", 81, 8080))
    for address in ANY:
        containers.web.serve("tcp", address, 8080)
    for machine, address in ((lab.client, HOST[0]), (lab.client, HOST[1]), (lab.host, HOST[0])):
        assert isinstance(machine.ask_tcp(address, 80), Answered)
    assert isinstance(containers.db.ask_tcp(HOST[0], 80), Answered)
    found = product.json("status", "--counters")
    taken = {one["name"]: one["connections"] for one in found["mappings"]}
    assert taken == {"web": 4, "staff": 0, "plain": 0}


def test_established_connections_survive_changes(lab: Lab, product: Product, containers: Containers) -> None:
    containers.web.serve("tcp", ANY[0], 8080)
    containers.db.serve("tcp", ANY[0], 8080)
    product.apply(mapping("web", 80, at(WEB, 8080)))
    with lab.client.talk("tcp", HOST[0], 80) as remote, containers.web.talk("tcp", HOST[0], 80) as hairpin:
        assert remote.ask() == Answered(8080, CLIENT[0], WEB[0])
        assert hairpin.ask() == Answered(8080, GATEWAY[0], WEB[0])
        product.apply(mapping("web", 80, at(DB, 8080)))
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], DB[0])
        product.apply(mapping("web", 80, 8080))
        product.remove()
        assert remote.ask() == Answered(8080, CLIENT[0], WEB[0])
        assert hairpin.ask() == Answered(8080, GATEWAY[0], WEB[0])


def test_a_bridge_that_comes_later_counts_from_the_next_apply_on(lab: Lab, product: Product) -> None:
    """By the commands: what is recorded is what was known, so that an interface which comes and goes is no drift."""
    file = product.file(mapping("web", 80, at(WEB, 8080)))
    product.run("apply", file)
    assert product.json("plan", file)["in_sync"]
    with Containers(lab) as containers:
        containers.web.serve("tcp", WEB[0], 8080)
        found = product.json("status", file)
        assert (found["state"], found["file_changed"]) == ("in-sync", False)
        assert containers.web.ask_tcp(HOST[0], 80) == Answered(8080, GATEWAY[0], WEB[0])
        assert containers.db.ask_tcp(HOST[0], 80, patience=SILENCE) in (Silent(), Refused())
        planned = product.json("plan", file, code=2)
        assert "masqueraded" in planned["changes"][0]["detail"]
        assert "masqueraded" in product.run("apply", file)
        assert containers.db.ask_tcp(HOST[0], 80) == Answered(8080, GATEWAY[0], WEB[0])
        lab.host.run("ip", "link", "set", BRIDGE, "down")
        lab.host.run("ip", "address", "flush", "dev", BRIDGE)
        found = product.json("status", file)
        assert (found["state"], found["file_changed"]) == ("in-sync", False)
        product.run("rollback")
        assert product.json("status")["state"] == "in-sync"


@families
def test_a_container_and_itself_where_bridges_filter(
    lab: Lab, product: Product, containers: Containers, v: int
) -> None:
    """What the docs say of br_netfilter: the bridge sends nothing back to the port that it came from, unless told to;
    neighbours are not concerned."""
    product.apply(mapping("web", 80, at(WEB, 8080)))
    containers.web.serve("tcp", ANY[v], 8080)
    if containers.filtered(lab, "1"):
        assert ask(containers.web, "tcp", HOST[v], 80, SILENCE) == Silent()
        lab.host.run("ip", "link", "set", "veth-web", "type", "bridge_slave", "hairpin", "on")
    assert ask(containers.web, "tcp", HOST[v], 80) == Answered(8080, GATEWAY[v], WEB[v])
    assert ask(containers.db, "tcp", HOST[v], 80) == Answered(8080, GATEWAY[v], WEB[v])


def unmasquerade(lab: Lab, product: Product, v: int) -> None:
    if product.backend.name == "nftables":
        lab.host.nft("flush chain inet redirector postrouting")
    else:
        lab.host.run(f"{'ip6' if v else 'ip'}tables-{product.backend.name[9:]}", "-t", "nat", "-F", "REDIRECTOR-POST")
