"""Which backend a command works on, and that no other one holds our mappings.

What is in force stays where it is: `auto` means the backend of the last generation. Only where nothing was applied yet
does it mean what suits the host (see `choose`). To hold one mapping in two backends would be to hold it twice, and to
take it away once; so where another one is asked for while our mappings are still in the old, the answer is no, and how
to move them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from redirector.backends.base import Backend
from redirector.backends.opening import NAMES, open_backend
from redirector.errors import RedirectorError, Refused
from redirector.history import History, Record
from redirector.program import TRANSLATIONS, Program

Open = Callable[[str], Backend]


def backend_for(wanted: str, history: History, opener: Open = open_backend) -> Backend:
    """The backend to work on; `wanted` as in `[settings] backend`. Raises Refused where our mappings are in force in
    another one, and what the backends raise."""
    last = last_backend(history)
    name = wanted if wanted != "auto" else last or suitable()
    if last and last != name and holds(last, opener):
        message = f"our mappings are in force in {last}, and {name} is asked for"
        raise Refused(message, f"move them by: redirector migrate-backend {name}; or ask for {last}")
    return opener(name)


def name_for(wanted: str, history: History) -> str:
    """The name of the backend that is meant; `wanted` as in `[settings] backend`."""
    return wanted if wanted != "auto" else last_backend(history) or suitable()


def last_backend(history: History) -> str:
    """Where the last generation was loaded; "" where there is none that tells."""
    with contextlib.suppress(RedirectorError, OSError):  # who may not read the history is told so later, by its reader
        record = history.current()
        if isinstance(record, Record) and record.backend in NAMES and not record.purged:
            return record.backend
    return ""


def holds(name: str, opener: Open = open_backend) -> bool:
    """Whether a backend holds mappings of ours."""
    try:
        with contextlib.closing(opener(name)) as backend:
            return leads_anywhere(backend.observe().program)
    except RedirectorError:
        return False  # no such backend here: then it holds nothing


def leads_anywhere(program: Program | None) -> bool:
    return program is not None and any(found.entries for found in program.maps.values() if found.kind in TRANSLATIONS)


def suitable() -> str:
    """What suits a host on which nothing was applied yet. Raises Unavailable where nothing does."""
    from redirector.host import firewalls

    found = firewalls.quick()
    if found is None:
        from redirector.choose import choose

        found = choose(firewalls.gather()).backend
    return found
