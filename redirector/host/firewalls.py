"""What the host has of firewalls: kernel, tools, nft chains, and the rules of iptables in both variants.

`quick` is for the path of `apply`: two files of /proc and one netlink dump answer for nearly every host. `gather` has
children list rules, too: see `listings`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redirector.backends.nftables import decode, wire
from redirector.backends.nftables.message import genid, header, nfgenmsg
from redirector.errors import NotPermitted, TryAgain
from redirector.netlink import NETLINK_NETFILTER, DumpInterrupted, Message, NetlinkSocket, table
from redirector.records import NamedTuple

if TYPE_CHECKING:  # only where there is something to read
    from redirector.host.listings import Listed, Saved

NET = "/proc/thread-self/net"  # /proc/net is the main thread's, which may be in another namespace
NAMES = {"ipv4": "ip_tables_names", "ipv6": "ip6_tables_names"}
FAMILIES = {wire.NFPROTO_INET: "inet", wire.NFPROTO["ipv4"]: "ip", wire.NFPROTO["ipv6"]: "ip6"}
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
    from redirector.host import listings

    rows = _rows()
    chains = tuple(_decoded(rows or ()))
    legacy = {family: names for family in NAMES if (names := legacy_names(family))}
    tools = dict(_tools())
    failures: list[str] = []
    saved = tuple(listings.saved(chains, legacy, tools, failures))
    listed = tuple(listings.listed(chains, saved, tools, failures)) if listing else ()
    return Firewalls(
        os.uname().release, rows is not None, tools, legacy, chains, saved, listed, tuple(dict.fromkeys(failures))
    )


def tool_names(backend: str) -> tuple[str, ...]:
    """The programs that a backend starts."""
    from redirector.host import xtables

    variant = {"iptables-nft": "nft", "iptables-legacy": "legacy"}.get(backend)
    return tuple(xtables.name(variant, family, verb) for family in NAMES for verb in ("restore", "save") if variant)


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
    from redirector.host import children, xtables

    found = {"nft": children.find("nft")}
    for variant in ("nft", "legacy"):
        for family in NAMES:
            for verb in ("restore", "save"):
                found[xtables.name(variant, family, verb)] = xtables.find(variant, family, verb)
    return ((name, path) for name, path in found.items() if path)


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
