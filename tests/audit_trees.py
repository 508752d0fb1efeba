"""Trees of configuration files, and rows of facts, for the tests of an audit."""

import os
import struct
from pathlib import Path
from typing import Any

from redirector.audit.capability import ATTRIBUTE, BIND
from redirector.audit.facts import Facts, Holder, Rule, Socket
from redirector.audit.survey import below
from redirector.audit.tree import Tree
from redirector.host.listeners import Listener
from redirector.model import Mapping, Ports, Ruleset

ELF = b"\x7fELF\x02\x01\x01" + bytes(9)
INTERP, NOTE = 3, 4
WWW = 33


def elf(*headers: tuple[int, bytes]) -> bytes:
    """The beginning of a 64-bit ELF file with these program headers: (type, content)."""
    table, content, at = b"", b"", 64 + 56 * len(headers)
    for kind, body in headers:
        table += struct.pack("<IIQQQQQQ", kind, 4, at + len(content), 0, 0, len(body), len(body), 1)
        content += body
    head = ELF + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    return head + table + content


DYNAMIC = elf((INTERP, b"/lib64/ld-linux-x86-64.so.2\0"))
STATIC = elf((1, b""))
GO = elf((INTERP, b"/lib64/ld-linux-x86-64.so.2\0"), (NOTE, b"\4\0\0\0\4\0\0\0\4\0\0\0Go\0\0id\0\0"))


class Files:
    """A tree below a temporary folder; each method returns it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str, content: str | bytes = "", mode: int = 0o644, owner: int = 0) -> "Files":
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(content if isinstance(content, bytes) else content.encode())
        real.chmod(mode)
        if owner:
            os.chown(real, owner, owner)
        return self

    def link(self, path: str, target: str) -> "Files":
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.symlink_to(target)
        return self

    def program(
        self,
        path: str,
        permitted: int = BIND,
        inheritable: int = 0,
        effective: bool = True,
        content: bytes = DYNAMIC,
        mode: int = 0o755,
        owner: int = 0,
    ) -> "Files":
        """A program with capabilities."""
        self.file(path, content, mode, owner)
        return self.capable(path, permitted, inheritable, effective)

    def capable(self, path: str, permitted: int = BIND, inheritable: int = 0, effective: bool = True) -> "Files":
        words = (permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF, permitted >> 32, inheritable >> 32)
        os.setxattr(self.root / path.lstrip("/"), ATTRIBUTE, struct.pack("<5I", 0x02000000 | effective, *words))
        return self

    def facts(self) -> Facts:
        return below(Tree(str(self.root)))


def listener(port: int, address: str = "::", uid: int = 1000, inode: int = 0, protocol: str = "tcp") -> Listener:
    family = "ipv6" if ":" in address else "ipv4"
    return Listener(protocol, family, address, port, uid, inode or port, 0, False if family == "ipv6" else None)


def socket(port: int, *holders: Holder, address: str = "::", uid: int = 1000) -> Socket:
    return Socket(listener(port, address, uid), holders)


def holder(pid: int, command: str = "server", uid: int = 1000, **more: Any) -> Holder:
    return Holder(pid, command, uid)._replace(**more)


def web(port: int = 80, target: int = 8080, **keys: Any) -> Rule:
    rule = Rule(
        "redirector", f"tcp {port}", "tcp", Ports(port, port), Ports(target, target), mapping="web", priority=-110
    )
    return rule._replace(**keys)


def ruleset(port: int = 80, target: int = 8080, **keys: Any) -> Ruleset:
    fields: dict[str, Any] = {"name": "web", "listen": (Ports(port, port),), "to": Ports(target, target), **keys}
    return Ruleset((Mapping(**fields),))


def facts(*items: object, **keys: Any) -> Facts:
    return Facts(items=items, users={0: "root", WWW: "www-data", 1000: "alice", 1001: "bob"})._replace(**keys)
