"""Only ours: what others have in the kernel is byte for byte the same before and after everything that we do.

On each backend; a mark in a comment and an owner's flag are of nftables alone.
"""

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
from tests.kernel.product import Product, mapping, on_each, on_nftables, ruleset

pytestmark = on_nftables

WEB = mapping("web", 80, 8080, protocol=["tcp", "udp"], exclusive=True)
SCOPED = mapping("dns", 53, 5300, address=list(HOST_SECONDARY)) + mapping("lan", 80, 8090, source="192.0.2.0/24")


@on_each
def test_others_are_the_same_before_and_after_everything(lab: Lab, product: Product) -> None:
    admin = product.admin
    admin.has_much_else()
    before = admin.sees_others()
    lab.host.serve("tcp", HOST[0], 8080)
    web, more, none = product.file(WEB), product.file(WEB + SCOPED, "more.toml"), product.file("", "none.toml")
    plan = f"{product.history.folder}.plan"
    assert product.status().state == "absent"  # nothing of all that is taken for ours
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
    ):
        product.run(*command, code=code)
        assert admin.sees_others() == before, command
    # Healing, and replacing what has our name, are no exceptions.
    damages: tuple[Callable[[], None], ...] = (lambda: admin.deletes(80), admin.empties_ours)
    for damage in damages:
        damage()
        assert product.status().state == "drifted"
        product.run("apply", web)
        assert admin.sees_others() == before
    product.run("remove", "--purge")
    assert admin.sees_others() == before
    admin.takes_our_name()
    product.run("apply", web, "--replace-foreign")
    assert admin.sees_others() == before
    product.run("remove", "--purge")
    assert not admin.sees_ours()
    assert admin.sees_others() == before
    product.apply(WEB)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])


@on_each
def test_what_others_do_elsewhere_is_no_drift(product: Product) -> None:
    product.apply(WEB)
    product.admin.has_much_else()
    before = product.admin.sees_others()
    found = product.status()
    assert (found.state, found.drift) == ("in-sync", ())
    assert not product.apply(WEB).plan
    product.apply(WEB + SCOPED)
    assert product.admin.sees_others() == before


FOREIGN = {
    "with-another-comment": 'table inet redirector { comment "made by redirectors"; }',
    "empty": "table inet redirector { }",
    "with-objects": "table inet redirector { counter c { }; map m { type mark : verdict; }; }",
}


class TestOurName:
    """What somebody else has called as we call ours. More of it for iptables is in test_iptables_others."""

    @pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN.keys())
    def test_without_our_mark_it_is_not_ours(self, lab: Lab, product: Product, text: str) -> None:
        lab.host.nft(text)
        self.is_refused_and_then_replaced(lab, product)

    @on_each
    def test_with_rules_that_are_not_ours(self, lab: Lab, product: Product) -> None:
        product.admin.takes_our_name()
        self.is_refused_and_then_replaced(lab, product)

    def is_refused_and_then_replaced(self, lab: Lab, product: Product) -> None:
        file, before = product.file(WEB), product.admin.sees()
        told = product.run("apply", file, code=1)
        assert "not ours" in told
        assert "--replace-foreign" in told
        assert product.admin.sees() == before
        assert product.history.numbers() == []
        product.run("apply", file, "--replace-foreign")
        assert product.status().state == "in-sync"
        assert not product.json("apply", file)["changed"]  # from now on it is ours
        lab.host.serve("tcp", HOST[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])

    def test_is_refused_by_every_command(self, product: Product) -> None:
        product.admin.takes_our_name()
        before, file = product.admin.sees(), product.file(WEB)
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
        assert product.admin.sees() == before

    @on_each
    def test_in_place_of_ours_is_drift_and_refused(self, product: Product) -> None:
        file = product.file(WEB)
        product.run("apply", file)
        product.admin.flushes()
        product.admin.takes_our_name()
        before = product.admin.sees()
        found = product.json("status", code=2)
        assert [(one["kind"], one["mapping"]) for one in found["drift"]] == [("structure", None)]
        assert "not ours" in found["drift"][0]["detail"]
        for command in (["apply", file], ["rollback", "1"], ["remove"], ["plan", file]):
            product.run(*command, code=1)
        assert product.admin.sees() == before
        product.run("rollback", "1", "--replace-foreign")
        assert product.json("status")["state"] == "in-sync"

    @on_each
    def test_is_purged_on_request(self, product: Product) -> None:
        product.run("apply", product.file(WEB))
        product.admin.flushes()
        product.admin.takes_our_name()
        product.run("remove", "--purge", "--replace-foreign")
        assert not product.admin.sees_ours()


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


@on_each
def test_what_others_have_among_ours_goes_with_an_apply(product: Product) -> None:
    """What is ours is ours alone: what somebody put there is told before it is taken away."""
    product.apply(WEB)
    product.admin.adds_a_chain()
    told = product.json("plan", product.file(WEB), code=2)
    assert {change["action"] for change in told["changes"]} == {"remove"}
    assert all("theirs" in change["detail"] for change in told["changes"])
    product.run("apply", product.file(WEB))
    assert "theirs" not in str(product.admin.sees())


@on_each
def test_others_traffic_is_not_disturbed(lab: Lab, product: Product) -> None:
    """Somebody else's redirects and filter of our target go on working beside ours, which go first."""
    product.admin.works_elsewhere()
    product.apply(WEB + mapping("tls", 443, 8443))
    lab.host.serve("tcp", "0.0.0.0", 8080, 8443, 9090)
    assert lab.client.ask_tcp(HOST[0], 90) == Answered(9090, CLIENT[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
    assert lab.client.ask_tcp(HOST[0], 443) == Refusal()  # a filter's refusal is final
    product.remove(purge=True)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(9090, CLIENT[0], HOST[0])


@on_each
def test_the_reason_is_told_without_the_kernels_help(product: Product) -> None:
    product.admin.takes_our_name()
    snapshot = product.backend.observe()
    assert snapshot.foreign
    with pytest.raises(Refused, match="not ours"):
        plan_for(ruleset(WEB), snapshot)
    assert plan_for(ruleset(WEB), snapshot, replace_foreign=True)
