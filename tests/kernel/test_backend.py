"""The nftables backend against the kernel: what is committed is what is read, from anywhere to anywhere."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings

from redirector.backends.base import Snapshot
from redirector.backends.nftables import wire
from redirector.backends.nftables.backend import NftablesBackend
from redirector.backends.nftables.message import header, nfgenmsg
from redirector.compile import compile_ruleset
from redirector.errors import Refused
from redirector.host.namespaces import Namespace
from redirector.model import Mapping, Ports, Ruleset
from redirector.naming import TABLE
from redirector.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, attr, message
from redirector.plan import AddChain, AddEntries, AddMap, AddTable, capacity_for, make_plan
from redirector.program import PORTS, Chain, Hook, Map, Program, port_key
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, handles, mapping, ruleset
from tests.strategies import programs, rulesets

# One namespace serves one example after another: each starts by emptying it.
examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def backend() -> Iterator[NftablesBackend]:
    with Namespace.create("backend") as namespace:
        made = namespace.call(NftablesBackend)
        yield made
        made.close()


def reach(backend: NftablesBackend, program: Program | None) -> Snapshot:
    """Make the kernel hold the program, from whatever it holds, and read it."""
    before = backend.observe()
    plan = make_plan(program, before.program)
    if plan:
        backend.commit(plan.steps, before.genid)
    after = backend.observe()
    assert after.genid == before.genid + bool(plan)
    return after


@given(programs(), programs())
@examples
def test_from_any_program_to_any_other_and_back(backend: NftablesBackend, one: Program, other: Program) -> None:
    """What is read is what was committed; the second way is the undo, and needs nothing that the first one lost."""
    for program in (None, one, other, one, None):
        found = reach(backend, program)
        assert found.program == program
        assert not make_plan(program, found.program)


@given(rulesets(), rulesets())
@examples
def test_the_kernels_dry_run_agrees_with_the_commit(backend: NftablesBackend, before: Ruleset, after: Ruleset) -> None:
    reach(backend, None)
    start = reach(backend, compile_ruleset(before))
    plan = make_plan(compile_ruleset(after), start.program)
    if plan:
        backend.check(plan.steps)
    assert backend.observe() == start
    assert reach(backend, compile_ruleset(after)).program == plan.desired


def many(count: int, name: str = "many", shift: int = 0) -> Ruleset:
    """One mapping of `count` ports, shifted by one more than `shift`."""
    return Ruleset((Mapping(name, (Ports(1, count),), Ports(2 + shift, count + 1 + shift)),))


class TestLarge:
    def test_exact_to_the_last_element(self, backend: NftablesBackend) -> None:
        """A resizable hash would lose rows in a dump right after the load; a fixed one does not."""
        reach(backend, None)
        for wanted in (many(60_000), many(60_000, shift=7), many(59_999, shift=7), many(1)):
            program = compile_ruleset(wanted)
            found = reach(backend, program).program
            assert found is not None
            assert len(found.maps["ports"].entries) == len(program.maps["ports"].entries)
            assert found == program

    def test_long_names(self, backend: NftablesBackend) -> None:
        reach(backend, None)
        program = compile_ruleset(many(60_000, name="x" * 63))
        assert reach(backend, program).program == program


class Meddler(threading.Thread):
    """Somebody else who commits without a pause, in tables of their own, through a backend of their own."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        self.backend = namespace.call(NftablesBackend)
        self.commits = 0
        self._end = threading.Event()

    def run(self) -> None:
        name = attr(wire.TABLE_NAME, wire.text("theirs"))
        begin = nfgenmsg(0, wire.SUBSYSTEM)
        while not self._end.is_set():
            kind = wire.DELTABLE if self.commits % 2 else wire.NEWTABLE
            self.backend._netlink.send(
                message(wire.BATCH_BEGIN, NLM_F_REQUEST, 1, begin)
                + message(header(kind), NLM_F_REQUEST | NLM_F_CREATE, 2, nfgenmsg() + name)
                + message(wire.BATCH_END, NLM_F_REQUEST | NLM_F_ACK, 3, begin)
            )
            self.backend._netlink.receive()
            self.commits += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()
        self.backend.close()


def test_reading_beside_somebody_who_never_stops() -> None:
    """Dumps are cut short and genids move all the time: what is read is right all the same, and so is an apply."""
    with Namespace.create("busy") as namespace, contextlib.closing(namespace.call(NftablesBackend)) as backend:
        program = compile_ruleset(many(2_000))
        reach(backend, program)
        with Meddler(namespace) as meddler:
            moved = 0
            for _ in range(20):
                before = meddler.commits
                assert backend.observe().program == program
                moved += meddler.commits > before
            assert moved  # or nobody was in the way


class TestRefusals:
    def test_tell_what_the_kernel_would_not_take(self, backend: NftablesBackend) -> None:
        reach(backend, None)
        program = Program({"a": Chain(Hook("nat", "forward", 0), ())}, {})  # there is no NAT at that hook
        with pytest.raises(Refused, match="chain a"):
            reach(backend, program)
        assert backend.observe().program is None

    def test_a_map_that_is_full(self, backend: NftablesBackend) -> None:
        reach(backend, None)
        entries = {port_key(6, port): (80, "web") for port in range(1, 66)}
        steps = (AddTable(), AddMap("ports", PORTS, 64), AddEntries("ports", PORTS, entries))
        genid = backend.genid()
        with pytest.raises(Refused, match="map ports"):
            backend.commit(steps, genid)
        assert backend.genid() == genid
        assert backend.observe().program is None

    @pytest.mark.parametrize("count", [1, 63, 64, 65, 100, 1000])
    def test_a_map_is_never_too_small(self, backend: NftablesBackend, count: int) -> None:
        assert capacity_for(count) >= count
        reach(backend, None)
        program = compile_ruleset(many(count))
        assert reach(backend, program).program == program


def test_counters_are_read(lab: Lab) -> None:
    with Product(lab) as product:
        product.apply(mapping("web", 80, 8080) + mapping("other", 81, 8080, address=HOST[0]))
        lab.host.serve("tcp", HOST[0], 8080)
        for _ in range(3):
            lab.client.ask_tcp(HOST[0], 80)
        packets, octets = product.backend.observe().counters["taken_web"]
        assert packets == 3
        assert octets >= 3 * 40
        assert product.backend.observe().counters["taken_other"] == (0, 0)


def test_identity_is_that_of_the_namespace(lab: Lab) -> None:
    found = []
    for machine in (lab.host, lab.host, lab.client):
        with contextlib.closing(machine.namespace.call(NftablesBackend)) as backend:
            found.append(backend.identity())
    assert found[0] == found[1] != found[2]


def test_only_what_is_addressed_by_name_is_read(lab: Lab) -> None:
    """Tables of our name in other families, and chains and maps of our names in other tables, are none of ours."""
    program = compile_ruleset(ruleset(mapping("web", 80, 8080)))
    with contextlib.closing(lab.host.namespace.call(NftablesBackend)) as backend:
        for family in ("ip", "ip6", "arp", "bridge", "netdev"):
            lab.host.nft(f"add table {family} {TABLE}\nadd chain {family} {TABLE} arriving")
        lab.host.nft(
            "add table inet other\nadd map inet other ports { type inet_proto . inet_service : inet_service; }"
        )
        assert backend.observe().program is None
        reach(backend, program)
        before = handles(lab.host, "ruleset")
        assert backend.observe().program == program
        assert handles(lab.host, "ruleset") == before
        assert reach(backend, None).program is None
        assert f"table ip {TABLE}" in lab.host.nft_list("tables")
        assert f"table inet {TABLE}" not in lab.host.nft_list("tables")


def test_what_nobody_could_have_written_is_kept_apart(backend: NftablesBackend) -> None:
    """Names of any bytes, chains that are alike but for a byte: each is read as what it is, and can be taken away."""
    reach(backend, None)
    base = compile_ruleset(ruleset(mapping("web", 80, 8080)))
    odd = {name: Chain(None, ()) for name in ("a\nb", "a\\nb", "\udcff\udcfe", "x;y", "ü", "own ", "OWN")}
    reach(backend, base)
    backend.commit(tuple(AddChain(name, None) for name in odd), backend.genid())
    backend.commit((AddMap("ma\x1bp", PORTS, 64),), backend.genid())
    found = backend.observe().program
    assert found == base._replace(chains=base.chains | odd, maps=base.maps | {"ma\x1bp": Map(PORTS, {})})
    assert reach(backend, base).program == base
