"""Drift on the iptables backends: every kind of tampering that iptables(8) can do, in either family, told and mended.

What is told, and that nothing is invented, is asked of all backends alike in test_drift.
"""

import re
from typing import NamedTuple

import pytest

from redirector.output import drift_detail
from tests.kernel.echo import Answered, Refused
from tests.kernel.iptables import VARIANTS, both, iptables, saved
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY
from tests.kernel.product import Product, mapping, on_iptables

pytestmark = on_iptables

BOTH = ["tcp", "udp"]
ANY = ("0.0.0.0", "::")
FAMILY = ("ipv4", "ipv6")
EVERYTHING = (
    mapping("web", [80, 81], 8080, protocol=BOTH, exclusive=True)
    + mapping("staff", 80, 8090, source=["192.0.2.101", "2001:db8:1::101"])
    + mapping("dns", 53, 5300, protocol=BOTH, address=list(HOST_SECONDARY), exclusive=True)
    + mapping("own", 443, 8443, interface="lo")
)
ALL = "web staff dns own"
ARRIVING, OWN, GUARDED = "web staff dns", "web dns own", "web dns"
TCP = "-p tcp -m tcp --dport"
WEB = f"{TCP} 80:81 -m comment --comment web -j DNAT --to-destination"
LOCAL = "-m addrtype --dst-type LOCAL"


class Tampering(NamedTuple):
    """`commands` are for iptables (";" between), {staff}, {dns} and {guard} the chains of those; `undo` takes away what
    is of others afterwards. Then what `status` has to say: which `mappings` are concerned, and some of the `words`."""

    name: str
    commands: str
    mappings: str
    words: str = ""
    undo: str = ""


TAMPERINGS = (
    Tampering("a rule deleted", f"-t nat -D REDIRECTOR-ALL {WEB} :8080", "web", "tcp 80-81"),
    Tampering("a rule edited", f"-t nat -D REDIRECTOR-ALL {WEB} :8080; -t nat -A REDIRECTOR-ALL {WEB} :22", "web",
              "→ 22"),
    Tampering("a rule of a scope deleted", f"-t nat -D {{dns}} {TCP} 53 -m comment --comment dns -j DNAT "
              "--to-destination :5300", "dns", "tcp 53"),
    Tampering("rules in another order", "-t nat -D REDIRECTOR-IN 1; "
              "-t nat -A REDIRECTOR-IN -s {staff-source} -j {staff}", ARRIVING, "another order"),
    Tampering("a rule doubled", f"-t nat -A REDIRECTOR-ALL {WEB} :8080", "web", "stands here twice"),
    Tampering("a rule added", "-t nat -I REDIRECTOR-IN 1 -p tcp --dport 80 -j ACCEPT", ARRIVING, "is not ours"),
    Tampering("a rule like ours added", f"-t nat -A REDIRECTOR-IN {TCP} 22 -m comment --comment web -j DNAT "
              "--to-destination :8080", ARRIVING, "has tcp 22"),
    Tampering("a rule with an odd comment", "-t nat -A REDIRECTOR-OUT -m comment "
              "--comment 'a\\ \" -j REDIRECTOR-IN' -j RETURN", OWN, "is not ours"),
    Tampering("our jump gone", f"-t nat -D PREROUTING {LOCAL} -j REDIRECTOR-IN", ARRIVING, "PREROUTING"),
    Tampering("our jump of the host's own gone", "-t nat -F OUTPUT", OWN, "OUTPUT"),
    Tampering("our jump behind a foreign rule", "-t nat -I PREROUTING 1 -p tcp --dport 80 -j ACCEPT", ARRIVING,
              "our jump is not first", "-t nat -D PREROUTING -p tcp --dport 80 -j ACCEPT"),
    Tampering("our jump doubled", f"-t nat -A PREROUTING {LOCAL} -j REDIRECTOR-IN", ARRIVING, "stands here twice"),
    Tampering("our jump without its condition", f"-t nat -D OUTPUT {LOCAL} -j REDIRECTOR-OUT; "
              "-t nat -A OUTPUT -j REDIRECTOR-OUT", OWN, "OUTPUT"),
    Tampering("our jump a goto", f"-t nat -R PREROUTING 1 {LOCAL} -g REDIRECTOR-IN", ARRIVING, "PREROUTING"),
    Tampering("a chain emptied", "-t nat -F {dns}", "dns", "lacks tcp, udp 53"),
    Tampering("a top chain emptied", "-t nat -F REDIRECTOR-IN", ARRIVING),
    Tampering("a chain deleted", "-t nat -D REDIRECTOR-IN -s {staff-source} -j {staff}; -t nat -F {staff}; "
              "-t nat -X {staff}", "staff"),
    Tampering("a chain nothing leads to", "-t nat -D REDIRECTOR-IN -s {staff-source} -j {staff}", "staff"),
    Tampering("a chain added", "-t nat -N REDIRECTOR-x", "", "nothing leads to this chain"),
    Tampering("a chain added in filter", "-N REDIRECTOR-x; -A REDIRECTOR-x -j DROP", "", "nothing leads to this chain"),
    Tampering("a scope turned", "-t nat -D REDIRECTOR-IN -s {staff-source} -j {staff}; "
              "-t nat -I REDIRECTOR-IN 1 -s {other-source} -j {staff}", "staff"),
    Tampering("a scope inverted", "-t nat -R REDIRECTOR-IN 1 ! -s {staff-source} -j {staff}", "staff"),
    Tampering("the guard's jump gone", "-F INPUT", GUARDED, "INPUT"),
    Tampering("the guard's jump behind an accept", "-I INPUT 1 -p tcp -j ACCEPT", GUARDED, "our jump is not first",
              "-D INPUT -p tcp -j ACCEPT"),
    Tampering("a guard deleted", "-D REDIRECTOR-GUARD 2", "web", "8080"),
    Tampering("a guard of an address emptied", "-F {guard}", "dns", "5300 refused"),
    Tampering("a guard that drops", "-A REDIRECTOR-GUARD -p tcp --dport 22 -j DROP", GUARDED, "is not ours"),
    Tampering("everything of the table flushed", "-t nat -F; -t nat -X", ALL),
)  # fmt: skip


@pytest.fixture(scope="module")
def untouched(shared_product: Product) -> dict[str, list[str]]:
    lab = shared_product.lab
    lab.reset()
    for address in ANY:
        lab.host.serve("tcp", address, 8080, 8090)
    shared_product.apply(EVERYTHING)
    return both(lab.host, shared_product.backend.name)


def tamper(product: Product, v: int, text: str) -> None:
    """Carry out commands, with the names of chains put in."""
    now = "\n".join(saved(product.lab.host, product.backend.name, FAMILY[v]))

    def behind(top: str, option: str) -> str:
        found = re.search(rf"^-A {top} {option} \S+ -j (\S+)$", now, re.MULTILINE)
        return found[1] if found else ""

    names = {
        "staff": behind("REDIRECTOR-IN", "-s"),
        "dns": behind("REDIRECTOR-IN", "-d"),
        "guard": behind("REDIRECTOR-GUARD", "-d"),
        "staff-source": ("192.0.2.101", "2001:db8:1::101")[v],
        "other-source": ("192.0.2.102", "2001:db8:1::102")[v],
    }
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    iptables(product.lab.host, product.backend.name, FAMILY[v], *filter(None, text.split("; ")))


@pytest.mark.parametrize("number", range(len(TAMPERINGS)), ids=[one.name.replace(" ", "-") for one in TAMPERINGS])
def test_tampering(shared_product: Product, untouched: dict[str, list[str]], number: int) -> None:
    """Each on both variants: in one family with the one, in the other with the other."""
    product, lab, tampering = shared_product, shared_product.lab, TAMPERINGS[number]
    v = (number + VARIANTS.index(product.backend.name)) % 2
    product.apply(EVERYTHING)  # which does nothing, unless the last one failed
    before = product.status()

    tamper(product, v, tampering.commands)
    found = product.status()
    told = [f"{one.mapping} {drift_detail(one)}" for one in found.drift]
    assert found.state == "drifted"
    assert found.drifted == set(tampering.mappings.split()), told
    assert any(tampering.words in line for line in told), told

    outcome = product.apply(EVERYTHING)
    assert outcome.plan
    assert not outcome.recorded
    after = product.status()
    assert (after.state, after.drift, after.head) == ("in-sync", (), before.head)
    # Mended, down to where the packets go.
    assert lab.client.ask_tcp(HOST[v], 81) == Answered(8080, CLIENT[v], HOST[v])
    assert lab.client.ask_tcp(HOST[v], 8080) == Refused()
    tamper(product, v, tampering.undo)
    assert both(lab.host, product.backend.name) == untouched


@pytest.mark.parametrize("commands", ["-t nat -F {dns}", "-t nat -F {staff}", "-t nat -F REDIRECTOR-ALL"])
def test_an_emptied_chain_is_told_by_what_it_lacks(
    shared_product: Product, untouched: dict[str, list[str]], commands: str
) -> None:
    """And by nothing else: the way to it is as it should be."""
    shared_product.apply(EVERYTHING)
    for v in (0, 1):
        tamper(shared_product, v, commands)
    found = shared_product.status()
    assert found.state == "drifted"
    assert not [one for one in found.drift if one.kind == "structure"]
    shared_product.apply(EVERYTHING)
    assert both(shared_product.lab.host, shared_product.backend.name) == untouched
