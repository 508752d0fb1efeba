"""What the doctor says, as text and JSON. Pure; see `output`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redirector import findings
from redirector.errors import plural

if TYPE_CHECKING:
    from redirector.choose import Choice
    from redirector.findings import Finding
    from redirector.terminal import Paint


def doctor_text(choice: Choice, found: Sequence[Finding], file: str | None, paint: Paint) -> str:
    """The choice, its reasons, and each finding with what mends it below."""
    lines = [f"backend {paint(choice.backend, 'bold')}", *(f"  because {reason}" for reason in choice.reasons)]
    if file is None:
        lines.append("there is no mapping file yet, so only the host was looked at")
    lines += findings.lines(found, paint)
    lines += ["", paint(plural(len(found), "finding") if found else "nothing is in the way", "bold")]
    return "\n".join(lines)


def doctor_json(choice: Choice, found: Sequence[Finding], file: str | None) -> dict[str, Any]:
    return {
        "backend": choice.backend,
        "reasons": list(choice.reasons),
        "file": file,
        "findings": [findings.data(one) for one in found],
    }
