"""The page of `redirector report`: the state, the mappings, what drifts, what the doctor says, the ways. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from redirector import output
from redirector.choose import Choice
from redirector.drawing import html
from redirector.drawing.data import Graph
from redirector.drawing.html import Cell, Section
from redirector.errors import plural, printable
from redirector.findings import ERROR, WARNING, Finding
from redirector.model import Mapping
from redirector.records import NamedTuple
from redirector.report import Status

LOOKS = {"green": "good", "red": "bad", "yellow": "maybe"}


class Gathered(NamedTuple):
    """What a page tells: `host` its name, `when` in words, `note` what differs between the file and what is applied."""

    host: str
    when: str
    version: str
    status: Status
    note: str
    choice: Choice
    findings: tuple[Finding, ...]
    graph: Graph


def report_html(found: Gathered) -> str:
    words, colour = output.STATES[found.status.state]
    head = found.status.head
    parts = [html.span(words, LOOKS[colour]), escape(found.status.backend)]
    if head:
        about = f"generation {head.generation}, {head.action} of {head.applied_at} by {printable(head.author)}"
        parts += [escape(about), escape(plural(head.mappings, "mapping"))]
    note = [escape(text) for text in (found.note, found.status.note) if text]
    made = html.span(f"made {found.when} by redirector {found.version}", "soft")
    subtitle = "<br>".join([" · ".join(parts), *note, made])
    return html.page(f"Redirects of {printable(found.host)}", subtitle, _sections(found))


def _sections(found: Gathered) -> Iterator[Section]:
    yield Section("Mappings", _mappings(found.status))
    if found.status.drift:
        rows = [[Cell(d.kind), Cell(d.mapping or "(table)"), Cell(output.drift_detail(d))] for d in found.status.drift]
        mend = f"<p>Mend it by: <code>{escape(output.mending(found.status))}</code></p>"
        yield Section("Drift", html.table(["kind", "mapping", "difference"], rows) + mend)
    else:
        yield Section("Drift", "<p>None: the kernel holds what the last generation says.</p>" * bool(found.status.head))
    yield Section("Doctor", _doctor(found.choice, found.findings))
    yield from html.ways(found.graph)


def _mappings(status: Status) -> str:
    if not status.mappings:
        return '<p class="soft">There are none.</p>'
    connections, drifted = status.connections or {}, status.drifted
    rows = [_row(mapping, connections.get(mapping.name, 0), drifted) for mapping in status.mappings]
    heads = ["name", "clients use", "goes to", "for", "connections", "state", "comment"]
    return html.table(heads, rows)


def _row(mapping: Mapping, taken: int, drifted: set[str]) -> list[Cell]:
    scopes = dict.fromkeys(str(claim.scope) for claim in mapping.claims if str(claim.scope))
    families = "" if len(mapping.families) > 1 else {"ipv4": "IPv4", "ipv6": "IPv6"}[mapping.families[0]]
    exclusive = "exclusive" * mapping.exclusive
    state, look = ("disabled", "soft") if not mapping.enabled else ("in sync", "good")
    if mapping.name in drifted:
        state, look = "drifted", "bad"
    return [
        Cell(mapping.name, "code"),
        Cell(f"{', '.join(mapping.protocol)} {', '.join(map(str, mapping.listen))}", "code"),
        Cell(str(mapping.to), "code"),
        Cell("; ".join(filter(None, [families, *scopes, exclusive])) or "anyone"),
        Cell(f"{taken:,}" if mapping.enabled else "", "number"),
        Cell(state, look),
        Cell(printable(mapping.comment)),
    ]


def _doctor(choice: Choice, findings: Iterable[Finding]) -> str:
    reasons = "; ".join(map(printable, choice.reasons))
    lines = [f"<p>Backend <code>{escape(choice.backend)}</code>, because {escape(reasons)}.</p>" if reasons else ""]
    told = list(findings)
    if not told:
        lines.append("<p>Nothing is in the way.</p>")
    for one in told:
        look = {ERROR: "bad", WARNING: "maybe"}.get(one.severity, "soft")
        fixes = "".join(f"<pre>{escape(printable(step))}</pre>" for step in one.fix)
        label = html.span(f"{one.severity} {one.id}", look)
        words = f"<p>{label}</p><p>{escape(printable(one.message))}</p>"
        lines.append(f'<div class="finding {escape(one.severity)}">{words}{fixes}</div>')
    return "\n".join(filter(None, lines))
