"""The lab is what it says it is: without this, no other kernel test means anything."""

import os
import socket

import pytest

from redirector.host import namespaces
from tests.kernel.echo import SILENCE, Answered, Protocol, Refused, Reset, Silent
from tests.kernel.lab import CLIENT, CLIENT_OTHER, HOST, HOST_B, HOST_SECONDARY, LOOPBACK, NEIGHBOUR, Lab, Machine
from tests.kernel.sctp import crc32c

PORT = 8080
ANY = ("0.0.0.0", "::")

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def ask(machine: Machine, protocol: Protocol, address: str, port: int = PORT, **options: object) -> object:
    return getattr(machine, f"ask_{protocol}")(address, port, **options)


@families
@protocols
class TestReaching:
    def test_client_reaches_every_address_of_the_host(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, ANY[v], PORT)
        for address in (HOST[v], HOST_SECONDARY[v], HOST_B[v]):
            assert ask(lab.client, protocol, address) == Answered(PORT, CLIENT[v], address)

    def test_client_chooses_its_source(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, ANY[v], PORT)
        assert ask(lab.client, protocol, HOST[v], source=CLIENT_OTHER[v]) == Answered(PORT, CLIENT_OTHER[v], HOST[v])

    def test_host_reaches_itself(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, ANY[v], PORT)
        for address in (LOOPBACK[v], HOST[v]):
            assert ask(lab.host, protocol, address) == Answered(PORT, address, address)

    def test_server_on_one_address_serves_no_other(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, HOST_SECONDARY[v], PORT)
        assert ask(lab.client, protocol, HOST_SECONDARY[v]) == Answered(PORT, CLIENT[v], HOST_SECONDARY[v])
        assert ask(lab.client, protocol, HOST[v]) == Refused()

    def test_transit_passes_unchanged_and_only_by_the_hosts_forwarding(
        self, lab: Lab, protocol: Protocol, v: int
    ) -> None:
        lab.neighbour.serve(protocol, ANY[v], PORT)
        lab.client.serve(protocol, ANY[v], PORT)
        assert ask(lab.client, protocol, NEIGHBOUR[v]) == Answered(PORT, CLIENT[v], NEIGHBOUR[v])
        assert ask(lab.neighbour, protocol, CLIENT_OTHER[v]) == Answered(PORT, NEIGHBOUR[v], CLIENT_OTHER[v])
        lab.host.sysctl(("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")[v], "0")
        assert ask(lab.client, protocol, NEIGHBOUR[v], patience=SILENCE) == Silent()

    def test_every_refusal_is_told(self, lab: Lab, protocol: Protocol, v: int) -> None:
        # The kernel holds back ICMP errors after the first few, unless it is told not to.
        assert {ask(lab.client, protocol, HOST[v], port) for port in range(1000, 1200)} == {Refused()}

    def test_dropped_packets_are_silence(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, ANY[v], PORT)
        lab.host.nft(
            f"table inet t {{ chain c {{ type filter hook input priority 0; {protocol} dport {PORT} drop; }}; }}"
        )
        assert ask(lab.client, protocol, HOST[v], patience=SILENCE) == Silent()
        lab.host.flush()
        assert ask(lab.client, protocol, HOST[v]) == Answered(PORT, CLIENT[v], HOST[v])

    def test_conversation_lasts_until_its_server_ends(self, lab: Lab, protocol: Protocol, v: int) -> None:
        server = lab.host.serve(protocol, ANY[v], PORT)
        with lab.client.talk(protocol, HOST[v], PORT) as conversation:
            for _ in range(3):
                assert conversation.ask() == Answered(PORT, CLIENT[v], HOST[v])
            server.close()
            assert conversation.ask() == (Reset() if protocol == "tcp" else Refused())

    def test_late_answers_are_not_taken_for_new_ones(self, lab: Lab, protocol: Protocol, v: int) -> None:
        lab.host.serve(protocol, ANY[v], PORT)
        with lab.client.talk(protocol, HOST[v], PORT) as conversation:
            for _ in range(3):
                assert conversation.ask(patience=1e-9) in (Silent(), Answered(PORT, CLIENT[v], HOST[v]))
            assert conversation.ask() == Answered(PORT, CLIENT[v], HOST[v])


@protocols
def test_many_ports_are_served(lab: Lab, protocol: Protocol) -> None:
    ports = range(20000, 21500)
    assert lab.host.serve(protocol, HOST[0], *ports).ports == tuple(ports)
    for port in (20000, 20777, 21499):
        assert ask(lab.client, protocol, HOST[0], port) == Answered(port, CLIENT[0], HOST[0])


@families
def test_sctp_init_is_heard_and_counted_as_it_is_after_nat(lab: Lab, v: int) -> None:
    lab.host.nft(
        """table inet t {
            chain translate { type nat hook prerouting priority -110; sctp dport 5060 redirect to :5061; }
            chain arrived { type filter hook input priority 0; sctp dport 5061 counter; ct state invalid counter; }
        }"""
    )
    with lab.host.sctp_ear() as ear:
        for _ in range(2):
            lab.client.send_sctp_init(HOST[v], 5060)
            assert ear.hear() == Answered(5061, CLIENT[v], HOST[v])
        lab.client.send_sctp_init(HOST_SECONDARY[v], 5062, source=CLIENT_OTHER[v])
        assert ear.hear() == Answered(5062, CLIENT_OTHER[v], HOST_SECONDARY[v])
        assert ear.hear(patience=SILENCE) == Silent()
    listing = lab.host.nft_list("table inet t")
    assert "sctp dport 5061 counter packets 2 " in listing
    assert "ct state invalid counter packets 0 " in listing


@pytest.mark.parametrize(
    ("data", "crc"), [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)]
)
def test_crc32c_examples_of_rfc3720_b4(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_reset_leaves_nothing_of_a_test(shared_lab: Lab) -> None:
    lab = shared_lab
    lab.host.serve("tcp", ANY[0], PORT, PORT + 1)
    lab.host.nft(
        """table inet t { chain c { type nat hook prerouting priority -110; tcp dport 80 redirect to :8080; }; }
           table inet u { chain c { type filter hook input priority 0; ct state established counter; }; }"""
    )
    conversation = lab.client.talk("tcp", HOST[0], 80)
    assert conversation.ask() == Answered(PORT, CLIENT[0], HOST[0])
    lab.reset()
    assert lab.host.nft_list() == ""
    assert lab.client.ask_tcp(HOST[0], PORT) == Refused()
    # With conntrack's entry the packets of this connection would still be translated.
    lab.host.serve("tcp", ANY[0], PORT)
    lab.host.nft("table inet t { chain c { type filter hook input priority 0; ct status dnat counter; }; }")
    assert conversation.ask() == Reset()
    assert "counter packets 0 " in lab.host.nft_list("table inet t")
    conversation.close()


def test_failing_rules_are_told(lab: Lab) -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        lab.host.nft("nonsense")


def test_machine_itself_is_not_touched(lab: Lab) -> None:
    def outlook() -> tuple[int, list[tuple[int, str]], str]:
        with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as forwarding:
            return os.stat("/proc/thread-self/ns/net").st_ino, socket.if_nameindex(), forwarding.read()

    before = outlook()
    with Lab("unused") as other:
        namespaces.bridge(other.host.namespace, "bridge7")
        assert "bridge7" in [name for _, name in other.host.namespace.call(socket.if_nameindex)]
        inside = {machine.namespace.call(outlook)[0] for machine in (*lab.machines, *other.machines)}
        assert len(inside) == 6
        assert before[0] not in inside
        assert lab.host.namespace.call(outlook)[2] == "1\n"
        assert lab.client.namespace.call(outlook)[2] == "0\n"
    assert outlook() == before
