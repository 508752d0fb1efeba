"""The iptables backends: our chains in the nat and filter tables of both families, by iptables-save and -restore.

Theory of operation. `observe` reads both families and turns them into one Program (see `reading`). `commit` writes what
the steps lead to as rules (see `rules`), and what differs as one text for each family (see `script`). One restore is
atomic for each table; IPv4 and IPv6, and nat and filter, are not atomic together. So where a later one fails, what was
done before is undone; if even that fails, the outcome is unknown, and `reconcile` is told so.

There is no generation to compare and swap: the legacy variant has none. Instead no text mentions anything but our own
chains, and the jumps to them by their own words: what others do in between is neither lost nor needed. `genid` is
always 0, which is never what a commit leads to, so that everything is read back after each. The genid of nf_tables
would be no proof: where the kernel refuses iptables-nft-restore 1.8.9 a socket, or an answer about a target's revision,
it writes `-j DNAT --to-destination 2.0.0.0-0.0.0.0` for `:6`, ends with 0, and moves the genid as ever (27 of 780
injected errors led to other rules than those asked for, with success and the genid expected). But once everything was
read and found right, the nft variant's rules stay so while that genid stays: it is told with what was read (`seen`).

Reading is fast where it finds what it was told to `suppose`: what was written last, what is wanted, what was recorded.
The text that would be written for that is compared with the text that is there, rule by rule; if they are equal, there
is nothing to decode. Decoding (which inverts writing) is for everything else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from redirector import naming
from redirector.backends.base import Snapshot, Supposed
from redirector.backends.iptables import commands, reading, rules
from redirector.backends.iptables.commands import Failed
from redirector.backends.iptables.damage import displaced
from redirector.backends.iptables.save import Saved, Unparsable
from redirector.backends.iptables.script import Unspeakable, script
from redirector.backends.nftables import message
from redirector.backends.place import Place
from redirector.errors import NotPermitted, OutcomeUnknown, RedirectorError, Refused, Unavailable, printable
from redirector.model import DEFAULT_PRIORITY, FAMILIES, Ruleset
from redirector.plan import Step, perform
from redirector.program import Program
from redirector.records import NamedTuple

CAP_NET_ADMIN = 12  # linux/capability.h
CAP_NET_RAW = 13  # which the legacy variant needs for its socket


class _Written(NamedTuple):
    """A Program, and its rules by family."""

    program: Program
    tables: dict[str, rules.Tables]


class IptablesBackend:
    """One of the two variants. Raises errors.Unavailable where its programs are missing; observing and committing raise
    errors.NotPermitted without CAP_NET_ADMIN (and CAP_NET_RAW for the legacy variant)."""

    def __init__(self, variant: str) -> None:
        self.name = f"iptables-{variant}"
        self._variant = variant
        self._families = FAMILIES if os.path.isdir("/proc/sys/net/ipv6") else FAMILIES[:1]
        for family in self._families:
            for verb in ("save", "restore"):
                commands.find(variant, family, verb)
        try:
            self._place = Place()
        except OSError as error:
            raise Unavailable(f"this kernel has no netfilter netlink socket: {error.strerror}") from None
        self._home = _namespace()
        self._saved: Saved = {}
        self._program: Program | None = None
        self._supposed: list[Supposed] = []
        self._written: list[_Written] = []  # what of that was needed, and what was written last

    def close(self) -> None:
        self._place.close()

    def genid(self) -> int:
        return 0

    def identity(self) -> str:
        return self._place.identity()

    def restart_flows(self, ruleset: Ruleset, ports: AbstractSet[int], former: AbstractSet[tuple[str, int]]) -> int:
        return self._place.restart_flows(ruleset, ports, former)

    def suppose(self, *programs: Supposed) -> None:
        self._supposed = list(programs)

    def observe(self) -> Snapshot:
        self._require()
        foreign = ""
        before = self._genid()
        saved, program = self._compare(self._as_supposed)
        if program is None:
            foreign = reading.foreign_reason(saved)
            program = Program({}, {}) if foreign else reading.decode(saved)
        self._saved, self._program = saved, program
        seen = before if self._genid() == before else 0
        return Snapshot(program, 0, foreign, reading.counters(saved, program), seen)

    def _genid(self) -> int:
        """The generation number of nf_tables, 0 where that has nothing to do with it, or does not tell."""
        with contextlib.suppress(OSError):
            return message.genid(self._place.netfilter) if self._variant == "nft" else 0
        return 0

    def _as_supposed(self, saved: Saved) -> Program | None:
        """The supposed Program that this is, word for word, as it would be written: that needs no second reading, and
        no decoding, which inverts writing."""
        ours = reading.held(saved)
        if displaced(saved) or not any(chains for tables in ours.values() for chains in tables.values()):
            return None
        return next((written.program for written in self._candidates() if written.tables == ours), None)

    def _candidates(self) -> Iterator[_Written]:
        """What was written last, and what is supposed to be there; of each what cannot be said here is not what is."""
        yield from self._written
        while self._supposed:
            program = self._supposed.pop(0)()
            with contextlib.suppress(Refused):
                self._speakable(program)
                if program is not None:
                    self._written.append(_Written(program, rules.encoded(program, self._families)))
                    yield self._written[-1]

    def check(self, steps: Iterable[Step]) -> None:
        for family, text in self._texts(perform(self._program, steps)).items():
            try:
                commands.restore(self._variant, family, text, test=True)
            except Failed as error:
                raise _refused(error) from None

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        self._require()
        before = self._saved
        for family, text in self._texts(perform(self._program, steps)).items():
            try:
                commands.restore(self._variant, family, text)
            except (Failed, RedirectorError, OSError) as error:
                self._undo(before, error)
                raise _refused(error) from None

    def _undo(self, before: Saved, error: Exception) -> None:
        """Put everything back as it was `before`. Raises OutcomeUnknown where that fails, too: what tells is what is
        read afterwards, and no command."""
        wanted = reading.held(before)
        fault = "others have changed the rules meanwhile"
        try:
            now = self._read()
            ours = reading.held(now)
            for family in self._families:
                text = script(now[family], ours[family], wanted[family])
                try:
                    if text:
                        commands.restore(self._variant, family, text)
                except (Failed, RedirectorError, OSError) as failure:
                    fault = printable(str(failure))
            if reading.held(self._read()) == wanted:
                return
        except (RedirectorError, Unspeakable, OSError) as failure:
            fault = printable(str(failure))
        message = f"{error}; and putting back what had been changed failed ({fault})"
        raise OutcomeUnknown(message, "see: redirector status") from None

    def _texts(self, program: Program | None) -> dict[str, str]:
        """What to tell iptables-restore, by family, where there is anything."""
        self._speakable(program)
        ours = reading.held(self._saved)
        try:
            wanted = self._tables(program)
            texts = {f: script(self._saved[f], ours[f], wanted[f]) for f in self._families}
        except Unspeakable as error:
            message = f"a rule that others made leads to our chains, and cannot be taken away: {printable(str(error))}"
            raise Refused(message, f"delete it by hand: {self.name} -t nat -D …") from None
        return {family: text for family, text in texts.items() if text}

    def _tables(self, program: Program | None) -> dict[str, rules.Tables]:
        """The rules of a Program that is about to be written, and then is what may well be there."""
        if program is None:
            return rules.encoded(None, self._families)
        found = next((written for written in self._written if written.program == program), None)
        found = found or _Written(program, rules.encoded(program, self._families))
        self._written, self._supposed = [found], []
        return found.tables

    def _speakable(self, program: Program | None) -> None:
        """Raises Refused for what cannot be said here: a priority (old generations may have one), and IPv6 where the
        kernel has none."""
        if program is None:
            return
        hooks = [chain.hook for name, chain in program.chains.items() if name in naming.BASE_CHAINS.values()]
        if any(hook.priority != DEFAULT_PRIORITY for hook in hooks if hook):
            raise Refused(f"{self.name} knows no priorities", "leave priority out of the settings")
        if "ipv6" not in self._families and len(rules.encode(program, "ipv6")["nat"]) > 1:
            raise Refused(f"this kernel has no IPv6, and {self.name} cannot load rules for it", 'say family = "ipv4"')

    def _read(self) -> Saved:
        return self._compare(lambda _: None)[0]

    def _compare(self, supposed: Callable[[Saved], Program | None]) -> tuple[Saved, Program | None]:
        try:
            return commands.compare(self._variant, self._families, supposed)
        except Failed as error:
            raise Unavailable(f"the rules cannot be read: {error}", "see: redirector doctor") from None
        except Unparsable as error:
            raise Refused(f"what {self.name}-save prints cannot be understood: {error}", "please report it") from None

    def _require(self) -> None:
        """Raises NotPermitted; and RuntimeError in a thread that has left the network namespace that this is for: the
        commands would change another one."""
        if _namespace() != self._home:
            raise RuntimeError("this backend was made in another network namespace")
        wanted = [CAP_NET_ADMIN] + [CAP_NET_RAW] * (self._variant == "legacy")
        held = _capabilities()
        if not all(held >> number & 1 for number in wanted):
            names = "CAP_NET_ADMIN" + " and CAP_NET_RAW" * (len(wanted) > 1)
            raise NotPermitted(f"{self.name} needs {names}", "run it as root, or with these capabilities")


def _refused(error: Exception) -> Exception:
    """What made a commit fail, as what it means: nothing was changed."""
    if isinstance(error, RedirectorError):
        return error
    return Refused(f"{printable(str(error))}; nothing was changed", "see: redirector doctor")


def _namespace() -> int:
    """The network namespace of this thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _capabilities() -> int:
    """The effective capabilities of this thread, a bit for each (proc_pid_status(5))."""
    with open("/proc/thread-self/status", "rb") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith(b"CapEff:")), 0)
