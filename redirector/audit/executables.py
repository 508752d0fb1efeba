"""One program on the disk: what the kernel does with it when it is started, as far as ports are concerned.

ELF is read as far as its program headers (elf(5)): without PT_INTERP nothing is preloaded (LD_PRELOAD is the dynamic
loader's), and the note "Go" (cmd/link's build id) tells a binary whose system calls pass libc by.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from redirector.audit.capability import ATTRIBUTE, FileCaps, decode
from redirector.audit.tree import Tree
from redirector.interpreters import interprets
from redirector.records import NamedTuple

HEAD = 1 << 16  # bytes: program headers and notes stand at the beginning
PT_INTERP, PT_NOTE = 3, 4  # elf.h
GO_NOTE = b"Go\0\0"
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class Executable(NamedTuple):
    """A file that can be started. `path` without links; `shebang` what stands behind #! ("" for none); `static`: no
    dynamic loader; `nosuid`: its file system ignores capabilities and setuid bits."""

    path: str
    mode: int
    uid: int
    gid: int
    caps: FileCaps | None = None
    shebang: str = ""
    static: bool = False
    go: bool = False
    nosuid: bool = False

    @property
    def interprets(self) -> bool:
        """Whether it runs whatever program a user hands it."""
        return interprets(os.path.basename(self.path))

    @property
    def setuid_root(self) -> bool:
        return bool(self.mode & stat.S_ISUID) and self.uid == 0


def executable(tree: Tree, path: str) -> Executable | None:
    """What there is at an absolute path; None where that is no regular file, or cannot be seen."""
    inside = tree.inside(path)
    found = tree.stat(inside)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    head = tree.read_bytes(inside, HEAD) or b""
    static, go = elf(head)
    return Executable(
        inside,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        file_caps(tree.root + inside),
        _shebang(head),
        static,
        go,
        tree.live and _nosuid(inside),
    )


def find(tree: Tree, name: str, search: tuple[str, ...] = SEARCH) -> str:
    """The path of a program: as it is if it has a slash, else the first of its name in `search`; "" for none."""
    if "/" in name:
        return os.path.abspath(name) if tree.live else name
    for folder in search:
        found = tree.stat(f"{folder}/{name}")
        if found is not None and stat.S_ISREG(found.st_mode) and found.st_mode & 0o111:
            return f"{folder}/{name}"
    return ""


def chain(tree: Tree, path: str) -> list[Executable]:
    """What the kernel executes, one after the other: a script, its interpreter, and what `env` starts; the last one's
    privileges count."""
    found: list[Executable] = []
    while path and len(found) < 5:  # BINPRM_MAX_RECURSION (linux/binfmts.h)
        one = executable(tree, path)
        if one is None:
            break
        found.append(one)
        words = one.shebang.split()
        path = words[0] if words else ""
        if os.path.basename(path) == "env" and len(words) > 1:
            between = executable(tree, path)
            found += [between] if between else []
            rest = [w for w in " ".join(words[1:]).split() if not w.startswith("-") and "=" not in w]
            path = find(tree, rest[0]) if rest else ""
    return found


def file_caps(real: str) -> FileCaps | None:
    """The capabilities of a file of this system's; None for none."""
    try:
        return decode(os.getxattr(real, ATTRIBUTE, follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP):
            return None
        raise


def elf(head: bytes) -> tuple[bool, bool]:
    """(Whether it is static, whether it is Go's) of the beginning of a file; neither for what is no ELF file."""
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return False, False
    order = "<" if head[5] == 1 else ">"
    try:
        if head[4] == 2:
            offset, size, count = (
                *struct.unpack_from(f"{order}Q", head, 32),
                *struct.unpack_from(f"{order}HH", head, 54),
            )
            place = (8, 32, "Q")  # of p_offset and p_filesz in an Elf64_Phdr
        else:
            offset, size, count = (
                *struct.unpack_from(f"{order}I", head, 28),
                *struct.unpack_from(f"{order}HH", head, 42),
            )
            place = (4, 16, "I")
        if not size or offset > len(head):
            return False, False
        static, go = True, False
        for at in range(offset, offset + size * count, size):
            (kind,) = struct.unpack_from(f"{order}I", head, at)
            if kind == PT_INTERP:
                static = False
            elif kind == PT_NOTE:
                (start,) = struct.unpack_from(f"{order}{place[2]}", head, at + place[0])
                (length,) = struct.unpack_from(f"{order}{place[2]}", head, at + place[1])
                go = go or GO_NOTE in head[start : start + length]
    except struct.error:  # cut short
        return False, False
    return static, go


def _shebang(head: bytes) -> str:
    if head[:2] != b"#!":
        return ""
    return head[2:256].split(b"\n", 1)[0].strip().decode("utf-8", "replace")


def _nosuid(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NOSUID)
    except OSError:
        return False
