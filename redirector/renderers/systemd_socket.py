"""As systemd socket units: systemd binds the ports and hands them to a server that starts when the first client comes.

The server has no privilege at all, not even for the port, and cannot open it again: it has to take the sockets that it
is started with (sd_listen_fds(3)): descriptors from 3 on, as many as LISTEN_FDS says, named in LISTEN_FDNAMES.
"""

from __future__ import annotations

from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options, units
from redirector.renderers.binding import spoken
from redirector.renderers.limits import MAX_SOCKETS, Limits, about_own, count, require, sharing

OPTIONS = ("programs",)
LIMITS = Limits("a socket unit", ("tcp", "udp"), proxy=False, source=True, interface=True)


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what a socket unit cannot do, errors.Usage where a program is missing."""
    require(ruleset, LIMITS)
    files, shared = [], sharing(ruleset)
    for server in units.servers(ruleset, options):
        sockets = [file for m in server.mappings for file in units.sockets(m, server.name, shared=m.name in shared)]
        lines = [f"Sockets={units.names(sockets, '.socket')}", "CapabilityBoundingSet=", "PrivateUsers=yes"]
        if sum(map(count, server.mappings)) > MAX_SOCKETS:
            lines.append("LimitNOFILE=65536")  # it starts with more descriptors than most programs ever have
        files += [*sockets, units.service(server, lines, wanted=False)]
    notes = [
        "systemd binds the ports, and starts the server when the first client comes. The server has to take its",
        "sockets from systemd (sd_listen_fds(3)), named after the mappings; it cannot bind them itself:",
        *(f"  {mapping.name}: {spoken(mapping)}" for mapping in ruleset.enabled),
        *units.about_sources(ruleset),
        *about_own(ruleset),
    ]
    return units.installed("systemd-socket", notes, files, ".socket")
