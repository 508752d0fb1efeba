"""What clients get: every protocol and family, remote and local; and what must never be captured."""

import pytest

from tests.kernel.echo import Answer, Answered, Protocol, Refused
from tests.kernel.lab import (
    CLIENT,
    HOST,
    HOST_B,
    HOST_SECONDARY,
    LOOPBACK,
    NEIGHBOUR,
    Lab,
    Machine,
)
from tests.kernel.product import Product, mapping

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def ask(machine: Machine, protocol: Protocol, address: str, port: int) -> Answer:
    return machine.ask_tcp(address, port) if protocol == "tcp" else machine.ask_udp(address, port)


def itself(address: str) -> str:
    """The address that the host speaks from when it speaks to one of its own: of IPv4 networks the first."""
    return HOST[0] if address == HOST_SECONDARY[0] else address


@families
@protocols
class TestReaching:
    def test_remote_clients_at_every_address(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 8080)
        for address in (HOST[v], HOST_SECONDARY[v], HOST_B[v]):
            assert ask(lab.client, protocol, address, 80) == Answered(8080, CLIENT[v], address)
        assert ask(lab.neighbour, protocol, HOST_B[v], 80) == Answered(8080, NEIGHBOUR[v], HOST_B[v])
        assert ask(lab.client, protocol, HOST[v], 81) == Refused()
        assert ask(lab.client, protocol, HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])

    def test_the_host_itself_at_every_address(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 8080)
        for address in (LOOPBACK[v], HOST[v], HOST_SECONDARY[v], HOST_B[v]):
            assert ask(lab.host, protocol, address, 80) == Answered(8080, itself(address), address)

    def test_the_host_itself_is_left_out_by_local_false(
        self, lab: Lab, product: Product, protocol: Protocol, v: int
    ) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH, local=False))
        lab.host.serve(protocol, ANY[v], 8080)
        for address in (LOOPBACK[v], HOST[v]):
            assert ask(lab.host, protocol, address, 80) == Refused()
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])

    def test_lists_and_ranges(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(
            mapping("many", [80, "8000-8003", 9000], 8080, protocol=BOTH)
            + mapping("shifted", "1000-1009", "2000-2009", protocol=BOTH)
        )
        lab.host.serve(protocol, ANY[v], 8080, *range(2000, 2010))
        targets = dict.fromkeys((80, 8000, 8001, 8003, 9000), 8080) | {1000: 2000, 1001: 2001, 1009: 2009}
        for machine, address, peer in ((lab.client, HOST[v], CLIENT[v]), (lab.host, LOOPBACK[v], LOOPBACK[v])):
            for port, target in targets.items():
                assert ask(machine, protocol, address, port) == Answered(target, peer, address)
            for port in (79, 81, 7999, 8004, 8999, 9001, 999, 1010, 1999):
                assert ask(machine, protocol, address, port) == Refused()

    def test_ports_swap(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        # NAT acts once: what is sent to 8080 is not sent on to 80.
        product.apply(mapping("a", 80, 8080, protocol=BOTH) + mapping("b", 8080, 80, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 80, 8080)
        for machine, address, peer in ((lab.client, HOST[v], CLIENT[v]), (lab.host, HOST[v], HOST[v])):
            assert ask(machine, protocol, address, 80) == Answered(8080, peer, address)
            assert ask(machine, protocol, address, 8080) == Answered(80, peer, address)

    def test_one_family_only(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH, family=("ipv4", "ipv6")[v]))
        for address in ANY:
            lab.host.serve(protocol, address, 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.host, protocol, LOOPBACK[v], 80) == Answered(8080, LOOPBACK[v], LOOPBACK[v])
        assert ask(lab.client, protocol, HOST[1 - v], 80) == Refused()
        assert ask(lab.host, protocol, LOOPBACK[1 - v], 80) == Refused()

    def test_one_protocol_only(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=protocol))
        for each in ("tcp", "udp"):
            lab.host.serve(each, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.client, "udp" if protocol == "tcp" else "tcp", HOST[v], 80) == Refused()

    def test_disabled(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("on", 80, 8080, protocol=BOTH) + mapping("off", 81, 8080, protocol=BOTH, enabled=False))
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.client, protocol, HOST[v], 81) == Refused()


@protocols
def test_as_many_ports_as_there_are(lab: Lab, product: Product, protocol: Protocol) -> None:
    product.apply(mapping("all", "1-65535", 8080, protocol=protocol))
    for address in ANY:
        lab.host.serve(protocol, address, 2, 3, 1024, 8080, 8081, 65535)
    for v in (0, 1):
        for port in (1, 2, 1023, 8080, 40000, 65534, 65535):
            assert ask(lab.client, protocol, HOST[v], port) == Answered(8080, CLIENT[v], HOST[v])
    product.apply(mapping("up", "2-65534", "3-65535", protocol=protocol))
    for v in (0, 1):
        for port in (2, 1023, 8080, 65534):
            assert ask(lab.client, protocol, HOST[v], port) == Answered(port + 1, CLIENT[v], HOST[v])
        assert ask(lab.client, protocol, HOST[v], 65535) == Answered(65535, CLIENT[v], HOST[v])
        assert ask(lab.client, protocol, HOST[v], 1) == Refused()
        assert ask(lab.client, protocol, HOST[v], 40000) == Refused()


@families
@protocols
class TestLeavingAlone:
    """Only what is addressed to the host is captured. In each test the host has the mapped port's server as a trap."""

    def test_transit(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 8080)
        for machine in (lab.client, lab.neighbour):
            machine.serve(protocol, ANY[v], 80)
        assert ask(lab.client, protocol, NEIGHBOUR[v], 80) == Answered(80, CLIENT[v], NEIGHBOUR[v])
        assert ask(lab.neighbour, protocol, CLIENT[v], 80) == Answered(80, NEIGHBOUR[v], CLIENT[v])
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])

    def test_the_hosts_own_outgoing_connections(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 8080)
        for machine in (lab.client, lab.neighbour):
            machine.serve(protocol, ANY[v], 80)
        assert ask(lab.host, protocol, NEIGHBOUR[v], 80) == Answered(80, HOST_B[v], NEIGHBOUR[v])
        assert ask(lab.host, protocol, CLIENT[v], 80) == Answered(80, HOST[v], CLIENT[v])
        assert ask(lab.host, protocol, HOST[v], 80) == Answered(8080, HOST[v], HOST[v])

    def test_neither_in_any_scope(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(
            mapping("source", 80, 8080, protocol=BOTH, source=[f"{CLIENT[v]}", f"{NEIGHBOUR[v]}"], local=True)
            + mapping("address", 80, 8080, protocol=BOTH, address=HOST_SECONDARY[v])
            + mapping("interface", 80, 8080, protocol=BOTH, interface=["eth0", "veth*"])
            + mapping("redirected", 81, 8080, protocol=BOTH, rewrite="redirect", exclusive=True)
        )
        lab.host.serve(protocol, ANY[v], 8080)
        for machine in (lab.client, lab.neighbour):
            machine.serve(protocol, ANY[v], 80, 81, 8080)
        for port in (80, 81, 8080):
            assert ask(lab.client, protocol, NEIGHBOUR[v], port) == Answered(port, CLIENT[v], NEIGHBOUR[v])
            assert ask(lab.neighbour, protocol, CLIENT[v], port) == Answered(port, NEIGHBOUR[v], CLIENT[v])
            assert ask(lab.host, protocol, CLIENT[v], port) == Answered(port, HOST[v], CLIENT[v])
        for port in (80, 81):
            assert ask(lab.client, protocol, HOST[v], port) == Answered(8080, CLIENT[v], HOST[v])


@families
@protocols
class TestRewrite:
    """A server that listens on one secondary address only: the reason why `port` is the default."""

    def test_port_keeps_the_address(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH, rewrite="port"))
        lab.host.serve(protocol, HOST_SECONDARY[v], 8080)
        assert ask(lab.client, protocol, HOST_SECONDARY[v], 80) == Answered(8080, CLIENT[v], HOST_SECONDARY[v])
        assert ask(lab.neighbour, protocol, HOST_SECONDARY[v], 80) == Answered(8080, NEIGHBOUR[v], HOST_SECONDARY[v])
        assert ask(lab.host, protocol, HOST_SECONDARY[v], 80) == Answered(
            8080, itself(HOST_SECONDARY[v]), HOST_SECONDARY[v]
        )
        assert ask(lab.client, protocol, HOST[v], 80) == Refused()

    def test_redirect_does_not(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH, rewrite="redirect"))
        only = lab.host.serve(protocol, HOST_SECONDARY[v], 8080)
        for machine in (lab.client, lab.neighbour, lab.host):
            assert ask(machine, protocol, HOST_SECONDARY[v], 80) == Refused()
        only.close()
        # Where it goes instead: to the arriving interface's own address, and from the host to the loopback one.
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST_SECONDARY[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.neighbour, protocol, HOST_SECONDARY[v], 80) == Answered(8080, NEIGHBOUR[v], HOST_B[v])
        for address in (HOST_SECONDARY[v], HOST[v], LOOPBACK[v]):
            found = ask(lab.host, protocol, address, 80)
            assert isinstance(found, Answered)
            assert (found.port, found.local) == (8080, LOOPBACK[v])


@families
class TestSctp:
    """The kernel need not have SCTP sockets: INIT packets made by hand, heard as they are after NAT."""

    def test_remote_and_local(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(
            mapping("signalling", 2905, 3905, protocol="sctp")
            + mapping("shifted", "3000-3009", "4000-4009", protocol=["tcp", "sctp"])
        )
        count(lab.host, 3905, 4000, 4009)
        with lab.host.sctp_ear() as ear:
            for port, target in ((2905, 3905), (3000, 4000), (3009, 4009), (3010, 3010)):
                for address in (HOST[v], HOST_SECONDARY[v]):
                    lab.client.send_sctp_init(address, port)
                    assert ear.hear() == Answered(target, CLIENT[v], address)
                for address in (HOST[v], LOOPBACK[v]):
                    lab.host.send_sctp_init(address, port)
                    assert ear.hear() == Answered(target, address, address)
            lab.client.send_sctp_init(HOST[v], 3905)
            assert ear.hear() == Answered(3905, CLIENT[v], HOST[v])
        assert counted(lab.host) == {3905: 5, 4000: 4, 4009: 4}

    def test_transit_and_outgoing_are_left_alone(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(mapping("signalling", 2905, 3905, protocol="sctp"))
        with lab.neighbour.sctp_ear() as ear:
            lab.client.send_sctp_init(NEIGHBOUR[v], 2905)
            assert ear.hear() == Answered(2905, CLIENT[v], NEIGHBOUR[v])
            lab.host.send_sctp_init(NEIGHBOUR[v], 2905)
            assert ear.hear() == Answered(2905, HOST_B[v], NEIGHBOUR[v])

    def test_tcp_and_udp_of_the_same_port_are_left_alone(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(mapping("signalling", 2905, 3905, protocol="sctp"))
        for protocol in ("tcp", "udp"):
            lab.host.serve(protocol, ANY[v], 3905)
            assert ask(lab.client, protocol, HOST[v], 2905) == Refused()


def count(machine: Machine, *ports: int) -> None:
    """Count SCTP packets for these ports where they are delivered, in a table of the test's own."""
    rules = "".join(f"sctp dport {port} counter\n" for port in ports)
    machine.nft(f"table inet counting {{ chain delivered {{ type filter hook input priority 100\n{rules}}}; }}")


def counted(machine: Machine) -> dict[int, int]:
    lines = machine.nft_list("table inet counting").splitlines()
    words = [line.split() for line in lines if " counter " in line]
    return {int(line[2]): int(line[5]) for line in words}


@families
def test_remote_clients_never_reach_a_loopback_server(lab: Lab, product: Product, v: int) -> None:
    """No sysctl is changed and no packet slips by: what listens on 127.0.0.1 only stays private."""
    product.apply(mapping("web", 80, 8080, protocol=BOTH))
    for protocol in ("tcp", "udp"):
        lab.host.serve(protocol, LOOPBACK[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Refused()
        assert ask(lab.host, protocol, LOOPBACK[v], 80) == Answered(8080, LOOPBACK[v], LOOPBACK[v])
