"""File capabilities: every file that has CAP_NET_BIND_SERVICE, and every place that says that a file should have it.

A walk over the folders where programs live asks each regular file for one extended attribute; 125,000 files take about
a second. File systems mounted below a folder are left out unless that folder is named itself: /proc and /sys hold no
programs, and a network share may hold millions of files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from redirector.audit.capability import ATTRIBUTE, BIND, decode
from redirector.audit.executables import Executable, executable
from redirector.audit.facts import Facts, Setting, Where
from redirector.audit.tree import Tree
from redirector.records import NamedTuple

FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local", "/usr/lib", "/usr/libexec", "/bin", "/sbin", "/opt", "/srv")
WALKS = {"usual": FOLDERS, "everywhere": ("/",), "nowhere": ()}
# Where packages and administrators say what a file should have.
DECLARING = ("/var/lib/dpkg/info/*.postinst", "/etc/apt/apt.conf.d/*", "/etc/rc.local", "/etc/cron.d/*")
_SETCAP = re.compile(r"\bsetcap\s+(?:-\S+\s+)*['\"]?(cap_[A-Za-z_,=+eip-]+)['\"]?\s+['\"]?(/[^\s'\";&|)]+)")


class Capable(NamedTuple):
    """A file with capabilities, among them, permitted or inheritable, the one to bind."""

    file: Executable


class Declared(NamedTuple):
    """Something says that `path`, a file that is there, gets `caps` (as setcap takes it); `held`: it has the one to
    bind."""

    path: str
    caps: str
    where: Where
    held: bool = False


def gather(tree: Tree) -> Iterator[object]:
    """Rows of Capable and Declared."""
    seen: set[str] = set()
    for folder in WALKS[tree.walk]:
        inside = tree.inside(folder)
        if inside in seen or any(inside.startswith(f"{other}/") for other in seen):
            continue
        seen.add(inside)
        for real in capable(tree.root + inside):
            found = executable(tree, tree.outside_in(real))
            if found is not None and found.caps is not None:
                yield Capable(found)
    for pattern in DECLARING:
        for path in tree.matching(pattern):
            for said in declarations(path, tree.read(path) or ""):
                inside = tree.inside(said.path)
                if tree.stat(inside) is not None:
                    yield said._replace(held=is_capable(tree.root + inside))


def configured(facts: Facts) -> Iterator[Setting]:
    """Each capable file, and each that is declared so."""
    for file in (row.file for row in facts.of(Capable)):
        said = {"capabilities": file.caps.text if file.caps else "="} | facts.owned(file.uid, file.gid, file.mode)
        yield Setting("capability", file.path, said, Where(file.path))
    for row in facts.of(Declared):
        yield Setting("capability", row.path, {f"declared in {row.where.file}": row.caps}, row.where)


def capable(folder: str) -> Iterator[str]:
    """The regular files below a folder, on its own file system, that have the capability to bind."""
    try:
        device = os.stat(folder).st_dev
    except OSError:
        return
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            entries = os.scandir(here)
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.stat(follow_symlinks=False).st_dev == device:
                            folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and is_capable(entry.path):
                        yield entry.path
                except OSError:  # gone meanwhile
                    continue


def is_capable(real: str) -> bool:
    """Whether a file has the capability to bind; what is not there, is closed to us, or has no attributes, has not."""
    try:
        if ATTRIBUTE not in os.listxattr(real, follow_symlinks=False):
            return False
        found = decode(os.getxattr(real, ATTRIBUTE, follow_symlinks=False))
    except OSError:
        return False
    return found is not None and bool((found.permitted | found.inheritable) & BIND)


def declarations(path: str, text: str) -> Iterator[Declared]:
    """Each `setcap cap_net_bind_service… FILE` of a text."""
    if "setcap" not in text:
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.lstrip().startswith("#"):
            for found in _SETCAP.finditer(line):
                if "cap_net_bind_service" in found[1].lower():
                    yield Declared(found[2], found[1], Where(path, number))
