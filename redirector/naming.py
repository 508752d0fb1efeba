"""Names of our chains, maps and counters: readable in `nft list`, free of nft's keywords, parsed back to their meaning.

nft's identifiers are a letter, then letters, digits and `/ - _ .`. Parts are joined by `_`; an IPv6 address has `-` for
`:`; in an interface's name everything but letters, digits, `.` and `-` becomes `_` and two hexadecimal digits.
"""

from __future__ import annotations

import re

from redirector.model import Scope
from redirector.records import NamedTuple

TABLE = "redirector"
GUARD_CHAIN = "input"
REFUSE_CHAIN = "refuse"
HAIRPIN_CHAIN = "postrouting"
BASE_CHAINS = {"arriving": "prerouting", "own": "output"}  # side → base chain, which has its hook's name

# Compiled when first used: `apply` of a plain file never is (re keeps them after that).
_PLAIN = r"[^A-Za-z0-9.-]"
_PORT_MAP = (
    r"(?:(?P<side>arriving|own)_)?(?:from_(?P<source>[0-9a-f.-]+/[0-9]+)_)?(?:at_(?P<address>[0-9a-f.-]+)_)?"
    r"(?:on_(?P<interface>(?:[A-Za-z0-9.-]|_[0-9a-f]{2})+)_)?(?P<what>ports|redirects|forwards|counts|redirect-counts|forward-counts)"
    r"(?:_(?P<family>ipv[46]))?"
)
# How a map of ports, and the counting map beside it, are called, by rewrite.
_PORTS = {"port": "ports", "redirect": "redirects", "forward": "forwards"}
_COUNTS = {"port": "counts", "redirect": "redirect-counts", "forward": "forward-counts"}
# What begins the names of the chain and set for hairpins in one network (see `neighbours`).
_HAIRPIN, _TARGETS = "hairpin_", "targets_"
_COUNTER = "taken_"  # before the mapping's name: a name may begin with a digit, an identifier of nft's may not


class PortMap(NamedTuple):
    """What a map of ports is for: `side` "" serves both; `family` "" is what the scope implies, or both. One of
    addresses and ports ("forward") always says its family."""

    side: str
    scope: Scope
    family: str
    rewrite: str


def scope_words(scope: Scope) -> list[str]:
    words: list[str] = []
    if scope.source:
        words += ["from", scope.source.replace(":", "-")]
    if scope.address:
        words += ["at", scope.address.replace(":", "-")]
    if scope.interface:
        words += ["on", re.sub(_PLAIN, lambda c: f"_{ord(c[0]):02x}", scope.interface)]
    return words


def chain(side: str, scope: Scope) -> str:
    """The chain that holds what counts for one side and scope."""
    return "_".join([side, *scope_words(scope)])


def verdict_map(parent: str, what: str) -> str:
    """The map by which the chain `parent` dispatches to narrower ones: `what` is such as "sources_ipv4_24"."""
    return f"{parent}_{what}"


def port_map(wanted: PortMap) -> str:
    return _leaf(wanted, _PORTS)


def count_map(wanted: PortMap) -> str:
    """The counting map beside a map of ports."""
    return _leaf(wanted, _COUNTS)


def _leaf(wanted: PortMap, words: dict[str, str]) -> str:
    parts = [wanted.side, *scope_words(wanted.scope), words[wanted.rewrite], wanted.family]
    return "_".join(part for part in parts if part)


def parse_port_map(name: str) -> PortMap | None:
    """Inverts `port_map`; None for other names."""
    return _parse(name, _PORTS)


def parse_count_map(name: str) -> PortMap | None:
    """Inverts `count_map`; None for other names."""
    return _parse(name, _COUNTS)


def _parse(name: str, words: dict[str, str]) -> PortMap | None:
    rewrites = {word: rewrite for rewrite, word in words.items()}
    if "_" not in name:  # compiling the pattern takes a millisecond, which most files have no use for
        return PortMap("", Scope(), "", rewrites[name]) if rewrites.get(name, "forward") != "forward" else None
    match = re.fullmatch(_PORT_MAP, name)
    if not match or match["what"] not in rewrites or (rewrites[match["what"]] == "forward" and not match["family"]):
        return None
    interface = re.sub("_([0-9a-f]{2})", lambda c: chr(int(c[1], 16)), match["interface"] or "")
    scope = Scope((match["source"] or "").replace("-", ":"), (match["address"] or "").replace("-", ":"), interface)
    return PortMap(match["side"] or "", scope, match["family"] or "", rewrites[match["what"]])


def serves_both(name: str) -> bool:
    """Whether a map of ports is for both sides alike."""
    found = parse_port_map(name)
    return found is not None and not found.side


def counter(mapping: str) -> str:
    """The counter of a mapping's connections."""
    return _COUNTER + mapping


def counted(name: str) -> str:
    """Inverts `counter`; "" for a counter that is none of ours."""
    return name[len(_COUNTER) :] if name.startswith(_COUNTER) else ""


def guard_map(family: str, by_address: bool) -> str:
    return "_".join(word for word in ("guards", family, "at" if by_address else "") if word)


_GUARDS = (("", False), ("ipv4", False), ("ipv4", True), ("ipv6", False), ("ipv6", True))
# Every set of guards that there can be: name → (family, whether the address is part of the key).
GUARD_MAPS = {guard_map(f, at): (f, at) for f, at in _GUARDS}


def hairpin_chain(network: str) -> str:
    """The chain for what comes out of one network."""
    return _HAIRPIN + network.replace(":", "-")


def targets_set(network: str) -> str:
    """The set of targets in one network."""
    return _TARGETS + network.replace(":", "-")


def targets_network(name: str) -> str:
    """Inverts `targets_set`; "" for any other name."""
    if not name.startswith(_TARGETS):
        return ""
    address, slash, length = name[len(_TARGETS) :].replace("-", ":").partition("/")
    canonical = bool(slash) and re.fullmatch("[0-9a-f:.]+", address) and re.fullmatch("[1-9][0-9]{0,2}", length)
    return f"{address}/{length}" if canonical and int(length) <= (128 if ":" in address else 32) else ""


def of_all(name: str) -> bool:
    """Whether a map's entries follow from all mappings together, and not each from one."""
    return name in GUARD_MAPS or bool(targets_network(name))


def where(name: str) -> str:
    """In words, the packets that a map's entries count for."""
    found = parse_port_map(name) or parse_count_map(name)
    if found:
        side = {"own": "for this host itself", "arriving": "for others only", "": ""}[found.side]
        if found.side == "arriving" and (found.scope.source or found.scope.interface):
            side = ""  # goes without saying
        family = "" if found.rewrite == "forward" else found.family  # the target's, which says it
        return " ".join(word for word in (str(found.scope), family, side) if word)
    network = targets_network(name)
    return f"for {network}" if network else GUARD_MAPS.get(name, ("", False))[0]
