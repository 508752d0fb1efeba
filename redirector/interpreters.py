"""Programs that run whatever program a user hands them: what one of these may do, every script of every user may."""

from __future__ import annotations

_NAMES = frozenset(
    [
        "python",
        "pypy",
        "perl",
        "ruby",
        "node",
        "nodejs",
        "deno",
        "bun",
        "php",
        "php-cgi",
        "lua",
        "luajit",
        "java",
        "bash",
        "dash",
        "sh",
        "zsh",
        "ksh",
        "busybox",
        "tclsh",
        "guile",
        "gawk",
        "mawk",
        "awk",
        "gdb",
        "env",
        "erl",
        "beam.smp",
        "dotnet",
        "mono",
        "Rscript",
        "R",
    ]
)


def interprets(name: str) -> bool:
    """Whether a program of this name (no path) is one, whatever version stands behind it: "python3.11"."""
    stem = name.rstrip("0123456789.-")
    return name in _NAMES or stem in _NAMES or name.startswith("qemu-")
