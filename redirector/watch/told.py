"""What a watcher tells, as data: `output_watch` has the words."""

from __future__ import annotations

from redirector.errors import RedirectorError
from redirector.records import NamedTuple
from redirector.watch.look import Look
from redirector.watch.sources import Suspect


class Started(NamedTuple):
    look: Look


class Healed(NamedTuple):
    """Drift was healed `seconds` after the watcher had heard of it. With no `suspects` it was there when the watch
    began (`first`), or its events were `lost`, or there are none for this backend."""

    look: Look
    suspects: tuple[Suspect, ...]
    seconds: float
    first: bool = False
    lost: bool = False


class Drifted(NamedTuple):
    """Drift that is only told (--dry-run)."""

    look: Look
    suspects: tuple[Suspect, ...]


class Changed(NamedTuple):
    """Another state or generation than at the last look, or the first one that did not fail."""

    look: Look


class Fought(NamedTuple):
    """What was healed has been undone `times` in a row; nothing is healed for `seconds`."""

    times: int
    suspects: tuple[Suspect, ...]
    seconds: float


class Failed(NamedTuple):
    """A look that could not be finished; the next one comes in `seconds`."""

    error: RedirectorError
    seconds: float


class Ended(NamedTuple):
    """By a signal; what is in the kernel stays."""


Told = Started | Healed | Drifted | Changed | Fought | Failed | Ended
Trouble = Fought | Failed
