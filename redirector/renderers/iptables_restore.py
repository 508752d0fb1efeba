"""As text for iptables-restore --noflush (IPv4); `ip6tables_restore` is the same for IPv6.

Loading it makes our chains anew; what others have stays. The jumps to our chains are put first each time, so on a host
that has them already, delete those first (or use `redirector apply`, which sees to it).
"""

from __future__ import annotations

from redirector.backends.iptables import rules
from redirector.backends.iptables.script import script
from redirector.compile import compile_ruleset
from redirector.errors import Refused
from redirector.model import InvalidModel, Ruleset, backend_problems
from redirector.program import Program
from redirector.renderers import Options

FAMILY = "ipv4"


def render(ruleset: Ruleset, program: Program, _options: Options) -> str:
    """Raises InvalidModel for what iptables cannot do."""
    return text(ruleset, program, FAMILY)


def text(ruleset: Ruleset, program: Program, family: str) -> str:
    """The rules of one family."""
    if program != compile_ruleset(ruleset):
        raise Refused("what others have put into the table cannot be written down")
    problems = list(backend_problems(ruleset.settings, "iptables"))
    if problems:
        raise InvalidModel(problems)
    return script({}, {"nat": {}, "filter": {}}, rules.encode(program, family))
