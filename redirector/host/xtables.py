"""The programs of iptables, by variant ("nft" or "legacy"), family and verb ("save" or "restore")."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from redirector.host import children

PROGRAMS = {"ipv4": "iptables", "ipv6": "ip6tables"}
SECONDS = 10.0


def name(variant: str, family: str, verb: str) -> str:
    return f"{PROGRAMS[family]}-{variant}-{verb}"


def find(variant: str, family: str, verb: str, folders: Iterable[str] = children.FOLDERS) -> str:
    """The path of a program, "" where there is none.

    Hosts with one variant alone may have it under the plain name only: `iptables -V` tells which one it is.
    """
    folders = tuple(folders)
    path = children.find(name(variant, family, verb), folders)
    if path:
        return path
    plain = children.find(f"{PROGRAMS[family]}-{verb}", folders)
    return plain if plain and _variant(children.find(PROGRAMS[family], folders)) == variant else ""


@cache
def _variant(path: str) -> str:
    """What variant the program at `path` is; "" where it does not tell."""
    try:
        done = children.run([path, "-V"], SECONDS) if path else None
    except OSError:
        return ""
    if done is None or done.code or " v1." not in done.output:
        return ""
    return "nft" if "(nf_tables)" in done.output else "legacy"  # before 1.8 there was nothing else, and no word of it
