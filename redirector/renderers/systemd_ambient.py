"""As systemd services with an ambient capability: the server binds the ports itself, and is no root while it does.

CAP_NET_BIND_SERVICE is for every port below 1024. SocketBindAllow= narrows it to those of the mappings, by BPF; a
systemd that was built without that (Debian 12's) passes over it in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options, units
from redirector.renderers.binding import bindings, spoken
from redirector.renderers.limits import Limits, require

OPTIONS = ("programs",)
LIMITS = Limits("an ambient capability", ("tcp", "udp"), proxy=False, nested=False, sockets=0)
MAX_RULES = 128  # of SocketBindAllow= (systemd.resource-control(5))


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what a capability cannot do, errors.Usage where a program is missing."""
    require(ruleset, LIMITS)
    files = []
    for server in units.servers(ruleset, options):
        lines = ["AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"]
        files.append(units.service(server, [*lines, *_rules(server)], wanted=True))
    notes = [
        "The server binds these ports itself, instead of the targets of the redirects; configure it so:",
        *(f"  {mapping.name}: {spoken(mapping)}" for mapping in ruleset.enabled),
        "It may bind every port below 1024, and so may whatever it starts. SocketBindAllow= narrows that to its own",
        "where systemd can: `systemctl --version` says +BPF_FRAMEWORK. Any other passes over these lines in silence.",
    ]
    return units.installed("systemd-ambient", notes, files, ".service")


def _rules(server: units.Server) -> Iterator[str]:
    """What may be bound, port 0 (any that is free) included; nothing where that needs more rules than there may be."""
    rules = dict.fromkeys(f"{b.family}:{b.protocol}:{b.ports}" for m in server.mappings for b in bindings(m))
    if len(rules) < MAX_RULES:
        yield "SocketBindDeny=any"
        yield from (f"SocketBindAllow={rule}" for rule in rules)
