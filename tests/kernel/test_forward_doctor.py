"""What stands in the way of a target on another machine: `doctor` finds it, packets prove it, and what it prints mends
it; `apply` warns of what the host itself lacks. Nobody's sysctls or rules are changed."""

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.containers import BRIDGE, WEB, Containers
from tests.kernel.echo import SILENCE, Answered
from tests.kernel.lab import CLIENT, FORWARDING, HOST, Lab
from tests.kernel.product import Product, mapping, on_nftables

pytestmark = on_nftables

TEXT = mapping("web", 80, [f"{WEB[0]}:8080", f"[{WEB[1]}]:8080"]) + mapping("plain", 81, 8081)
SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])


@pytest.fixture
def containers(lab: Lab) -> Iterator[Containers]:
    with Containers(lab) as made:
        made.web.serve("tcp", "0.0.0.0", 8080)
        made.web.serve("tcp", "::", 8080)
        for address in WEB:  # so that all neighbours know each other, and a packet that is lost was dropped
            assert isinstance(lab.client.ask_tcp(address, 8080), Answered)
        yield made


def doctor(product: Product, code: int = 2) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = product.json("doctor", product.file(TEXT), code=code)["findings"]
    return found


def reached(lab: Lab, v: int) -> bool:
    try:
        return lab.client.ask_tcp(HOST[v], 80, patience=SILENCE) == Answered(8080, CLIENT[v], WEB[v])
    except OSError:  # ENETUNREACH: the host says so
        return False


def mend(lab: Lab, found: list[dict[str, Any]], identity: str) -> None:
    for command in (command for one in found if one["id"] == identity for command in one["fix"]):
        lab.host.run(*shlex.split(command))


def test_nothing_in_the_way(lab: Lab, product: Product, containers: Containers) -> None:
    assert "forward" not in product.run("apply", product.file(TEXT)).replace("are not forwarded", "")
    assert doctor(product, code=0) == []
    assert reached(lab, 0)
    assert reached(lab, 1)


@families
def test_a_host_that_does_not_forward(lab: Lab, product: Product, containers: Containers, v: int) -> None:
    name = SYSCTLS[v]
    lab.host.sysctl(name, "0")
    told = product.run("apply", product.file(TEXT))
    assert f"this host does not forward {('ipv4', 'ipv6')[v]}" in told
    assert lab.host.run("cat", f"/proc/sys/{name}") == "0\n"  # nobody has changed it
    assert not reached(lab, v)
    assert reached(lab, 1 - v)
    found = doctor(product)
    assert [one["id"] for one in found] == ["not-forwarding"]
    assert found[0]["fix"] == [f"sysctl -w {name.replace('/', '.')}=1"]
    lab.host.sysctl(name, FORWARDING[name])  # what that command does, which is in a package of its own
    assert reached(lab, v)
    assert doctor(product, code=0) == []


@families
def test_a_target_without_a_route(lab: Lab, product: Product, containers: Containers, v: int) -> None:
    prefix = ("10.88.0.1/16", "fd00:88::1/64")[v]
    lab.host.run("ip", "address", "delete", prefix, "dev", BRIDGE)
    told = product.run("apply", product.file(TEXT))
    assert f"no route leads to the target {WEB[v]}" in told
    assert not reached(lab, v)
    assert [one["id"] for one in doctor(product)] == ["no-route"]
    lab.host.run("ip", "address", "add", prefix, "dev", BRIDGE, *(["nodad"] if v else []))
    assert reached(lab, v)
    assert doctor(product, code=0) == []


def native(lab: Lab) -> None:
    lab.host.nft(
        "table inet filter {\nchain forward {\ntype filter hook forward priority 0; policy drop;\n"
        "ct state established accept\n}\n}"
    )


def native_rule(lab: Lab) -> None:
    lab.host.nft("table inet filter {\nchain forward {\ntype filter hook forward priority 0;\nct state new drop\n}\n}")


def docker(variant: str) -> Callable[[Lab], None]:
    """The forward chain as Docker makes it, with a container that it publishes itself."""

    def make(lab: Lab) -> None:
        for tool in (f"iptables-{variant}", f"ip6tables-{variant}"):
            for rule in (
                "-P FORWARD DROP",
                "-N DOCKER",
                "-N DOCKER-USER",
                "-A DOCKER-USER -j RETURN",
                "-A FORWARD -j DOCKER-USER",
                "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -o docker0 -j DOCKER",
                "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
                "-A DOCKER ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT",
            ):
                lab.host.run(tool, *rule.split())

    return make


def policy(variant: str) -> Callable[[Lab], None]:
    def make(lab: Lab) -> None:
        for tool in (f"iptables-{variant}", f"ip6tables-{variant}"):
            lab.host.run(tool, "-P", "FORWARD", "DROP")

    return make


@pytest.mark.parametrize(
    ("obstacle", "chain"),
    [
        (native, "insert rule inet filter forward"),
        (native_rule, "insert rule inet filter forward"),
        (docker("nft"), "-I DOCKER-USER"),
        (docker("legacy"), "-I DOCKER-USER"),
        (policy("nft"), "-I FORWARD"),
        (policy("legacy"), "-I FORWARD"),
    ],
    ids=["nft-policy", "nft-rule", "docker-nft", "docker-legacy", "policy-nft", "policy-legacy"],
)
def test_filters(
    lab: Lab, product: Product, containers: Containers, obstacle: Callable[[Lab], None], chain: str
) -> None:
    product.apply(TEXT)
    assert reached(lab, 0)
    obstacle(lab)
    assert not reached(lab, 0)
    assert not reached(lab, 1)
    found = [one for one in doctor(product) if one["id"] == "forward-drops"]
    assert len(found) == 2
    assert all("(web)" in one["message"] for one in found)
    assert all(chain in command for one in found for command in one["fix"])
    mend(lab, found, "forward-drops")
    assert reached(lab, 0)
    assert reached(lab, 1)
    # What the fix lets in is what was redirected, and no more.
    assert lab.client.ask_tcp(WEB[0], 8080, patience=SILENCE) != Answered(8080, CLIENT[0], WEB[0])
    file = product.file(TEXT)
    left = json.loads(lab.redirector("doctor", file, "--json").stdout)["findings"]
    assert "forward-drops" not in [one["id"] for one in left]
