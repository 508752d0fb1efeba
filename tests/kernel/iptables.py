"""iptables as others use it on a machine of the lab: by its own commands, of either variant and either family."""

import os
import re
import shlex
import shutil
from pathlib import Path

from redirector.backends.iptables import commands
from redirector.model import FAMILIES
from tests.kernel.lab import PATH, Machine

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
    """As `both`, without what is ours: chains of our names in nat and filter, and jumps to them as we write them."""
    ours = re.compile(r":REDIRECTOR-|-A REDIRECTOR-|-A (PREROUTING|OUTPUT|INPUT) (?!.*--comment).*-j REDIRECTOR-")
    found: dict[str, list[str]] = {}
    for family, lines in both(machine, backend).items():
        table, kept = "", found.setdefault(family, [])
        for line in lines:
            table = line if line[:1] == "*" else table
            if table not in ("*nat", "*filter") or not ours.match(line):
                kept.append(line)
    return found


class Programs:
    """Scripts that the backend in this process runs in the place of iptables' own programs (fixture `programs`)."""

    def __init__(self, folder: Path, backend: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.backend = backend
        self.folders = (str(folder), *commands.FOLDERS)  # where programs are looked for, in this order

    def replace(self, family: str, verb: str, text: str) -> Path:
        """Put a script in the place of one. In it $REAL is the program itself."""
        name = program(self.backend, family, verb)
        path = self.folder / name
        real = os.path.abspath(shutil.which(name, path=PATH) or name)
        path.write_text(text if text[:2] != "#!" else text.replace("\n", f"\nREAL={real}\n", 1))
        path.chmod(0o755)
        return path

    def bring_back(self) -> None:
        """From now on all are their own again."""
        for path in self.folder.iterdir():
            path.unlink()
