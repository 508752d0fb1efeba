"""Somebody else with root on the host, who uses a backend's own tools: what they see, and what they do to ours.

The same deeds in the form of each backend, for tests whose promise has none. What can be done to one form only is the
business of its own tests, such as test_drift and test_iptables_drift.
"""

import contextlib
import re
from typing import Protocol

from redirector.backends.nftables.backend import NftablesBackend
from redirector.model import FAMILIES
from tests.kernel.iptables import both, iptables, of_others, program
from tests.kernel.lab import Machine

ELSEWHERE = """
table inet theirs {
    chain c { type nat hook prerouting priority -100; tcp dport { 80, 90 } redirect to :9090; }
    chain d { type filter hook input priority 0; tcp dport 8443 reject with tcp reset; }
}
"""
ELSEWHERE_OF_IPTABLES = (
    "-t nat -N THEIRS",
    "-t nat -A THEIRS -p tcp --dport 80 -j REDIRECT --to-ports 9090",
    "-t nat -A THEIRS -p tcp --dport 90 -j REDIRECT --to-ports 9090",
    "-t nat -A PREROUTING -j THEIRS",
    "-A INPUT -p tcp --dport 8443 -j REJECT --reject-with tcp-reset",
)


# Everything that a host's other tools might have: names like ours, rules on our ports, maps with counters and timeouts.
MUCH = """
table inet redirector2 {
    comment "made by redirector"
    map ports {
        type inet_proto . inet_service : inet_service
        size 64
        counter
        elements = { tcp . 80 counter packets 5 bytes 300 comment "web" : 8081 }
    }
    chain prerouting {
        type nat hook prerouting priority -100
        tcp dport 81 redirect to :8081 comment "a; b"
    }
}
table ip redirector {
    chain arriving {
        tcp dport 80 counter packets 3 bytes 4
    }
    chain prerouting {
        type filter hook prerouting priority -300
        jump arriving
    }
}
table ip6 nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat
        tcp dport 9 redirect to :10
    }
}
table inet filter {
    counter seen {
        packets 7 bytes 8
    }
    quota most {
        over 10 mbytes
    }
    set blocked {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 203.0.113.7 }
    }
    map by_port {
        type inet_service : verdict
        elements = { 7 : drop, 9 : jump other }
    }
    chain other {
        counter packets 1 bytes 2 return comment "ünïcode"
    }
    chain input {
        type filter hook input priority 0
        tcp dport vmap @by_port
        ip saddr @blocked drop
        ct state established,related counter packets 11 bytes 12 accept
    }
}
table arp redirector {
    chain input {
        type filter hook input priority 0
    }
}
table bridge odd-name_1.x {
    chain c {
        meta mark 0x7 accept
    }
}
"""

ODD = (r"a \" b", r"back\\slash", "NOT-REDIRECTOR", "-j REDIRECTOR-IN", "' -g REDIRECTOR-x", "REDIRECTOR", "x", "")
MUCH_OF_IPTABLES = (
    "-t nat -N NOT-REDIRECTOR-IN", "-t nat -N REDIRECTORS", "-t nat -N redirector-in",
    "-t nat -A REDIRECTORS -p tcp --dport 7 -m comment --comment web -j DNAT --to-destination :8080",
    "-t nat -A PREROUTING -p tcp --dport 7 -j REDIRECTORS",
    "-t nat -A PREROUTING -p tcp --dport 8 -j NOT-REDIRECTOR-IN",
    "-t nat -A OUTPUT -p tcp --dport 8 -j redirector-in",
    "-t nat -A POSTROUTING -o veth-b -j MASQUERADE",
    "-N REDIRECTORIAL", "-A REDIRECTORIAL -j DROP", "-A FORWARD -p tcp --dport 7 -j REDIRECTORIAL",
    "-P FORWARD DROP", "-t mangle -N REDIRECTOR-IN", "-t mangle -A REDIRECTOR-IN -j MARK --set-mark 1",
    "-t mangle -A PREROUTING -p tcp --dport 7 -j REDIRECTOR-IN",
    *(f'-A INPUT -p tcp --dport 7 -m comment --comment "{text}" -j DROP' for text in ODD),
    *(f'-t nat -A PREROUTING -p tcp --dport 7 -m comment --comment "{text}" -j ACCEPT' for text in ODD),
    *(f'-t nat -A OUTPUT -p tcp --dport 7 -m comment --comment "{text}" -j ACCEPT' for text in ODD[3:5]),
)  # fmt: skip


class Admin(Protocol):
    def sees(self) -> object:
        """Everything that is loaded, in the order in which it is, and how often it was changed where the kernel counts
        that (legacy: no). To be compared with what they saw before; packets in between would count on nftables."""

    def sees_ours(self) -> bool:
        """Whether there is anything of ours."""

    def sees_others(self) -> object:
        """Everything that is not ours, to be compared."""

    def deletes(self, port: int) -> None:
        """Our redirect of a TCP port goes. Raises AssertionError where it shares its rule with other ports."""

    def turns(self, port: int, old: int = 8080, new: int = 8081) -> None:
        """Our redirect of a TCP port, of "web", goes elsewhere than before."""

    def adds_a_chain(self) -> None:
        """A chain "REDIRECTOR-theirs" among ours, with a rule; nothing leads to it."""

    def leads_nobody_to_us(self) -> None:
        """What leads arriving packets to our rules goes."""

    def empties_ours(self) -> None:
        """Our table, or our chains, stay without rules."""

    def flushes(self) -> None:
        """All tables that the backend uses."""

    def saves(self, *options: str) -> list[str]:
        """What is loaded, as text for `loads`."""

    def loads(self, saved: list[str]) -> None: ...

    def counts_from_zero(self) -> None: ...

    def takes_our_name(self) -> None:
        """Where there is nothing of ours: something of our name, with a rule that we never write."""

    def has_much_else(self) -> None:
        """Everything that a host's other tools might have: names like ours, rules on our ports, odd comments."""

    def works_elsewhere(self) -> None:
        """A redirect of TCP 80 and 90 to 9090, which comes after ours, and a filter that refuses TCP 8443."""


class NftAdmin:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def sees(self) -> object:
        return nft_genid(self.machine), self.machine.run("nft", "-a", "list", "ruleset")

    def sees_ours(self) -> bool:
        return "table inet redirector" in self.machine.nft_list("tables").splitlines()

    def sees_others(self) -> list[str]:
        tables = [line.removeprefix("table ") for line in self.machine.nft_list("tables").splitlines()]
        wanted = (name.split() for name in tables if name != "inet redirector")
        return [self.machine.run("nft", "-a", "list", "table", *words) for words in wanted]

    def deletes(self, port: int) -> None:
        self.machine.nft(f"delete element inet redirector ports {{ tcp . {port} }}")

    def turns(self, port: int, old: int = 8080, new: int = 8081) -> None:
        self.machine.nft(
            f"delete element inet redirector ports {{ tcp . {port} }}\n"
            f'add element inet redirector ports {{ tcp . {port} comment "web" : {new} }}'
        )

    def adds_a_chain(self) -> None:
        name = "inet redirector REDIRECTOR-theirs"
        self.machine.nft(f"add chain {name}\nadd rule {name} counter")

    def leads_nobody_to_us(self) -> None:
        self.machine.nft("flush chain inet redirector prerouting")

    def empties_ours(self) -> None:
        self.machine.nft("flush table inet redirector")

    def flushes(self) -> None:
        self.machine.nft("flush ruleset")

    def saves(self, *options: str) -> list[str]:
        return [self.machine.run("nft", *options, "list", "ruleset")]

    def loads(self, saved: list[str]) -> None:
        self.machine.nft("".join(saved))

    def counts_from_zero(self) -> None:
        self.machine.nft("reset counters table inet redirector")

    def takes_our_name(self) -> None:
        self.machine.nft("table inet redirector { chain prerouting { type nat hook prerouting priority -100; }; }")

    def has_much_else(self) -> None:
        self.machine.nft(MUCH)

    def works_elsewhere(self) -> None:
        self.machine.nft(ELSEWHERE)


class IptablesAdmin:
    """Of either variant; what they do is done in both families."""

    def __init__(self, machine: Machine, backend: str) -> None:
        self.machine = machine
        self.backend = backend

    def sees(self) -> object:
        counted = nft_genid(self.machine) if self.backend == "iptables-nft" else 0
        return counted, {family: _filled(lines) for family, lines in both(self.machine, self.backend).items()}

    def sees_ours(self) -> bool:
        return self.sees_others() != both(self.machine, self.backend)

    def sees_others(self) -> dict[str, list[str]]:
        return of_others(self.machine, self.backend)

    def deletes(self, port: int) -> None:
        for family, rule in self._rules(port).items():
            iptables(self.machine, self.backend, family, f"-t nat -D {rule}")

    def turns(self, port: int, old: int = 8080, new: int = 8081) -> None:
        for family, rule in self._rules(port).items():
            turned = rule.replace(f":{old}", f":{new}")
            assert turned != rule
            iptables(self.machine, self.backend, family, f"-t nat -D {rule}", f"-t nat -A {turned}")

    def adds_a_chain(self) -> None:
        self._does("-t nat -N REDIRECTOR-theirs", "-t nat -A REDIRECTOR-theirs -j ACCEPT")

    def leads_nobody_to_us(self) -> None:
        self._does("-t nat -F PREROUTING")

    def empties_ours(self) -> None:
        for family, lines in both(self.machine, self.backend).items():
            nat = lines[lines.index("*nat") :]
            chains = {line.split()[0] for line in nat[: nat.index("COMMIT")] if line.startswith(":REDIRECTOR-")}
            iptables(self.machine, self.backend, family, *(f"-t nat -F {chain[1:]}" for chain in sorted(chains)))

    def flushes(self) -> None:
        self._does("-t nat -F", "-t nat -X", "-F", "-X")

    def saves(self, *options: str) -> list[str]:
        return [self.machine.run(program(self.backend, family, "save"), *options) for family in FAMILIES]

    def loads(self, saved: list[str]) -> None:
        for family, text in zip(FAMILIES, saved, strict=True):
            self.machine.run(program(self.backend, family, "restore"), "-c", input=text)

    def counts_from_zero(self) -> None:
        self._does("-t nat -Z")

    def takes_our_name(self) -> None:
        self._does("-t nat -N REDIRECTOR-IN", "-t nat -A REDIRECTOR-IN -p tcp -j ACCEPT")

    def has_much_else(self) -> None:
        self._does(*MUCH_OF_IPTABLES)

    def works_elsewhere(self) -> None:
        self._does(*ELSEWHERE_OF_IPTABLES)

    def _does(self, *commands: str) -> None:
        for family in FAMILIES:
            iptables(self.machine, self.backend, family, *commands)

    def _rules(self, port: int) -> dict[str, str]:
        """By family the rule of a TCP port, from its chain's name on."""
        mark = f"-p tcp -m tcp --dport {port} "
        found = {}
        for family, lines in both(self.machine, self.backend).items():
            (rule,) = (line.removeprefix("-A ") for line in lines if mark in line and "-j DNAT" in line)
            found[family] = rule
        return found


def _filled(lines: list[str]) -> list[str]:
    """Without tables that are merely loaded: to look whether rules would do loads those of the legacy variant."""
    text = "\n".join(lines)
    tables = text.split("COMMIT")
    return [table for table in tables if re.search(r"^-A |^:\S+ (DROP|-)", table, re.MULTILINE)]


def nft_genid(machine: Machine) -> int:
    """How often nf_tables was changed there, by whomever."""
    with contextlib.closing(machine.namespace.call(NftablesBackend)) as backend:
        return backend.genid()


def admin(machine: Machine, backend: str) -> Admin:
    return NftAdmin(machine) if backend == "nftables" else IptablesAdmin(machine, backend)
