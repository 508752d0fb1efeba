"""What a command imports, from `python -X importtime`: which modules, and what each costs with all that it pulls in.

The lines come in the order in which imports end, indented by how deep they are nested: a tree in post-order. Times are
inflated by the measuring, and so only worth comparing with one another.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

LINE = re.compile(r"import time:\s*(?P<own>\d+) \|\s*\d+ \|(?P<indent> +)(?P<name>\S+)")


class Import(NamedTuple):
    """One import: `own` microseconds for the module itself, and the imports that it caused."""

    name: str
    own: int
    inner: tuple[Import, ...]

    def cost(self, without: str = "") -> int:
        """Microseconds with everything inside, but for the package `without`."""
        return self.own + sum(found.cost(without) for found in self.inner if not belongs(found.name, without))

    def outside(self, package: str) -> list[Import]:
        """The import itself and those inside it, but for a package and what that pulls in."""
        if belongs(self.name, package):
            return []
        return [self, *(deeper for found in self.inner for deeper in found.outside(package))]

    def find(self, name: str) -> Import | None:
        if self.name == name:
            return self
        return next((hit for found in self.inner if (hit := found.find(name))), None)


def belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def parse(text: str) -> Import:
    """The tree of what a program imports, under a root without a name. Raises ValueError where there is none.

    What the interpreter imports for itself, up to `site` (and what a virtual environment hooks into that), is left out.
    """
    levels: dict[int, list[Import]] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if not match:
            continue
        depth = len(match["indent"]) // 2
        inner = tuple(levels.pop(depth + 1, ()))
        levels.setdefault(depth, []).append(Import(match["name"], int(match["own"]), inner))
    if 0 not in levels:
        raise ValueError("no import times in the output")
    top = levels[0]
    start = next((i + 1 for i, found in enumerate(top) if found.name == "site"), 0)
    return Import("", 0, tuple(top[start:]))


def heavier(root: Import, package: str) -> list[str]:
    """Modules that cost more than `package`, itself and what it pulls in aside."""
    known = root.find(package)
    limit = known.cost() if known else 0
    found = [module for top in root.inner for module in top.outside(package)]
    return [module.name for module in found if module.cost(without=package) > limit]


def third_party(root: Import, known: tuple[str, ...]) -> list[str]:
    """Top packages that belong neither to Python nor to `known`."""
    found = {module.name.partition(".")[0] for top in root.inner for module in top.outside(known[0])}
    python = sys.stdlib_module_names | {"__main__", "sitecustomize", "usercustomize"}
    # What mypyc compiles (tomli) has a helper beside it, by a name of no package.
    return sorted(n for n in found if n not in python and n not in known and not n.endswith("__mypyc"))


def heaviest(root: Import, package: str, count: int = 5) -> list[tuple[str, float]]:
    """(module, milliseconds) of what was imported outside of `package`, by the module's own cost."""
    found = [module for top in root.inner for module in top.outside(package)]
    found.sort(key=lambda module: -module.own)
    return [(module.name, module.own / 1000) for module in found[:count]]
