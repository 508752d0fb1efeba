"""Killed, or failing, at any system call: a sample of the faults that `make faults` tries, and tests of the harness."""

import pytest

from redirector.model import Ruleset
from redirector.program import Chain, Keep, Program
from tests.kernel.faults import SCENARIOS, SECONDS, Held, Rig, Scenario, faults_at, judge
from tests.kernel.lab import Lab
from tests.kernel.strace import Call, Fault, calls
from tests.kernel.trial import Ended

SAMPLED = [s for s in SCENARIOS if s.errors]
SAMPLE = 40
GOLDEN = (5**0.5 - 1) / 2  # its multiples, without their integers, are spread as evenly as any

FOLDER = "/s/state"

LOG = r"""
openat(AT_FDCWD</work>, "/usr/lib/python3/os.py", O_RDONLY) = 3</usr/lib/python3/os.py>
write(1</dev/null<char 1:3>>, "…", 3) = 3
mkdir("/s/state", 0700)           = -1 EEXIST (File exists)
openat(AT_FDCWD</work>, "/s/state/lock", O_RDWR|O_CREAT, 0600) = 4</s/state/lock>
flock(4</s/state/lock>, LOCK_EX|LOCK_NB) = 0
sendto(3<NETLINK:[NETFILTER:7]>, [{nlmsg_len=20, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN, …}], 20, 0) = 20
recvfrom(3<NETLINK:[NETFILTER:7]>, [{nlmsg_len=48, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWGEN, …}], 65536) = 48
openat(AT_FDCWD</work>, "/s/state/generations/000002.json.7.tmp", O_WRONLY|O_CREAT, 0600) = 5</s/…
write(5</s/state/generations/000002.json.7.tmp>, "{…", 429) = 429
--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=8} ---
sendto(3<NETLINK:[NETFILTER:7]>, [[{nlmsg_len=28, nlmsg_type=NFNL_MSG_BATCH_BEGIN, …}], 900, 0) = 900
rename("/s/state/generations/000002.json.7.tmp", "/s/state/generations/000002.json") = 0
fsync(5</s/state/generations>)      = 0
exit_group(0)                           = ?
+++ exited with 0 +++
""".strip().splitlines()


def shared_out(total: int, among: int) -> list[int]:
    return [(total + i) // among for i in range(among)]


def sample(found: list[Fault], size: int, offset: int) -> list[Fault]:
    """So many of them: from the commit on more often than before, of each half kills, else evenly spread."""
    at = next((i for i, fault in enumerate(found) if fault.call.about == "NFNL_MSG_BATCH_BEGIN"), len(found) // 2)
    parts = [
        [fault for fault in part if (fault.what == "SIGKILL") == killed]
        for part in (found[at:], found[:at])
        for killed in (False, True)
    ]
    chosen = [parts[i % len(parts)] for i in range(size)]
    return [part[int(len(part) * ((offset + i) * GOLDEN % 1))] for i, part in enumerate(chosen)]


@pytest.mark.parametrize(
    ("scenario", "size", "offset"),
    [
        pytest.param(scenario, size, i, id=scenario.name)
        for i, (scenario, size) in enumerate(zip(SAMPLED, shared_out(SAMPLE, len(SAMPLED)), strict=True))
    ],
)
def test_a_sample_of_faults(lab: Lab, scenario: Scenario, size: int, offset: int) -> None:
    rig = Rig(lab, scenario)
    wrong = [message for fault in sample(rig.faults, size, offset) for message in rig.try_fault(fault)]
    assert [*wrong, *rig.close()] == []


def test_what_did_not_happen_is_told(lab: Lab) -> None:
    """A fault at a call that the command does not make."""
    rig = Rig(lab, next(scenario for scenario in SCENARIOS if scenario.name == "apply"))
    last = next(fault.call for fault in reversed(rig.faults) if fault.call.name == "rename")
    for what in ("SIGKILL", "EIO"):
        (told,) = rig.try_fault(Fault(last._replace(number=last.number + 1), what))
        assert "did not happen" in told
    assert rig.close() == []


def test_another_table_that_changes_is_told(lab: Lab) -> None:
    rig = Rig(lab, next(scenario for scenario in SCENARIOS if scenario.name == "confirm"))
    lab.host.nft("add chain ip others more")
    (told,) = rig.close()
    assert "somebody else's table" in told


class TestCalls:
    def test_those_that_matter_as_strace_counts_them(self) -> None:
        found = [(call.name, call.number, call.device, call.about) for call in calls(LOG, FOLDER)]
        assert found == [
            ("write", 1, "output", "standard output"),
            ("mkdir", 1, "disk", "folder"),
            ("openat", 2, "disk", "lock"),
            ("flock", 1, "disk", "lock"),
            ("sendto", 1, "netlink", "GETGEN"),
            ("recvfrom", 1, "netlink", "NEWGEN"),
            ("openat", 3, "disk", "temporary file"),
            ("write", 2, "disk", "temporary file"),
            ("sendto", 2, "netlink", "NFNL_MSG_BATCH_BEGIN"),
            ("rename", 1, "disk", "temporary file"),
            ("fsync", 1, "disk", "folder"),
            ("exit_group", 1, "end", "the end"),
        ]

    def test_what_else_fails_from_a_call_on(self) -> None:
        rename = next(call for call in calls(LOG, FOLDER) if call.name == "rename")
        assert dict(rename.others)["fsync"] == 1
        assert dict(rename.others)["write"] == 3
        arguments = Fault(rename, "EROFS", always=True).arguments()
        assert "inject=rename:error=EROFS:when=1+" in arguments
        assert "inject=write:error=EROFS:when=3+" in arguments
        assert "inject=write:error=EINTR:when=3..52" in Fault(rename, "EINTR", always=True).arguments()
        assert Fault(rename, "SIGKILL").arguments() == ["-e", "trace=rename", "-e", "inject=rename:signal=KILL:when=1"]

    def test_whether_it_happened(self) -> None:
        call = Call("fsync", 1, "disk", "folder")
        ours = "fsync(5</s/state>) = "
        theirs = "fsync(5</etc>) = "
        kill, fail = Fault(call, "SIGKILL"), Fault(call, "EIO")
        assert kill.happened(f"{ours}?\n+++ killed by SIGKILL +++", FOLDER)
        assert not kill.happened(f"{theirs}?\n+++ killed by SIGKILL +++", FOLDER)
        assert not kill.happened(f"{ours}0\n+++ exited with 0 +++", FOLDER)
        assert not kill.happened("+++ killed by SIGKILL +++", FOLDER)
        assert fail.happened(f"{ours}-1 EIO (Input/output error) (INJECTED)", FOLDER)
        assert not fail.happened(f"{theirs}-1 EIO (Input/output error) (INJECTED)", FOLDER)
        assert not fail.happened(f"{ours}-1 EIO (Input/output error)", FOLDER)
        assert not fail.happened(f"{ours}0", FOLDER)

    def test_every_call_that_acts_is_killed_and_fails(self) -> None:
        found = list(calls(LOG, FOLDER))
        made = list(faults_at(found, errors=True))
        assert {fault.call for fault in made if fault.what == "SIGKILL"} == set(found)
        assert {fault.call for fault in made if not fault.signal} == {call for call in found if call.device != "end"}
        assert {fault.what for fault in made if fault.call.about == "NFNL_MSG_BATCH_BEGIN" and fault.always} == {
            "ENOBUFS", "EMSGSIZE", "EINTR", "EAGAIN", "ENOMEM", "EPERM",
        }  # fmt: skip
        assert {fault.what for fault in faults_at(found, errors=False)} == {"SIGKILL"}


BEFORE = Held(None, None, None, False, False, None)
AFTER = Held(Program({}, {}), 1, Ruleset(), True, False, None)
WAITING = AFTER._replace(confirmed=False, waiting=1)
NEITHER = BEFORE._replace(program=Program({"c": Chain(None, (Keep(),))}, {}))
RECEIVE = Call("recvfrom", 9, "netlink", "NLMSG_ERROR")
RENAME = Call("rename", 1, "disk", "temporary file")
KILL, ONCE, EVER, DEAD = (
    Fault(RENAME, "SIGKILL"),
    Fault(RECEIVE, "ENOBUFS"),
    Fault(RECEIVE, "ENOBUFS", always=True),
    Fault(RENAME, "EROFS", always=True),
)


class TestTheJudge:
    @pytest.mark.parametrize(
        ("fault", "code", "found"),
        [
            (KILL, -9, BEFORE),
            (KILL, -9, AFTER),
            (KILL, -9, AFTER._replace(generation=None, ruleset=None)),  # committed and not recorded: status tells
            (KILL, 130, BEFORE),
            (ONCE, 0, AFTER),
            (ONCE, 1, BEFORE),
            (ONCE, 75, BEFORE),
            (ONCE, 5, BEFORE),
            (EVER, 6, BEFORE),
            (EVER, 6, AFTER._replace(generation=None, ruleset=None)),
            (DEAD, 6, AFTER),
            (DEAD, 5, BEFORE._replace(waiting=1)),  # the note cannot be removed either
        ],
    )
    def test_it_lets_pass(self, fault: Fault, code: int, found: Held) -> None:
        assert judge(fault, Ended(code, ""), BEFORE, AFTER, found) == []

    def test_of_what_waited_it_lets_the_record_wait_where_the_disk_is_dead(self) -> None:
        before, after = BEFORE._replace(waiting=1), AFTER
        taken_back = before._replace(program=after.program)
        assert judge(DEAD, Ended(5, ""), before, after, taken_back) == []
        for fault, found in ((ONCE, taken_back), (DEAD, after), (DEAD, taken_back._replace(generation=7))):
            assert judge(fault, Ended(5, ""), before, after, found)
        assert judge(DEAD, Ended(5, ""), BEFORE, after, BEFORE._replace(program=after.program))

    @pytest.mark.parametrize(
        ("fault", "code", "found", "words"),
        [
            (KILL, -9, NEITHER, "neither"),
            (ONCE, 0, BEFORE, "success"),
            (ONCE, 0, AFTER._replace(generation=None, ruleset=None), "success"),
            (ONCE, 0, WAITING, "success"),
            (ONCE, 1, AFTER, "nothing was changed"),
            (ONCE, 1, BEFORE._replace(waiting=1), "nothing was changed"),
            (ONCE, 77, BEFORE._replace(generation=1), "nothing was changed"),
            (ONCE, 5, AFTER, "put back"),
            (ONCE, 5, BEFORE._replace(waiting=1), "put back"),
            (ONCE, 6, BEFORE, "unknown"),
            (DEAD, 6, BEFORE, "unknown"),
            (ONCE, -9, BEFORE, "nobody sent"),
            (ONCE, 130, BEFORE, "nobody sent"),
            (ONCE, 2, BEFORE, "no such exit code"),
            (EVER, None, BEFORE, f"not ended after {SECONDS:.0f} s"),
        ],
    )
    def test_it_finds_wrong(self, fault: Fault, code: int | None, found: Held, words: str) -> None:
        (wrong,) = judge(fault, Ended(code, ""), BEFORE, AFTER, found)
        assert words in wrong

    def test_it_finds_bugs(self) -> None:
        for told in ("Traceback (most recent call last):", "redirector: internal error, what became of it is unknown"):
            assert judge(ONCE, Ended(1, told), BEFORE, AFTER, BEFORE) == ["it told of its own bug"]
