"""authbind's grants: /etc/authbind/byport, byaddr, byuid (authbind(1), "Access control").

What a file says it says by who may execute it, as access(2) has it. From port 512 to 1023 only names that begin with
"!" are looked at, and below 512 only those without it (helper.c).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from redirector.audit.facts import Facts, Setting, Where
from redirector.audit.tree import Tree
from redirector.model import Ports
from redirector.records import NamedTuple

FOLDER = "/etc/authbind"
GUARDED = Ports(512, 1023)
_BYUID = re.compile(r"([0-9A-Fa-f.:]+)(?:-([0-9A-Fa-f.:]+)|/(\d{1,3}))?([,:])(\d{1,5})(?:[-,](\d{1,5}))?")


class Grant(NamedTuple):
    """`kind` byport, byaddr or byuid. Of the first two the mode and owner of the file tell for whom, of the last
    `for_uid`. `bang`: its name begins with "!". `address` "": any."""

    kind: str
    ports: Ports
    where: Where
    bang: bool = False
    address: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    for_uid: int = -1

    @property
    def looked_at(self) -> bool:
        """Whether authbind ever asks for a file of this name."""
        return self.bang == (self.ports.first >= GUARDED.first)


def gather(tree: Tree) -> Iterator[object]:
    """Rows of Grant."""
    for kind in ("byport", "byaddr"):
        for name in tree.names(f"{FOLDER}/{kind}"):
            path = f"{FOLDER}/{kind}/{name}"
            found, status = _named(kind, name), tree.stat(path)
            if found is not None and status is not None and not stat.S_ISDIR(status.st_mode):
                port, address = found
                mode = stat.S_IMODE(status.st_mode)
                bang = name.startswith("!")
                yield Grant(kind, Ports(port, port), Where(path), bang, address, mode, status.st_uid, status.st_gid)
    for name in tree.names(f"{FOLDER}/byuid"):
        number_of = name.removeprefix("!")
        if number_of.isascii() and number_of.isdigit():
            path = f"{FOLDER}/byuid/{name}"
            for number, line in enumerate((tree.read(path) or "").split("\n"), 1):
                ranges = by_uid(line.strip())
                if ranges is not None:
                    bang = name.startswith("!")
                    where = Where(path, number)
                    yield Grant("byuid", ranges[0], where, bang, ranges[1], for_uid=int(number_of))


def configured(facts: Facts) -> Iterator[Setting]:
    """Each file of byport and byaddr, and each user of byuid."""
    for grant in facts.of(Grant):
        looked_at = {} if grant.looked_at else {"ignored": str(grant.ports)}
        if grant.kind == "byuid":
            said = {"grants": f"{grant.address},{grant.ports}"} | looked_at
            yield Setting("authbind", f"byuid, user {facts.user(grant.for_uid)}", said, grant.where)
        else:
            said = facts.owned(grant.uid, grant.gid, grant.mode) | looked_at
            yield Setting("authbind", grant.where.file.removeprefix(f"{FOLDER}/"), said, grant.where)


def _named(kind: str, name: str) -> tuple[int, str] | None:
    """(port, address) of a file's name."""
    name = name.removeprefix("!")
    address, port = "", name
    if kind == "byaddr":
        comma = "," if "," in name else ":"
        address, _, port = name.rpartition(comma)
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return (number, address) if 0 < number <= 65535 else None


def by_uid(line: str) -> tuple[Ports, str] | None:
    """(ports, addresses as they stand there) of a line of a byuid file."""
    found = _BYUID.fullmatch(line)
    if found is None:
        return None
    address, last, length, _separator, first_port, last_port = found.groups()
    ports = Ports(int(first_port), int(last_port or first_port))
    if ports.first > ports.last or ports.last > 65535:
        return None
    return ports, line[: found.start(4)] if last or length else address
