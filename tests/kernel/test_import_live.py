"""`redirector import` of what iptables has loaded, on a real kernel; and what it wrote, applied there."""

from pathlib import Path

import pytest

from redirector import mappings
from tests.kernel.echo import Answered
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, LOOPBACK, Lab
from tests.kernel.product import Product, mapping, ruleset

CLASSIC = "-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-port 8080"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_classic_line_imported_and_applied_instead(lab: Lab, variant: str, tmp_path: Path) -> None:
    tool = f"iptables-{variant}"
    lab.host.run(tool, *CLASSIC.split())
    lab.host.serve("tcp", "0.0.0.0", 8080)
    before = lab.client.ask_tcp(HOST[0], 80)
    assert isinstance(before, Answered)
    file = str(tmp_path / "imported.toml")
    with Product(lab) as product:
        told = product.run("import", "--out", file)
        assert "IPv6" in told
        assert mappings.load(file) == ruleset(
            mapping("tcp-80", 80, 8080, family="ipv4", local=False, rewrite="redirect")
        )
        lab.host.run(tool, "-t", "nat", "-F")
        assert not isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
        product.run("apply", file)
        for address in (HOST[0], HOST_SECONDARY[0]):
            assert isinstance(lab.client.ask_tcp(address, 80), Answered)
        assert lab.client.ask_tcp(HOST[0], 80) == before
        assert not isinstance(lab.host.ask_tcp(LOOPBACK[0], 80), Answered)  # as before: local = false


def test_both_families_and_what_is_not_loaded_stays_so(lab: Lab) -> None:
    for tool in ("iptables-nft", "ip6tables-nft"):
        lab.host.run(tool, *CLASSIC.split())
        lab.host.run(tool, *CLASSIC.replace("PREROUTING", "OUTPUT -o lo").split())
    with Product(lab) as product:
        printed = product.json("import")
        assert printed["ok"]
        assert printed["mappings"] == 1
        wanted = ruleset(mapping("tcp-80", 80, 8080, rewrite="redirect"))
        assert ruleset(printed["file"].removeprefix("version = 1\n")) == wanted
    # Listing tables of the legacy variant would have loaded them.
    assert lab.host.run("cat", "/proc/thread-self/net/ip_tables_names") == ""


def test_what_cannot_be_said_is_told_with_its_line(lab: Lab) -> None:
    lab.host.run("iptables-nft", "-t", "nat", "-N", "DOCKER")
    jump = "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER"
    lab.host.run("iptables-nft", "-t", "nat", *jump.split())
    rule = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.2:80"
    lab.host.run("iptables-nft", "-t", "nat", *rule.split())
    with Product(lab) as product:
        (left,) = product.json("import", code=2)["left"]
    assert left["text"] == rule
    assert "say “not”" in left["why"]


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_our_own_rules_come_back_from_the_kernel(lab: Lab, backend: str) -> None:
    text = (
        mapping("web", [80, "8000-8003"], 8080, exclusive=True)
        + mapping("staff", 80, 8090, source=[f"{CLIENT[0]}/32", "2001:db8:1::/64"], interface=["eth0", "veth*"])
        + mapping("shifted", "9000-9009", "19000-19009", protocol=["tcp", "udp"], rewrite="redirect")
        + mapping("dns", 53, 5300, address=list(HOST), protocol="udp", interface="lo")
    )
    with Product(lab, backend) as product:
        product.apply(text)
        printed = product.json("import")
    found = ruleset(printed["file"].removeprefix("version = 1\n"))
    assert sorted(found.mappings) == sorted(ruleset(text).mappings)
