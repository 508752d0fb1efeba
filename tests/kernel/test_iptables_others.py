"""The iptables backends touch only what is ours, and take nothing of others' for ours, whatever it is called."""

from collections.abc import Iterator

import pytest

from redirector import errors
from redirector.model import FAMILIES
from tests.kernel.echo import Answered
from tests.kernel.iptables import VARIANTS, both, iptables, of_others, saved
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping

WEB = mapping("web", 80, 8080, exclusive=True)
NEXT = mapping("web", 80, 8081) + mapping("staff", [81, "90-99"], 8090, protocol=["tcp", "udp"], source=CLIENT[0])
ODD = (r"a \" b", r"back\\slash", "NOT-REDIRECTOR", "-j REDIRECTOR-IN", "' -g REDIRECTOR-x", "REDIRECTOR", "x", "")
THEIRS = (
    "-t nat -N NOT-REDIRECTOR-IN", "-t nat -N REDIRECTORS", "-t nat -N redirector-in",
    "-t nat -A REDIRECTORS -p tcp --dport 7 -m comment --comment web -j DNAT --to-destination :8080",
    "-t nat -A PREROUTING -p tcp --dport 7 -j REDIRECTORS",
    "-t nat -A PREROUTING -p tcp --dport 8 -j NOT-REDIRECTOR-IN",
    "-t nat -A OUTPUT -p tcp --dport 8 -j redirector-in",
    "-t nat -A POSTROUTING -o veth-b -j MASQUERADE",
    "-N REDIRECTORIAL", "-A REDIRECTORIAL -j DROP", "-A FORWARD -p tcp --dport 7 -j REDIRECTORIAL",
    "-P FORWARD DROP", "-t mangle -N REDIRECTOR-IN", "-t mangle -A REDIRECTOR-IN -j MARK --set-mark 1",
    "-t mangle -A PREROUTING -p tcp --dport 7 -j REDIRECTOR-IN",
    *(f'-A INPUT -p tcp --dport 7 -m comment --comment "{text}" -j DROP' for text in ODD),
    *(f'-t nat -A PREROUTING -p tcp --dport 7 -m comment --comment "{text}" -j ACCEPT' for text in ODD),
    *(f'-t nat -A OUTPUT -p tcp --dport 7 -m comment --comment "{text}" -j ACCEPT' for text in ODD[3:5]),
)  # fmt: skip


@pytest.fixture(params=VARIANTS)
def product(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Product]:
    with Product(lab, request.param) as made:
        yield made


@pytest.fixture
def family(product: Product) -> str:
    """With each variant another one."""
    return FAMILIES[VARIANTS.index(product.backend.name)]


def test_what_others_have_stays_as_it_is(lab: Lab, product: Product) -> None:
    backend = product.backend.name
    for family in FAMILIES:
        iptables(lab.host, backend, family, *THEIRS)
    everything, before = both(lab.host, backend), of_others(lab.host, backend)
    lab.host.serve("tcp", HOST[0], 8080, 8081)
    for text, port in ((WEB, 8080), (NEXT, 8081), (WEB, 8080)):
        product.apply(text)
        found = product.status()
        assert (found.state, found.drift) == ("in-sync", ())
        assert of_others(lab.host, backend) == before
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(port, CLIENT[0], HOST[0])
    product.remove()
    assert product.status().state == "drained"
    assert of_others(lab.host, backend) == before
    product.remove(purge=True)
    assert both(lab.host, backend) == everything


def test_nothing_of_others_is_taken_for_ours(lab: Lab, product: Product) -> None:
    for family in FAMILIES:
        iptables(lab.host, product.backend.name, family, *THEIRS)
    assert product.backend.observe().program is None
    assert product.status().state == "absent"


def test_what_others_do_elsewhere_is_no_drift(lab: Lab, product: Product) -> None:
    product.apply(WEB)
    for family in FAMILIES:
        iptables(lab.host, product.backend.name, family, *THEIRS)
    found = product.status()
    assert (found.state, found.drift) == ("in-sync", ())
    before = of_others(lab.host, product.backend.name)
    product.apply(NEXT)
    assert of_others(lab.host, product.backend.name) == before


class TestForeignChains:
    def test_a_chain_of_our_name_with_rules_of_others(self, lab: Lab, product: Product, family: str) -> None:
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
        lab.host.serve("tcp", HOST[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
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
