"""Exclusive mappings: the target port itself is refused from outside, and nobody else notices anything."""

import pytest

from tests.kernel.echo import SILENCE, Answer, Answered, Protocol, Refused, Silent
from tests.kernel.extra import FOURTH, HOST_C, fourth
from tests.kernel.lab import CLIENT, CLIENT_OTHER, HOST, HOST_B, HOST_SECONDARY, LOOPBACK, NEIGHBOUR, Lab, Machine
from tests.kernel.product import Product, mapping

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]
GUARDED = mapping("web", 80, 8080, protocol=BOTH, exclusive=True)

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def ask(machine: Machine, protocol: Protocol, address: str, port: int, source: str | None = None) -> Answer:
    return (machine.ask_tcp if protocol == "tcp" else machine.ask_udp)(address, port, source)


@families
@protocols
class TestGuard:
    def test_direct_access_from_outside_is_refused(
        self, lab: Lab, product: Product, protocol: Protocol, v: int
    ) -> None:
        product.apply(GUARDED)
        lab.host.serve(protocol, ANY[v], 8080)
        with fourth(lab, "br-1") as other:
            for machine, address in ((lab.client, HOST[v]), (lab.neighbour, HOST_B[v]), (other, HOST_SECONDARY[v])):
                assert ask(machine, protocol, address, 8080) == Refused()

    def test_redirected_clients_pass(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(GUARDED)
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        with lab.client.talk(protocol, HOST[v], 80) as conversation:
            for _ in range(3):
                assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])

    def test_the_host_itself_is_allowed(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(GUARDED)
        lab.host.serve(protocol, ANY[v], 8080)
        for address in (LOOPBACK[v], HOST[v], HOST_B[v]):
            for port in (80, 8080):
                assert ask(lab.host, protocol, address, port) == Answered(8080, address, address)

    def test_answers_to_the_host_itself_pass(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        """What the host asks of others comes back, also to a local port that is guarded."""
        product.apply(mapping("all", 80, 8080, protocol=BOTH, exclusive=True))
        lab.client.serve(protocol, ANY[v], 9000)
        with lab.host.namespace.socket(*_kind(protocol, v)) as asking:
            asking.settimeout(5)
            asking.bind((HOST[v], 8080))
            asking.connect((CLIENT[v], 9000))
            asking.sendall(b"?\n")
            assert asking.recv(100).startswith(b"9000 ")

    def test_only_addresses_of_the_mapping(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH, exclusive=True, address=HOST_SECONDARY[v]))
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST_SECONDARY[v], 8080) == Refused()
        assert ask(lab.client, protocol, HOST_SECONDARY[v], 80) == Answered(8080, CLIENT[v], HOST_SECONDARY[v])
        assert ask(lab.client, protocol, HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])
        lab.host.serve(protocol, ANY[1 - v], 8080)
        assert ask(lab.client, protocol, HOST_SECONDARY[1 - v], 8080) == Answered(
            8080, CLIENT[1 - v], HOST_SECONDARY[1 - v]
        )

    def test_whoever_the_mapping_is_for(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        # `source` says who is redirected; direct use of the target is refused to everybody.
        product.apply(mapping("web", 80, 8080, protocol=BOTH, exclusive=True, source=CLIENT[v]))
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.client, protocol, HOST[v], 80, CLIENT_OTHER[v]) == Refused()
        for source in (CLIENT[v], CLIENT_OTHER[v]):
            assert ask(lab.client, protocol, HOST[v], 8080, source) == Refused()

    def test_every_port_of_a_range(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("many", "1000-1009", "2000-2009", protocol=BOTH, exclusive=True))
        lab.host.serve(protocol, ANY[v], *range(1999, 2011))
        for port in (1999, 2010):
            assert ask(lab.client, protocol, HOST[v], port) == Answered(port, CLIENT[v], HOST[v])
        for port in (2000, 2005, 2009):
            assert ask(lab.client, protocol, HOST[v], port) == Refused()
            assert ask(lab.client, protocol, HOST[v], port - 1000) == Answered(port, CLIENT[v], HOST[v])

    def test_a_port_mapped_to_itself_is_never_guarded(
        self, lab: Lab, product: Product, protocol: Protocol, v: int
    ) -> None:
        exempt = mapping("exempt", 8080, 8080, protocol=BOTH, source=CLIENT_OTHER[v], family=("ipv4", "ipv6")[v])
        product.apply(GUARDED + exempt)
        lab.host.serve(protocol, ANY[v], 8080)
        for source in (CLIENT[v], CLIENT_OTHER[v]):
            assert ask(lab.client, protocol, HOST[v], 8080, source) == Answered(8080, source, HOST[v])
        lab.host.serve(protocol, ANY[1 - v], 8080)
        assert ask(lab.client, protocol, HOST[1 - v], 8080) == Refused()  # the other family has no such mapping
        product.apply(mapping("both", "8080-8081", 8080, protocol=BOTH, exclusive=True))
        assert ask(lab.client, protocol, HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])
        assert ask(lab.client, protocol, HOST[v], 8081) == Answered(8080, CLIENT[v], HOST[v])

    def test_transit_to_a_guarded_port_passes(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(GUARDED)
        lab.neighbour.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, NEIGHBOUR[v], 8080) == Answered(8080, CLIENT[v], NEIGHBOUR[v])
        assert ask(lab.host, protocol, NEIGHBOUR[v], 8080) == Answered(8080, HOST_B[v], NEIGHBOUR[v])

    def test_direct_connections_that_exist_go_on(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(mapping("other", 81, 8081, protocol=BOTH))
        lab.host.serve(protocol, ANY[v], 8080)
        with lab.client.talk(protocol, HOST[v], 8080) as conversation:
            assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
            product.apply(GUARDED)
            for _ in range(3):
                assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
            assert ask(lab.client, protocol, HOST[v], 8080) == Refused()

    def test_taken_off_again(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(GUARDED)
        lab.host.serve(protocol, ANY[v], 8080)
        assert ask(lab.client, protocol, HOST[v], 8080) == Refused()
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        assert ask(lab.client, protocol, HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])
        product.apply(GUARDED)
        assert ask(lab.client, protocol, HOST[v], 8080) == Refused()
        product.remove()
        assert ask(lab.client, protocol, HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])


@families
def test_tcp_that_conntrack_never_saw_goes_on(lab: Lab, product: Product, v: int) -> None:
    """Before the first apply nothing in the namespace tracks connections: to conntrack these are new ones, later."""
    lab.host.serve("tcp", ANY[v], 8080)
    with lab.client.talk("tcp", HOST[v], 8080) as conversation:
        assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
        product.apply(GUARDED)
        for _ in range(3):
            assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
    assert lab.client.ask_tcp(HOST[v], 8080) == Refused()


@families
def test_how_each_protocol_is_refused(lab: Lab, product: Product, v: int) -> None:
    """TCP by a reset; UDP and SCTP by ICMP port unreachable."""
    product.apply(mapping("web", 80, 8080, protocol=["tcp", "udp", "sctp"], exclusive=True))
    unreachable = (
        "icmp type destination-unreachable icmp code port-unreachable",
        "icmpv6 type destination-unreachable icmpv6 code port-unreachable",
    )[v]
    for protocol in ("tcp", "udp"):
        lab.host.serve(protocol, ANY[v], 8080)

    def told() -> tuple[int, int]:
        """(resets, port unreachables) that the client has received."""
        found = lab.client.nft_list("table inet told").splitlines()
        resets, icmp = (int(line.split("packets ")[1].split()[0]) for line in found if "packets" in line)
        return resets, icmp

    lab.client.nft(
        f"""table inet told {{
            chain received {{
                type filter hook input priority 0
                tcp flags rst counter
                {unreachable} counter
            }}
        }}"""
    )
    assert lab.client.ask_tcp(HOST[v], 8080) == Refused()
    assert told() == (1, 0)
    assert lab.client.ask_udp(HOST[v], 8080) == Refused()
    assert told() == (1, 1)
    with lab.host.sctp_ear() as ear:
        lab.client.send_sctp_init(HOST[v], 80)
        assert ear.hear() == Answered(8080, CLIENT[v], HOST[v])
        before = told()
        lab.client.send_sctp_init(HOST[v], 8080)
        # What follows on the same way has arrived when the other has: nothing can still be under way.
        lab.client.send_sctp_init(HOST[v], 8081)
        assert ear.hear() == Answered(8081, CLIENT[v], HOST[v])
        assert ear.hear(patience=SILENCE) == Silent()
        assert told() == (before[0], before[1] + 1)


@families
def test_link_that_is_not_the_hosts_own_is_outside(lab: Lab, product: Product, v: int) -> None:
    product.apply(GUARDED)
    with fourth(lab, "lo1") as machine:
        lab.host.serve("tcp", ANY[v], 8080)
        assert machine.ask_tcp(HOST_C[v], 8080) == Refused()
        assert machine.ask_tcp(HOST_C[v], 80) == Answered(8080, FOURTH[v], HOST_C[v])


def _kind(protocol: Protocol, v: int) -> tuple[int, int]:
    import socket

    return (socket.AF_INET, socket.AF_INET6)[v], socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
