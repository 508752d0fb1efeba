"""Chains of our name in one family only, empty ones, and jumps of others to ours; the rest of the subject is in
test_foreign, for all backends."""

import pytest

from redirector import errors
from redirector.model import FAMILIES
from tests.kernel.iptables import VARIANTS, both, iptables, saved
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_iptables

pytestmark = on_iptables

WEB = mapping("web", 80, 8080, exclusive=True)


@pytest.fixture
def family(product: Product) -> str:
    """With each variant another one."""
    return FAMILIES[VARIANTS.index(product.backend.name)]


class TestForeignChains:
    def test_in_one_family_only(self, lab: Lab, product: Product, family: str) -> None:
        backend, file = product.backend.name, product.file(WEB)
        iptables(
            lab.host,
            backend,
            family,
            "-t nat -N REDIRECTOR-IN",
            "-t nat -A REDIRECTOR-IN -p tcp -j ACCEPT",
            "-t nat -A PREROUTING -p tcp --dport 9 -j REDIRECTOR-IN",
        )
        before = saved(lab.host, backend, family)
        assert "not ours" in product.run("apply", file, code=1)
        assert saved(lab.host, backend, family) == before
        assert product.history.numbers() == []
        product.run("apply", "--replace-foreign", file)
        assert product.status().state == "in-sync"
        assert not any("--dport 9" in line for line in saved(lab.host, backend, family))

    def test_an_empty_chain_of_our_name_is_ours(self, lab: Lab, product: Product, family: str) -> None:
        iptables(lab.host, product.backend.name, family, "-t nat -N REDIRECTOR-IN", "-N REDIRECTOR-GUARD")
        product.apply(WEB)
        assert product.status().state == "in-sync"
        product.remove(purge=True)
        assert not any("REDIRECTOR" in line for line in saved(lab.host, product.backend.name, family))

    def test_a_jump_to_us_that_cannot_be_repeated_is_refused(self, lab: Lab, product: Product, family: str) -> None:
        """With a comment of others: they have to take it away, and are told so; nothing is done by halves."""
        backend = product.backend.name
        product.apply(WEB)
        iptables(lab.host, backend, family, """-t nat -A OUTPUT -m comment --comment "a ' b" -j REDIRECTOR-IN""")
        before = both(lab.host, backend)
        assert product.status().state == "drifted"
        with pytest.raises(errors.Refused) as raised:
            product.apply(WEB)
        assert "by hand" in raised.value.hint
        assert both(lab.host, backend) == before
