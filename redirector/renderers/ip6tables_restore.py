"""As text for ip6tables-restore --noflush: see `iptables_restore`."""

from __future__ import annotations

from redirector.model import Ruleset
from redirector.program import Program
from redirector.renderers import Options, iptables_restore


def render(ruleset: Ruleset, program: Program, _options: Options) -> str:
    """Raises InvalidModel for what iptables cannot do."""
    return iptables_restore.text(ruleset, program, "ipv6")
