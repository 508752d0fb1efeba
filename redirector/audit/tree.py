"""The files that are audited: those of the running system, or those below another root (an image, a copy, a container).

Theory of operation. In a tree that is not ours an absolute link means a place in *that* tree. So every path is walked
part by part, links are followed as chroot would follow them, and ".." stops at the root. All paths that are told to
people are those inside. Whatever cannot be read is passed over: it reads as not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

LINKS = 40  # that one path may take, as the kernel has it (MAXSYMLINKS)
LARGEST = 4 << 20  # bytes of a configuration file that are read


class Tree:
    """`root` "" is the running system: only that has processes, sockets and sysctls. `walk`: in which folders programs
    are looked for: "usual" ones, "everywhere", "nowhere". Raises OSError for a root that is not there."""

    def __init__(self, root: str = "", walk: str = "usual") -> None:
        self.walk = walk
        # As it is named: /proc/PID/root, by which a container's files can be seen, reads as a link to "/".
        self.root = os.path.abspath(root) if root and not os.path.samefile(root, "/") else ""

    @property
    def live(self) -> bool:
        return not self.root

    def inside(self, path: str) -> str:
        """The canonical path inside the tree: no links, no "..". What does not exist keeps its name."""
        if self.live:
            return os.path.realpath(path)
        todo = [part for part in reversed(path.split("/")) if part and part != "."]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            here = "/".join([self.root, *done, part])
            target = _link(here) if links < LINKS else None
            if target is None:
                done.append(part)
                continue
            links += 1
            if target.startswith("/"):
                done = []
            todo += [part for part in reversed(target.split("/")) if part and part != "."]
        return "/" + "/".join(done)

    def real(self, path: str) -> str:
        """Where a path of the tree is on this system."""
        return self.root + self.inside(path)

    def outside_in(self, real: str) -> str:
        """Inverts `real`, for a path that begins with the root."""
        return real.removeprefix(self.root) or "/"

    def read_bytes(self, path: str, size: int = LARGEST) -> bytes | None:
        """The first bytes of a regular file; None for anything else."""
        real = self.real(path)
        try:
            if not stat.S_ISREG(os.stat(real).st_mode):
                return None
            with open(real, "rb") as file:
                return file.read(size)
        except (OSError, ValueError):
            return None

    def read(self, path: str) -> str | None:
        data = self.read_bytes(path)
        return None if data is None else data.decode("utf-8", "replace")

    def names(self, folder: str) -> list[str]:
        """What is in a folder, in order."""
        try:
            return sorted(os.listdir(self.real(folder)))
        except (OSError, ValueError):
            return []

    def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(self.real(path))
        except (OSError, ValueError):
            return None

    def matching(self, pattern: str) -> Iterator[str]:
        """The files that a pattern of the shell means, in order; wildcards are understood in every part."""
        import fnmatch

        folders = ["/"]
        for part in [part for part in pattern.split("/") if part]:
            if any(c in part for c in "*?["):
                folders = [
                    os.path.join(folder, name)
                    for folder in folders
                    for name in fnmatch.filter(self.names(folder), part)
                    if part.startswith(".") or not name.startswith(".")
                ]
            else:
                folders = [os.path.join(folder, part) for folder in folders]
        yield from (path for path in folders if self.stat(path) is not None)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except (OSError, ValueError):
        return None
