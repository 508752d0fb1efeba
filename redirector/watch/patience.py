"""When to heal at once, and when to let be for a while: somebody may undo each healing. Pure.

Two programs that undo each other's work as fast as they can keep a machine busy, and the redirects flicker all the
same. So a few times in a row are healed at once, whatever reloads and restarts may bring. If what was healed is undone
again and again right afterwards, we wait before the next time, twice as long each time.
"""

from __future__ import annotations

QUICK = 1.0  # seconds: who undoes it within these does so because of the healing
AT_ONCE = 10  # healings in a row
FIRST, LONGEST = 1.0, 60.0  # seconds to wait


class Patience:
    """All times are seconds of one clock that only goes forward."""

    def __init__(self) -> None:
        self.count = 0  # healings in a row
        self._wait = 0.0
        self._last = float("-inf")

    def healed(self, found: float, done: float) -> float:
        """Drift was found and healed at these times: how long to wait now. While it waits, nobody knows when it was
        undone: it counts as at once."""
        if found - self._last > self._wait + QUICK:
            self.count = 0
        self.count += 1
        self._last = done
        self._wait = growing(self.count - AT_ONCE)
        return self._wait


def growing(step: int, longest: float = LONGEST) -> float:
    """Seconds to wait the `step`-th time (from 0; none before): twice as long each time."""
    return min(FIRST * 2.0 ** min(step, 30), longest) if step >= 0 else 0.0
