"""Kill the commands at every system call that matters, let each of those fail, and look at what is left.

    make faults        every fault, in some minutes; a sample of them is part of `make test`

Theory of operation. A `Scenario` is a command and what it starts from. It is run once without a fault, which tells what
the kernel and the history hold before and after, and which system calls there are to fail (see `strace`). Then, for
each fault: everything is put back as it was before, the real command runs under strace with the fault injected, and

- the log of strace shows that the fault happened, where it was meant to;
- the kernel holds exactly what it held before, or exactly what it should afterwards (`judge`);
- what the command told by its exit code is so (DESIGN's table of exit codes), within SECONDS;
- `status` tells the truth: whether the kernel holds what is recorded, and whether something waits for confirm;
- the next `apply` leads to where it should, and nothing is left that it would stumble over.

`judge` is pure: its own tests are in test_faults. All of it works in the network namespace of one `Lab`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from redirector import pending, proof, reconcile
from redirector.history import Record
from redirector.model import Ruleset
from redirector.plan import make_plan
from redirector.program import Program
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, ruleset
from tests.kernel.strace import NETLINK, Call, Fault, calls
from tests.kernel.trial import PUT_BACK, UNCHANGED, UNKNOWN, Ended, afterwards, aimed, run_out, try_every
from tests.kernel.watchdogs import watchdogs
from tests.waiting import leave_waiting

SECONDS = 10.0  # in which every run ends
# Process 1 is a shell, which does not wait for a watchdog that comes to be its child.
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh")
LONG = 3600.0  # to confirm in; nothing here waits for it

OLD = mapping("web", 80, 8080) + mapping("dns", 53, 5353, protocol=["tcp", "udp"])
NEW = mapping("web", 80, 8081) + mapping("ssl", 443, 8443)
NEXT = mapping("web", 80, 8082)
FOREIGN = "table ip others { chain input { type filter hook input priority 0; tcp dport 99 counter drop; }; }"

ERRORS = {
    "netlink": ("ENOBUFS", "EMSGSIZE", "EINTR", "EAGAIN", "ENOMEM", "EPERM"),
    "disk": ("ENOSPC", "EROFS", "EIO", "EPERM", "EINTR", "ENOMEM"),
    "process": ("EAGAIN", "ENOMEM"),
    "output": ("ENOSPC", "EPIPE", "EIO"),
}
LOOKING = ("newfstatat", "getdents64", "read", "pread64", "close")
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE")

INTERRUPTED = 130


class Held(NamedTuple):
    """What the kernel holds, what the current generation says, and the generation that waits for confirm (or None)."""

    program: Program | None
    generation: int | None
    ruleset: Ruleset | None
    confirmed: bool
    purged: bool
    waiting: int | None
    overdue: bool = False

    def history(self, fault: Fault) -> tuple[object, ...]:
        """What is on the disk; without the note where the disk lets nothing be removed any more."""
        dead = fault.always and fault.call.device == "disk"
        return self[1:5] if dead else self[1:]


class Scenario(NamedTuple):
    """`command` ({old}, {new}: mapping files) from what `prepare` makes of an empty namespace and state folder.

    `errors`: whether errors are tried, too, and not only kills. Its exit code must then tell whether it did its work.
    `proven`: whether what the kernel holds is known when it begins, and so need not be read.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[Product], None]
    errors: bool = True
    proven: bool = False

    @property
    def title(self) -> str:
        return self.name


def _nothing(product: Product) -> None:
    """From nothing."""


def _old(product: Product) -> None:
    product.apply(OLD)


def _both(product: Product) -> None:
    product.apply(OLD)
    product.apply(NEW)


def _waiting(product: Product, seconds: float = LONG) -> None:
    """OLD is confirmed and NEW waits for it; there is no watchdog."""
    product.apply(OLD)
    leave_waiting(product.backend, product.history, ruleset(NEW), seconds)


def _overdue(product: Product) -> None:
    _waiting(product, 0.0)


SCENARIOS = (
    Scenario("first apply", ("apply", "{new}"), _nothing),
    Scenario("apply", ("apply", "{new}"), _old),
    Scenario("apply, proven", ("apply", "{new}"), _old, proven=True),
    Scenario("apply --verify", ("apply", "--verify", "{new}"), _old, errors=False),
    Scenario("apply --confirm", ("apply", f"--confirm={LONG:.0f}", "{new}"), _old),
    Scenario("first apply --confirm", ("apply", f"--confirm={LONG:.0f}", "{new}"), _nothing, errors=False),
    Scenario("rollback", ("rollback",), _both),
    Scenario("rollback, proven", ("rollback",), _both, errors=False, proven=True),
    Scenario("remove", ("remove",), _old),
    Scenario("remove, proven", ("remove",), _old, errors=False, proven=True),
    Scenario("remove --purge", ("remove", "--purge"), _old, errors=False),
    Scenario("confirm", ("confirm",), _waiting),
    Scenario("cancel", ("cancel",), _waiting),
    Scenario("status, overdue", ("status",), _overdue, errors=False),
    Scenario("apply, overdue", ("apply", "{old}"), _overdue, errors=False),
)


def judge(fault: Fault, ended: Ended, before: Held, after: Held, found: Held) -> list[str]:
    """What is wrong with what a command left behind; nothing, if the list is empty. Pure."""
    wrong = []
    if found.program not in (before.program, after.program):
        wrong.append("the kernel holds neither what it held before nor what it should afterwards")
    if ended.code is None:
        wrong.append(f"it had not ended after {SECONDS:.0f} s")
    if "Traceback" in ended.told or "internal error" in ended.told:
        wrong.append("it told of its own bug")
    interrupted = ended.code is not None and (ended.code < 0 or ended.code == INTERRUPTED)
    if interrupted and not fault.signal:
        wrong.append("a signal ended it that nobody sent")
    if ended.code == 0 and (found.program != after.program or found.history(fault) != after.history(fault)):
        wrong.append("it told success, and it is not so")
    # Where the disk is dead a change that waited goes back all the same, and only the record of it has to wait.
    dead = fault.always and fault.call.device == "disk"
    unrecorded = dead and before.waiting is not None and found == before._replace(program=after.program)
    put_back = found.program == before.program and found.history(fault) == before.history(fault)
    if ended.code == PUT_BACK and not (put_back or unrecorded):
        wrong.append("it told that everything was put back, and it is not so")
    if ended.code in UNCHANGED and not put_back:
        wrong.append("it told that nothing was changed, and it is not so")
    # What the kernel does not tell any more is unknown, and so is whether a disk that fails keeps what is there now.
    silent = fault.always and fault.call.device == "netlink"
    unsynced = fault.call.device == "disk" and found.history(fault) == after.history(fault)
    if ended.code == UNKNOWN and not (silent or unsynced):
        wrong.append("it told that the outcome is unknown, and it could be known")
    if not interrupted and ended.code not in (None, 0, PUT_BACK, UNKNOWN, *UNCHANGED):
        wrong.append("there is no such exit code")
    return wrong


def faults_at(found: list[Call], *, errors: bool) -> Iterator[Fault]:
    """Every fault worth trying at these calls: a kill at each, and errors where they may make a difference."""
    seen: set[object] = set()
    committed = False
    for i, call in enumerate(found):
        committed = committed or call.about == "NFNL_MSG_BATCH_BEGIN"
        if call.name not in LOOKING:  # a kill there is the same as one at the next
            yield Fault(call, "SIGKILL")
        names = ERRORS.get(call.device, ())
        # The first call of each kind gets every error, what comes again one, another each time. Netlink calls are
        # all of one kind, but for those from the commit on, where everything else is another matter, too.
        kind = (call.name, call.device == "netlink" or call.about, committed)
        again = kind in seen
        seen.add(kind)
        if not errors or not names or (again and call.name == "newfstatat"):
            continue
        thorough = not again and call.name not in (*LOOKING, "openat")
        chosen = names if thorough else (names[i % len(names)],)
        yield from (Fault(call, name) for name in chosen)
        if thorough and call.others:
            # Of a disk that fails for good, two errors are enough: it is told by them what the commands cannot do.
            lasting = chosen if call.device == "netlink" else (chosen[i % 6], chosen[(i + 3) % 6])
            yield from (Fault(call, name, always=True) for name in lasting)
        if thorough and call.name in (*NETLINK, "rename", "unlink"):
            yield from (Fault(call, signal) for signal in SIGNALS)


class Rig:
    """One scenario, ready to be run again and again. Raises AssertionError where it does not even work unharmed."""

    def __init__(self, lab: Lab, scenario: Scenario) -> None:
        self.lab, self.scenario = lab, scenario
        self.product = Product(lab)
        texts = {"old": OLD, "new": NEW, "next": NEXT}
        self.files = {name: self.product.file(text, f"{name}.toml") for name, text in texts.items()}
        self.command = lab.command(*(part.format(**self.files) for part in scenario.command))
        self._template = os.path.join(os.path.dirname(lab.state_dir), "template")
        self._log = os.path.join(os.path.dirname(lab.state_dir), "strace.log")
        self._empty()
        self.programs = {self._applied(text): self._program() for text in texts.values()}
        self._empty()
        lab.host.nft(FOREIGN)
        self._foreign = lab.host.nft_list("table ip others")
        scenario.prepare(self.product)
        self.before = self.look()
        shutil.copytree(lab.state_dir, self._template)
        self.run([])  # so that every module is compiled
        self.reset()
        ended = self.run(["-yy"])
        self.after = self.look()
        assert ended.code == 0, ended.told
        with open(self._log, encoding="utf-8", errors="replace") as log:
            self.faults = list(faults_at(list(calls(log, lab.state_dir)), errors=scenario.errors))

    def try_fault(self, fault: Fault) -> list[str]:
        """Let it happen; what is wrong with what comes of it."""

        def once() -> tuple[Ended, bool]:
            self.reset()
            ended = self.run(["-yy", *fault.arguments()])
            with open(self._log, encoding="utf-8", errors="replace") as log:
                return ended, fault.happened(log.read(), self.lab.state_dir)

        ended, missed = aimed(once)
        return self._wrong(fault, ended, missed)

    def _wrong(self, fault: Fault, ended: Ended, missed: list[str]) -> list[str]:
        """What is wrong with what there is now."""
        found = self.look()
        wrong = judge(fault, ended, self.before, self.after, found) + missed
        wrong += self._status(found)
        wrong += self._next_apply(found)
        return [f"{self.scenario.name}: {fault}: {what}; exit {ended.code}: {ended.told.strip()}" for what in wrong]

    def run(self, options: list[str]) -> Ended:
        """The command, under strace, and alone in a process namespace: what it finds in /proc is then always the same,
        and so are the numbers of its calls. A watchdog that it leaves ends with it."""
        ended = run_out(self.lab, [*ALONE, "strace", "-o", self._log, *options, *self.command], SECONDS)
        return ended if ended.code is None else ended._replace(code=_ended(ended.code))

    def look(self) -> Held:
        """What there is now."""
        current = self.product.history.current()
        note = pending.load(self.product.history)
        waiting, overdue = (note.generation, not note.seconds_left) if note else (None, False)
        record = current if isinstance(current, Record) else None
        if record is None:
            return Held(self._program(), None, None, False, False, waiting, overdue)
        held = (record.generation, record.ruleset, record.confirmed, record.purged)
        return Held(self._program(), *held, waiting, overdue)

    def reset(self) -> None:
        """Everything as before the command."""
        shutil.rmtree(self.lab.state_dir)
        shutil.copytree(self._template, self.lab.state_dir)
        self._load(self.before.program)
        if self.scenario.proven:  # which what was copied proves no more
            found = self.product.status().proof
            assert found is not None
            proof.save(self.lab.state_dir, found)

    def close(self) -> list[str]:
        """Await the end of every watchdog that was started here; what is wrong with the foreign table."""
        shutil.rmtree(self.lab.state_dir)
        for watchdog in watchdogs(self.lab.state_dir):
            with watchdog:
                watchdog.await_end()
        self.product.close()
        untouched = self.lab.host.nft_list("table ip others") == self._foreign
        return [] if untouched else [f"{self.scenario.name}: somebody else's table was changed"]

    def _status(self, found: Held) -> list[str]:
        """Whether `status` tells the truth about what was found."""
        ended = self.lab.redirector("status", "--json")
        told = json.loads(ended.stdout).get("state") if ended.stdout else ended.stderr
        wanted = self._truth(found)
        return [] if (ended.returncode, told) == wanted else [f"status says {ended.returncode}, {told}; it is {wanted}"]

    def _truth(self, found: Held) -> tuple[int, str]:
        """The exit code and state that `status` owes."""
        if found.overdue:  # it takes the change back first
            return (0, "in-sync")
        if found.ruleset is None:
            return (3, "absent") if found.program is None else (4, "unknown")
        if found.ruleset.enabled:
            in_sync, state = found.program == self.programs[found.ruleset], "in-sync"
        else:
            empty = reconcile.desired_program(found.ruleset, found.purged)
            in_sync, state = found.program in (empty, None), "absent" if found.purged else "drained"
        if found.waiting is not None:
            return (0 if in_sync else 2), "pending"
        return ({"in-sync": 0}.get(state, 3), state) if in_sync else (2, "drifted")

    def _next_apply(self, found: Held) -> list[str]:
        """Whether the next `apply` does its work, after a `cancel` where something waits."""
        wrong = []
        confirmed = self.before.program if self.before.waiting is None else self.programs[ruleset(OLD)]
        if found.waiting is not None and not found.overdue:
            if self._code("apply", self.files["next"]) != 75:
                wrong.append("an apply is not refused while a change waits for confirm")
            code = self._code("cancel")
            drained = reconcile.desired_program(Ruleset())
            if code or self._program() not in (confirmed, drained if confirmed is None else confirmed):
                wrong.append(f"cancel afterwards ends with {code}, and does not lead to what was confirmed")
        ended = self.lab.redirector("apply", self.files["next"])
        if ended.returncode or self._program() != self.programs[ruleset(NEXT)]:
            wrong.append(f"the next apply ends with {ended.returncode}: {ended.stderr}")
        return wrong + afterwards(self.product)

    def _code(self, *args: str) -> int:
        return self.lab.redirector(*args).returncode

    def _program(self) -> Program | None:
        return self.product.backend.observe().program

    def _load(self, program: Program | None) -> None:
        snapshot = self.product.backend.observe()
        for plan in (make_plan(None, snapshot.program), make_plan(program, None)):
            if plan:
                self.product.backend.commit(plan.steps, self.product.backend.genid())

    def _applied(self, text: str) -> Ruleset:
        self.product.apply(text)
        return ruleset(text)

    def _empty(self) -> None:
        self._load(None)
        shutil.rmtree(self.lab.state_dir, ignore_errors=True)
        os.mkdir(self.lab.state_dir, 0o700)


def kind(fault: Fault) -> str:
    return "kills" if fault.what == "SIGKILL" else "other signals" if fault.signal else "errors"


def _ended(status: int) -> int:
    """A command's exit code, or its signal (negative) where the shell tells of one."""
    return 128 - status if status > 128 and status != INTERRUPTED else status


def main() -> None:
    """Every fault of every scenario; ends with 1 where something was wrong."""
    try_every(SCENARIOS, Rig, kind)


if __name__ == "__main__":
    main()
