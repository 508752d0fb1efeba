"""The choice of a backend: a table of hosts."""

import pytest

from redirector.backends.iptables import rules, save, tree
from redirector.choose import Choice, choose, missing, nat_users, ours, users
from redirector.errors import Unavailable
from redirector.host.firewalls import RESERVED, Firewalls, NftChain, tool_names
from redirector.host.listings import Saved, rule_texts

MODERN, OLD = "6.1.0-18-amd64", "4.19.0-26-amd64"
TOOLS = {name: f"/usr/sbin/{name}" for kind in ("iptables-nft", "iptables-legacy") for name in tool_names(kind)}
LEGACY_TOOLS = {name: path for name, path in TOOLS.items() if "legacy" in name}


def saved(backend: str, text: str, name: str = "nat", family: str = "ipv4") -> Saved:
    """A table of iptables out of lines "CHAIN rule", each chain a user's unless it is in capitals of iptables."""
    chains = dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip())
    builtin = ("PREROUTING", "OUTPUT", "INPUT", "POSTROUTING")
    lines = [f"*{name}", *(f":{chain} {'ACCEPT' if chain in builtin else '-'} [0:0]" for chain in chains)]
    lines += [f"-A {line.strip()}" for line in text.splitlines() if len(line.split()) > 1]
    return Saved(backend, family, name, save.parse([*lines, "COMMIT"])[name])


DOCKER = "PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\nDOCKER -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1"
KUBE = "PREROUTING -j KUBE-SERVICES\nKUBE-SERVICES -j MARK"
OURS = f"PREROUTING {rules.LOCAL}REDIRECTOR-IN\nPREROUTING {rules.KEEP}\nREDIRECTOR-IN -j DNAT --to-destination :1"
FIREWALLD = NftChain("inet", "firewalld", "nat_PREROUTING", "nat", "prerouting", -90, "accept")
OUR_TABLE = NftChain("inet", "redirector", "prerouting", "nat", "prerouting", -110, "accept")
OUR_CHAIN = NftChain("ip6", "nat", "REDIRECTOR-IN")


@pytest.mark.parametrize(
    ("firewalls", "backend", "reason"),
    [
        (Firewalls(MODERN), "nftables", f"Linux {MODERN} has nf_tables"),
        (
            Firewalls(MODERN, saved=(saved("iptables-nft", DOCKER),)),
            "nftables",
            "NAT rules in nft form are there: Docker",
        ),
        (Firewalls(MODERN, chains=(FIREWALLD,)), "nftables", "NAT rules in nft form are there: firewalld"),
        # Legacy rules only, and the tools for them or not.
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", DOCKER),)),
            "iptables-legacy",
            "NAT rules are in legacy form only: Docker",
        ),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", KUBE, family="ipv6"),)),
            "iptables-legacy",
            "NAT rules are in legacy form only: kube-proxy",
        ),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", "PREROUTING -j ACCEPT"),)),
            "iptables-legacy",
            "NAT rules are in legacy form only: somebody's (legacy)",
        ),
        (
            Firewalls(MODERN, saved=(saved("iptables-legacy", DOCKER),)),
            "nftables",
            "NAT rules are in legacy form only (Docker), but the tools for that are not all there",
        ),
        # Who only filters is not named for somebody else's NAT.
        (
            Firewalls(
                MODERN,
                tools=TOOLS,
                saved=(
                    saved("iptables-legacy", "PREROUTING -j ACCEPT"),
                    saved("iptables-legacy", "ufw-user-input", "filter"),
                ),
            ),
            "iptables-legacy",
            "NAT rules are in legacy form only: somebody's (legacy)",
        ),
        # A table without rules, or one that only filters, is nobody's NAT.
        (Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", "PREROUTING\nDOCKER"),)), "nftables", ""),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", "INPUT -j DROP", "filter"),)),
            "nftables",
            "nobody's NAT rules are in legacy form",
        ),
        # Both forms.
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", DOCKER), saved("iptables-nft", KUBE))),
            "nftables",
            "there are some in legacy form, too: Docker",
        ),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", DOCKER),), chains=(FIREWALLD,)),
            "nftables",
            "there are some in legacy form, too: Docker",
        ),
        # Older kernels, and other ones.
        (Firewalls(OLD, tools=TOOLS), "iptables-nft", "it has nf_tables, and iptables-nft is installed"),
        (Firewalls(OLD, tools=LEGACY_TOOLS), "iptables-legacy", "iptables-legacy is installed"),
        (Firewalls(OLD, nf_tables=False, tools=TOOLS), "iptables-legacy", f"Linux {OLD} has no nf_tables"),
        (Firewalls(MODERN, nf_tables=False, tools=TOOLS), "iptables-legacy", f"Linux {MODERN} has no nf_tables"),
        # Ours stay where they are.
        (Firewalls(MODERN, tools=TOOLS, chains=(OUR_TABLE,)), "nftables", "our mappings are there"),
        (Firewalls(MODERN, tools=TOOLS, chains=(OUR_CHAIN,)), "iptables-nft", "our mappings are there"),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", OURS),), chains=(FIREWALLD,)),
            "iptables-legacy",
            "our mappings are there",
        ),
        (
            Firewalls(MODERN, tools=TOOLS, saved=(saved("iptables-legacy", DOCKER),), chains=(OUR_TABLE,)),
            "nftables",
            "our mappings are there",
        ),
    ],
)
def test_auto(firewalls: Firewalls, backend: str, reason: str) -> None:
    found = choose(firewalls)
    assert found.backend == backend
    assert not reason or reason in found.reasons
    assert all(found.reasons)


@pytest.mark.parametrize("kernel", [MODERN, OLD])
def test_nothing_works(kernel: str) -> None:
    with pytest.raises(Unavailable) as caught:
        choose(Firewalls(kernel, nf_tables=kernel == OLD, tools={"nft": "/usr/sbin/nft"}))
    assert caught.value.exit_code == 69
    assert "package iptables" in caught.value.hint


def test_what_is_wanted_wins() -> None:
    legacy = Firewalls(MODERN, nf_tables=False, saved=(saved("iptables-legacy", OURS),))
    assert choose(legacy, "nftables", "iptables-nft") == Choice("nftables", ("the file says so",))
    assert choose(legacy, "auto", "iptables-nft") == Choice("iptables-nft", ("the last generation was loaded there",))


def test_half_of_the_tools_are_none() -> None:
    for name in LEGACY_TOOLS:
        tools = {other: path for other, path in LEGACY_TOOLS.items() if other != name}
        assert missing(Firewalls(MODERN, tools=tools), "iptables-legacy") == (name,)
        host = Firewalls(MODERN, tools=tools, saved=(saved("iptables-legacy", DOCKER),))
        assert choose(host).backend == "nftables"
    assert missing(Firewalls(MODERN), "nftables") == ()


def test_rules_of_ours_are_nobodys_company() -> None:
    host = Firewalls(MODERN, chains=(OUR_TABLE,), saved=(saved("iptables-legacy", OURS),))
    assert ours(host) == ("nftables", "iptables-legacy")
    assert nat_users(host, "iptables-legacy") == ()
    assert nat_users(host, "iptables-nft", "nftables") == ()
    assert RESERVED == tree.PREFIX


def test_who_is_there() -> None:
    host = Firewalls(
        MODERN,
        chains=(FIREWALLD, NftChain("ip", "kube-proxy", "x"), NftChain("inet", "netavark", "y")),
        saved=(
            saved("iptables-legacy", DOCKER),
            saved("iptables-nft", "INPUT -j ufw-before-input\nufw-before-input", "filter"),
            saved("iptables-nft", "NETAVARK-HOSTPORT-DNAT\nmyDOCKER\nDOCKER-USER"),
        ),
    )
    assert [tuple(user) for user in users(host)] == [
        ("Docker", "iptables-legacy"),
        ("ufw", "iptables-nft"),
        ("podman", "iptables-nft"),
        ("firewalld", "nftables"),
        ("kube-proxy", "nftables"),
        ("podman", "nftables"),
    ]


def test_the_text_of_rules() -> None:
    listing = (
        "table inet f { # handle 1\n\tset s { # handle 2\n\t\ttype inet_service\n\t}\n\n\tchain in { # handle 3\n"
        '\t\ttcp dport 80 accept comment "x # handle 9" # handle 4\n\t\tdrop # handle 5\n\t}\n}\n'
    )
    assert rule_texts(listing) == {4: 'tcp dport 80 accept comment "x # handle 9"', 5: "drop"}
