"""The watcher: waits for events, looks, heals, says who it was.

Theory of operation. It hears first and looks then, so that nothing falls in between: what was done before it began is
found by the first look, what is done during a look is an event behind it. Everything that is there is read before each
look, and one look answers all of it. Commits up to the genid at which a look saw everything in order (our own ones
among them) are answered already; a commit in tables that hold nothing of ours is none of our business.

Between events the process sleeps in poll(2) without a timeout. It has one only while something is due: the ping that
systemd asked for, a comparison by `--interval`, a metrics file that is behind, the deadline of a change that waits for
confirm (its watchdog comes first, if it lives), and the end of a rest. It rests when healing is undone again and again
(see `patience`), and when a look has failed: whatever wakes it up too often is then not listened to; the events that
do not fit into the buffer meanwhile are lost, which only means that there is no name to tell.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Sequence

from redirector.errors import NotPermitted, RedirectorError, Refused, Unavailable, printable
from redirector.host import systemd
from redirector.records import NamedTuple
from redirector.watch.figures import Figures
from redirector.watch.look import Eyes, Look
from redirector.watch.patience import Patience, growing
from redirector.watch.sources import COMPARE, STOP, Source, Suspect, later
from redirector.watch.told import Changed, Drifted, Ended, Failed, Fought, Healed, Started, Told, Trouble

BEHIND = 10.0  # seconds that a metrics file may be behind the number of events; behind a look it never is
AFTER_DEADLINE = 2.0  # seconds after that of a change that waits: its watchdog takes it back within one
LONGEST_FAILURE = 10.0  # seconds until the next look where one has failed
SUSPECTS = 16  # that are kept, the latest


class Options(NamedTuple):
    """`heal`, or only tell; look every `interval` seconds, events or not (0: never); the file for the `metrics` ("":
    none)."""

    heal: bool = True
    interval: float = 0.0
    metrics: str = ""


class Watcher:
    """Watches until a source says stop. `tell` is told of everything; `state` says in words, for systemd, what the last
    look came to and what is in the way of the next."""

    def __init__(
        self,
        eyes: Eyes,
        sources: Sequence[Source],
        tell: Callable[[Told], None],
        state: Callable[[Look | None, Trouble | None], str],
        options: Options,
    ) -> None:
        self._eyes, self._sources, self._tell, self._state = eyes, sources, tell, state
        self._options = options
        self._figures = Figures(options.metrics)
        self._patience = Patience()
        self._last: Look | None = None  # that could be finished
        self._trouble: Trouble | None = None  # for which we rest
        self._failures = 0
        self._suspects: tuple[Suspect, ...] = ()  # of what no look has answered yet
        self._lost = False
        self._asked: set[str] = set()
        self._due: dict[str, float] = {}  # seconds of time.monotonic
        self._said = ""
        self._ping = systemd.ping_seconds()

    def run(self) -> None:
        """Raises what the first look raises for want of a kernel or of rights."""
        if self._ping:
            self._due["ping"] = time.monotonic() + self._ping
        self._look(time.monotonic(), compare=False)
        while STOP not in self._asked:
            self._wait()
        _notify("STOPPING=1")
        self._tell(Ended())

    def _wait(self) -> None:
        """Sleep until something has happened or is due, and see to it."""
        timeout = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
        rests = "rest" in self._due
        if self._unseen and not rests:
            timeout = 0.0  # heard already, behind the last look
        heard = self._hear(timeout, patient=not rests)
        now = time.monotonic()
        due = {what for what, when in self._due.items() if when <= now}
        for what in due:
            del self._due[what]
        if "ping" in due and self._ping:
            _notify("WATCHDOG=1")
            self._due["ping"] = now + self._ping
        compare = COMPARE in self._asked
        self._asked.discard(COMPARE)
        if compare or due & {"rest", "interval", "deadline"} or (self._unseen and not rests):
            self._look(now, compare=compare)
        elif self._options.metrics and (heard or "metrics" in due):
            self._write(now)

    def _hear(self, timeout: float | None, *, patient: bool = True) -> bool:
        """Drain the sources as soon as there is something, at the latest after `timeout` seconds (None: never); without
        the `patient` ones, if they are to wait. Whether there was anything."""
        poll = select.poll()
        sources = {source.fileno(): source for source in self._sources if patient or not source.patient}
        for descriptor in sources:
            poll.register(descriptor, select.POLLIN)
        # In whole milliseconds, rounded up: what is due in a half is not to be asked for again and again.
        ready = poll.poll(None if timeout is None else -int(-timeout * 1000 // 1))
        for descriptor, _ in ready:
            found = sources[descriptor].drain()
            self._figures.heard(sources[descriptor].name, found)
            unanswered = filter(self._unanswered, found.suspects)
            self._suspects = (*self._suspects, *unanswered)[-SUSPECTS:]
            self._lost = self._lost or found.lost
            self._asked |= {found.asked} - {""}
        return bool(ready)

    @property
    def _unseen(self) -> bool:
        """Whether something may have happened that no look has seen."""
        return self._lost or bool(self._suspects)

    def _unanswered(self, suspect: Suspect) -> bool:
        """Whether no look has seen what this has led to."""
        seen = self._last.genid if self._last else 0
        return not (seen and suspect.genid) or later(suspect.genid, seen)

    def _look(self, woken: float, *, compare: bool) -> None:
        if self._last:
            self._hear(0.0)  # one look answers everything that is there
        try:
            look = self._eyes.look(heal=self._options.heal, compare=compare)
        except (RedirectorError, OSError) as error:
            if not self._last and isinstance(error, NotPermitted | Unavailable):
                raise
            self._failed(error)
        else:
            if look.healed and look.genid:
                self._hear(0.0)  # what came while we waited for the lock, say
            self._looked(look, woken)
        now = time.monotonic()
        self._due.pop("deadline", None)
        if self._last and self._last.waiting:
            self._due["deadline"] = now + self._last.waiting.seconds_left + AFTER_DEADLINE
        if self._options.interval:
            self._due["interval"] = now + self._options.interval
        self._write(now, at_once=True)
        self._say()

    def _looked(self, look: Look, woken: float) -> None:
        before, self._last = self._last, look
        suspects = _culprits(look, self._suspects)
        self._suspects = tuple(filter(self._unanswered, self._suspects)) if look.genid else ()
        lost, self._lost = self._lost, False
        trouble, self._trouble = self._trouble, None
        self._failures = 0
        self._due.pop("rest", None)
        now = time.monotonic()
        if look.healed:
            self._figures.healed(now - woken)
            self._tell(Healed(look, suspects, now - woken, before is None, lost))
            rest = self._patience.healed(woken, now)
            if rest:
                self._trouble = Fought(self._patience.count, suspects, rest)
                self._due["rest"] = now + rest
                if not isinstance(trouble, Fought) or trouble.seconds < rest:
                    self._tell(self._trouble)
        elif look.drift and (before is None or before.drift != look.drift):
            self._figures.drifted()
            self._tell(Drifted(look, suspects))
        if before is None:
            self._tell(Started(look))
        elif isinstance(trouble, Failed) or _about(before) != _about(look):
            self._tell(Changed(look))

    def _failed(self, error: RedirectorError | OSError) -> None:
        if isinstance(error, OSError):
            error = Refused(printable(f"{error.filename or 'the kernel'}: {error.strerror or error}"))
        before = self._trouble
        self._figures.failures += 1
        self._trouble = Failed(error, growing(self._failures, LONGEST_FAILURE))
        self._failures += 1
        self._due["rest"] = time.monotonic() + self._trouble.seconds
        if not isinstance(before, Failed) or before.error.message != error.message:
            self._tell(self._trouble)

    def _write(self, now: float, *, at_once: bool = False) -> None:
        """Write the metrics, now or, so soon after the last time, later."""
        due = self._figures.written + BEHIND
        if at_once or due <= now:
            self._due.pop("metrics", None)
            self._figures.write(now, self._last, resting=self._trouble is not None)
        else:
            self._due["metrics"] = due

    def _say(self) -> None:
        """Tell systemd the state, if it has changed; the first time, that we are ready."""
        words = self._state(self._last, self._trouble)
        if words != self._said:
            _notify(f"STATUS={words}" if self._said else f"READY=1\nSTATUS={words}")
            self._said = words


def _culprits(look: Look, suspects: Iterable[Suspect]) -> tuple[Suspect, ...]:
    """Those whose changes lie between what was in order and what is in order again, without our own at the end."""
    if not look.genid:
        return tuple(suspects)
    some = (s for s in suspects if later(look.genid, s.genid))
    return tuple(s for s in some if not look.before or later(s.genid, look.before))


def _notify(state: str) -> None:
    with contextlib.suppress(OSError):  # nobody there to hear it is no reason to end
        systemd.notify(state)


def _about(look: Look) -> tuple[str, int | None, str]:
    """What is worth a line when it changes."""
    return look.state, look.generation, look.backend
