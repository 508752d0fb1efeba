"""A Ruleset and its Program as text for people and other tools: one module for each kind, found by a table.

A module of the table has `render(ruleset, program) -> str`. It is imported only when its kind is asked for; adding
one is a line in `KINDS`. The Program is what the kernel holds; the Ruleset is for kinds that say it in other words.
"""

from __future__ import annotations

from importlib import import_module

from redirector.errors import Usage
from redirector.model import Ruleset
from redirector.program import Program

KINDS: dict[str, str] = {
    "nft": "redirector.renderers.nft",
    "json": "redirector.renderers.nft_json",
    "iptables-restore": "redirector.renderers.iptables_restore",
    "ip6tables-restore": "redirector.renderers.ip6tables_restore",
}


def render(kind: str, ruleset: Ruleset, program: Program) -> str:
    """The text, which ends with a newline. `program` is that of `ruleset`: `compile_ruleset(ruleset)`.

    Raises errors.Usage for a kind that is not in `KINDS`, errors.Refused for what cannot be said in this kind.
    """
    if kind not in KINDS:
        raise Usage(f'there is no rendering as "{kind}"', f"there is: {', '.join(KINDS)}")
    text: str = import_module(KINDS[kind]).render(ruleset, program)
    return text
