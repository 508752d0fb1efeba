"""Which backend `auto` means on this host, and why. Pure: from what `host.firewalls` gathered.

Rules of ours that are in force keep their backend. Otherwise ours go where the NAT rules of others are: in nft form
unless theirs are in legacy form only, since of two that hold the same hook one is overlooked sooner or later.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.backends.iptables.rules import KEEP
from redirector.backends.nftables.backend import kernel_fault
from redirector.errors import Unavailable, printable
from redirector.host.firewalls import RESERVED, Firewalls, tool_names
from redirector.host.listings import Saved
from redirector.naming import TABLE
from redirector.records import NamedTuple

FORMS = {"nftables": "native nft", "iptables-nft": "iptables-nft", "iptables-legacy": "legacy"}
# Who is known by chains in tables of iptables (by the whole name, or by its beginning where it ends in "*") …
CHAINS = (
    ("Docker", "DOCKER"),
    ("kube-proxy", "KUBE-SERVICES"),
    ("firewalld", "INPUT_ZONES"),
    ("firewalld", "PREROUTING_ZONES"),
    ("ufw", "ufw-*"),
    ("podman", "NETAVARK*"),
    ("CNI", "CNI-HOSTPORT-DNAT"),
    ("libvirt", "LIBVIRT_*"),
)
# … and by native tables of nft.
TABLES = {
    "firewalld": "firewalld",
    "kube-proxy": "kube-proxy",
    "netavark": "podman",
    "docker-bridges": "Docker",
    "libvirt_network": "libvirt",
}


class Choice(NamedTuple):
    """`backend` is nftables, iptables-nft or iptables-legacy; `reasons` one line each, the decisive one first."""

    backend: str
    reasons: tuple[str, ...]


class User(NamedTuple):
    """Somebody whose rules are there: a name for people, and `form`, the backend's name that has the same form."""

    name: str
    form: str


def choose(firewalls: Firewalls, wanted: str = "auto", last: str = "") -> Choice:
    """The backend for `wanted`, the file's setting; `last` is the one that the last generation was loaded in.

    Raises errors.Unavailable where nothing will do.
    """
    if wanted != "auto":
        return Choice(wanted, ("the file says so",))
    if last:
        return Choice(last, ("the last generation was loaded there",))
    # (A table of our name may be there where we could not even work: what is there decides all the same.)
    held = ours(firewalls)
    if held:
        return Choice(held[0], ("our mappings are there",))
    legacy, others = nat_users(firewalls, "iptables-legacy"), nat_users(firewalls, "iptables-nft", "nftables")
    fault = kernel_fault(firewalls.kernel)
    if legacy and not others and not missing(firewalls, "iptables-legacy"):
        return Choice("iptables-legacy", (f"NAT rules are in legacy form only: {_names(legacy)}",))
    if firewalls.nf_tables and not fault:
        return Choice("nftables", (f"Linux {printable(firewalls.kernel)} has nf_tables", *_company(legacy, others)))
    if firewalls.nf_tables and not missing(firewalls, "iptables-nft"):
        return Choice("iptables-nft", (fault, "it has nf_tables, and iptables-nft is installed"))
    reason = fault if firewalls.nf_tables else f"Linux {printable(firewalls.kernel)} has no nf_tables"
    if not missing(firewalls, "iptables-legacy"):
        return Choice("iptables-legacy", (reason, "iptables-legacy is installed"))
    raise Unavailable(f"no backend works here: {reason}, and no iptables is there", "install the package iptables")


def _company(legacy: tuple[str, ...], others: tuple[str, ...]) -> Iterator[str]:
    """Whose rules spoke for nftables, and whose did not."""
    if others:
        yield f"NAT rules in nft form are there: {_names(others)}"
    elif not legacy:
        yield "nobody's NAT rules are in legacy form"
    if legacy and not others:
        yield f"NAT rules are in legacy form only ({_names(legacy)}), but the tools for that are not all there"
    elif legacy:
        yield f"there are some in legacy form, too: {_names(legacy)}"


def _names(users: tuple[str, ...]) -> str:
    return ", ".join(users)


def missing(firewalls: Firewalls, backend: str) -> tuple[str, ...]:
    """The programs that a backend needs and that are not there."""
    return tuple(name for name in tool_names(backend) if name not in firewalls.tools)


def ours(firewalls: Firewalls) -> tuple[str, ...]:
    """The backends in which rules of ours are in force: by our table's name, and our chains' reserved names."""
    found = set()
    for chain in firewalls.chains:
        if (chain.family, chain.table) == ("inet", TABLE):
            found.add("nftables")
        elif chain.family != "inet" and chain.table == "nat" and chain.name.startswith(RESERVED):
            found.add("iptables-nft")
    for saved in firewalls.saved:
        if saved.name == "nat" and any(chain.startswith(RESERVED) for chain in saved.table.policies):
            found.add(saved.backend)
    return tuple(backend for backend in FORMS if backend in found)


def foreign_rules(saved: Saved) -> bool:
    """Whether a table of iptables holds a rule that is not ours."""
    return any(
        f"-j {RESERVED}" not in rule.text and rule.text != KEEP
        for chain, rules in saved.table.rules.items()
        for rule in rules
        if not chain.startswith(RESERVED)
    )


def nat_users(firewalls: Firewalls, *forms: str) -> tuple[str, ...]:
    """Whose NAT rules are there in one of these forms, in words; () where nobody's are."""
    found: dict[str, None] = {}
    for saved in firewalls.saved:
        if saved.backend in forms and saved.name == "nat" and foreign_rules(saved):
            known = tuple(known_by(saved.table.policies)) or (f"somebody's ({FORMS[saved.backend]})",)
            found |= dict.fromkeys(known)
    for _, table in native_nat(firewalls) if "nftables" in forms else ():
        found[TABLES.get(table) or f"somebody's ({FORMS['nftables']})"] = None
    return tuple(found)


def native_nat(firewalls: Firewalls) -> tuple[tuple[str, str], ...]:
    """(family, table) of others' native nft tables with NAT at the hooks that ours are at."""
    return tuple(
        dict.fromkeys(
            (chain.family, chain.table)
            for chain in firewalls.chains
            if chain.type == "nat"
            and chain.hook in ("prerouting", "output")
            and (chain.family, chain.table) != ("inet", TABLE)
            and not is_saved(firewalls, chain.family, chain.table)
        )
    )


def is_saved(firewalls: Firewalls, family: str, table: str) -> bool:
    """Whether an nft table is one of iptables-nft's, so that its rules are known from there."""
    wanted = ("iptables-nft", {"ip": "ipv4", "ip6": "ipv6"}.get(family), table)
    return any((saved.backend, saved.family, saved.name) == wanted for saved in firewalls.saved)


def users(firewalls: Firewalls) -> tuple[User, ...]:
    """Who is known to have rules here, by the names of their chains and tables."""
    found: dict[User, None] = {}
    for saved in firewalls.saved:
        for name in known_by(saved.table.policies):
            found[User(name, saved.backend)] = None
    for chain in firewalls.chains:
        if chain.table in TABLES:
            found[User(TABLES[chain.table], "nftables")] = None
    return tuple(found)


def known_by(chains: dict[str, str]) -> Iterator[str]:
    """The owners of chains of these names."""
    for name, pattern in CHAINS:
        beginning = pattern.removesuffix("*")
        if pattern in chains or (beginning != pattern and any(chain.startswith(beginning) for chain in chains)):
            yield name
