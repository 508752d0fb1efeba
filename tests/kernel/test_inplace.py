"""In place: a change touches what changes and nothing else; what is established lives on.

What is counted, and what becomes of connections, is promised on each backend. Handles, sizes of maps and priorities are
of nftables; what need not be written on iptables is in test_iptables_inplace.
"""

import pytest

from redirector.backends.opening import NAMES
from redirector.model import PROTOCOLS
from redirector.plan import SMALLEST_CAPACITY, AddEntries, DeleteEntries
from redirector.program import PORTS, port_key
from tests.kernel.echo import Answer, Answered, Protocol, Refused, Reset
from tests.kernel.lab import CLIENT, CLIENT_OTHER, HOST, HOST_SECONDARY, LOOPBACK, Lab
from tests.kernel.product import READ, Product, handles, mapping

# Both ways to what the kernel holds: without a reading, and by one. What is read on iptables is always read.
pytestmark = pytest.mark.backends("nftables", READ)
on_each = pytest.mark.backends(*NAMES, READ)

ANY = ("0.0.0.0", "::")
BOTH = ["tcp", "udp"]

families = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])


def taken(product: Product) -> dict[str, int]:
    """What `status` says: how many connections each mapping has taken."""
    return {found["name"]: found["connections"] for found in product.json("status", "--counters")["mappings"]}


def frame(lab: Lab) -> list[str]:
    """Chains, rules, maps and the table with their handles: everything but elements and counters."""
    lines = handles(lab.host).splitlines()
    return [line for line in lines if "# handle" in line and not line.startswith("\tcounter ")]


def counters(lab: Lab) -> dict[str, str]:
    """The handle of each counter: one that is made anew has another."""
    found = (line.split() for line in handles(lab.host).splitlines() if line.startswith("\tcounter "))
    return {words[1]: words[-1] for words in found}


class TestCounters:
    @on_each
    def test_they_count_connections_by_mapping(self, lab: Lab, product: Product) -> None:
        product.apply(
            mapping("web", [80, "8000-8009"], 8080, protocol=BOTH)
            + mapping("other", 443, 8443)
            + mapping("scoped", 80, 8081, source=CLIENT_OTHER[0])
            + mapping("unused", 81, 8081)
        )
        for address in ANY:
            for protocol in ("tcp", "udp"):
                lab.host.serve(protocol, address, 8080, 8081, 8443)
        for v in (0, 1):
            lab.client.ask_tcp(HOST[v], 80)
            lab.client.ask_udp(HOST[v], 80)
            lab.client.ask_tcp(HOST[v], 8009)
            lab.host.ask_tcp(LOOPBACK[v], 80)
            lab.client.ask_tcp(HOST[v], 443)
            lab.client.ask_tcp(HOST[v], 8080)  # directly: nobody's
        lab.client.ask_tcp(HOST[0], 80, source=CLIENT_OTHER[0])
        with lab.client.talk("tcp", HOST[0], 80) as conversation:
            for _ in range(5):
                conversation.ask()  # one connection
        assert taken(product) == {"web": 9, "other": 2, "scoped": 1, "unused": 0}

    def test_a_change_of_one_mapping_leaves_the_others_alone(self, lab: Lab, product: Product) -> None:
        kept = mapping("a", 80, 8080) + mapping("b", "1000-1009", "2000-2009", protocol=BOTH, exclusive=True)
        product.apply(kept + mapping("c", [81, 82], 8080))
        for address in ANY:
            lab.host.serve("tcp", address, 8080, 8081, 2000)
        before, listing, made = product.genid(), frame(lab), counters(lab)
        for port in (80, 80, 1000, 81, 82):
            assert isinstance(lab.client.ask_tcp(HOST[0], port), Answered)
        assert taken(product) == {"a": 2, "b": 1, "c": 2}

        product.run("apply", product.file(kept + mapping("c", [81, 82], 8081)))  # another target: both ports anew
        assert taken(product) == {"a": 2, "b": 1, "c": 2}
        assert lab.client.ask_tcp(HOST[0], 81) == Answered(8081, CLIENT[0], HOST[0])
        assert lab.client.ask_tcp(HOST[0], 82) == Answered(8081, CLIENT[0], HOST[0])
        product.run("apply", product.file(kept + mapping("c", [81, 83], 8081)))  # another port
        assert taken(product) == {"a": 2, "b": 1, "c": 4}
        assert counters(lab) == made
        product.run("apply", product.file(kept + mapping("d", [81, 83], 8081)))  # another name
        assert taken(product) == {"a": 2, "b": 1, "d": 0}
        assert lab.client.ask_tcp(HOST[0], 83) == Answered(8081, CLIENT[0], HOST[0])
        assert taken(product) == {"a": 2, "b": 1, "d": 1}
        product.run("apply", product.file(mapping("new", 90, 8080) + kept))  # one that goes, one that comes
        assert taken(product) == {"new": 0, "a": 2, "b": 1}
        assert product.genid() == before + 4
        assert frame(lab) == listing  # no chain, rule or map was made anew
        kept_counters = {name: made[name] for name in ("taken_a", "taken_b")}
        assert counters(lab) == kept_counters | {"taken_new": counters(lab)["taken_new"]}

    @on_each
    def test_a_count_outlives_whatever_becomes_of_the_mapping(self, lab: Lab, product: Product) -> None:
        """As long as there is a mapping of that name: another scope, rewrite, family, target, or all at once."""
        lab.host.serve("tcp", ANY[0], 8080, 8081)
        forms = (
            mapping("web", 80, 8080),
            mapping("web", 80, 8080, source=CLIENT[0]),
            mapping("web", 80, 8081, address=HOST[0], local=False),
            mapping("web", 80, 8081, rewrite="redirect"),
            mapping("web", 80, 8080, family="ipv4", exclusive=True),
            mapping("web", ["70-89", "90-99"], 8080),
            mapping("web", [80, "1000-1999"], 8080),
        )
        for number, form in enumerate(forms, 1):
            product.apply(form)
            assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
            assert product.status().connections == {"web": number}
        for away in (mapping("web", 80, 8080, enabled=False) + mapping("x", 81, 8080), mapping("x", 81, 8080)):
            product.apply(away)
            assert (product.status().connections or {})["x"] == 0
            product.apply(forms[0])
            assert product.status().connections == {"web": 0}
            assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
            assert product.status().connections == {"web": 1}
        product.remove()
        if product.backend.name == "nftables":
            assert counters(lab) == {}

    @on_each
    def test_a_new_scope_leaves_the_maps_of_others_alone(self, lab: Lab, product: Product) -> None:
        kept = mapping("a", 80, 8080) + mapping("b", 80, 8081, address=HOST_SECONDARY[0])
        product.apply(kept)
        lab.host.serve("tcp", ANY[0], 8080, 8081, 8082)
        lab.client.ask_tcp(HOST[0], 80)
        lab.client.ask_tcp(HOST_SECONDARY[0], 80)
        narrower = mapping("c", 80, 8082, source=CLIENT_OTHER[0], exclusive=True)
        product.run("apply", product.file(kept + narrower))
        assert lab.client.ask_tcp(HOST[0], 80, CLIENT_OTHER[0]) == Answered(8082, CLIENT_OTHER[0], HOST[0])
        assert taken(product) == {"a": 1, "b": 1, "c": 1}
        product.run("apply", product.file(kept))
        assert taken(product) == {"a": 1, "b": 1}
        assert lab.client.ask_tcp(HOST[0], 80, CLIENT_OTHER[0]) == Answered(8080, CLIENT_OTHER[0], HOST[0])

    def test_growth_beyond_a_maps_size_leaves_them_alone(self, lab: Lab, product: Product) -> None:
        kept = mapping("a", 80, 8080, exclusive=True)
        product.apply(kept)
        lab.host.serve("tcp", ANY[0], 8080, 8081)
        for _ in range(3):
            lab.client.ask_tcp(HOST[0], 80)
        assert lab.client.ask_tcp(HOST[0], 8080) == Refused()
        assert f"size {SMALLEST_CAPACITY}" in lab.host.nft_list("map inet redirector ports")
        many = mapping("many", f"1000-{1000 + 10 * SMALLEST_CAPACITY}", 8081, protocol=BOTH)
        product.run("apply", product.file(kept + many))
        assert f"size {SMALLEST_CAPACITY}\n" not in lab.host.nft_list("map inet redirector ports")
        assert taken(product) == {"a": 3, "many": 0}
        for port in (80, 1000, 1000 + 10 * SMALLEST_CAPACITY):
            assert isinstance(lab.client.ask_tcp(HOST[0], port), Answered)
        assert taken(product) == {"a": 4, "many": 2}
        # From then on there is room: the next port is added in place.
        listing = frame(lab)
        product.run("apply", product.file(kept + many + mapping("one", 90, 8081)))
        assert frame(lab) == listing
        assert taken(product) == {"a": 4, "many": 2, "one": 0}

    @on_each
    def test_healing_leaves_what_was_right_alone(self, lab: Lab, product: Product) -> None:
        file = product.file(mapping("a", 80, 8080) + mapping("b", 81, 8080))
        product.run("apply", file)
        lab.host.serve("tcp", ANY[0], 8080)
        for port in (80, 81):
            lab.client.ask_tcp(HOST[0], port)
        product.admin.leads_nobody_to_us()
        product.run("apply", file)
        assert taken(product) == {"a": 1, "b": 1}
        product.admin.adds_a_chain()
        product.run("apply", file)
        assert taken(product) == {"a": 1, "b": 1}


@on_each
@families
class TestEstablished:
    """TCP lives on whatever changes; what becomes of UDP flows is the business of test_flows."""

    def test_a_change_of_its_own_mapping(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(mapping("web", 80, 8080))
        lab.host.serve("tcp", ANY[v], 8080, 8081)
        remote, local = lab.client.talk("tcp", HOST[v], 80), lab.host.talk("tcp", LOOPBACK[v], 80)
        with remote, local:
            assert remote.ask() == Answered(8080, CLIENT[v], HOST[v])
            assert local.ask() == Answered(8080, LOOPBACK[v], LOOPBACK[v])
            for text in (
                mapping("web", 80, 8081),
                mapping("web", 80, 8081, rewrite="redirect"),
                mapping("web", 80, 8081, address=HOST_SECONDARY[v]),
                mapping("else", 90, 8081, exclusive=True),
                mapping("else", 90, 8080, exclusive=True),
            ):
                product.apply(text)
                assert remote.ask() == Answered(8080, CLIENT[v], HOST[v])
                assert local.ask() == Answered(8080, LOOPBACK[v], LOOPBACK[v])

    def test_remove_drains(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(mapping("web", 80, 8080, exclusive=True))
        lab.host.serve("tcp", ANY[v], 8080)
        remote, local = lab.client.talk("tcp", HOST[v], 80), lab.host.talk("tcp", LOOPBACK[v], 80)
        with remote, local:
            for conversation in (remote, local):
                assert isinstance(conversation.ask(), Answered)
            product.run("remove")
            for _ in range(3):
                assert remote.ask() == Answered(8080, CLIENT[v], HOST[v])
                assert local.ask() == Answered(8080, LOOPBACK[v], LOOPBACK[v])
            assert lab.client.ask_tcp(HOST[v], 80) == Refused()
            assert lab.client.ask_tcp(HOST[v], 8080) == Answered(8080, CLIENT[v], HOST[v])
            assert product.json("status", code=3)["state"] == "drained"

    def test_purge_breaks_them_and_says_so(self, lab: Lab, product: Product, v: int) -> None:
        product.apply(mapping("web", 80, 8080, protocol=BOTH))
        ends: dict[Protocol, Answer] = {"tcp": Reset(), "udp": Refused()}
        for protocol, end in ends.items():
            lab.host.serve(protocol, ANY[v], 8080)
            with lab.client.talk(protocol, HOST[v], 80) as conversation:
                assert isinstance(conversation.ask(), Answered)
                assert "reset" in product.run("remove", "--purge")
                assert not product.admin.sees_ours()
                # Without the table nothing translates any more: the packets are for port 80, where nobody is.
                assert conversation.ask() == end
            product.run("rollback")


@families
def test_another_priority(lab: Lab, product: Product, v: int) -> None:
    """The base chains are made anew, in one transaction: connections do not notice."""
    web = mapping("web", 80, 8080)
    product.run("apply", product.file(web))
    lab.host.serve("tcp", ANY[v], 8080)
    with lab.client.talk("tcp", HOST[v], 80) as conversation:
        assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
        product.run("apply", product.file(f"[settings]\npriority = -120\n{web}"))
        assert "priority -120;" in lab.host.nft_list("chain inet redirector prerouting")
        assert conversation.ask() == Answered(8080, CLIENT[v], HOST[v])
    assert lab.client.ask_tcp(HOST[v], 80) == Answered(8080, CLIENT[v], HOST[v])
    assert taken(product) == {"web": 2}


def test_steps_cost_what_changes(lab: Lab, product: Product) -> None:
    """One port of 20,000: a transaction of two elements, not of 20,000."""
    ports = mapping("many", "10000-29999", "30000-49999")
    product.apply(ports + mapping("one", 80, 8080))
    outcome = product.apply(ports + mapping("one", 80, 8081))
    key = port_key(PROTOCOLS["tcp"], 80)
    assert outcome.plan.steps == (
        DeleteEntries("ports", PORTS, (key,)),
        AddEntries("ports", PORTS, {key: (8081, "one")}),
    )
    assert product.status().state == "in-sync"
