"""The iptables backends against what others do to their rules, and against what goes wrong underneath."""

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redirector import errors
from redirector.backends.iptables import commands
from redirector.backends.iptables.backend import IptablesBackend
from redirector.model import FAMILIES
from tests.kernel.echo import PATIENCE, Answered
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping
from tests.kernel.traffic_watch import Watch

BOTH = ["tcp", "udp"]
WEB = mapping("web", 80, 8080, protocol=BOTH, exclusive=True)
STAFF = mapping("staff", 80, 8090, source=["192.0.2.0/24", "2001:db8:1::/64"])
RANGE = mapping("range", "1000-1999", "2000-2999", local=False)
EVERYTHING = WEB + STAFF + RANGE
TOOLS = {"ipv4": "iptables", "ipv6": "ip6tables"}


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def product(lab: Lab, variant: str) -> Iterator[Product]:
    with Product(lab, f"iptables-{variant}") as made:
        yield made


def saved(lab: Lab, variant: str) -> list[str]:
    """Everything that both families hold, without counters and remarks."""
    lines = [line for tool in TOOLS.values() for line in lab.host.run(f"{tool}-{variant}-save").splitlines()]
    return [line.partition(" [")[0] for line in lines if not line.startswith("#")]


def rule(lab: Lab, variant: str, family: str, table: str, words: str) -> None:
    lab.host.run(f"{TOOLS[family]}-{variant}", "-t", table, *words.split())


# What somebody does, to which table, and the mappings that are concerned. "+" stands for the chain of `staff`.
TAMPERINGS = {
    "a rule deleted": (
        "nat",
        ["-D REDIRECTOR-ALL -p tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080"],
        "web",
    ),
    "a rule edited": ("nat", ["-R REDIRECTOR-OUT 1 -p tcp --dport 80 -j DNAT --to-destination :8081"], "web"),
    "a comment edited": (
        "nat",
        ["-R REDIRECTOR-OUT 1 -p tcp -m tcp --dport 80 -m comment --comment new -j DNAT --to-destination :8080"],
        "new web",
    ),
    "a target edited": (
        "nat",
        ["-R REDIRECTOR-OUT 1 -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8081"],
        "web",
    ),
    "a rule added": ("nat", ["-I REDIRECTOR-IN -p tcp --dport 80 -j RETURN"], "web staff range"),
    "a mapping added": (
        "nat",
        ["-A REDIRECTOR-IN -p tcp -m tcp --dport 99 -m comment --comment more -j DNAT --to-destination :9"],
        "more web staff range",  # in another place than where we would put it
    ),
    "a rule twice": (
        "nat",
        ["-A REDIRECTOR-IN -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080"],
        "web",
    ),
    "another order": (
        "nat",
        [
            "-D REDIRECTOR-ALL -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080",
            "-A REDIRECTOR-ALL -p tcp -m tcp --dport 80 -m comment --comment web -j DNAT --to-destination :8080",
        ],
        "web",
    ),
    "a chain emptied": ("nat", ["-F REDIRECTOR-IN"], "web staff range"),
    "a scope emptied": ("nat", ["-F +"], "staff"),
    "the table emptied": ("nat", ["-F"], "web staff range"),
    "all chains gone": ("nat", ["-F", "-X"], "web staff range"),
    "the jump gone": ("nat", ["-D PREROUTING -m addrtype --dst-type LOCAL -j REDIRECTOR-IN"], "web staff range"),
    "the jump twice": ("nat", ["-A PREROUTING -m addrtype --dst-type LOCAL -j REDIRECTOR-IN"], "web staff range"),
    "the jump not first": ("nat", ["-I PREROUTING -p tcp --dport 80 -j ACCEPT"], "web staff range"),
    "the jump narrowed": (
        "nat",
        [
            "-D PREROUTING -m addrtype --dst-type LOCAL -j REDIRECTOR-IN",
            "-I PREROUTING -i eth0 -m addrtype --dst-type LOCAL -j REDIRECTOR-IN",
        ],
        "web staff range",
    ),
    "a chain of ours added": ("nat", ["-N REDIRECTOR-x", "-A REDIRECTOR-x -j ACCEPT"], ""),
    "the guard gone": ("filter", ["-F REDIRECTOR-GUARD"], "web"),
    "the guard's jump gone": ("filter", ["-F INPUT"], "web"),
    "a guard added": (
        "filter",
        ["-A REDIRECTOR-GUARD -p udp -m udp --dport 9 -m comment --comment staff -j REJECT"],
        "staff web",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_drift_is_found_told_and_mended(lab: Lab, product: Product, variant: str, name: str) -> None:
    table, words, concerned = TAMPERINGS[name]
    # Each in one family for one variant, in the other for the other.
    family = FAMILIES[(list(TAMPERINGS).index(name) + (variant == "legacy")) % 2]
    product.apply(EVERYTHING)
    before = saved(lab, variant)
    ours = [line.split()[-1] for line in before if line.startswith("-A REDIRECTOR-IN -s ")]
    chain = ours[FAMILIES.index(family)]
    for each in words:
        rule(lab, variant, family, table, each.replace("+", chain))
    found = product.status()
    assert found.state == "drifted"
    told = {name for drift in found.drift for name in (drift.mapping, *drift.serves) if name}
    assert told == set(concerned.split())
    assert product.apply(EVERYTHING).plan
    after = saved(lab, variant)
    assert [line for line in after if "REDIRECTOR" in line] == [line for line in before if "REDIRECTOR" in line]
    assert product.status().state == "in-sync"


FOREIGN = """*nat
:MINE - [0:0]
:NOT-REDIRECTOR - [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -m comment --comment "say \\"it\\" \\\\ 'so'; # $x" -j MINE
-A PREROUTING -p tcp -m tcp --dport 81 -j NOT-REDIRECTOR
-A OUTPUT -p tcp -m tcp --dport 82 -j REDIRECT --to-ports 83
-A POSTROUTING -o eth9 -j MASQUERADE
-A MINE -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A INPUT -i eth9 -j DROP
COMMIT
*mangle
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -j MARK --set-xmark 0x1/0xffffffff
COMMIT
"""


def test_nobody_elses_rules_are_touched(lab: Lab, product: Product, variant: str) -> None:
    for tool in TOOLS.values():
        lab.host.run(f"{tool}-{variant}-restore", "--noflush", input=FOREIGN)
    before = saved(lab, variant)
    steps: list[Callable[[], object]] = [
        lambda: product.apply(EVERYTHING),
        lambda: product.apply(WEB),
        lambda: product.apply(STAFF),
        product.remove,
        lambda: product.apply(EVERYTHING),
    ]
    for step in steps:
        step()
        assert product.status().state in ("in-sync", "drained")
        theirs = [line for line in saved(lab, variant) if "REDIRECTOR-" not in line.replace("NOT-REDIRECTOR", "")]
        assert theirs == before_without_ours(before)
    product.remove(purge=True)
    assert saved(lab, variant) == before


def before_without_ours(lines: list[str]) -> list[str]:
    return [line for line in lines if "REDIRECTOR-" not in line.replace("NOT-REDIRECTOR", "")]


def test_a_chain_of_our_name_that_is_not_ours(lab: Lab, product: Product, variant: str) -> None:
    rule(lab, variant, "ipv6", "nat", "-N REDIRECTOR-IN")
    rule(lab, variant, "ipv6", "nat", "-A REDIRECTOR-IN -p tcp --dport 25 -j ACCEPT")
    before = saved(lab, variant)
    file = product.file(WEB)
    assert "not ours" in product.run("apply", file, code=1)
    assert saved(lab, variant) == before
    product.run("apply", file, "--replace-foreign")
    assert not any("--dport 25" in line for line in saved(lab, variant))
    assert product.json("status")["state"] == "in-sync"


def test_an_empty_chain_of_our_name_is_ours(lab: Lab, product: Product, variant: str) -> None:
    rule(lab, variant, "ipv4", "nat", "-N REDIRECTOR-IN")
    product.run("apply", product.file(WEB))


class TestWhatFailsUnderneath:
    @pytest.fixture
    def broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> Path:
        """A folder before all others, in which ip6tables-…-restore does what a test writes into it."""
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setattr(commands, "FOLDERS", (str(folder), *commands.FOLDERS))
        return folder

    def program(self, folder: Path, variant: str, text: str, tool: str = "ip6tables") -> None:
        path = folder / f"{tool}-{variant}-restore"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def test_ipv6_fails_and_ipv4_is_put_back(self, lab: Lab, product: Product, variant: str, broken: Path) -> None:
        product.apply(WEB)
        before, numbers = saved(lab, variant), product.history.numbers()
        self.program(broken, variant, "cat >/dev/null; echo 'no such thing' >&2; exit 1")
        with pytest.raises(errors.Refused, match=r"no such thing.*nothing was changed"):
            product.apply(EVERYTHING)
        assert saved(lab, variant) == before
        assert product.history.numbers() == numbers
        assert product.status().state == "in-sync"

    def test_and_putting_it_back_fails_too(self, lab: Lab, product: Product, variant: str, broken: Path) -> None:
        product.apply(WEB)
        numbers = product.history.numbers()
        real = f"/usr/sbin/iptables-{variant}-restore"
        self.program(broken, variant, "cat >/dev/null; exit 1")
        # IPv4 works once.
        once = f'test -e {broken}/done && exit 1; : > {broken}/done; exec {real} "$@"'
        self.program(broken, variant, once, "iptables")
        with pytest.raises(errors.OutcomeUnknown, match="putting back"):
            product.apply(EVERYTHING)
        assert product.history.numbers() == numbers
        (broken / f"iptables-{variant}-restore").unlink()
        (broken / f"ip6tables-{variant}-restore").unlink()
        assert product.status().state == "drifted"
        product.apply(EVERYTHING)
        assert product.status().state == "in-sync"

    def test_it_is_told_nothing_of_ours(
        self, lab: Lab, product: Product, variant: str, broken: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("IPTABLES_LIB_DIR", "/nonexistent")
        monkeypatch.setenv("LD_PRELOAD", "")
        self.program(
            broken, variant, f"env >{broken}/env; echo $* >{broken}/argv; cat >{broken}/text; exit 1", "iptables"
        )
        with pytest.raises(errors.Refused):
            product.apply(WEB)
        names = {line.partition("=")[0] for line in (broken / "env").read_text().splitlines()}
        assert {"PATH", "LC_ALL"} <= names <= {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
        assert (broken / "argv").read_text() == "--noflush --counters --wait 5\n"  # no word of the file's
        assert "-j REDIRECTOR-IN" in (broken / "text").read_text()

    def test_a_program_that_hangs(
        self, lab: Lab, product: Product, variant: str, broken: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "SECONDS", 0.5)
        self.program(broken, variant, "exec sleep 600", "iptables")
        with pytest.raises(errors.Refused, match="did not end within"):
            product.apply(WEB)
        assert product.status().state == "absent"

    def test_what_is_printed_is_nonsense(self, lab: Lab, product: Product, variant: str, broken: Path) -> None:
        path = broken / f"ip6tables-{variant}-save"
        path.write_text("#!/bin/sh\nprintf '*nat\\n:A - [0:0]\\nwhat\\033[31m\\n'\n")
        path.chmod(0o755)
        if variant == "legacy":
            rule(lab, variant, "ipv6", "nat", "-L")  # a table that is not loaded is not asked for
        with pytest.raises(errors.Refused, match=r"line 3: .*what\\x1b\[31m"):
            product.apply(WEB)


def test_a_missing_program(lab: Lab, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "FOLDERS", ("/nonexistent",))
    with pytest.raises(errors.Unavailable, match=f"iptables-{variant}-save") as caught:
        lab.host.namespace.call(IptablesBackend, variant)
    assert "package iptables" in caught.value.hint
    assert caught.value.exit_code == 69


def test_no_other_namespace_is_ever_changed(lab: Lab, variant: str) -> None:
    backend = lab.host.namespace.call(IptablesBackend, variant)
    with contextlib.closing(backend), pytest.raises(RuntimeError):
        backend.observe()  # in the test's own


@pytest.mark.parametrize("variant", ["legacy"], indirect=True)
def test_the_lock_of_iptables(
    lab: Lab, product: Product, variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "LOCK_SECONDS", 1)
    product.apply(WEB)
    before = saved(lab, variant)
    with open(commands.LOCK, "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(errors.TryAgain, match=rf"process {os.getpid()} \(.*\) has held the lock"):
            product.apply(EVERYTHING)
    assert saved(lab, variant) == before
    product.apply(EVERYTHING)


def test_counts_are_carried_over(lab: Lab, product: Product, variant: str) -> None:
    product.apply(WEB + mapping("other", 81, 8081))
    for v, address in enumerate(("0.0.0.0", "::")):
        lab.host.serve("tcp", address, 8080)
        lab.client.ask_tcp(HOST[v], 80)
        lab.host.ask_tcp(HOST[v], 80)
    assert product.status().connections["web"] == 4
    product.apply(WEB + mapping("other", 81, 8082))
    assert product.status().connections == {"web": 4, "other": 0}
    # ip6tables-nft-restore ignores counts (seen with 1.8.9): those of IPv6 begin at 0 in rules that are written anew.
    kept = 4 if variant == "legacy" else 2
    product.apply(mapping("web", 80, 8081) + mapping("other", 81, 8082))
    assert product.status().connections == {"web": kept, "other": 0}


def test_nothing_to_do_starts_no_restore(
    lab: Lab, product: Product, variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    product.apply(EVERYTHING)
    for tool in TOOLS.values():
        (tmp_path / f"{tool}-{variant}-restore").write_text("#!/bin/sh\nexit 9\n")
        (tmp_path / f"{tool}-{variant}-restore").chmod(0o755)
    monkeypatch.setattr(commands, "FOLDERS", (str(tmp_path), *commands.FOLDERS))
    assert not product.apply(EVERYTHING).plan
    with pytest.raises(errors.Refused):
        product.apply(WEB)  # so they would have been noticed


def test_no_gap_and_what_is_established_lives_on(lab: Lab, product: Product, variant: str) -> None:
    for address in ("0.0.0.0", "::"):
        for protocol in ("tcp", "udp"):
            lab.host.serve(protocol, address, 8080)
    product.apply(WEB)
    with contextlib.ExitStack() as stack:
        lasting = [stack.enter_context(lab.client.talk("tcp", address, 80)) for address in HOST]
        with Watch(lab.client, list(HOST), 80, lasting, PATIENCE) as watch:
            for number in range(100):
                watch.go_on(1)
                product.apply(WEB + mapping("others", f"{1000 + number % 7}-{1100 + number % 5}", 9000))
        assert watch.failures == {}
        assert set(watch.answers) == {Answered(8080, CLIENT[v], HOST[v]) for v in (0, 1)}
        product.remove()
        for v, conversation in enumerate(lasting):
            assert conversation.ask(PATIENCE) == Answered(8080, CLIENT[v], HOST[v])


def test_an_orphan_holds_our_lock(lab: Lab, product: Product, variant: str, tmp_path: Path) -> None:
    """The command is killed while iptables-restore runs: until that has ended, nobody else may begin."""
    product.apply(WEB)
    held = tmp_path / "held"
    os.mkfifo(held)
    folder = tmp_path / "bin"
    folder.mkdir()
    real = f"/usr/sbin/iptables-{variant}-restore"
    slow = folder / f"iptables-{variant}-restore"
    slow.write_text(f'#!/bin/sh\necho $$ > {held}\nread line < {held}\nexec {real} "$@"\n')
    slow.chmod(0o755)
    code = (
        "import sys; from redirector.backends.iptables import commands as c;"
        f"c.FOLDERS = ({str(folder)!r}, *c.FOLDERS); from redirector.cli import main; main()"
    )
    argv = [*lab.command("apply", product.file(EVERYTHING))]
    at = argv.index("-m")
    child = lab.host.namespace.popen(
        [*argv[:at], "-c", code, *argv[at + 2 :]], env=lab.environment(), stderr=subprocess.DEVNULL
    )
    with open(held, encoding="ascii") as pipe:
        assert int(pipe.read()) > 0
    child.send_signal(signal.SIGKILL)
    child.wait()
    with open(os.path.join(product.history.folder, "lock"), "rb") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.write_text("go on\n")
        fcntl.flock(lock, fcntl.LOCK_EX)  # now it has ended
    assert product.status().state == "drifted"  # IPv4 is new, IPv6 is old
    product.apply(EVERYTHING)
    assert product.status().state == "in-sync"
