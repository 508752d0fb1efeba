"""Y: net.ipv4.ip_unprivileged_port_start. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import PRIVILEGED, Facts
from redirector.audit.mechanisms.sysctl import NAME, PortStart
from redirector.findings import WARNING, Finding

CONFIGURE = "echo '{name} = {value}' > /etc/sysctl.d/90-port-start.conf"


def find(facts: Facts) -> Iterator[Finding]:
    """What it is, and whether it stays so."""
    for row in facts.of(PortStart):
        value = row.configured if row.runtime is None else row.runtime
        if value is not None and value < PRIVILEGED:
            said = f" ({row.where})" if row.configured == value else ""
            message = f"{NAME} is {value}{said}: every user may bind every port from {value} on"
            fix = [f"sysctl -w {NAME}={PRIVILEGED}"] if row.runtime is not None else []
            fix += [f"take the line out of {row.where}"] if said else []
            yield Finding("Y-lowered", WARNING, message, tuple(fix))
        after = PRIVILEGED if row.configured is None else row.configured
        if row.runtime is not None and row.runtime != after:
            said = str(row.where) if row.configured is not None else "no file says it, and the kernel begins with that"
            message = f"{NAME} is {row.runtime} now, and {after} after the next boot: {said}"
            keep = CONFIGURE.format(name=NAME, value=row.runtime)
            yield Finding("Y-differs", WARNING, message, (f"sysctl -w {NAME}={after}", f"or keep it: {keep}"))
