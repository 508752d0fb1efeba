"""Kill the commands on the iptables backends, and the children that they start, and let those children fail.

    make faults        every fault, after those of `faults`; a sample of them is part of `make test`

Theory of operation, beyond that of `faults`. A fault is at a call of the command itself (where it starts a child, tells
it what to do, hears from it, and waits for its end, or writes its generations), or at a call by which a child changes
or reads the rules: sendto(2), sendmsg(2) and recvmsg(2) of the nft variant, setsockopt(2) and getsockopt(2) of the
legacy one. The command runs under strace, and /usr/sbin is another one for it, in a mount namespace of its own: there
the programs of iptables are small scripts, that of the fault runs under a strace of its own, and each notes that it was
started. Afterwards:

- each table of each family holds exactly what it held before, or exactly what it should afterwards;
- what the command told by its exit code is so, and `status` tells the truth;
- the next `apply` leads to where it should, and nothing is left that it would stumble over.
"""

import os
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from redirector.backends.iptables import commands, reading, rules, save, script
from redirector.history import Record
from redirector.model import FAMILIES
from tests.kernel.iptables import VARIANTS, program
from tests.kernel.lab import PATH, Lab
from tests.kernel.product import Product, mapping
from tests.kernel.strace import Call, Fault, calls, numbered
from tests.kernel.trial import PUT_BACK, UNCHANGED, UNKNOWN, Ended, afterwards, aimed, run_out, try_every

SECONDS = 30.0  # in which every run ends
OLD = mapping("web", 80, 8080, exclusive=True) + mapping("dns", 53, 5353, protocol=["tcp", "udp"])
NEW = mapping("web", 80, 8081) + mapping("ssl", 443, 8443, exclusive=True)
NEXT = mapping("web", 80, 8082)

# Around a child.
COMMAND = ("memfd_create", "pipe2", "vfork", "clone", "clone3", "fork", "pidfd_open", "select", "pselect6", "wait4")
PIPES = ("read", "write")  # where they are those of a child
CHILD = ("sendto", "sendmsg", "recvmsg", "setsockopt", "getsockopt", "flock")
FAILING = ("sendto", "sendmsg", "setsockopt", "recvmsg")
ERRORS = ("ENOMEM", "EPERM", "EAGAIN")
LOST = ("ENOBUFS", "EINTR", "ENOMEM")  # instead of an answer

APART = 'mount --bind "$1" /usr/sbin; mount -t tmpfs tmpfs /run; shift; exec "$@"'

Held = dict[str, rules.Tables]


class Scenario(NamedTuple):
    """As in `faults`: `before` are the files that were applied, one after the other."""

    name: str
    backend: str
    command: tuple[str, ...]
    before: tuple[str, ...] = (OLD,)

    @property
    def title(self) -> str:
        return f"{self.backend}, {self.name}"


SCENARIOS = tuple(
    scenario
    for backend in VARIANTS
    for scenario in (
        Scenario("apply", backend, ("apply", "{new}")),
        Scenario("rollback", backend, ("rollback",), (OLD, NEW)),
        Scenario("remove", backend, ("remove",)),
    )
)


class Place(NamedTuple):
    """A fault in the command itself, or in the `start`-th child that runs `program`."""

    fault: Fault
    program: str = ""
    start: int = 0

    def __str__(self) -> str:
        return f"{self.fault} of {f'{self.program}, run {self.start}' if self.program else 'the command'}"

    def happened(self, log: str) -> bool:
        """Whether the log of its strace shows it."""
        return self.fault.struck(log).startswith(f"{self.fault.call.name}(")


def of_command(log: list[str], folder: str) -> Iterator[Place]:
    """Kills of the command, from its first child on."""
    known = {(call.name, call.number): call for call in calls(log, folder)}
    begun = False
    for name, arguments, counts in numbered(log):
        number = counts[name]
        call = known.get((name, number))
        if name in COMMAND or (name in PIPES and re.match(r"\d+<pipe:", arguments)):
            call = Call(name, number, "child", "a child")
        begun = begun or (call is not None and call.device == "child")
        if begun and call is not None and call.name not in ("newfstatat", "getdents64", "close"):
            yield Place(Fault(call, "SIGKILL"))


def of_child(log: list[str], name: str, start: int) -> Iterator[Place]:
    """Kills and errors of one child. One that only reads is killed once for each kind of call; of the many calls that
    are alike each gets another error, and what writes gets every one."""
    reads = name.endswith("save")
    for made, _, counts in numbered(log):
        if made not in CHILD:
            continue
        call = Call(made, counts[made], "child", "rules")
        if not reads or call.number == 1:
            yield Place(Fault(call, "SIGKILL"), name, start)
        if made in FAILING:
            errors = LOST if made == "recvmsg" else ERRORS
            one = (errors[call.number % len(errors)],)
            alike = made in ("sendto", "recvmsg")
            yield from (Place(Fault(call, error), name, start) for error in (one if alike else errors))


class Rig:
    """One scenario, ready to be run again and again."""

    def __init__(self, lab: Lab, scenario: Scenario) -> None:
        self.lab, self.scenario = lab, scenario
        self.product = Product(lab, scenario.backend)
        self._home = os.path.dirname(lab.state_dir)
        texts = {"new": NEW, "next": NEXT}
        files = {name: self.product.file(text, f"{name}.toml") for name, text in texts.items()}
        self._next = lab.command("apply", files["next"])
        self._command = lab.command(*(part.format(**files) for part in scenario.command))
        self._programs()
        self.product.apply(NEXT)
        self.next = self.held()
        self._write({family: {"nat": {}, "filter": {}} for family in FAMILIES})
        shutil.rmtree(lab.state_dir)
        for text in scenario.before:
            self.product.apply(text)
        self.before, self.history = self.held(), self.product.history.current()
        shutil.copytree(lab.state_dir, f"{self._home}/template")
        self.run(None)  # so that every module is compiled
        self.reset()
        ended = self.run(None)
        assert ended.code == 0, ended.told
        self.after = self.held()
        self.faults = list(self._places())
        assert {place.program for place in self.faults} > {"", self._name("ipv4", "restore")}

    def try_fault(self, place: Place) -> list[str]:
        """Let it happen; what is wrong with what comes of it."""

        def once() -> tuple[Ended, bool]:
            self.reset()
            ended = self.run(place)
            return ended, place.happened(self._log(place.program, place.start))

        ended, wrong = aimed(once)
        wrong = [*wrong, *self._judge(place, ended), *self._next_apply()]
        title = self.scenario.title
        return [f"{title}: {place}: {what}; exit {ended.code}: {ended.told.strip()}" for what in wrong]

    def run(self, place: Place | None) -> Ended:
        """The command, with a fault; without one every call of it and of its children is noted."""
        shutil.rmtree(self._logs, ignore_errors=True)
        os.mkdir(self._logs)
        own = place.fault.arguments() if place and not place.program else []
        theirs = place.fault.arguments() if place and place.program else []
        with open(f"{self._home}/options", "w", encoding="ascii") as file:
            file.write(" ".join(theirs))
        with open(f"{self._home}/fault-in", "w", encoding="ascii") as file:
            file.write(f"{place.program} {place.start}\n" if place else "all\n")
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", APART, "sh", self._bin]
        argv += ["strace", "-yy", "-o", f"{self._logs}/the-command.0", *own, *self._command]
        ended = run_out(self.lab, argv, SECONDS)
        with self.product.history.locked():  # which a child that outlives the command holds
            return ended

    def held(self) -> Held:
        """Our rules, by family, table and chain."""
        return reading.held(self._read())

    def reset(self) -> None:
        """Everything as before the command."""
        shutil.rmtree(self.lab.state_dir)
        shutil.copytree(f"{self._home}/template", self.lab.state_dir)
        self._write(self.before)

    def close(self) -> list[str]:
        self.product.close()
        return []

    def _judge(self, place: Place, ended: Ended) -> Iterator[str]:
        found, current = self.held(), self.product.history.current()
        unchanged = found == self.before and current == self.history
        done = found == self.after and isinstance(current, Record) and current != self.history
        killed = not place.program and place.fault.signal
        for family in FAMILIES:
            for table in ("nat", "filter"):
                if found[family][table] not in (self.before[family][table], self.after[family][table]):
                    yield f"{family} {table} is neither as before nor as it should be"
        if ended.code is None:
            yield "it had not ended"
        if "Traceback" in ended.told or "internal error" in ended.told:
            yield "it told of its own bug"
        if ended.code == 0 and not done:
            yield "it told success, and it is not so"
        if ended.code in (*UNCHANGED, PUT_BACK) and not unchanged:
            yield "it told that nothing was changed, and it is not so"
        if ended.code == UNKNOWN and found in (self.before, self.after):
            yield "it told that the outcome is unknown, and it could be known"
        if ended.code not in (None, 0, PUT_BACK, UNKNOWN, *UNCHANGED) and not (killed and ended.code == -9):
            yield "there is no such exit code"
        state = self.product.status().state
        recorded = self.before if current == self.history else self.after
        right = "drained" if recorded == self.after and self.scenario.name == "remove" else "in-sync"
        if state != (right if found == recorded else "drifted"):
            yield f"status says {state}"

    def _next_apply(self) -> Iterator[str]:
        done = self.lab.host.namespace.run(self._next, env=self.lab.environment(), text=True, timeout=SECONDS)
        if done.returncode or self.held() != self.next:
            yield f"the next apply ends with {done.returncode}: {done.stderr}"
        yield from afterwards(self.product)

    def _places(self) -> Iterator[Place]:
        yield from of_command(self._log("", 0).splitlines(), self.lab.state_dir)
        for name in sorted(os.listdir(self._logs)):
            child, _, start = name.rpartition(".")
            # Of the nft variant every reading is two: one of them is enough.
            second = child.endswith("nft-save") and not int(start) % 2 if start.isdigit() else True
            if child != "the-command" and not second:
                yield from of_child(self._log(child, int(start)).splitlines(), child, int(start))

    def _log(self, name: str, start: int) -> str:
        try:
            with open(f"{self._logs}/{name or 'the-command'}.{start}", encoding="utf-8", errors="replace") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def _name(self, family: str, verb: str) -> str:
        return program(self.scenario.backend, family, verb)

    def _programs(self) -> None:
        """What is to be the command's /usr/sbin. Each script notes its start; the one of the fault is traced."""
        self._bin, self._logs = f"{self._home}/sbin", f"{self._home}/logs"
        real = f"{self._home}/real"
        for folder in (self._bin, self._logs, real):
            os.mkdir(folder)
        for family in FAMILIES:
            for verb in ("save", "restore"):
                name = self._name(family, verb)
                shutil.copy(os.path.realpath(shutil.which(name, path=PATH) or name), f"{real}/{name}")
                path = f"{self._bin}/{name}"
                with open(path, "w", encoding="ascii") as file:
                    file.write(
                        f"#!/bin/sh\nexport PATH={PATH}\nstart=1\n"
                        f"while ! mkdir {self._logs}/{name}.$start.begun 2>&-; do start=$((start + 1)); done\n"
                        f"read -r where < {self._home}/fault-in\n"
                        f'case "$where" in "{name} $start"|all)\n'
                        f"exec strace -o {self._logs}/{name}.$start $(cat {self._home}/options) "
                        f'{real}/{name} "$@";;\nesac\nexec {real}/{name} "$@"\n'
                    )
                os.chmod(path, 0o700)

    def _read(self) -> save.Saved:
        variant = self.scenario.backend.removeprefix("iptables-")
        return self.lab.host.namespace.call(commands.read, variant, FAMILIES)

    def _write(self, wanted: Held) -> None:
        variant, saved = self.scenario.backend.removeprefix("iptables-"), self._read()
        ours = reading.held(saved)
        for family in FAMILIES:
            text = script.script(saved[family], ours[family], wanted[family])
            if text:
                self.lab.host.namespace.call(commands.restore, variant, family, text)


def kind(place: Place) -> str:
    return f"{'kills' if place.fault.signal else 'errors'} of {'a child' if place.program else 'the command'}"


def main() -> None:
    """Every fault of every scenario; ends with 1 where something was wrong."""
    try_every(SCENARIOS, Rig, kind)


if __name__ == "__main__":
    main()
