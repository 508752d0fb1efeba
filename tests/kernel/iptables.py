"""iptables as others use it on a machine of the lab: by its own commands, of either variant and either family."""

import re
import shlex

from redirector.model import FAMILIES
from tests.kernel.lab import Machine

VARIANTS = ("iptables-nft", "iptables-legacy")
TOOLS = {"ipv4": "iptables", "ipv6": "ip6tables"}


def program(backend: str, family: str, verb: str = "") -> str:
    """The name of a program, such as ip6tables-legacy-save; `backend` is one of VARIANTS."""
    return "-".join(filter(None, (TOOLS[family], backend.removeprefix("iptables-"), verb)))


def iptables(machine: Machine, backend: str, family: str, *commands: str) -> None:
    """Carry out commands such as "-t nat -F PREROUTING", each by a process of its own, words as a shell has them.
    Raises AssertionError where one fails."""
    for command in commands:
        machine.run(program(backend, family), "-w", *shlex.split(command))


def saved(machine: Machine, backend: str, family: str, *, table: str = "") -> list[str]:
    """What iptables-save prints, without counters, and without remarks, which have the time."""
    text = machine.run(program(backend, family, "save"), *(["-t", table] if table else []))
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if line[:1] != "#"]


def both(machine: Machine, backend: str) -> dict[str, list[str]]:
    """As `saved`, of each family."""
    return {family: saved(machine, backend, family) for family in FAMILIES}


def of_others(machine: Machine, backend: str) -> dict[str, list[str]]:
    """As `both`, without what is ours: chains of our names, and the jumps to them, as they are written."""
    ours = re.compile(r":REDIRECTOR-|-A REDIRECTOR-|-A (PREROUTING|OUTPUT|INPUT) (?!.*--comment).*-j REDIRECTOR-")
    return {
        family: [line for line in lines if not ours.match(line)] for family, lines in both(machine, backend).items()
    }
