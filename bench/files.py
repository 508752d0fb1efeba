"""Mapping files to measure with, and the same rules in the words of the peers.

Files are written once: whoever asks for one again gets the same path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from measure import CLEAN
from workshop import Workshop

TARGET = 65001  # of every port that is not shifted
GROUP = 100  # ports of one mapping where a file has many in ranges
PROTOCOLS = '["tcp", "udp"]'
SPREAD = 30_000  # ports that `port` can number


class Pair(NamedTuple):
    """A mapping file, and what `redirector render --as nft` makes of it: the same for `nft -f`."""

    file: str
    rules: str


def pair(shop: Workshop, name: str, tables: Iterable[str]) -> Pair:
    """NAME.toml of these `[[mapping]]` tables, and NAME.nft."""
    found = Pair(shop.file(f"{name}.toml"), shop.file(f"{name}.nft"))
    if not os.path.exists(found.rules):
        shop.write(f"{name}.toml", "\n".join(["version = 1\n", *tables]))
        with open(found.rules, "wb") as out:
            argv = [shop.redirector, "render", found.file, "--as", "nft"]
            subprocess.run(argv, check=True, stdout=out, stderr=subprocess.DEVNULL, env=shop.environ)
    return found


def table(name: str, listen: int, to: int, count: int, protocol: str = '"tcp"', more: str = "") -> str:
    """A `[[mapping]]` of `count` shifted ports; `protocol` as TOML has it."""
    ranges = f'listen = "{listen}-{listen + count - 1}"\nto = "{to}-{to + count - 1}"'
    return f'[[mapping]]\nname = "{name}"\n{ranges}\nprotocol = {protocol}\n{more}'


def ranges(shop: Workshop, entries: int, extra: int = 0) -> Pair:
    """That many entries, half of them TCP, in mappings of at most GROUP ports each, none of which is another's target;
    with `extra`, one more mapping, whose port 700 leads to that one."""
    ports = entries // 2
    tables = [
        table(f"range-{at:05d}", 1001 + at, 32001 + at, min(GROUP, ports - at), PROTOCOLS)
        for at in range(0, ports, GROUP)
    ]
    if extra:
        tables.append(f'[[mapping]]\nname = "extra"\nlisten = 700\nto = {extra}\n')
    return pair(shop, f"ranges-{entries}-{extra}", tables)


def keys(shop: Workshop, ports: int, addresses: int) -> Pair:
    """Every (port, address): that many ports, in mappings of GROUP, on each of that many addresses."""
    where = ", ".join(f'"127.1.0.{i + 1}"' for i in range(addresses))
    tables = [
        table(f"keys-{at:05d}", 1001 + at, 32001 + at, min(GROUP, ports - at), more=f"address = [{where}]\n")
        for at in range(0, ports, GROUP)
    ]
    return pair(shop, f"keys-{ports}-{addresses}", tables)


def crowd(shop: Workshop, ports: int, addresses: int) -> str:
    """As `keys`, TCP and UDP, in few mappings: of all these ports on two addresses each. Only the mapping file."""
    tables = (
        table(f"crowd-{i:02d}", 1, 32_768, ports, PROTOCOLS, f'address = ["127.1.0.{i + 1}", "127.1.0.{i + 2}"]\n')
        for i in range(0, addresses, 2)
    )
    return shop.write("crowd.toml", "\n".join(["version = 1\n", *tables]))


def port(index: int) -> int:
    """No two of them are neighbours, so that each takes a rule where there are rules; `index` is below SPREAD."""
    return 1000 + 2 * index


def mappings(shop: Workshop, count: int, backend: str = "nftables") -> str:
    """A mapping file of `count` mappings of one port each, up to 10,000; beyond, of one mapping with that many entries.

    The kernel cannot tell the two: a port is an element, or a rule, whichever mapping it belongs to.
    """
    head = f'version = 1\n[settings]\nbackend = "{backend}"\n'
    if count <= 10_000:
        tables = "".join(f'[[mapping]]\nname = "m{i:05d}"\nlisten = {port(i)}\nto = {TARGET}\n' for i in range(count))
    else:
        tables = scattered("all", count // 2, PROTOCOLS)
    return shop.write(f"mappings-{backend}-{count}.toml", head + tables)


def scattered(name: str, count: int, protocol: str = '"tcp"') -> str:
    """A `[[mapping]]` of the first `count` ports."""
    listed = ", ".join(str(port(i)) for i in range(count))
    return f'[[mapping]]\nname = "{name}"\nlisten = [{listed}]\nto = {TARGET}\nprotocol = {protocol}\n'


def claims(count: int) -> list[tuple[str, int]]:
    """(protocol, port) of all that `mappings` maps, TCP last."""
    if count <= 10_000:
        return [("tcp", port(i)) for i in range(count)]
    return [(protocol, port(i)) for protocol in ("udp", "tcp") for i in range(count // 2)]


def flat(shop: Workshop, count: int) -> str:
    """The same for iptables-restore as a person would write it: one chain, to which PREROUTING and OUTPUT jump."""
    to = f"-j DNAT --to-destination :{TARGET}"
    rules = (
        f"-A FLAT -p {protocol} -m {protocol} --dport {number} -m comment --comment m{i:05d} {to}\n"
        for i, (protocol, number) in enumerate(claims(count))
    )
    jumps = (f"-A {chain} -m addrtype --dst-type LOCAL -j FLAT\n" for chain in ("PREROUTING", "OUTPUT"))
    return shop.write(f"flat-{count}.rules", "".join(["*nat\n:FLAT - [0:0]\n", *jumps, *rules, "COMMIT\n"]))


def again(shop: Workshop, rules: str) -> str:
    """A script for nft that replaces our table by what `rules` holds, in one transaction."""
    path = shop.write(f"again-{os.path.basename(rules)}", CLEAN)
    with open(path, "ab") as out, open(rules, "rb") as rest:
        shutil.copyfileobj(rest, out)
    return path
