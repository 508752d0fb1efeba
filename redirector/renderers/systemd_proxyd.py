"""As systemd-socket-proxyd behind socket units: a server that knows nothing of systemd stays where it is, on the target
port of the loopback, and a proxy without any privilege passes the bytes on.

The server sees 127.0.0.1 as its client, whoever that was.
"""

from __future__ import annotations

from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options, units
from redirector.renderers.binding import spoken, target_host
from redirector.renderers.limits import Limits, about_own, require, sharing

LIMITS = Limits("systemd-socket-proxyd", ("tcp",), proxy=True, source=True, interface=True, shift=False)
PROGRAM = "/lib/systemd/systemd-socket-proxyd"
CONNECTIONS = 4096  # of one mapping; the default is 256. Each takes six descriptors: two sockets and two pipes
FILES = 32768


def render(ruleset: Ruleset, _: Program, _options: Options) -> str:
    """Raises InvalidModel for what systemd-socket-proxyd cannot do."""
    require(ruleset, LIMITS)
    files, shared = [], sharing(ruleset)
    for mapping in ruleset.enabled:
        host = target_host(mapping).strip("[]")
        target = f"{host}:{mapping.to}"  # it splits at the last colon, and knows no brackets
        proxy = units.Server((PROGRAM, f"--connections-max={CONNECTIONS}", target), None, (mapping,))
        sockets = list(units.sockets(mapping, proxy.name, shared=mapping.name in shared))
        lines = [
            f"Sockets={units.names(sockets, '.socket')}",
            f"LimitNOFILE={FILES}",
            "CapabilityBoundingSet=",
            "PrivateUsers=yes",
            # For what it opens itself; clients came by the socket unit's.
            "IPAddressDeny=any",
            f"IPAddressAllow={host}",
            "MemoryDenyWriteExecute=yes",
            "ProcSubset=pid",
        ]
        files += [*sockets, units.service(proxy, lines, wanted=False, type_="notify", state=False)]
    notes = [
        "The servers stay on their target ports, and need not listen anywhere but on the loopback:",
        *(f"  {m.name}: {spoken(m)} to {target_host(m)}:{m.to}" for m in ruleset.enabled),
        "They see 127.0.0.1 as their client, whoever that was.",
        f"No more than {CONNECTIONS:,} connections at once for each mapping; further ones are closed at once.",
        *units.about_sources(ruleset),
        *about_own(ruleset),
    ]
    return units.installed("systemd-proxyd", notes, files, ".socket")
