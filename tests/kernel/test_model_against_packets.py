"""`decide`, the specification that can be run, against the kernel: random rulesets, random packets, the same answer.

Each example loads one ruleset, then changes it into another as an apply would, so that what the packets meet is what
updates in place lead to, and not only what is loaded from nothing.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redirector.backends.base import Backend
from redirector.backends.opening import NAMES
from redirector.compile import compile_ruleset
from redirector.decide import Decision, Packet, decide
from redirector.model import Mapping, Ports, Ruleset, Settings, ruleset_problems
from redirector.plan import make_plan
from redirector.status import count_connections
from tests.kernel.lab import LOOPBACK
from tests.kernel.probe import Field, Heard
from tests.kernel.product import opened
from tests.strategies import ARRIVING_ON, LOCAL_V4, LOCAL_V6, packets, rebuilt, rulesets

PACKETS = 12
# A redirect takes an address of the interface that has the scope of the one it replaces, and drops the packet if there
# is none (nf_nat_redirect_ipv6 in net/netfilter/nf_nat_redirect.c). To the kernel ::/96 is a scope of its own:
# IPV6_ADDR_COMPATv4 lies within IPV6_ADDR_SCOPE_MASK (include/net/ipv6.h).
IPV4_COMPATIBLE = "::1.2.3.4"


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    with Field(ARRIVING_ON, LOCAL_V4 + LOCAL_V6) as made:
        yield made


@pytest.fixture(scope="module", params=NAMES)
def backend(request: pytest.FixtureRequest, field: Field) -> Iterator[Backend]:
    made = opened(field.host, request.param)
    yield made
    empty(made)
    made.close()


def load(backend: Backend, ruleset: Ruleset) -> None:
    """Make the kernel hold the ruleset, by the plan from whatever it holds now."""
    if backend.name != "nftables":
        ruleset = ruleset._replace(settings=Settings())  # priorities are nftables' own
    snapshot = backend.observe()
    plan = make_plan(compile_ruleset(ruleset), snapshot.program)
    if plan:
        backend.commit(plan.steps, snapshot.genid)
    assert backend.observe().program == plan.desired


def empty(backend: Backend) -> None:
    snapshot = backend.observe()
    plan = make_plan(None, snapshot.program)
    if plan:
        backend.commit(plan.steps, snapshot.genid)


def delivery(field: Field, packet: Packet, decision: Decision) -> Heard | None:
    """Where a packet ends up if this is what becomes of it."""
    if decision.action == "refuse":
        return None
    address = decision.address or packet.address
    if decision.rewrite == "redirect":
        if packet.interface and packet.address == IPV4_COMPATIBLE:
            return None
        address = field.main.get(packet.interface, LOOPBACK)[packet.family == "ipv6"]
    return Heard(decision.port, address, packet.source)


def can_be(packet: Packet) -> bool:
    """The kernel drops what arrives for ::1 before any hook sees it (ip6_rcv_core in net/ipv6/ip6_input.c)."""
    return not (packet.interface and packet.address == "::1")


def hold_against(field: Field, backend: Backend, ruleset: Ruleset, tried: list[Packet]) -> None:
    wanted = {}
    taken: Counter[str] = Counter()
    found = {}
    before = count_connections(backend.observe())
    for packet in tried:
        decision = decide(ruleset, packet)
        wanted[packet] = delivery(field, packet, decision)
        found[packet] = field.send(packet)
        if decision.action == "translate":
            taken[decision.mapping] += 1
    assert {packet: (found[packet], wanted[packet]) for packet in tried if found[packet] != wanted[packet]} == {}
    after = count_connections(backend.observe())
    assert {name: after[name] - before[name] for name in after if after[name] > before[name]} == taken


def crowd(ruleset: Ruleset) -> Ruleset:
    """The same scopes, all about one port: nothing but what is narrower decides."""
    kept: list[Mapping] = []
    for i, mapping in enumerate(ruleset.mappings):
        to = Ports(8000 + i, 8000 + i)
        crowded = rebuilt(mapping, listen=(Ports(80, 80),), to=to, protocol=("tcp", "udp"), family="both", enabled=True)
        if not ruleset_problems([*kept, crowded]):
            kept.append(crowded)
    return Ruleset(tuple(kept), ruleset.settings)


# To find the smallest example of a failure takes minutes.
slow_to_fail = pytest.mark.timeout(600)
examples = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow_to_fail
@given(before=rulesets(), after=rulesets(), data=st.data())
@examples
def test_any_ruleset(field: Field, backend: Backend, before: Ruleset, after: Ruleset, data: st.DataObject) -> None:
    empty(backend)
    load(backend, before)
    load(backend, after)
    tried = data.draw(st.lists(packets(after).filter(can_be), min_size=PACKETS, max_size=PACKETS))
    hold_against(field, backend, after, tried)


@slow_to_fail
@given(ruleset=rulesets(12).map(crowd), data=st.data())
@examples
def test_scopes_that_compete(field: Field, backend: Backend, ruleset: Ruleset, data: st.DataObject) -> None:
    load(backend, ruleset)
    tried = data.draw(st.lists(packets(ruleset).filter(can_be), min_size=2 * PACKETS, max_size=2 * PACKETS))
    hold_against(field, backend, ruleset, tried)


def test_every_kind_of_answer(field: Field, backend: Backend) -> None:
    """The field tells each answer from the others, over each way in. Without this the property would mean nothing."""

    def mapping(name: str, listen: int, to: int, **more: object) -> Mapping:
        return Mapping(name, (Ports(listen, listen),), Ports(to, to), protocol=("tcp", "udp", "sctp"), **more)

    ruleset = Ruleset(
        (
            mapping("port", 80, 8080, exclusive=True),
            mapping("redirect", 81, 8081, rewrite="redirect"),
            mapping("self", 82, 82),
            mapping("redirected-self", 83, 83, rewrite="redirect"),
        )
    )
    empty(backend)
    load(backend, ruleset)
    answers = set()
    for interface in ("", *ARRIVING_ON):
        for source, address in (("10.0.0.1", "192.0.2.7"), ("2001:db8::7", "fd00::1"), ("10.0.0.1", "10.0.0.1")):
            tried = [
                Packet(interface, source, address, protocol, port)
                for protocol in ("tcp", "udp", "sctp")
                for port in (79, 80, 81, 82, 83, 8080)
            ]
            hold_against(field, backend, ruleset, tried)
            answers |= {decide(ruleset, packet) for packet in tried}
    assert {(answer.action, answer.rewrite) for answer in answers} == {
        ("pass", ""),
        ("translate", "port"),
        ("translate", "redirect"),
        ("refuse", ""),
    }
