"""The doctor on real firewalls: what it finds is true of packets, and what it prints mends it.

It looks at every form of firewall from wherever our mappings are: on nftables here, unless a test says otherwise.
"""

import json
import os
import shlex
import sys
from typing import Any

import pytest

from redirector.host import firewalls
from tests.kernel.echo import SILENCE, Answer, Answered, Silent
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, mapping, on_nftables

pytestmark = on_nftables

WEB = mapping("web", 80, 8080)
ANY = ("0.0.0.0", "::")
TOOLS = {0: "iptables", 1: "ip6tables"}


def doctor(product: Product, text: str = WEB, code: int = 2) -> Any:
    """What `doctor` says of a file; its text says the same as its JSON."""
    file = product.file(text)
    found = product.json("doctor", file, code=code)
    told = product.run("doctor", file, code=code)
    assert found["backend"] in told
    for one in found["findings"]:
        assert one["message"] in told
        for step in one["fix"]:
            assert step in told
    return found


def ids(found: Any) -> list[str]:
    return [one["id"] for one in found["findings"]]


def ask(lab: Lab, v: int, port: int = 80, patience: float = SILENCE) -> Answer:
    return lab.client.ask_tcp(HOST[v], port, patience=patience)


def answered(lab: Lab, v: int, port: int = 80) -> bool:
    return isinstance(ask(lab, v, port), Answered)


def served_at(lab: Lab) -> int:
    """The port of the server that a client of port 80 gets to."""
    found = ask(lab, 0)
    assert isinstance(found, Answered)
    return found.port


def mend(lab: Lab, found: Any, identity: str = "filter-drops") -> None:
    """Run what the findings of this kind print, as it stands there."""
    for one in found["findings"]:
        for command in one["fix"] if one["id"] == identity else ():
            lab.host.run(*shlex.split(command))


def legacy(lab: Lab, *arguments: str, v: int = 0) -> None:
    lab.host.run(f"{TOOLS[v]}-legacy", *arguments)


def variant(lab: Lab, *arguments: str, v: int = 0) -> None:
    lab.host.run(f"{TOOLS[v]}-nft", *arguments)


class TestChoice:
    def test_an_empty_host(self, lab: Lab, product: Product) -> None:
        found = doctor(product, code=0)
        assert found["backend"] == "nftables"
        assert found["findings"] == []
        assert "nobody's NAT rules are in legacy form" in found["reasons"]
        assert lab.host.namespace.call(firewalls.quick) == "nftables"

    def test_looking_leaves_nothing_behind(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        before, genid = lab.host.nft_list(), product.genid()
        doctor(product, code=0)
        assert lab.host.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names") == ""
        assert (lab.host.nft_list(), product.genid()) == (before, genid)

    def test_legacy_rules_of_docker(self, lab: Lab, product: Product) -> None:
        legacy(lab, "-t", "nat", "-N", "DOCKER")
        assert lab.host.namespace.call(firewalls.quick) is None
        assert doctor(product, code=0)["backend"] == "nftables"  # a chain, and no rule
        legacy(lab, "-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER")
        found = doctor(product, code=0)
        assert found["backend"] == "iptables-legacy"
        assert found["reasons"] == ["NAT rules are in legacy form only: Docker"]
        variant(lab, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "99", "-j", "REDIRECT")
        found = doctor(product)
        assert found["backend"] == "nftables"
        assert ids(found) == ["both-variants"]

    def test_rules_of_ours_keep_their_backend(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        legacy(lab, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "99", "-j", "REDIRECT")
        found = doctor(product, code=0)
        assert (found["backend"], found["reasons"]) == ("nftables", ["the last generation was loaded there"])
        found = product.json("doctor", product.file(WEB), "--state-dir", lab.state_dir + "-lost")
        assert (found["backend"], found["reasons"]) == ("nftables", ["our mappings are there"])
        legacy(lab, "-t", "nat", "-N", "REDIRECTOR-IN")
        assert ids(doctor(product)) == ["ours-twice"]
        product.remove(purge=True)
        assert doctor(product, code=0)["backend"] == "iptables-legacy"

    def test_chains_of_ours_in_iptables_nft(self, lab: Lab, product: Product) -> None:
        variant(lab, "-t", "nat", "-N", "REDIRECTOR-IN", v=1)
        assert lab.host.namespace.call(firewalls.quick) is None
        assert doctor(product, code=0)["backend"] == "iptables-nft"
        text = '[settings]\nbackend = "nftables"\n' + WEB
        found = doctor(product, text)
        assert (found["backend"], found["reasons"]) == ("nftables", ["the file says so"])
        assert ids(found) == ["ours-elsewhere"]

    @pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
    def test_ours_in_iptables_are_not_anothers(self, lab: Lab, backend: str) -> None:
        text = WEB + mapping("range", "100-199", 8443, protocol=["tcp", "udp"], exclusive=True)
        with Product(lab, backend) as product:
            product.apply(f'[settings]\nbackend = "{backend}"\n' + text)
            found = product.json("doctor", product.file(text))
            assert (found["reasons"], found["findings"]) == (["the file says so"], [])
            plain = product.file("[settings]\n" + text)
            assert product.json("doctor", plain)["reasons"] == ["the last generation was loaded there"]
            found = product.json("doctor", plain, "--state-dir", lab.state_dir + "-other")
            assert (found["backend"], found["reasons"]) == (backend, ["our mappings are there"])
            v = int(backend == "iptables-nft")
            lab.host.serve("tcp", ANY[v], 8080)
            tool = f"{TOOLS[v]}-{backend.removeprefix('iptables-')}"
            lab.host.run(tool, "-P", "INPUT", "DROP")
            if v:
                variant(lab, "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT", v=v)
            lab.host.run(tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
            assert not answered(lab, v)
            found = product.json("doctor", product.file(text), code=2)
            assert set(ids(found)) == {"filter-drops"}
            mend(lab, found)
            assert answered(lab, v)
            product.run("doctor", product.file(text))

    def test_the_choice_is_what_apply_does(self, lab: Lab, product: Product) -> None:
        legacy(lab, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "99", "-j", "REDIRECT")
        product.run("apply", product.file(WEB))
        assert product.json("status")["backend"] == "iptables-legacy"
        assert "REDIRECTOR-IN" in lab.host.run("iptables-legacy-save")
        assert "redirector" not in lab.host.nft_list()

    def test_without_a_file(self, lab: Lab, product: Product) -> None:
        if not os.path.lexists("/etc/redirector/mappings.toml"):
            assert product.json("doctor")["file"] is None
        product.run("doctor", "/nowhere/at/all.toml", code=78)

    def test_in_a_named_namespace(self, lab: Lab, product: Product) -> None:
        legacy(lab, "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
        file = product.file(WEB)
        options: dict[str, Any] = {"machine": lab.neighbour, "names": {"blue": lab.host}}
        assert product.json("doctor", file, **options)["backend"] == "nftables"
        assert product.json("doctor", file, "--netns", "blue", **options)["backend"] == "iptables-legacy"

    def test_the_quick_answer_starts_and_imports_nothing(self, lab: Lab) -> None:
        code = (
            "import json, sys; import redirector.cli, redirector.backends.nftables.backend; before = set(sys.modules);"
            "from redirector.host import firewalls; found = firewalls.quick();"
            "print(json.dumps([found, 'subprocess' in sys.modules, sorted(set(sys.modules) - before)]))"
        )
        found, started, more = json.loads(lab.host.run(sys.executable, "-c", code, env=lab.environment()))
        assert (found, started) == ("nftables", False)
        assert set(more) <= {"redirector.host", "redirector.host.firewalls", "redirector.host.dumps"}


class TestFilters:
    """A filter at the input hook sees the target port."""

    @pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
    @pytest.mark.parametrize("last", ["", "drop", "reject with icmpx type port-unreachable"])
    def test_native(self, lab: Lab, product: Product, v: int, last: str) -> None:
        policy = "" if last else "policy drop;"
        lab.host.nft(
            f"table inet f {{ chain in {{ type filter hook input priority 0; {policy}\n"
            f"ct state vmap {{ established : accept, invalid : drop }}\nmeta l4proto icmpv6 accept\niif lo accept\n"
            f"tcp dport {{ 22, 80 }} accept\n{last}\n}}\n}}"
        )
        lab.host.serve("tcp", ANY[v], 8080)
        product.apply(WEB)
        assert not answered(lab, v)
        found = doctor(product)
        assert ids(found) == ["filter-drops"]
        assert "redirected to tcp 8080 (web)" in found["findings"][0]["message"]
        assert "nft table inet f, chain in" in found["findings"][0]["message"]
        mend(lab, found)
        assert answered(lab, v)
        assert not answered(lab, v, 8080)  # and only what was redirected
        assert doctor(product, code=0)["findings"] == []

    @pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
    @pytest.mark.parametrize("form", ["legacy", "nft"])
    @pytest.mark.parametrize("by_policy", [True, False], ids=["policy", "rule"])
    def test_of_iptables(self, lab: Lab, product: Product, v: int, form: str, by_policy: bool) -> None:
        tool = f"{TOOLS[v]}-{form}"
        run = lab.host.run
        run(tool, "-A", "INPUT", "-p", ["icmp", "icmpv6"][v], "-j", "ACCEPT")
        run(tool, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
        run(tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
        run(tool, "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "22,80", "-j", "ACCEPT")
        run(tool, *(["-P", "INPUT", "DROP"] if by_policy else ["-A", "INPUT", "-j", "REJECT"]))
        lab.host.serve("tcp", ANY[v], 8080)
        product.apply(WEB)
        assert not answered(lab, v)
        found = doctor(product)
        assert ids(found) == ["filter-drops"]
        mend(lab, found)
        assert answered(lab, v)
        assert not answered(lab, v, 8080)
        assert doctor(product, code=0)["findings"] == []

    def test_many_targets(self, lab: Lab, product: Product) -> None:
        """As many rules as multiport needs; UDP apart from TCP; one rule accepts some already."""
        text = "".join(mapping(f"m{i}", 1000 + i, 2000 + 2 * i) for i in range(20))
        text += mapping("shift", "100-109", "3000-3009") + mapping("dns", 53, 5353, protocol="udp")
        legacy(lab, "-A", "INPUT", "-p", "tcp", "--dport", "2000:2009", "-j", "ACCEPT")
        legacy(lab, "-P", "INPUT", "DROP")
        lab.host.nft("table inet f { chain in { type filter hook input priority 5; policy drop; }\n}")
        found = doctor(product, text)
        assert ids(found) == ["filter-drops"] * 4
        assert "tcp 2010, 2012, 2014, 2016, 2018, 2020 and 10 more" in found["findings"][0]["message"]
        mend(lab, found)
        assert doctor(product, text, code=0)["findings"] == []

    def test_exemption(self, lab: Lab, product: Product) -> None:
        """A port that is mapped to itself is not translated: `ct status dnat` would let nothing in."""
        lab.host.nft(
            "table inet f { chain in { type filter hook input priority 0; policy drop; ct status dnat accept;}\n}"
        )
        lab.host.serve("tcp", ANY[0], 80)
        text = mapping("own", 80, 80)
        product.apply(text)
        assert ask(lab, 0) == Silent()
        mend(lab, doctor(product, text))
        lab.host.nft("insert rule inet f in ct state established accept")
        assert answered(lab, 0)
        doctor(product, text, code=0)

    def test_an_odd_name(self, lab: Lab, product: Product) -> None:
        """No name of others comes to a terminal, or to nft's language, as it is."""
        command = lab.host.namespace.call
        command(lambda: _add_chain("f;\x1b[31m x", "in"))
        found = doctor(product, code=2)
        assert ids(found) == ["unread"]
        assert "\x1b" not in product.run("doctor", product.file(WEB), code=2)

    def test_a_table_that_sleeps(self, lab: Lab, product: Product) -> None:
        """Its chains see no packets (and nft 1.0.6 writes JSON for it that ends in the middle)."""
        lab.host.nft("table inet f {\nflags dormant\nchain in { type filter hook input priority 0; policy drop; }\n}")
        lab.host.serve("tcp", ANY[0], 8080)
        product.apply(WEB)
        assert answered(lab, 0)
        doctor(product, code=0)

    def test_a_native_table_with_a_name_of_iptables(self, lab: Lab, product: Product) -> None:
        lab.host.nft("table ip filter { chain in { type filter hook input priority 0; policy drop; }\n}")
        (one,) = doctor(product)["findings"]
        assert "nft table ip filter, chain in" in one["message"]

    def test_rules_that_nobody_can_read(self, lab: Lab, product: Product) -> None:
        """Without nft, say: the doctor tells what it did not see."""
        lab.host.nft("table inet f { chain in { type filter hook input priority 0; policy drop; }\n}")
        command = lab.command("doctor", product.file(WEB), "--json")
        hidden = 'mount --bind /dev/null /usr/sbin/nft; exec "$@"'
        done = lab.host.namespace.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", hidden, "sh", *command],
            env=lab.environment(),
            text=True,
        )
        (one,) = json.loads(done.stdout)["findings"]
        assert (done.returncode, one["id"]) == (2, "unread")
        assert "nft is missing" in one["message"]


class TestMappings:
    @pytest.mark.parametrize("form", ["nft", "native"])
    def test_in_both_forms(self, lab: Lab, product: Product, form: str) -> None:
        legacy(
            lab, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-m", "multiport", "--dports", "79:81", "-j", "REDIRECT"
        )
        if form == "native":
            lab.host.nft(
                "table ip n { map m { type inet_service : inet_service; elements = { 80 : 99 }; }\n"
                "chain pre { type nat hook prerouting priority -90;\n"
                "meta l4proto tcp redirect to :tcp dport map @m\n}\n}"
            )
            place = "nft table ip n, chain pre: meta l4proto tcp redirect to :tcp dport map @m"
        else:
            variant(lab, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "REDIRECT")
            place = "iptables-nft table nat, chain PREROUTING: -A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT"
        (one,) = (f for f in doctor(product)["findings"] if f["id"] == "nft-and-legacy")
        assert "iptables-legacy table nat, chain PREROUTING: -A PREROUTING -p tcp -m multiport" in one["message"]
        assert place in one["message"]
        assert "nft-and-legacy" not in ids(doctor(product, mapping("other", 99, 8080), code=2 if form == "nft" else 0))

    def test_somebody_before_us(self, lab: Lab, product: Product) -> None:
        lab.host.nft(
            "table ip n { chain pre { type nat hook prerouting priority -110; }\n"
            "chain early { type nat hook prerouting priority -120; tcp dport 80 redirect to :9090\n}\n}"
        )
        lab.host.serve("tcp", ANY[0], 8080, 9090)
        product.apply(WEB)
        assert served_at(lab) == 9090
        found = doctor(product)
        assert sorted(ids(found)) == ["equal-priority", "taken-first"]
        assert "priority = -121" in next(f for f in found["findings"] if f["id"] == "taken-first")["fix"][0]
        settled = "[settings]\npriority = -121\n" + WEB
        product.apply(settled)
        assert served_at(lab) == 8080
        assert ids(doctor(product, settled)) == ["also-mapped"]


def _add_chain(table: str, chain: str) -> None:
    """A table with an input filter, of any name whatever: nft would not take it."""
    from redirector.backends.nftables import wire
    from redirector.backends.nftables.message import header, nfgenmsg
    from redirector.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkSocket, attr, message, nest

    hook = nest(wire.CHAIN_HOOK, attr(wire.HOOK_NUM, wire.be32(1)), attr(wire.HOOK_PRIORITY, wire.be32(0)))
    name = wire.text(table)
    body = attr(wire.CHAIN_TABLE, name) + attr(wire.CHAIN_NAME, wire.text(chain)) + hook
    body += attr(wire.CHAIN_TYPE, wire.text("filter"))
    flags = NLM_F_REQUEST | NLM_F_CREATE
    batch = b"".join(
        (
            message(wire.BATCH_BEGIN, NLM_F_REQUEST, 1, nfgenmsg(0, wire.SUBSYSTEM)),
            message(header(wire.NEWTABLE), flags, 2, nfgenmsg() + attr(wire.TABLE_NAME, name)),
            message(header(wire.NEWCHAIN), flags, 3, nfgenmsg() + body),
            message(wire.BATCH_END, NLM_F_REQUEST | NLM_F_ACK, 4, nfgenmsg(0, wire.SUBSYSTEM)),
        )
    )
    netlink = NetlinkSocket(12)
    netlink.send(batch)
    netlink.receive()
    netlink.close()
