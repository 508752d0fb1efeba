"""As a sysctl: the ports from the lowest one on are no longer privileged, and the servers bind them as anybody may."""

from __future__ import annotations

from redirector.errors import Refused
from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import PRIVILEGED, privileged, spoken
from redirector.renderers.installing import head
from redirector.renderers.limits import Limits, require

LIMITS = Limits("a sysctl", ("tcp", "udp", "sctp"), proxy=False, nested=False, sockets=0)
NAME = "net.ipv4.ip_unprivileged_port_start"
PLACE = "/etc/sysctl.d/60-redirector-ports.conf"


def render(ruleset: Ruleset, _: Program, _options: Options) -> str:
    """Raises InvalidModel for what a sysctl cannot do, Refused where no port needs it."""
    require(ruleset, LIMITS)
    ports = [ports for mapping in ruleset.enabled for ports in privileged(mapping)]
    if not ports:
        raise Refused(f"no mapping has a port below {PRIVILEGED}: the servers can bind them as they are")
    lowest = min(ports).first
    owners = sorted({str(mapping.owner) for mapping in ruleset.enabled if mapping.owner is not None})
    notes = [
        f"Belongs into {PLACE}; to bring it into force:",
        f"  sysctl -p {PLACE}",
        "",
        "The servers bind these ports themselves, instead of the targets of the redirects; configure them so:",
        *(f"  {mapping.name}: {spoken(mapping)}" for mapping in ruleset.enabled),
        "",
        f"What else it does: every user of this host, not only {' and '.join(owners) or 'those of the servers'}, may",
        f"bind every port from {lowest} to {PRIVILEGED - 1} that is free, of IPv4 and IPv6, TCP and UDP.",
    ]
    return f"{head('sysctl', notes)}{NAME} = {lowest}\n"
