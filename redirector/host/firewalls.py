"""What the host has of firewalls: kernel, tools, nft chains, and the rules of iptables in both variants.

Theory of operation. Looking must leave no trace: `iptables-legacy-save -t nat` creates the table that it lists (and
loads its module), so it is run only for tables that /proc/net/ip_tables_names knows already, and `iptables-nft-save`
only for tables of which netlink has told. Children are named absolutely, with an environment of ours and a time limit.
nft is run in children only, one for each table: it may crash on data of others, and version 1.0.6 writes JSON that
ends in the middle where a table has the flag `dormant` (seen); what cannot be read costs one table, and is told.

`quick` is for the path of `apply`: two files of /proc and one netlink dump answer for nearly every host.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redirector.backends.nftables import decode, wire
from redirector.backends.nftables.message import genid, header, nfgenmsg
from redirector.errors import NotPermitted, TryAgain, printable
from redirector.netlink import NETLINK_NETFILTER, DumpInterrupted, Message, NetlinkSocket, table
from redirector.records import NamedTuple

if TYPE_CHECKING:  # both only where there is something to read
    from redirector.backends.iptables.save import SavedTable

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin")  # as backends.iptables.commands has them
SECONDS = 10.0  # for one child: iptables-nft-save of 100,000 rules takes about one
LARGEST = 64 << 20  # bytes of a listing that are read at all
NET = "/proc/thread-self/net"  # /proc/net is the main thread's, which may be in another namespace
NAMES = {"ipv4": "ip_tables_names", "ipv6": "ip6_tables_names"}
FAMILIES = {wire.NFPROTO_INET: "inet", wire.NFPROTO["ipv4"]: "ip", wire.NFPROTO["ipv6"]: "ip6"}
SAVED = ("nat", "filter")  # the tables of iptables in which somebody's mappings, or drops, may be
# The base chains of these, as iptables makes them: (table, chain, priority), linux/netfilter_ipv4.h.
BUILTIN = {("nat", "PREROUTING", -100), ("nat", "OUTPUT", -100), ("nat", "INPUT", 100), ("nat", "POSTROUTING", 100)}
BUILTIN |= {("filter", name, 0) for name in ("INPUT", "FORWARD", "OUTPUT")}
RESERVED = "REDIRECTOR-"  # backends.iptables.tree.PREFIX, which is not imported: `quick` needs no other rule of it
_NONE: MappingProxyType[Any, Any] = MappingProxyType({})


class NftChain(NamedTuple):
    """A chain of nf_tables, raw names. `family` is nft's word: ip, ip6 or inet. Only of a base chain: `type` (nat,
    filter, route), `hook`, `priority`, `policy` (accept, drop)."""

    family: str
    table: str
    name: str
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ""


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


class Firewalls(NamedTuple):
    """`kernel` as uname has it; `nf_tables` whether the kernel answers for it; `tools` paths by name; `legacy` the
    names of legacy tables by family; `failures` says, in words, what could not be read."""

    kernel: str
    nf_tables: bool = True
    tools: Mapping[str, str] = _NONE
    legacy: Mapping[str, tuple[str, ...]] = _NONE
    chains: tuple[NftChain, ...] = ()
    saved: tuple[Saved, ...] = ()
    listed: tuple[Listed, ...] = ()
    failures: tuple[str, ...] = ()


def quick() -> str | None:
    """The answer "nftables" where two files and one dump suffice for it; None where `gather` has to look.

    No process is started, nothing is imported that `apply` has not. Raises what `gather` raises.
    """
    from redirector.backends.nftables.backend import kernel_fault

    if any(legacy_names(family) != () for family in NAMES) or kernel_fault(os.uname().release):
        return None
    rows = _rows()
    # Names are looked for in the raw rows first: there may be ten thousand, of kube-proxy's.
    reserved = wire.text(RESERVED)[:-1]
    if rows is None or any(_is_reserved(chain) for chain in _decoded(row for row in rows if reserved in row.payload)):
        return None
    return "nftables"


def gather(*, listing: bool = False) -> Firewalls:
    """All of it, in the caller's network namespace; `listing`: also the rules of native nft tables.

    Raises errors.NotPermitted without CAP_NET_ADMIN, errors.TryAgain where others change chains all the time.
    """
    rows = _rows()
    chains = tuple(_decoded(rows or ()))
    legacy = {family: names for family in NAMES if (names := legacy_names(family))}
    tools = dict(_tools())
    failures: list[str] = []
    saved = tuple(_saved(chains, legacy, tools, failures))
    listed = tuple(_listed(chains, saved, tools, failures)) if listing else ()
    return Firewalls(
        os.uname().release, rows is not None, tools, legacy, chains, saved, listed, tuple(dict.fromkeys(failures))
    )


def tool_names(backend: str) -> tuple[str, ...]:
    """The programs that a backend starts."""
    variant = {"iptables-nft": "nft", "iptables-legacy": "legacy"}.get(backend)
    if variant is None:
        return ()
    return tuple(f"{name}-{variant}-{verb}" for name in ("iptables", "ip6tables") for verb in ("restore", "save"))


def legacy_names(family: str) -> tuple[str, ...] | None:
    """The legacy tables that exist; none where the module is not loaded. None where that cannot be told."""
    try:
        with open(f"{NET}/{NAMES[family]}", "rb") as file:
            return tuple(file.read().decode("utf-8", "replace").split())
    except FileNotFoundError:
        return () if os.path.isdir(NET) else None
    except OSError:
        return None


def _tools() -> Iterator[tuple[str, str]]:
    for name in ("nft", *tool_names("iptables-nft"), *tool_names("iptables-legacy")):
        for folder in FOLDERS:
            if os.access(f"{folder}/{name}", os.X_OK):
                yield name, f"{folder}/{name}"
                break


# -- nf_tables by netlink ----------------------------------------------------------------------------------------


def _rows() -> list[Message] | None:
    """The rows of all chains; None where the kernel has no nf_tables."""
    from redirector.host.dumps import steadily

    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        genid(netlink)
        return steadily(lambda: netlink.dump(header(wire.GETCHAIN), nfgenmsg(0)))
    except (OSError, DumpInterrupted) as error:
        number = getattr(error, "errno", None)
        if number in (errno.EPERM, errno.EACCES):
            hint = "run it as root, or with that capability"
            raise NotPermitted("the kernel refuses: this needs CAP_NET_ADMIN", hint) from None
        if number in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL):
            return None
        if number == errno.EBUSY:
            message = "others change the kernel's tables faster than they can be read"
            raise TryAgain(message, "try again in a moment") from None
        raise
    finally:
        netlink.close()


def _decoded(rows: Iterator[Message] | list[Message] | tuple[()]) -> Iterator[NftChain]:
    for row in rows:
        family = FAMILIES.get(row.payload[0] if row.payload else 0)
        if family is None:
            continue
        found = table(row.payload, 4)
        inside, name = (wire.untext(found.get(kind, b"")) for kind in (wire.CHAIN_TABLE, wire.CHAIN_NAME))
        yield NftChain(family, inside, name, *(decode.hook(found) or ()))


def _is_reserved(chain: NftChain) -> bool:
    return chain.family != "inet" and chain.table == "nat" and chain.name.startswith(RESERVED)


# -- rules by children -------------------------------------------------------------------------------------------


def _saved(
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


def _listed(
    chains: tuple[NftChain, ...], saved: tuple[Saved, ...], tools: Mapping[str, str], failures: list[str]
) -> Iterator[Listed]:
    """The native tables of others that have base chains where it matters."""
    covered = {("inet", "redirector")}
    families = {"ipv4": "ip", "ipv6": "ip6"}
    covered |= {(families[one.family], one.name) for one in saved if one.backend == "iptables-nft"}
    wanted = {(c.family, c.table) for c in chains if c.type in ("nat", "filter") and c.hook in HOOKS} - covered
    for family, name in sorted(wanted):
        # nft takes its arguments for its language: a name that is no plain word there is not handed to it.
        if not (name.isascii() and name.replace("_", "").replace("-", "").replace(".", "").isalnum()):
            failures.append(f"table {family} {printable(name)} is not read: nft could take its name for a command")
            continue
        found = _list(tools, family, name, failures)
        if found is not None:
            yield found


HOOKS = ("prerouting", "input", "output")


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
    import subprocess

    what = " ".join([tool, *arguments])
    if tool not in tools:
        failures.append(f"{tool} is missing, so its rules cannot be read")
        return None
    try:
        done = subprocess.run(
            [tools[tool], *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=ENVIRONMENT,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        failures.append(f"{what} cannot be run: {printable(str(error))}")
        return None
    if done.returncode or len(done.stdout) > LARGEST:
        reason = printable(done.stderr.decode(errors="replace").strip())[:300] or f"exit {done.returncode}"
        failures.append(f"{what} fails: {reason if done.returncode else 'too long'}")
        return None
    return done.stdout.decode("utf-8", "surrogateescape")
