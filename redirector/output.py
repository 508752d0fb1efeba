"""Text and JSON, for people and for scripts. Pure.

Each `…_json` function gives the fields that others rely on; adding one is fine, changing one is not. Text is for
people and promises nothing. Names that others chose (users' files, foreign tables) come in escaped already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from redirector.errors import plural, printable
from redirector.records import NamedTuple

if TYPE_CHECKING:
    from redirector.changes import Change
    from redirector.guards import Finding
    from redirector.mappings import Diagnostic
    from redirector.model import Ports, Target
    from redirector.pending import Pending
    from redirector.plan import Plan
    from redirector.program import Route
    from redirector.reconcile import Outcome
    from redirector.report import Drift, Status
    from redirector.terminal import Paint

SIGNS = {"add": ("+", "green"), "remove": ("-", "red"), "change": ("~", "yellow")}
ROUTES_SHOWN = 12
CHANGES_SHOWN = 50  # of a plan that was carried out; a plan that is asked for is shown whole
FINDINGS_SHOWN = 20


# -- problems of a file ------------------------------------------------------------------------------------------


def diagnostic_text(found: Diagnostic, paint: Paint) -> str:
    """`file:line:column: message` (or `file: message`), the source line, a caret under the place, and what to do."""
    lines = [f"{paint(f'{found.place}:', 'bold')} {printable(found.message)}"]
    if found.text.strip():
        start = max(0, found.column - 1 - 60)
        shown = found.text[start : start + 100]
        # One column for each character, whatever it is: tabs and what is not printable become one blank or dot.
        clean = "".join(" " if c == "\t" else c if c.isprintable() else "·" for c in shown)
        carets = "^" * max(1, min(found.length, len(shown) - (found.column - 1 - start)))
        lines += [f"  {clean}", f"  {' ' * (found.column - 1 - start)}{paint(carets, 'red')}"]
    if found.hint:
        lines.append(f"  {paint('hint:', 'blue')} {printable(found.hint)}")
    return "\n".join(lines)


def diagnostic_json(found: Diagnostic) -> dict[str, Any]:
    return {
        "file": found.file,
        "line": found.line,
        "column": found.column,
        "message": found.message,
        "hint": found.hint,
    }


def finding_text(found: Finding, paint: Paint, allowed: AbstractSet[str] = frozenset()) -> str:
    """A refusal, or a warning; what a flag in `allowed` insists on is only a warning."""
    subject = f"{found.mapping}: " if found.mapping else ""
    if found.flag in allowed:
        return f"{paint('warning:', 'yellow')} {subject}{found.message} (allowed by {found.flag})"
    if found.flag:
        return f"{paint('refused:', 'red')} {subject}{found.message} ({found.flag} to insist)"
    return f"{paint('warning:', 'yellow')} {subject}{found.message}"


def findings_text(findings: Sequence[Finding], paint: Paint, allowed: AbstractSet[str]) -> str:
    """A line for each, refusals first; of very many only the beginning is shown."""
    ordered = sorted(findings, key=lambda found: not found.flag)
    shown = ordered[:FINDINGS_SHOWN] if len(ordered) > FINDINGS_SHOWN + 1 else ordered
    lines = [finding_text(found, paint, allowed) for found in shown]
    if len(shown) < len(ordered):
        lines.append(f"… and {plural(len(ordered) - len(shown), 'warning')} more: --json shows them all")
    return "\n".join(lines)


def finding_json(found: Finding) -> dict[str, Any]:
    return {"mapping": found.mapping or None, "message": found.message, "override": found.flag or None}


# -- plans -------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A line about routes: what may be joined (protocols, ports, places), and what must be equal."""

    protocols: tuple[str, ...]
    ports: tuple[str, ...]
    places: tuple[str, ...]
    target: Ports | Target | None
    rewrite: str

    def __str__(self) -> str:
        words = f"{', '.join(self.protocols)} {', '.join(self.ports)}"
        untranslated = " masqueraded" if self.rewrite == "masquerade" else " refused when connected to directly"
        words += untranslated if self.target is None else f" → {self.target}"
        redirect = " (redirect)" if self.rewrite == "redirect" else ""
        return " ".join([words + redirect, *filter(None, [", ".join(filter(None, self.places))])])


def merged(routes: Iterable[Route]) -> list[str]:
    """Routes as text, joined where they differ in one thing only: protocols, ports (of one target), or places.

    "tcp, udp 53 → 5353", "tcp 80, 90-99 → 9090", "tcp 80 → 8080 from 10.0.0.0/8, from fd00::/8".
    """
    rows = [_Row((r.protocol,), (str(r.ports),), (r.where,), r.target, r.rewrite) for r in routes]
    for joined in ("protocols", "ports", "places") if len(rows) > 1 else ():
        grouped: dict[_Row, _Row] = {}
        for row in rows:
            shifted = row.target is not None and row.target.size > 1
            if joined == "ports" and shifted:  # each range has a target of its own
                grouped[row] = row
                continue
            key = row._replace(**{joined: ()})  # type: ignore[arg-type]  # one of three fields of a type
            before = getattr(grouped[key], joined) if key in grouped else ()
            grouped[key] = row._replace(**{joined: before + getattr(row, joined)})
        rows = list(grouped.values())
    return [str(row) for row in rows]


def change_lines(change: Change, paint: Paint, width: int) -> Iterator[str]:
    """The lines of a diff for one change."""
    sign, colour = SIGNS[change.action]
    name = (change.mapping or "(table)").ljust(width)
    gone, new = merged(change.gone), merged(change.new)
    if change.detail:
        yield f"{paint(sign, colour)} {name}  {change.detail}"
    if not gone and not new:
        return
    if change.action == "change":
        if len(change.gone) == len(change.new) == 1 and change.gone[0]._replace(target=None) == change.new[0]._replace(
            target=None
        ):
            yield f"{paint(sign, colour)} {name}  {new[0]} (was {change.gone[0].target})"
            return
        yield f"{paint(sign, colour)} {name.rstrip()}"
        yield from _cut((f"    {paint('-', 'red')} {line}" for line in gone), len(gone))
        yield from _cut((f"    {paint('+', 'green')} {line}" for line in new), len(new))
        return
    lines = gone or new
    yield f"{paint(sign, colour)} {name}  {lines[0]}"
    yield from _cut((f"{paint(sign, colour)} {' ' * width}  {line}" for line in lines[1:]), len(lines) - 1)


def _cut(lines: Iterable[str], count: int) -> Iterator[str]:
    """At most ROUTES_SHOWN lines, and how many more there are."""
    for shown, line in enumerate(lines):
        if shown == ROUTES_SHOWN:
            yield f"    … and {count - shown} more"
            return
        yield line


def plan_text(plan: Plan, paint: Paint, done: str = "") -> str:
    """The plan as a diff, and one summary line; `done` says of a plan that was carried out what it came to, and of a
    large one only the beginning is then shown."""
    from redirector.changes import summary

    changes = plan.changes
    shown = changes[:CHANGES_SHOWN] if done and len(changes) > CHANGES_SHOWN + 1 else changes
    width = min(32, max((len(c.mapping or "(table)") for c in shown), default=0))
    lines = [line for change in shown for line in change_lines(change, paint, width)]
    if len(shown) < len(changes):
        lines.append(f"… and {len(changes) - len(shown):,} more")
    if lines:
        lines.append("")
    total = summary(changes, done=bool(done)) + (f"; {done}" if done else "")
    return "\n".join([*lines, paint(total, "bold")])


def _signed(change: Change) -> list[str]:
    routes = [f"- {route}" for route in merged(change.gone)] + [f"+ {route}" for route in merged(change.new)]
    return [*routes, *filter(None, [change.detail])]


def route_json(route: Route) -> dict[str, Any]:
    return {
        "protocol": route.protocol,
        "ports": str(route.ports),
        "to": str(route.target) if route.target else None,
        "where": route.where,
        "rewrite": route.rewrite,
    }


def plan_json(plan: Plan, findings: Iterable[Finding] = ()) -> dict[str, Any]:
    return {
        "in_sync": not plan,
        "changes": [
            {
                "action": change.action,
                "mapping": change.mapping,
                "detail": "; ".join(_signed(change)),
                "removed": [route_json(route) for route in change.gone],
                "added": [route_json(route) for route in change.new],
            }
            for change in plan.changes
        ],
        "findings": [finding_json(found) for found in findings],
    }


def outcome_json(outcome: Outcome, findings: Iterable[Finding] = ()) -> dict[str, Any]:
    found = plan_json(outcome.plan, findings)
    head = {"changed": bool(outcome.plan), "generation": outcome.generation, "recorded": outcome.recorded}
    return head | {"flows_restarted": outcome.flows} | found


# -- status ------------------------------------------------------------------------------------------------------


STATES = {
    "in-sync": ("in sync", "green"),
    "drifted": ("drifted", "red"),
    "drained": ("drained: no redirects", "yellow"),
    "absent": ("nothing is applied", "yellow"),
    "unknown": ("unknown", "red"),
    "pending": ("waits for confirm", "yellow"),
}


def drift_detail(drift: Drift) -> str:
    """What is wrong, in words."""
    lines = [f"has {route}" for route in merged(drift.extra)] + [f"lacks {route}" for route in merged(drift.missing)]
    return "; ".join([*lines, *filter(None, [drift.detail])])


def file_words(file: str, changed: bool | None, fault: str) -> str:
    """What there is to say of the mapping file that was applied."""
    if changed:
        return f"{printable(file)} has changed since: redirector plan shows how"
    return f"{printable(file)}: {fault}" if fault else ""


def pending_json(waiting: Pending | None) -> dict[str, Any] | None:
    if waiting is None:
        return None
    return {"generation": waiting.generation, "seconds_left": round(waiting.seconds_left, 1)}


def mending(status: Status) -> str:
    """The command that brings back what the last generation says."""
    head = status.head
    flag = " --replace-foreign" if any("is not ours: " in drift.detail for drift in status.drift) else ""
    if head is None or head.action != "apply" or not head.origin.startswith("/"):
        return f"redirector rollback{flag} {head.generation}" if head else "redirector apply"
    return f"redirector apply{flag} {printable(head.origin)}"


def status_text(
    status: Status, file_note: str, paint: Paint, waiting: Pending | None = None, *, counters: bool = False
) -> str:
    """The state, and what drifts; with `counters`, or where anything drifts, each mapping."""
    words, colour = STATES[status.state]
    head = status.head
    parts = [paint(words, colour), status.backend]
    if head:
        parts.append(f"generation {head.generation}, {head.action} of {head.applied_at} by {printable(head.author)}")
    if head and head.mappings:
        disabled = head.mappings - head.enabled
        parts.append(plural(head.mappings, "mapping") + (f" ({disabled} disabled)" if disabled else ""))
    lines = [" · ".join(parts)]
    if status.mappings and (status.drift or counters):
        drifted, connections = status.drifted, status.connections or {}
        width = max(len(m.name) for m in status.mappings)
        lines.append("")
        for mapping in status.mappings:
            taken = plural(connections.get(mapping.name, 0), "connection")
            state = "drifted" if mapping.name in drifted else "in sync" if mapping.enabled else "disabled"
            shade = {"drifted": "red", "in sync": "green", "disabled": "dim"}[state]
            lines.append(f"  {mapping.name.ljust(width)}  {paint(state.ljust(8), shade)}  {taken}")
    if status.drift:
        lines.append("")
        labels = ((drift, f"{paint(drift.kind, 'red')}: {drift.mapping or '(table)'}") for drift in status.drift)
        lines += [f"  {label}: {drift_detail(drift)}" for drift, label in labels]
        lines += ["", f"mend it by: {mending(status)}"]
    if waiting:
        left = f"{waiting.seconds_left:.0f} s left"
        lines += ["", f"{left}: redirector confirm keeps generation {waiting.generation}, cancel takes it back"]
    lines += [note for note in (status.note, file_note) if note]
    return "\n".join(lines)


def status_json(status: Status, file: str, changed: bool | None, file_error: str) -> dict[str, Any]:
    head, drifted, connections = status.head, status.drifted, status.connections or {}
    mappings = [
        {
            "name": m.name,
            "enabled": m.enabled,
            "in_sync": m.name not in drifted,
            "connections": connections.get(m.name, 0),
        }
        for m in status.mappings or ()
    ]
    return {
        "state": status.state,
        "backend": status.backend,
        "generation": head.generation if head else None,
        "applied_at": head.applied_at if head else None,
        "compared": status.compared,
        "drift": [{"kind": d.kind, "mapping": d.mapping, "detail": drift_detail(d)} for d in status.drift],
        "mappings": None if status.connections is None else mappings,
        "file": file,
        "file_changed": changed,
        "file_error": file_error,
        "note": status.note,
    }
