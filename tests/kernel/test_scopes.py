"""Which mapping wins, with real clients: source, address and interface, all in force together, and what falls through.

The expectations are written out by hand, in the documented order: the longest source prefix, then address before none,
then interface (exact, longest wildcard, none). Each target port has a server, so an answer names the winner.
"""

import os
import pwd
from pathlib import Path

import pytest

import redirector
from redirector.host import namespaces
from tests.kernel.echo import Answer, Answered, Protocol, Refused
from tests.kernel.extra import FOURTH, HOST_C, fourth
from tests.kernel.lab import (
    CLIENT,
    CLIENT_OTHER,
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
EVERY_KEY = Path(redirector.__file__).parent.parent / "rules" / "every-key.toml"

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def won(machine: Machine, protocol: Protocol, address: str, port: int = 80, source: str | None = None) -> int | None:
    """The port of the server that answers; None for a refusal."""
    asked = machine.ask_tcp if protocol == "tcp" else machine.ask_udp
    answer: Answer = asked(address, port, source)
    if answer == Refused():
        return None
    assert isinstance(answer, Answered), answer
    return answer.port


@families
@protocols
def test_nested_sources(lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
    third, fourth = ("192.0.2.102", "2001:db8:1::102"), ("192.0.2.200", "2001:db8:1::200")
    for pair in (third, fourth):
        namespaces.address(lab.client.namespace, "eth0", f"{pair[v]}/{(24, 64)[v]}")
    product.apply(
        mapping("all", 80, 8000, protocol=BOTH)
        + mapping("anywhere", 80, 8001, protocol=BOTH, source=("0.0.0.0/0", "::/0")[v])
        + mapping("near", 80, 8002, protocol=BOTH, source=("192.0.0.0/13", "2001:db8::/47")[v])
        + mapping("link", 80, 8003, protocol=BOTH, source=("192.0.2.0/24", "2001:db8:1::/64")[v])
        + mapping("few", 80, 8004, protocol=BOTH, source=("192.0.2.100/31", "2001:db8:1::100/127")[v])
        + mapping("one", 80, 8005, protocol=BOTH, source=CLIENT_OTHER[v])
        + mapping("miss", 81, 8006, protocol=BOTH, source=CLIENT_OTHER[v])
    )
    lab.host.serve(protocol, ANY[v], *range(8000, 8007))
    lab.host.serve(protocol, ANY[1 - v], *range(8000, 8007))
    assert won(lab.client, protocol, HOST[v], source=CLIENT_OTHER[v]) == 8005
    assert won(lab.client, protocol, HOST[v], source=CLIENT[v]) == 8004
    assert won(lab.client, protocol, HOST[v], source=third[v]) == 8003
    assert won(lab.client, protocol, HOST[v], source=fourth[v]) == 8003
    assert won(lab.neighbour, protocol, HOST_B[v]) == 8001
    assert won(lab.host, protocol, HOST[v]) == 8000  # sources leave the host's own connections out
    assert won(lab.client, protocol, HOST[1 - v]) == 8000  # of the other family
    assert won(lab.client, protocol, HOST[v], 81, source=CLIENT_OTHER[v]) == 8006
    assert won(lab.client, protocol, HOST[v], 81, source=CLIENT[v]) is None


@families
@protocols
def test_a_narrow_scope_falls_through(lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
    """By port: what the narrow one does not name goes to the wider ones, step by step."""
    product.apply(
        mapping("all", [80, 81, 82, 83], 8000, protocol=BOTH)
        + mapping("arriving", [80, 81, 82], 8001, protocol=BOTH, interface="eth0")
        + mapping("address", [80, 81], 8002, protocol=BOTH, address=HOST[v])
        + mapping("source", 80, 8003, protocol=BOTH, source=CLIENT[v])
    )
    lab.host.serve(protocol, ANY[v], *range(8000, 8004))
    found = {port: won(lab.client, protocol, HOST[v], port) for port in range(80, 85)}
    assert found == {80: 8003, 81: 8002, 82: 8001, 83: 8000, 84: None}
    found = {port: won(lab.client, protocol, HOST[v], port, CLIENT_OTHER[v]) for port in range(80, 85)}
    assert found == {80: 8002, 81: 8002, 82: 8001, 83: 8000, 84: None}
    found = {port: won(lab.client, protocol, HOST_SECONDARY[v], port, CLIENT_OTHER[v]) for port in range(80, 85)}
    assert found == {80: 8001, 81: 8001, 82: 8001, 83: 8000, 84: None}
    found = {port: won(lab.neighbour, protocol, HOST_SECONDARY[v], port) for port in range(80, 85)}
    assert found == {80: 8000, 81: 8000, 82: 8000, 83: 8000, 84: None}
    found = {port: won(lab.host, protocol, HOST[v], port) for port in range(80, 85)}
    assert found == {80: 8002, 81: 8002, 82: 8000, 83: 8000, 84: None}


@families
@protocols
def test_all_parts_together(lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
    """Lexicographic: a source outweighs an address and an interface together, whatever their number."""
    network = ("192.0.2.0/24", "2001:db8:1::/64")[v]
    product.apply(
        mapping("plain", 80, 8000, protocol=BOTH)
        + mapping("i", 80, 8001, protocol=BOTH, interface="eth0")
        + mapping("a", 80, 8002, protocol=BOTH, address=HOST_SECONDARY[v])
        + mapping("a-i", 80, 8003, protocol=BOTH, address=HOST_SECONDARY[v], interface="eth0")
        + mapping("s", 80, 8004, protocol=BOTH, source=network)
        + mapping("s-i", 80, 8005, protocol=BOTH, source=network, interface="veth-b")
        + mapping("s-a", 80, 8006, protocol=BOTH, source=network, address=HOST_SECONDARY[v])
        + mapping("s-a-i", 80, 8007, protocol=BOTH, source=network, address=HOST_SECONDARY[v], interface="veth-b")
        + mapping("one", 80, 8008, protocol=BOTH, source=CLIENT_OTHER[v])
    )
    lab.host.serve(protocol, ANY[v], *range(8000, 8009))
    assert won(lab.client, protocol, HOST[v]) == 8004
    assert won(lab.client, protocol, HOST_SECONDARY[v]) == 8006
    assert won(lab.client, protocol, HOST_SECONDARY[v], source=CLIENT_OTHER[v]) == 8008
    assert won(lab.neighbour, protocol, HOST[v]) == 8000
    assert won(lab.neighbour, protocol, HOST_SECONDARY[v]) == 8002
    assert won(lab.host, protocol, HOST[v]) == 8000
    assert won(lab.host, protocol, HOST_SECONDARY[v]) == 8002
    # The same by a client of the first network whose packets arrive over the second link.
    away = ("192.0.2.201", "2001:db8:1::201")[v]
    namespaces.address(lab.neighbour.namespace, "eth0", f"{away}/{(32, 128)[v]}")
    lab.host.run("ip", "route", "add", away, "dev", "veth-b")
    assert won(lab.neighbour, protocol, HOST[v], source=away) == 8005
    assert won(lab.neighbour, protocol, HOST_SECONDARY[v], source=away) == 8007
    # Without the sources, what is left decides.
    product.apply(
        mapping("plain", 80, 8000, protocol=BOTH)
        + mapping("i", 80, 8001, protocol=BOTH, interface="eth0")
        + mapping("a", 80, 8002, protocol=BOTH, address=HOST_SECONDARY[v])
        + mapping("a-i", 80, 8003, protocol=BOTH, address=HOST_SECONDARY[v], interface="eth0")
    )
    assert won(lab.client, protocol, HOST[v]) == 8001
    assert won(lab.client, protocol, HOST_SECONDARY[v]) == 8003
    assert won(lab.neighbour, protocol, HOST_SECONDARY[v]) == 8002
    assert won(lab.neighbour, protocol, HOST_B[v]) == 8000


@families
@protocols
def test_interfaces(lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
    product.apply(
        mapping("all", [80, 81, 82, 83, 84], 8000, protocol=BOTH)
        + mapping("ve", [80, 81, 82, 83], 8001, protocol=BOTH, interface="v*")
        + mapping("veth", [80, 81, 82], 8002, protocol=BOTH, interface="veth*")
        + mapping("exact", [80, 81], 8003, protocol=BOTH, interface="veth-b")
        + mapping("longer", [80, 81], 8004, protocol=BOTH, interface=["veth-c*", "eth9"])
    )
    genid = product.genid()
    # An interface that comes after the apply is in its scopes at once.
    with fourth(lab, "veth-c2") as machine:
        lab.host.serve(protocol, ANY[v], *range(8000, 8005))
        found = {port: won(lab.neighbour, protocol, HOST_B[v], port) for port in range(80, 86)}
        assert found == {80: 8003, 81: 8003, 82: 8002, 83: 8001, 84: 8000, 85: None}
        found = {port: won(machine, protocol, HOST_C[v], port) for port in range(80, 86)}
        assert found == {80: 8004, 81: 8004, 82: 8002, 83: 8001, 84: 8000, 85: None}
        found = {port: won(lab.client, protocol, HOST[v], port) for port in range(80, 86)}
        assert found == {80: 8000, 81: 8000, 82: 8000, 83: 8000, 84: 8000, 85: None}
        assert won(lab.host, protocol, HOST_B[v]) == 8000
        assert product.genid() == genid


@families
@protocols
class TestLocal:
    def test_interface_lo_is_the_hosts_own_only(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(
            mapping("all", [80, 81], 8000, protocol=BOTH)
            + mapping("own", [80, 82], 8001, protocol=BOTH, interface="lo")
        )
        lab.host.serve(protocol, ANY[v], 8000, 8001)
        for address in (LOOPBACK[v], HOST[v]):
            assert [won(lab.host, protocol, address, port) for port in (80, 81, 82)] == [8001, 8000, 8001]
        assert [won(lab.client, protocol, HOST[v], port) for port in (80, 81, 82)] == [8000, 8000, None]

    def test_lo_at_one_address(self, lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
        product.apply(
            mapping("all", 80, 8000, protocol=BOTH)
            + mapping("address", 80, 8001, protocol=BOTH, address=HOST_SECONDARY[v])
            + mapping("own", 80, 8002, protocol=BOTH, interface="lo", address=HOST_SECONDARY[v])
        )
        lab.host.serve(protocol, ANY[v], 8000, 8001, 8002)
        assert won(lab.host, protocol, HOST_SECONDARY[v]) == 8002
        assert won(lab.host, protocol, HOST[v]) == 8000
        assert won(lab.client, protocol, HOST_SECONDARY[v]) == 8001

    def test_local_adds_the_hosts_own_whatever_else_is_asked(
        self, lab: Lab, product: Product, protocol: Protocol, v: int
    ) -> None:
        product.apply(
            mapping("asked", 80, 8001, protocol=BOTH, source=NEIGHBOUR[v], interface="veth-b", local=True)
            + mapping("at", 81, 8002, protocol=BOTH, source=NEIGHBOUR[v], address=HOST_SECONDARY[v], local=True)
            + mapping("not", 82, 8003, protocol=BOTH, source=NEIGHBOUR[v])
        )
        lab.host.serve(protocol, ANY[v], 8001, 8002, 8003)
        assert won(lab.neighbour, protocol, HOST[v]) == 8001
        assert won(lab.client, protocol, HOST[v]) is None
        assert [won(lab.host, protocol, x) for x in (LOOPBACK[v], HOST[v], HOST_SECONDARY[v])] == [8001] * 3
        # `address` still applies.
        assert [won(lab.host, protocol, x, 81) for x in (HOST[v], HOST_SECONDARY[v])] == [None, 8002]
        assert won(lab.host, protocol, HOST[v], 82) is None
        assert won(lab.neighbour, protocol, HOST[v], 82) == 8003


@families
@protocols
def test_port_width_and_rewrite_never_decide(lab: Lab, product: Product, protocol: Protocol, v: int) -> None:
    """A wide range in a narrow scope wins over a single port in a wide one, and a redirect over a port rewrite."""
    product.apply(
        mapping("single", 80, 8000, protocol=protocol, family=("ipv4", "ipv6")[v])
        + mapping("wide", "1-1000", 8001, protocol=BOTH, source=CLIENT[v], rewrite="redirect")
        + mapping("exempt", 443, 443, protocol=BOTH, source=CLIENT[v], address=HOST_SECONDARY[v])
    )
    lab.host.serve(protocol, ANY[v], 443, 8000, 8001)
    assert won(lab.client, protocol, HOST[v]) == 8001
    assert won(lab.client, protocol, HOST[v], source=CLIENT_OTHER[v]) == 8000
    # listen equal to `to`: an exemption from the wider scope.
    assert won(lab.client, protocol, HOST[v], 443) == 8001
    assert won(lab.client, protocol, HOST_SECONDARY[v], 443) == 443


def test_every_key_as_the_file_says(lab: Lab, product: Product) -> None:
    """rules/every-key.toml itself, by the real command: each mapping does what its comment says."""
    namespaces.address(lab.host.namespace, "eth0", "192.0.2.53/24")
    with fourth(lab, "br-test") as container:
        for address in ANY:
            lab.host.serve("tcp", address, 5300, 8080, 8090, 8099, 19000, 19009)
        lab.host.serve("udp", "192.0.2.53", 5300)
        product.run("apply", str(EVERY_KEY), *(() if _give_to_www_data(lab) else ("--allow-owner",)))
        assert product.json("status")["state"] == "in-sync"

        for machine, address in ((lab.client, HOST[0]), (lab.client, HOST[1]), (lab.host, HOST[0]), (lab.host, "::1")):
            for port in (80, 8000, 8003):
                assert won(machine, "tcp", address, port) == 8080  # web
            assert won(machine, "tcp", address, 8004) is None
            assert won(machine, "udp", address, 80) is None
        assert won(lab.client, "tcp", HOST[0], 8080) is None  # exclusive
        assert won(lab.host, "tcp", HOST[0], 8080) == 8080

        assert won(lab.neighbour, "tcp", HOST_B[0]) == 8090  # web-staff
        assert won(lab.neighbour, "tcp", HOST_B[0], 8000) == 8080
        assert won(lab.neighbour, "tcp", HOST_B[1]) == 8080

        for machine in (lab.client, lab.host):  # dns
            assert won(machine, "udp", "192.0.2.53", 53) == 5300
            assert won(machine, "tcp", "192.0.2.53", 53) == 5300
            assert won(machine, "tcp", HOST[0], 53) is None

        for port, target in ((9000, 19000), (9009, 19009)):  # metrics
            for address in (HOST_C[0], HOST[0]):  # `redirect`: whichever it was, it becomes the bridge's
                assert container.ask_tcp(address, port) == Answered(target, FOURTH[0], HOST_C[0])
            assert won(container, "tcp", HOST_C[1], port) is None
            assert won(lab.client, "tcp", HOST[0], port) is None
            assert won(lab.host, "tcp", HOST[0], port) == target
            assert won(lab.host, "tcp", "::1", port) is None
        assert won(container, "tcp", HOST_C[0]) == 8080
        # maintenance is disabled, and so nothing went to 8099


def _give_to_www_data(lab: Lab) -> bool:
    """Let www-data own the servers on 8080, as the file expects. False where there is no such user to give them to:
    the user namespace in which a plain user tests has one user only."""
    try:
        uid = pwd.getpwnam("www-data").pw_uid
        for server in lab._servers._open:
            for one in server.sockets:
                if one.getsockname()[1] == 8080:
                    os.fchown(one.fileno(), uid, -1)
    except (KeyError, OSError):
        return False
    return True
