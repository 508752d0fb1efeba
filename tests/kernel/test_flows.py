"""UDP flows find a mapping's new target at their next packet; all others go on undisturbed."""

import socket
from collections.abc import Iterable

import pytest

from redirector.flows import Flow
from redirector.host import conntrack
from redirector.netlink import NETLINK_NETFILTER, NetlinkSocket
from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, NEIGHBOUR, Lab
from tests.kernel.product import Product, mapping

ANY = ("0.0.0.0", "::")

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])


def udp(name: str, listen: int, to: int, **keys: object) -> str:
    return mapping(name, listen, to, protocol="udp", **keys)


@families
def test_a_busy_flow_follows_its_mapping(lab: Lab, product: Product, v: int) -> None:
    lab.host.serve("udp", ANY[v], 5353, 5354, 53)
    product.apply(udp("other", 7, 7000))  # from now on there is connection tracking
    with lab.client.talk("udp", HOST[v], 53) as flow:
        assert flow.ask() == Answered(53, CLIENT[v], HOST[v])
        assert product.apply(udp("dns", 53, 5353)).flows == 1
        assert flow.ask() == Answered(5353, CLIENT[v], HOST[v])
        assert product.apply(udp("dns", 53, 5354)).flows == 1
        assert flow.ask() == Answered(5354, CLIENT[v], HOST[v])
        assert product.remove().flows == 1
        assert flow.ask() == Answered(53, CLIENT[v], HOST[v])


@families
def test_the_hosts_own_flow_follows_too(lab: Lab, product: Product, v: int) -> None:
    lab.host.serve("udp", ANY[v], 5353, 5354)
    product.apply(udp("dns", 53, 5353))
    with lab.host.talk("udp", HOST[v], 53) as flow:
        assert flow.ask() == Answered(5353, HOST[v], HOST[v])
        assert product.apply(udp("dns", 53, 5354)).flows == 1
        assert flow.ask() == Answered(5354, HOST[v], HOST[v])
        # Without its own connections the host is no client of the mapping any more.
        assert product.apply(udp("dns", 53, 5354, local=False)).flows == 1
        assert flow.ask() == Refused()


@families
def test_flows_that_agree_with_the_rules_stay(lab: Lab, product: Product, v: int) -> None:
    """The same port, and another target for others: only the flow that changes its way begins anew."""
    lab.host.serve("udp", ANY[v], 5353, 5354, 6000)
    product.apply(udp("dns", 53, 5353) + udp("game", 600, 6000))
    with (
        lab.client.talk("udp", HOST[v], 53) as dns,
        lab.client.talk("udp", HOST_SECONDARY[v], 53) as other,
        lab.client.talk("udp", HOST[v], 600) as game,
    ):
        for flow in (dns, other, game):
            assert isinstance(flow.ask(), Answered)
        before = entries(lab)
        narrower = udp("second", 53, 5354, address=HOST_SECONDARY[v])
        assert product.apply(udp("dns", 53, 5353) + udp("game", 600, 6000) + narrower).flows == 1
        assert other.ask() == Answered(5354, CLIENT[v], HOST_SECONDARY[v])
        assert dns.ask() == Answered(5353, CLIENT[v], HOST[v])
        kept = before & entries(lab)
        assert len(kept) == len(before) - 1


@families
def test_what_is_deleted_when_a_mapping_changes_and_goes(lab: Lab, product: Product, v: int) -> None:
    """By conntrack's own account, read by somebody else: the entries of others are the same ones before and after."""
    lab.host.serve("udp", ANY[v], 5353, 5354, 6000, 7000)
    both = udp("dns", 53, 5353) + udp("game", 600, 6000)
    product.apply(both)
    with (
        lab.client.talk("udp", HOST[v], 53) as dns,
        lab.client.talk("udp", HOST[v], 600) as game,
        lab.client.talk("udp", HOST[v], 7000) as direct,
    ):
        for text in (udp("dns", 53, 5354) + udp("game", 600, 6000), udp("game", 600, 6000)):
            answers = [flow.ask() for flow in (game, direct)]
            dns.ask()
            before = independently(lab, v)
            assert {port for _, port in before} == {53, 600, 7000}
            assert product.apply(text).flows == 1
            after = independently(lab, v)
            assert before - after == {one for one in before if one[1] == 53}
            assert after <= before
            assert [flow.ask() for flow in (game, direct)] == answers
            assert after <= independently(lab, v)
        assert dns.ask() == Refused()  # nobody is on 53


@families
def test_transit_and_the_nat_of_others_are_left_alone(lab: Lab, product: Product, v: int) -> None:
    lab.neighbour.serve("udp", ANY[v], 53)
    family = ("ip", "ip6")[v]
    lab.host.nft(
        f"table inet other {{ chain c {{ type nat hook prerouting priority -150; "
        f"{family} daddr {HOST_SECONDARY[v]} udp dport 53 dnat {family} to {NEIGHBOUR[v]}; }}; }}"
    )
    with lab.client.talk("udp", NEIGHBOUR[v], 53) as transit, lab.client.talk("udp", HOST_SECONDARY[v], 53) as theirs:
        assert isinstance(transit.ask(), Answered)
        assert isinstance(theirs.ask(), Answered)
        before = entries(lab)
        assert len(before) == 2
        assert product.apply(udp("dns", 53, 5353)).flows == 0
        assert entries(lab) == before
        assert isinstance(transit.ask(), Answered)


def entries(lab: Lab) -> set[Flow]:
    """The host's UDP conntrack entries: who they are, and where they lead."""
    found: set[Flow] = set()

    def look(flows: Iterable[Flow]) -> list[Flow]:
        found.update(flows)
        return []

    netlink = lab.host.namespace.call(NetlinkSocket, NETLINK_NETFILTER)
    try:
        conntrack.forget(netlink, look)
    finally:
        netlink.close()
    return found


def independently(lab: Lab, v: int) -> set[tuple[int, int]]:
    """(the kernel's id, original destination port) of each UDP conntrack entry, by pyroute2."""

    def dump() -> set[tuple[int, int]]:
        from pyroute2 import NFCTSocket

        with NFCTSocket((socket.AF_INET, socket.AF_INET6)[v]) as conntrack:
            rows = list(conntrack.dump())
        found = set()
        for row in rows:
            proto = row.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
            if proto.get_attr("CTA_PROTO_NUM") == socket.IPPROTO_UDP:
                found.add((row.get_attr("CTA_ID"), proto.get_attr("CTA_PROTO_DST_PORT")))
        return found

    return lab.host.namespace.call(dump)
