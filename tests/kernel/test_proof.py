"""The kernel's generation number as proof: one question instead of a reading, and whatever ends it is found.

More of the subject: test_drift.py (every tampering there ends it), test_inplace.py (every change both ways), and
tests/test_proof.py, tests/test_known.py for what needs no kernel.
"""

from collections.abc import Iterable, Iterator

import pytest

from redirector import proof, proving
from redirector.backends.nftables.backend import NftablesBackend
from redirector.compile import compile_ruleset
from redirector.model import Ruleset
from redirector.plan import Step
from tests.kernel.edits import Noting, edits_end_where_a_fresh_apply_does
from tests.kernel.iptables import iptables
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_nftables, ruleset
from tests.kernel.test_foreign import owned_table
from tests.strategies import mapping as made

WEB = mapping("web", 80, 8080)
MORE = mapping("web", 80, 8081) + mapping("more", 81, 8081)
EDITS = 150  # 1,000 are part of `make stress`


pytestmark = on_nftables  # but where a test says otherwise: whose genid it is


@pytest.fixture
def counting(lab: Lab) -> Iterator[Noting]:
    found = lab.host.namespace.call(Noting)
    yield found
    found.close()


def test_status_asks_one_question(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    told = product.json("status")
    assert (told["state"], told["compared"], told["generation"], told["mappings"]) == ("in-sync", False, 1, None)
    full = product.json("status", "--full")
    assert (full["state"], full["compared"]) == ("in-sync", True)
    counted = product.json("status", "--counters")
    assert [one["connections"] for one in counted["mappings"]] == [0]


@pytest.mark.backends("iptables-nft", "iptables-legacy")
def test_on_iptables_where_there_is_a_genid(lab: Lab, product: Product) -> None:
    nft = product.backend.name == "iptables-nft"
    product.run("apply", product.file(WEB))
    told = product.json("status")
    assert (told["state"], told["compared"]) == ("in-sync", not nft)
    iptables(lab.host, product.backend.name, "ipv6", "-t filter -A INPUT -p tcp --dport 9 -j ACCEPT")
    assert product.json("status")["compared"]
    assert product.json("status")["compared"] == (not nft)
    iptables(lab.host, product.backend.name, "ipv4", "-t nat -A REDIRECTOR-ALL -p tcp --dport 9 -j ACCEPT")
    told = product.json("status", code=2)
    assert (told["state"], told["compared"]) == ("drifted", True)
    assert product.json("apply", product.file(WEB))["changed"]
    assert product.json("status")["compared"] == (not nft)


def test_what_others_commit_costs_one_comparison(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    lab.host.nft("add table inet other")
    assert product.json("status")["compared"]
    assert not product.json("status")["compared"]
    lab.host.nft("flush ruleset")
    found = product.json("status", code=2)
    assert (found["state"], found["compared"]) == ("drifted", True)
    assert product.json("status", code=2)["compared"]  # nothing is proven of what is not as it should be


def test_another_namespace_with_the_same_genid(lab: Lab, product: Product) -> None:
    """As a container's that is made anew: each begins at the same number."""
    product.run("apply", product.file(WEB))
    with Product(lab) as other:
        other.backend.close()
        other.backend = lab.client.namespace.call(NftablesBackend)
        while other.genid() < product.genid():
            lab.client.nft("add table inet some")
        assert other.genid() == product.genid()
        assert proving.known(product.backend, product.history) is not None
        assert proving.known(other.backend, product.history) is None
        assert other.status().state == "drifted"


def test_after_a_restart(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    found = proof.load(product.history.folder)
    assert found is not None
    boot, place = found.identity.split("/")
    proof.save(product.history.folder, found._replace(identity=f"{boot[::-1]}/{place}"))
    assert product.json("status")["compared"]
    assert not product.json("status")["compared"]


def test_a_table_with_the_owner_flag_is_never_proven(lab: Lab, product: Product) -> None:
    """It vanishes with its process, and moves no genid."""
    product.run("apply", product.file(WEB))
    lab.host.nft("delete table inet redirector")
    with owned_table(lab):
        assert product.json("status", code=2)["compared"]
        held = product.genid()
        product.run("apply", product.file(WEB), "--replace-foreign", code=1)
        found = proof.load(product.history.folder)
        assert found is None or found.genid < held
    assert product.genid() == held
    assert product.json("status", code=2)["drift"][0]["detail"] == "the table is gone"


def test_the_mapping_file_is_read_again_only_if_it_has_changed(lab: Lab, product: Product) -> None:
    file = product.file(WEB)
    product.run("apply", file)
    assert product.json("status")["file_changed"] is False
    product.file(MORE)
    assert product.json("status")["file_changed"] is True
    product.file(f"# a comment\n{WEB}")
    told = product.json("status")
    assert (told["file_changed"], told["compared"]) == (False, False)
    product.file(f"{WEB}[[mapping]]\n")
    assert "has no name" in product.json("status")["file_error"]


def test_a_change_among_very_many_sends_what_changes(lab: Lab, product: Product, counting: Noting) -> None:
    def frame() -> str:
        """All that has a handle, maps without what is in them."""
        return lab.host.run("nft", "-t", "-a", "list", "table", "inet", "redirector")

    many = [made(f"m{i}", f"{1000 + i * 100}-{1099 + i * 100}", "9000", protocol=("tcp", "udp")) for i in range(300)]
    product.apply(Ruleset((*many, made("one", "80", "8080"))), backend=counting)
    before = frame()
    counting.readings = 0
    product.apply(Ruleset((*many, made("one", "80", "8081"))), backend=counting)
    assert counting.readings == 0
    assert counting.sent[1][0] == 2  # one goes, one comes
    assert counting.sent[1][1] < 500
    assert frame() == before
    assert counting.observe().program == compile_ruleset(Ruleset((*many, made("one", "80", "8081"))))


def test_somebody_who_commits_in_between(lab: Lab, product: Product, counting: Noting) -> None:
    product.apply(WEB, backend=counting)

    class Late(Noting):
        """Others commit between the question and the transaction."""

        late = 2

        def commit(self, steps: Iterable[Step], expect: int) -> None:
            if self.late:
                self.late -= 1
                lab.host.nft(f"add table inet other{self.late}")
            super().commit(steps, expect)

    late = lab.host.namespace.call(Late)
    try:
        product.apply(MORE, backend=late)
        assert (late.readings, len(late.sent)) == (2, 3)
        assert late.observe().program == compile_ruleset(ruleset(MORE))
    finally:
        late.close()


def test_one_that_is_not_so_is_refused_by_the_kernel_and_read(lab: Lab, product: Product, counting: Noting) -> None:
    """As after a state folder was copied together with the identity of this place, which should never be."""
    product.apply(MORE, backend=counting)
    lab.host.nft("delete element inet redirector ports { tcp . 81 }")
    found = proof.load(product.history.folder, whole=True)
    assert found is not None
    proof.save(product.history.folder, found._replace(genid=counting.genid()))
    counting.readings = 0
    product.apply(WEB, backend=counting)  # wants to delete what is not there: ENOENT
    assert counting.readings == 1
    assert counting.observe().program == compile_ruleset(ruleset(WEB))


def test_many_edits_end_where_a_fresh_apply_does(product: Product, counting: Noting) -> None:
    edits_end_where_a_fresh_apply_does(product, counting, EDITS)
