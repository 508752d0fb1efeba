"""The rules of others, as iptables-save and nft list them.

Theory of operation. Looking must leave no trace: `iptables-legacy-save -t nat` creates the table that it lists (and
loads its module), so it is run only for tables that /proc/net/ip_tables_names knows already, and `iptables-nft-save`
only for tables of which netlink has told. nft is run in children only, one for each table: it may crash on data of
others, and version 1.0.6 writes JSON that ends in the middle where a table has the flag `dormant` (seen); what cannot
be read costs one table, and is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from redirector.errors import printable
from redirector.records import NamedTuple

if TYPE_CHECKING:  # the first only where there is something to read
    from redirector.backends.iptables.save import SavedTable
    from redirector.host.firewalls import NftChain

SECONDS = 10.0  # for one child: iptables-nft-save of 100,000 rules takes about one
SAVED = ("nat", "filter")  # the tables of iptables in which somebody's mappings, or drops, may be
# The base chains of these, as iptables makes them: (table, chain, priority), linux/netfilter_ipv4.h.
BUILTIN = {("nat", "PREROUTING", -100), ("nat", "OUTPUT", -100), ("nat", "INPUT", 100), ("nat", "POSTROUTING", 100)}
BUILTIN |= {("filter", name, 0) for name in ("INPUT", "FORWARD", "OUTPUT")}


class Saved(NamedTuple):
    """What iptables-save says of a table: `backend` iptables-nft or iptables-legacy, `family` ipv4 or ipv6."""

    backend: str
    family: str
    name: str
    table: SavedTable


class Listed(NamedTuple):
    """A table as nft lists it: the objects of its JSON, and the text of each rule by handle."""

    family: str
    name: str
    objects: tuple[Any, ...]
    texts: Mapping[int, str]


def saved(
    chains: tuple[NftChain, ...],
    legacy: Mapping[str, tuple[str, ...]],
    tools: Mapping[str, str],
    failures: list[str],
) -> Iterator[Saved]:
    """The tables of iptables that exist, in either variant."""
    known = {(chain.family, chain.table) for chain in chains}
    # A table of the same name that was made by nft: of that iptables-nft-save 1.8.9 leaves chains out, and writes
    # others without the conditions that it has no words for (both seen). nft lists it.
    known -= {(c.family, c.table) for c in chains if c.hook and (c.table, c.name, c.priority) not in BUILTIN}
    for family, nft_family, prefix in (("ipv4", "ip", "iptables"), ("ipv6", "ip6", "ip6tables")):
        for name in SAVED:
            for variant, exists in (
                ("legacy", name in legacy.get(family, ())),
                ("nft", (nft_family, name) in known),
            ):
                found = _save(tools, f"{prefix}-{variant}-save", name, failures) if exists else None
                if found is not None:
                    yield Saved(f"iptables-{variant}", family, name, found)


def _save(tools: Mapping[str, str], tool: str, name: str, failures: list[str]) -> SavedTable | None:
    """One table; None, and a failure told, where it cannot be read."""
    from redirector.backends.iptables.save import Unparsable, parse

    text = _output(tools, tool, ["-t", name], failures)
    try:
        return parse(text.splitlines()).get(name) if text is not None else None
    except Unparsable as error:
        failures.append(f"what {tool} -t {name} writes cannot be read: {error}")
        return None


def listed(
    chains: tuple[NftChain, ...], known: tuple[Saved, ...], tools: Mapping[str, str], failures: list[str]
) -> Iterator[Listed]:
    """The native tables of others that have base chains where it matters."""
    covered = {("inet", "redirector")}
    families = {"ipv4": "ip", "ipv6": "ip6"}
    covered |= {(families[one.family], one.name) for one in known if one.backend == "iptables-nft"}
    wanted = {(c.family, c.table) for c in chains if c.type in ("nat", "filter") and c.hook in HOOKS} - covered
    for family, name in sorted(wanted):
        # nft takes its arguments for its language: a name that is no plain word there is not handed to it.
        if not (name.isascii() and name.replace("_", "").replace("-", "").replace(".", "").isalnum()):
            failures.append(f"table {family} {printable(name)} is not read: nft could take its name for a command")
            continue
        found = _list(tools, family, name, failures)
        if found is not None:
            yield found


HOOKS = ("prerouting", "input", "forward", "output")


def _list(tools: Mapping[str, str], family: str, name: str, failures: list[str]) -> Listed | None:
    import json

    text = _output(tools, "nft", ["-a", "list", "table", family, name], failures)
    if text is None or "\n\tflags dormant" in text:  # its chains see no packets
        return None
    found = _output(tools, "nft", ["-j", "list", "table", family, name], failures)
    if found is None:
        return None
    try:
        objects = json.loads(found)["nftables"]
    except (ValueError, KeyError, TypeError, RecursionError):
        failures.append(f"what nft -j list table {family} {name} writes cannot be read")
        return None
    return Listed(family, name, tuple(objects), rule_texts(text))


def rule_texts(listing: str) -> dict[int, str]:
    """The text of each rule in what `nft -a list table` prints, by its handle; sets are indented less."""
    found = {}
    for line in listing.splitlines():
        text, mark, handle = line.rpartition(" # handle ")
        if mark and text.startswith("\t\t") and handle.isascii() and handle.isdigit():
            found[int(handle)] = text.strip()
    return found


def _output(tools: Mapping[str, str], tool: str, arguments: list[str], failures: list[str]) -> str | None:
    """What a child writes; None, and a failure told, where it cannot be run or fails."""
    from redirector.host import children

    what = " ".join([tool, *arguments])
    if tool not in tools:
        failures.append(f"{tool} is missing, so its rules cannot be read")
        return None
    try:
        done = children.run([tools[tool], *arguments], SECONDS)
    except OSError as error:
        reason = str(error) or f"it did not end within {SECONDS:.0f} s"
        failures.append(f"{what} cannot be run: {printable(reason)}")
        return None
    if done.code:
        failures.append(f"{what} fails: {printable(done.complaint.strip())[:300] or f'exit {done.code}'}")
        return None
    return done.output
