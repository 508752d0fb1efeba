"""All or nothing, no gap, no lost update, and nothing written where there is nothing to do.

What is said of one transaction, and of the kernel's generation number, is of nftables alone: iptables has neither (see
test_iptables_failures for what takes their place). No gap, and nothing written, is promised on each backend.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator

import pytest

from redirector.backends.base import Overtaken, Snapshot
from redirector.backends.nftables.backend import NftablesBackend
from redirector.compile import compile_ruleset
from redirector.errors import Refused, TryAgain
from redirector.history import History, Record
from redirector.plan import AddChain, AddRules, DeleteMap, Step, make_plan
from redirector.program import LocalJump
from redirector.reconcile import ATTEMPTS
from tests.kernel.echo import PATIENCE, SILENCE, Answered, Conversation
from tests.kernel.echo import Refused as Refusal
from tests.kernel.lab import CLIENT, HOST, HOST_SECONDARY, NEIGHBOUR, Lab
from tests.kernel.product import Product, handles, mapping, on_each, on_nftables, ruleset
from tests.kernel.traffic_watch import Watch

ANY = ("0.0.0.0", "::")
WEB = mapping("web", 80, 8080, protocol=["tcp", "udp"])
# Applies, and questions by clients, at least, while the rules change; and turns of the clients in every second round.
# An apply of iptables takes much longer.
PACE = {"nftables": (2000, 5000, 1), "iptables-nft": (50, 200, 8), "iptables-legacy": (50, 200, 8)}

pytestmark = on_nftables


@on_each
class TestNothingToDo:
    def test_a_second_apply_moves_nothing(self, product: Product) -> None:
        file = product.file(
            WEB
            + mapping("scoped", "1000-1009", "2000-2009", source=["192.0.2.0/24", "2001:db8:1::/64"], interface="eth*")
            + mapping("at", 53, 5353, protocol=["udp", "sctp"], address=list(HOST_SECONDARY), exclusive=True)
        )
        product.run("apply", file)
        before = product.admin.sees()
        told = product.json("apply", file)
        assert (told["changed"], told["recorded"], told["generation"], told["in_sync"]) == (False, False, 1, True)
        for command in (("apply", file, "--verify"), ("apply", file, "--dry-run"), ("plan", file), ("status",)):
            product.run(*command)
        assert product.admin.sees() == before
        assert product.history.numbers() == [1]

    def test_a_file_that_means_the_same_is_recorded_and_not_sent(self, product: Product) -> None:
        product.run("apply", product.file(WEB))
        before = product.admin.sees()
        told = product.json("apply", product.file(WEB + 'comment = "the web server"\n'))
        assert (told["changed"], told["recorded"], told["generation"]) == (False, True, 2)
        assert product.admin.sees() == before
        assert product.json("status")["generation"] == 2

    def test_nothing_where_there_was_nothing(self, product: Product) -> None:
        before = product.admin.sees()
        for command in (("remove",), ("remove", "--purge"), ("apply", product.file(""), "--allow-empty")):
            told = product.json(*command)
            assert not told["changed"]
        assert product.admin.sees() == before
        assert not product.admin.sees_ours()

    def test_a_second_remove_moves_nothing(self, product: Product) -> None:
        product.apply(WEB)
        for command in (("remove",), ("remove", "--purge")):
            product.run(*command)
            before, numbers = product.admin.sees(), product.history.numbers()
            product.run(*command)
            assert product.admin.sees() == before
            assert product.history.numbers() == numbers


def others(round_: int) -> str:
    """Mappings beside `web`, never the same twice in a row: entries, targets, scopes, rules and chains change."""
    found = mapping("ports", f"{1000 + round_ % 7}-{1100 + round_ % 5}", 9000, protocol=["tcp", "udp"])
    if round_ % 2:
        found += mapping("address", 80, 9001, protocol=["tcp", "udp"], address=list(HOST_SECONDARY))
    if round_ % 3 == 0:
        found += mapping("network", 80, 9002, protocol=["tcp", "udp"], source=list(NEIGHBOUR), exclusive=True)
    if round_ % 5 == 0:
        found += mapping("link", 81, 9003, interface=["veth*", "eth9"], rewrite="redirect")
    return found


def round_of(number: int) -> str:
    """The file of one of many quick rounds: mostly a few elements; now and then scopes come and go, `web` stays alone,
    or UDP changes, for which the kernel's whole conntrack table is read."""
    if number % 11 == 0:
        return WEB
    protocols = ["tcp", "udp"] if number % 20 == 0 else ["tcp"]
    found = WEB + mapping("ports", f"{1000 + number % 4}-{1004 + number % 5}", 9000, protocol=protocols)
    if number % 10 == 1:
        found += mapping("address", 80, 9001, protocol=["tcp"], address=list(HOST_SECONDARY))
    if number % 15 == 2:
        found += mapping("network", 80, 9002, protocol=["tcp"], source=list(NEIGHBOUR), exclusive=True)
    if number % 25 == 3:
        found += mapping("link", 81, 9003, interface=["veth*", "eth9"], rewrite="redirect")
    return found


@pytest.fixture
def quick(product: Product) -> Iterator[Product]:
    """The product with its generations in memory: thousands of applies flush thousands of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        product.history = History(f"{folder}/state")
        yield product


@on_each
class TestNoGap:
    """New connections never fail because an apply is running, and existing ones survive it."""

    def watch(self, lab: Lab, patience: float) -> tuple[Watch, list[Conversation], contextlib.ExitStack]:
        stack = contextlib.ExitStack()
        for address in ANY:
            for protocol in ("tcp", "udp"):
                lab.host.serve(protocol, address, 8080)
        lasting = [stack.enter_context(lab.client.talk(p, a, 80)) for a in HOST for p in ("tcp", "udp")]
        return Watch(lab.client, list(HOST), 80, lasting, patience), lasting, stack

    def test_other_mappings_change_all_the_time(self, lab: Lab, quick: Product) -> None:
        """Many applies; at the end `remove`, through which the long TCP connections live as well."""
        rounds, enough, turns = PACE[quick.backend.name]
        files = [ruleset(round_of(number)) for number in range(4 * 3 * 25 * 11)]
        quick.apply(files[1])
        # Each question is a flow of its own; the host need not remember for 30 s the thousands that are over.
        lab.host.sysctl("net/netfilter/nf_conntrack_udp_timeout", "1")
        watch, lasting, stack = self.watch(lab, PATIENCE)
        with stack:
            with watch:
                round_, genid = 1, quick.genid()
                while round_ <= rounds or watch.asked < enough:
                    round_ += 1
                    assert round_ < 5 * rounds, "the clients do not get on"
                    if round_ % 2:
                        watch.go_on(turns)
                    assert quick.apply(files[round_ % len(files)]).plan
            if quick.backend.name == "nftables":
                assert quick.genid() == genid + round_ - 1
            assert watch.failures == {}
            assert set(watch.answers) == {Answered(8080, CLIENT[v], HOST[v]) for v in (0, 1)}
            quick.remove()
            for v, connection in enumerate(lasting[::2]):
                assert connection.ask() == Answered(8080, CLIENT[v], HOST[v])
                assert lab.client.ask_tcp(HOST[v], 80) == Refusal()

    def test_a_gap_would_be_seen(self, lab: Lab, quick: Product) -> None:
        """The control: with a moment between the old rules and the new ones, the same watch sees failures."""
        quick.apply(WEB)
        watch, _, stack = self.watch(lab, SILENCE)
        with stack, watch:
            for _ in range(PACE["nftables"][0]):
                watch.go_on(3)
                quick.remove(purge=True)
                quick.apply(WEB)
                if watch.failures:
                    break
        assert watch.failures


class TestAllOrNothing:
    def test_one_fault_and_nothing_changes(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        genid, listing = product.genid(), handles(lab.host)
        wanted = make_plan(compile_ruleset(ruleset(WEB + others(0))), product.backend.observe().program)
        broken: tuple[Step, ...] = (*wanted.steps, AddRules("own", (LocalJump("nowhere"),)))
        with pytest.raises(Refused, match=r"nothing was changed: a rule of chain own"):
            product.backend.commit(broken, genid)
        assert product.genid() == genid
        assert handles(lab.host) == listing
        product.backend.commit(wanted.steps, genid)  # the fault was the only obstacle
        assert product.backend.observe().program == wanted.desired

    def test_what_is_in_use_is_not_taken_away(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        genid = product.genid()
        with pytest.raises(Refused, match="map ports"):
            product.backend.commit((DeleteMap("ports"),), genid)
        assert product.genid() == genid


class TestDryRun:
    @on_each
    def test_commits_nothing(self, product: Product) -> None:
        file = product.file(WEB + others(0))
        for loaded in ("", WEB):
            if loaded:
                product.apply(loaded)
            before, numbers = product.admin.sees(), product.history.numbers()
            told = product.json("apply", file, "--dry-run")
            assert (told["dry_run"], told["in_sync"]) == (True, False)
            assert told["changes"]
            assert product.admin.sees() == before
            assert product.history.numbers() == numbers

    def test_is_the_kernels_own(self, lab: Lab, product: Product) -> None:
        """It finds what only the kernel knows, and leaves nothing behind."""
        product.apply(WEB)
        genid = product.genid()
        with pytest.raises(Refused, match="chain a"):
            product.backend.check((AddChain("a", None), AddRules("a", (LocalJump("nowhere"),))))
        product.backend.check((AddChain("a", None), AddChain("b", None), AddRules("a", (LocalJump("b"),))))
        assert product.genid() == genid
        assert product.status().state == "in-sync"


class Busy(NftablesBackend):
    """The real backend, in a place where somebody else commits just before each of our first `times` commits."""

    def __init__(self, lab: Lab, times: int) -> None:
        super().__init__()
        self.lab = lab
        self.times = times
        self.commits = 0

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        self.commits += 1
        if self.commits <= self.times:
            name = f"other{self.commits}"
            self.lab.host.nft(f"table inet {name} {{ }}; delete table inet {name}")
        super().commit(steps, expect)


class Meddled(Busy):
    """Somebody else changes our own table, just once: what was planned is not what is needed any more."""

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        if not self.commits:
            self.lab.host.nft("delete element inet redirector ports { tcp . 80 }")
        super().commit(steps, expect)


class TestOvertaken:
    @pytest.mark.parametrize("off", [-1, 1, 1000])
    def test_another_genid_is_refused(self, lab: Lab, product: Product, off: int) -> None:
        product.apply(WEB)
        genid, listing = product.genid(), handles(lab.host)
        wanted = make_plan(compile_ruleset(ruleset(WEB + others(0))), product.backend.observe().program)
        with pytest.raises(Overtaken):
            product.backend.commit(wanted.steps, genid + off)
        assert product.genid() == genid
        assert handles(lab.host) == listing

    def test_planned_again_and_done(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        with contextlib.closing(lab.host.namespace.call(Busy, lab, 3)) as busy:
            outcome = product.apply(WEB + others(0), backend=busy)
            assert busy.commits == 4
        assert outcome.recorded
        assert product.history.numbers() == [1, 2]
        assert product.status().state == "in-sync"

    def test_what_the_other_changed_is_taken_into_account(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        with contextlib.closing(lab.host.namespace.call(Meddled, lab, 0)) as meddled:
            product.apply(WEB + others(0), backend=meddled)
            assert meddled.commits == 2
        assert product.status().state == "in-sync"
        assert "tcp . 80 " in lab.host.nft_list("map inet redirector ports")

    def test_given_up_after_a_while(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        before: Snapshot = product.backend.observe()
        with contextlib.closing(lab.host.namespace.call(Busy, lab, 10**6)) as busy:
            with pytest.raises(TryAgain) as raised:
                product.apply(WEB + others(0), backend=busy)
            assert 1 < busy.commits <= ATTEMPTS
        assert raised.value.exit_code == 75
        assert product.backend.observe().program == before.program
        assert product.history.numbers() == [1]
        current = product.history.current()
        assert isinstance(current, Record)
        assert current.ruleset == ruleset(WEB)


class Chatty(NftablesBackend):
    """Somebody else commits right after each of our commits: the genid is then no proof, and is never taken for one."""

    readings = 0
    lab: Lab

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        super().commit(steps, expect)
        self.lab.host.nft("table inet other { chain c { }; }")

    def observe(self) -> Snapshot:
        self.readings += 1
        return super().observe()


class Spiteful(Chatty):
    """The same, and what they commit undoes part of ours, the first time."""

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        super().commit(steps, expect)
        if self.readings == 1:
            self.lab.host.nft("flush map inet redirector ports")


class TestProof:
    def test_another_genid_than_expected_is_read_back(self, lab: Lab, product: Product) -> None:
        for kind, readings in ((NftablesBackend, None), (Chatty, 2), (Spiteful, 4)):
            product.remove(purge=True)
            backend = lab.host.namespace.call(kind)
            with contextlib.closing(backend):
                if isinstance(backend, Chatty):
                    backend.lab = lab
                product.apply(WEB + others(0), backend=backend)
                if isinstance(backend, Chatty):
                    assert backend.readings == readings
            assert product.status().state == "in-sync"
