"""Only ours: what others have in the kernel is byte for byte the same before and after everything that we do."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from redirector.backends.nftables import wire
from redirector.backends.nftables.message import header, nfgenmsg
from redirector.errors import Refused
from redirector.naming import TABLE
from redirector.netlink import NETLINK_NETFILTER, NLM_F_CREATE, NLM_F_REQUEST, attr, message
from redirector.reconcile import plan_for
from tests.kernel.echo import Answered
from tests.kernel.echo import Refused as Refusal
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, Lab
from tests.kernel.product import Product, handles, mapping, ruleset

WEB = mapping("web", 80, 8080, protocol=["tcp", "udp"], exclusive=True)
SCOPED = mapping("dns", 53, 5300, address=list(HOST_SECONDARY)) + mapping("lan", 80, 8090, source="192.0.2.0/24")

# Everything that a host's other tools might have: names like ours, rules on our ports, maps with counters and timeouts.
OTHERS = """
table inet redirector2 {
    comment "made by redirector"
    map ports {
        type inet_proto . inet_service : inet_service
        size 64
        counter
        elements = { tcp . 80 counter packets 5 bytes 300 comment "web" : 8081 }
    }
    chain prerouting {
        type nat hook prerouting priority -100
        tcp dport 81 redirect to :8081 comment "a; b"
    }
}
table ip redirector {
    chain arriving {
        tcp dport 80 counter packets 3 bytes 4
    }
    chain prerouting {
        type filter hook prerouting priority -300
        jump arriving
    }
}
table ip6 nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat
        tcp dport 9 redirect to :10
    }
}
table inet filter {
    counter seen {
        packets 7 bytes 8
    }
    quota most {
        over 10 mbytes
    }
    set blocked {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 203.0.113.7 }
    }
    map by_port {
        type inet_service : verdict
        elements = { 7 : drop, 9 : jump other }
    }
    chain other {
        counter packets 1 bytes 2 return comment "ünïcode"
    }
    chain input {
        type filter hook input priority 0
        tcp dport vmap @by_port
        ip saddr @blocked drop
        ct state established,related counter packets 11 bytes 12 accept
    }
}
table arp redirector {
    chain input {
        type filter hook input priority 0
    }
}
table bridge odd-name_1.x {
    chain c {
        meta mark 0x7 accept
    }
}
"""


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    with Product(lab) as made:
        yield made


def others(lab: Lab) -> list[str]:
    """Every other table, with its handles and counters."""
    tables = [line.removeprefix("table ").split(" # ")[0] for line in lab.host.nft_list("tables").splitlines()]
    return [handles(lab.host, f"table {name}") for name in tables if name != "inet redirector"]


def test_others_are_the_same_before_and_after_everything(lab: Lab, product: Product) -> None:
    lab.host.nft(OTHERS)
    before = others(lab)
    assert len(before) == 6
    web, more, none = product.file(WEB), product.file(WEB + SCOPED, "more.toml"), product.file("", "none.toml")
    plan = f"{product.history.folder}.plan"
    for code, *command in (
        (0, "check", web),
        (2, "plan", web, "--out", plan),
        (0, "apply", plan),
        (0, "apply", web, "--dry-run"),
        (0, "apply", more, "--verify"),
        (0, "status"),
        (0, "rollback"),
        (0, "rollback", "2"),
        (0, "apply", none, "--allow-empty"),
        (3, "status"),
        (0, "rollback"),
        (0, "remove"),
        (0, "rollback"),
        (0, "remove", "--purge"),
        (0, "apply", web),
        (0, "remove", "--purge"),
    ):
        product.run(*command, code=code)
        assert others(lab) == before, command
    # Healing, and replacing a table of our name, are no exceptions.
    for damage in ("flush table", "delete table"):
        product.apply(WEB)
        lab.host.nft(f"{damage} inet redirector")
        product.run("apply", web)
        assert others(lab) == before, damage
    lab.host.nft("delete table inet redirector\nadd table inet redirector")
    product.run("apply", web, "--replace-foreign")
    assert others(lab) == before


FOREIGN = {
    "without-a-mark": "table inet redirector { chain prerouting { type nat hook prerouting priority -100; }; }",
    "with-another-comment": 'table inet redirector { comment "made by redirectors"; }',
    "empty": "table inet redirector { }",
    "with-objects": "table inet redirector { counter c { }; map m { type mark : verdict; }; }",
}


every_foreign = pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN.keys())


class TestTableOfOurName:
    @every_foreign
    def test_is_refused_and_left_alone(self, lab: Lab, product: Product, text: str) -> None:
        lab.host.nft(text)
        before, genid = handles(lab.host, "ruleset"), product.genid()
        told = product.run("apply", product.file(WEB), code=1)
        assert "not ours" in told
        assert "--replace-foreign" in told
        assert (handles(lab.host, "ruleset"), product.genid()) == (before, genid)
        assert product.history.numbers() == []

    @every_foreign
    def test_is_replaced_on_request(self, lab: Lab, product: Product, text: str) -> None:
        lab.host.nft(text)
        file = product.file(WEB)
        product.run("apply", file, "--replace-foreign")
        assert product.status().state == "in-sync"
        assert not product.apply(WEB).plan  # from now on it is ours
        lab.host.serve("tcp", HOST[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])

    def test_is_refused_by_every_command(self, lab: Lab, product: Product) -> None:
        lab.host.nft(FOREIGN["without-a-mark"])
        file = product.file(WEB)
        before, genid = handles(lab.host, "ruleset"), product.genid()
        for command in (
            ["apply", file, "--dry-run"],
            ["apply", file, "--allow-empty", "--allow-ssh", "--allow-owner"],
            ["plan", file],
            ["remove"],
            ["remove", "--purge"],
        ):
            assert "not ours" in product.run(*command, code=1)
        found = product.json("status", code=3)
        assert found["state"] == "absent"
        assert "not ours" in found["note"]
        assert not product.json("plan", file, "--replace-foreign", code=2)["in_sync"]
        assert (handles(lab.host, "ruleset"), product.genid()) == (before, genid)

    def test_in_place_of_ours_is_drift_and_refused(self, lab: Lab, product: Product) -> None:
        file = product.file(WEB)
        product.run("apply", file)
        lab.host.nft(f"delete table inet redirector\n{FOREIGN['without-a-mark']}")
        before = handles(lab.host, "ruleset")
        found = product.json("status", code=2)
        assert [(one["kind"], one["mapping"]) for one in found["drift"]] == [("structure", None)]
        assert "not ours" in found["drift"][0]["detail"]
        for command in (["apply", file], ["rollback", "1"], ["remove"], ["plan", file]):
            product.run(*command, code=1)
        assert handles(lab.host, "ruleset") == before
        product.run("rollback", "1", "--replace-foreign")
        assert product.json("status")["state"] == "in-sync"

    def test_is_purged_on_request(self, lab: Lab, product: Product) -> None:
        lab.host.nft(FOREIGN["with-objects"])
        product.run("remove", "--purge", "--replace-foreign")
        assert lab.host.nft_list() == ""


@contextlib.contextmanager
def owned_table(lab: Lab) -> Iterator[socket.socket]:
    """A table of our name that a process holds with the owner flag (from Linux 5.12 on): it goes with its socket."""

    def claim() -> socket.socket:
        owner = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        owner.bind((0, 0))
        name = attr(wire.TABLE_NAME, wire.text(TABLE))
        flags = attr(wire.TABLE_FLAGS, wire.be32(wire.TABLE_OWNER_FLAG))
        begin, end = (nfgenmsg(0, wire.SUBSYSTEM) for _ in range(2))
        owner.send(
            message(wire.BATCH_BEGIN, NLM_F_REQUEST, 1, begin)
            + message(header(wire.NEWTABLE), NLM_F_REQUEST | NLM_F_CREATE, 2, nfgenmsg() + name + flags)
            + message(wire.BATCH_END, NLM_F_REQUEST, 3, end)
        )
        return owner

    with lab.host.namespace.call(claim) as owner:
        yield owner


def test_table_with_an_owner(lab: Lab, product: Product) -> None:
    file = product.file(WEB)
    with owned_table(lab) as owner:
        before, genid = lab.host.nft_list(), product.genid()
        assert "flags owner" in before
        for command in (["apply", file], ["plan", file], ["remove", "--purge"]):
            told = product.run(*command, code=1)
            assert f"netlink port {owner.getsockname()[0]}" in told
            assert "owner flag" in told
        # Not even on request: the kernel lets nobody but its owner touch it.
        for command in (["apply", file, "--replace-foreign"], ["remove", "--purge", "--replace-foreign"]):
            assert "nobody else" in product.run(*command, code=1)
        assert (lab.host.nft_list(), product.genid()) == (before, genid)
        assert product.history.numbers() == []
    product.run("apply", file)
    assert product.json("status")["state"] == "in-sync"


def test_what_others_have_in_our_table_goes_with_an_apply(lab: Lab, product: Product) -> None:
    """Our table is ours alone: what somebody put into it is told before it is taken away."""
    product.apply(WEB)
    lab.host.nft("add chain inet redirector theirs\nadd rule inet redirector theirs counter")
    told = product.json("plan", product.file(WEB), code=2)
    assert [change["action"] for change in told["changes"]] == ["remove"]
    assert "theirs" in told["changes"][0]["detail"]
    product.run("apply", product.file(WEB))
    assert "theirs" not in lab.host.nft_list()


def test_others_traffic_is_not_disturbed(lab: Lab, product: Product) -> None:
    """Somebody else's redirect of other ports and filter of our target go on working beside ours."""
    lab.host.nft(
        """table inet theirs {
            chain prerouting { type nat hook prerouting priority -100; tcp dport { 80, 90 } redirect to :9090; };
            chain input { type filter hook input priority 0; tcp dport 8443 reject with tcp reset; };
        }"""
    )
    product.apply(WEB + mapping("tls", 443, 8443))
    lab.host.serve("tcp", "0.0.0.0", 8080, 8443, 9090)
    assert lab.client.ask_tcp(HOST[0], 90) == Answered(9090, CLIENT[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])  # -110 is before -100
    assert lab.client.ask_tcp(HOST[0], 443) == Refusal()  # a filter's refusal is final
    product.remove(purge=True)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(9090, CLIENT[0], HOST[0])


def test_the_reason_is_told_without_the_kernels_help(lab: Lab, product: Product) -> None:
    lab.host.nft(FOREIGN["empty"])
    snapshot = product.backend.observe()
    assert snapshot.foreign
    refusing: Callable[[], object] = lambda: plan_for(ruleset(WEB), snapshot)  # noqa: E731
    with pytest.raises(Refused, match="not ours"):
        refusing()
    assert plan_for(ruleset(WEB), snapshot, replace_foreign=True)
