"""What `watch` tells, as lines and JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from redirector.errors import plural, printable
from redirector.output import STATES, drift_detail
from redirector.watch.told import Changed, Drifted, Failed, Fought, Healed, Started

if TYPE_CHECKING:
    from redirector.report import Drift
    from redirector.watch.look import Look
    from redirector.watch.sources import Suspect
    from redirector.watch.told import Told, Trouble

SHOWN = 5  # differences and names in one line; status and history have the rest


def line(told: Told) -> str:
    number = generation(told)
    return summary(told) + (f"; generation {number}" if number is not None else "")


def generation(told: Told) -> int | None:
    """The one that it is about."""
    return told.look.generation if isinstance(told, Started | Changed | Healed | Drifted) else None


def summary(told: Told) -> str:
    """One line, without what `generation` has."""
    if isinstance(told, Healed):
        return f"healed in {told.seconds * 1000:.0f} ms: {drift_words(told.look.drift)}; {_by(told)}"
    if isinstance(told, Drifted):
        return f"{drift_words(told.look.drift)}; by {_names(told.suspects)}; nothing is healed (--dry-run)"
    if isinstance(told, Fought):
        return f"{_trouble(told)}; looking again in {told.seconds:.0f} s"
    if isinstance(told, Failed):
        hint = f" ({told.error.hint})" if told.error.hint else ""
        return f"{_trouble(told)}{hint}; trying again in {told.seconds:.0f} s"
    if isinstance(told, Started | Changed):
        return f"{'watching' if isinstance(told, Started) else 'now'}: {_words(told.look)}"
    return "ended; the redirects stay as they are"


def failed(told: Told) -> bool:
    """Whether people should look."""
    return isinstance(told, Fought | Failed) or (isinstance(told, Started | Changed) and told.look.state == "unknown")


def state(look: Look | None, trouble: Trouble | None) -> str:
    """What is in force, and what is in the way."""
    return "; ".join(filter(None, (_trouble(trouble) if trouble else "", look_words(look) if look else "")))


def look_words(look: Look) -> str:
    return _words(look) + (f"; generation {look.generation}" if look.generation is not None else "")


def _words(look: Look) -> str:
    place = f" ({look.backend})" if look.backend else ""
    return STATES[look.state][0] + place + (f"; {look.note}" if look.note else "")


def drift_words(drift: Sequence[Drift]) -> str:
    """What was wrong, by mapping."""
    shown = [f"{found.kind} {found.mapping or '(table)'}: {drift_detail(found)}" for found in drift[:SHOWN]]
    more = [f"and {len(drift) - SHOWN:,} more"] if len(drift) > SHOWN else []
    return ", ".join([*shown, *more])


def look_json(look: Look) -> dict[str, Any]:
    return {
        "state": look.state,
        "backend": look.backend,
        "generation": look.generation,
        "healed": look.healed,
        "drift": [{"kind": d.kind, "mapping": d.mapping, "detail": drift_detail(d)} for d in look.drift],
        "note": look.note,
    }


def _by(told: Healed) -> str:
    if told.suspects:
        return f"by {_names(told.suspects)}"
    if told.lost:
        return "by somebody (the kernel had to drop events)"
    return "while nobody watched" if told.first else "by somebody (nothing tells who)"


def _names(suspects: Iterable[Suspect]) -> str:
    names = list(dict.fromkeys(map(str, suspects)))
    return ", ".join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])]) or "somebody"


def _trouble(trouble: Trouble) -> str:
    if isinstance(trouble, Failed):
        return printable(trouble.error.message)
    return f"undone {plural(trouble.times, 'time')} in a row, at last by {_names(trouble.suspects)}: healing rests"
