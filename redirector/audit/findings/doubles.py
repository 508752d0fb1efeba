"""D: two mechanisms for one port: one of them is not what it seems. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from redirector.audit.capability import BIND
from redirector.audit.chains import chains
from redirector.audit.facts import Facts
from redirector.audit.mechanisms.capabilities import Capable
from redirector.audit.mechanisms.units import Unit, binds_by_ambient
from redirector.errors import printable
from redirector.findings import WARNING, Finding


def find(facts: Facts) -> Iterator[Finding]:
    """Port by port, and programs that have the right twice."""
    for chain in chains(facts, ()):
        if len(chain.ways) > 1:
            each = [f"{printable(w.by)} ({w.mechanism}{f', {w.where}' if w.where.file else ''})" for w in chain.ways]
            message = f"{chain.protocol} {chain.ports} is given away {len(each)} times: {'; '.join(each)}"
            fix = tuple(w.undo for w in chain.ways if w.undo)
            yield Finding(
                "D-two", WARNING, message, ("keep one of them: " + "; or ".join(fix),) if fix else (), chain.ports.first
            )
    capable = {row.file.path for row in facts.of(Capable) if row.file.caps and row.file.caps.permitted & BIND}
    for unit in facts.of(Unit):
        for words, where in unit.commands if binds_by_ambient(unit) else ():
            if words[0] in capable:
                once = f"and from {unit.name} ({where}), which is enough"
                message = f"{words[0]} has the capability twice: as a file, {once}"
                yield Finding(
                    "D-granted-twice", WARNING, message, (f"setcap -r {shlex.quote(words[0])}",), about=words[0]
                )
