"""What the doctor says, as text and JSON. Pure; see `output`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redirector.errors import plural, printable

if TYPE_CHECKING:
    from redirector.choose import Choice
    from redirector.diagnose import Finding
    from redirector.terminal import Paint

COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


def doctor_text(choice: Choice, findings: Sequence[Finding], file: str | None, paint: Paint) -> str:
    """The choice, its reasons, and each finding with what mends it below."""
    lines = [f"backend {paint(choice.backend, 'bold')}", *(f"  because {reason}" for reason in choice.reasons)]
    if file is None:
        lines.append("there is no mapping file yet, so only the host was looked at")
    for found in findings:
        label = paint(f"{found.severity}:", COLOURS[found.severity])
        lines += ["", f"{label} {printable(found.message)} [{found.id}]"]
        lines += [f"  {paint('fix:', 'blue')} {printable(step)}" for step in found.fix]
    lines += ["", paint(plural(len(findings), "finding") if findings else "nothing is in the way", "bold")]
    return "\n".join(lines)


def doctor_json(choice: Choice, findings: Sequence[Finding], file: str | None) -> dict[str, Any]:
    return {
        "backend": choice.backend,
        "reasons": list(choice.reasons),
        "file": file,
        "findings": [
            {"id": found.id, "severity": found.severity, "message": found.message, "fix": list(found.fix)}
            for found in findings
        ],
    }
