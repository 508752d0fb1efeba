"""A Ruleset as text for people and other tools: one module for each kind, found by a table.

A module of the tables has `render(ruleset, program, options) -> str`, and `OPTIONS`, the names of those that it looks
at, if there are any. It is imported only when its kind is asked for; adding one is a line here. `RULES` say in rule
languages what the kernel holds, which is the Program. `MECHANISMS` are other ways to the same ports: a server that is
let to have them itself, or a proxy in front of it; they look at the Ruleset, and at what the options say beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from redirector.errors import Refused, Usage
from redirector.model import Ruleset
from redirector.program import Program

RULES: dict[str, str] = {
    "nft": "redirector.renderers.nft",
    "json": "redirector.renderers.nft_json",
    "iptables-restore": "redirector.renderers.iptables_restore",
    "ip6tables-restore": "redirector.renderers.ip6tables_restore",
}
MECHANISMS: dict[str, str] = {
    "systemd-socket": "redirector.renderers.systemd_socket",
    "systemd-ambient": "redirector.renderers.systemd_ambient",
    "systemd-proxyd": "redirector.renderers.systemd_proxyd",
    "authbind": "redirector.renderers.authbind",
    "setcap": "redirector.renderers.setcap",
    "sysctl": "redirector.renderers.sysctl",
    "nginx": "redirector.renderers.nginx",
    "haproxy": "redirector.renderers.haproxy",
    "caddy": "redirector.renderers.caddy",
}
KINDS = RULES | MECHANISMS


@dataclass(frozen=True, slots=True)
class Options:
    """What a mechanism needs and a mapping file does not say."""

    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The server: program (an absolute path) and arguments, by the mapping's name; "" for those that are not named."""
    http: frozenset[str] = frozenset()
    """Mappings whose clients speak HTTP, beyond those on HTTP's own ports."""
    stream: frozenset[str] = frozenset()
    """Mappings that are to be passed on byte by byte, whatever their port."""


def unused(kind: str, options: Options) -> list[str]:
    """The names of the options that were given and that this kind does not look at."""
    taken = getattr(import_module(KINDS[kind]), "OPTIONS", ())
    return [name for name in ("programs", "http", "stream") if getattr(options, name) and name not in taken]


def render(kind: str, ruleset: Ruleset, program: Program, options: Options | None = None) -> str:
    """The text, which ends with a newline. `program` is that of `ruleset`: `compile_ruleset(ruleset)`.

    Raises InvalidModel for what cannot be said in this kind, all of it, each with the path to its place in the ruleset;
    errors.Refused for what no mapping file can have said; errors.Usage for a kind that is not in `KINDS`, and for
    options that are missing or name mappings that are not there.
    """
    if kind not in KINDS:
        raise Usage(f'there is no rendering as "{kind}"', f"there is: {', '.join(KINDS)}")
    options = options or Options()
    names = {mapping.name for mapping in ruleset.mappings}
    for name in sorted((options.http | options.stream | set(options.programs)) - names - {""}):
        raise Usage(f'there is no mapping "{name}" in the file', "options name mappings as the file does")
    for name in sorted(options.http & options.stream):
        raise Usage(f'"{name}" cannot be both HTTP and a stream of bytes')
    if kind in MECHANISMS and not ruleset.enabled:
        raise Refused("no mapping is enabled: there is nothing to render")
    text: str = import_module(KINDS[kind]).render(ruleset, program, options)
    return text
