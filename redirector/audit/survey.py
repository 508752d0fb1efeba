"""Gather: the running system, or the files below another root, as `Facts`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from redirector.audit import MECHANISMS, nat
from redirector.audit.executables import executable
from redirector.audit.facts import PRIVILEGED, Facts, Socket, Where
from redirector.audit.mechanisms.capabilities import Capable, is_capable
from redirector.audit.mechanisms.sysctl import PortStart, text_of
from redirector.audit.mechanisms.units import Unit
from redirector.audit.tree import Tree
from redirector.errors import RedirectorError, printable
from redirector.model import Ports, Ruleset
from redirector.records import NamedTuple

if TYPE_CHECKING:
    from redirector.audit.facts import Rule
    from redirector.history import History
    from redirector.others import Table

MAPPINGS = "/etc/redirector/mappings.toml"
RANGE = "net.ipv4.ip_local_port_range"
RESERVED = "net.ipv4.ip_local_reserved_ports"


def files(tree: Tree) -> list[object]:
    """The rows of every mechanism: what the files of a tree say."""
    found: list[object] = []
    for name in MECHANISMS:
        found += import_module(f"redirector.audit.mechanisms.{name}").gather(tree)
    return found


def below(tree: Tree) -> Facts:
    """What the files below another root say. Raises nothing: an unreadable mapping file is a failure that is told."""
    failures: list[str] = []
    items = files(tree)
    items += _elsewhere(tree, items)
    ruleset = _file(tree, failures)
    if ruleset is not None:
        items += nat.of_ruleset(ruleset, places(tree, MAPPINGS))
    configured = next((row.configured for row in items if isinstance(row, PortStart)), None)
    start = PRIVILEGED if configured is None else configured
    users, groups = _names(tree, "/etc/passwd"), _names(tree, "/etc/group")
    return Facts(tree.root, tuple(items), users, ruleset, tuple(failures), start, groups=groups)


def running_system(history: History, asked: Iterable[int], tree: Tree) -> Facts:
    """The host as it is, in the caller's network namespace; `asked` are ports that are looked at in any case."""
    from redirector.audit import sockets

    failures: list[str] = []
    nats = _rules(history, failures)
    found = sockets.gather(_matters(nats.rules, frozenset(asked)))
    items = [*files(tree), *nats.rules, *nats.tables, *found]
    items += _elsewhere(tree, items)
    start = next((row.runtime for row in items if isinstance(row, PortStart)), None)
    if os.geteuid():
        failures.append("not root: the processes of others, and who may bind by a file of others, cannot all be seen")
    users, groups = _databases()
    return Facts(
        "",
        tuple(items),
        users,
        nats.ruleset,
        tuple(failures),
        PRIVILEGED if start is None else start,
        _ephemeral(),
        tuple(_reserved()),
        sockets.bounding() or 0,
        nats.drift,
        groups,
    )


def _elsewhere(tree: Tree, items: list[object]) -> Iterator[object]:
    """The capable programs that listen, or that units start, where the walk does not come by."""
    known = {row.file.path for row in items if isinstance(row, Capable)}
    paths = [holder.executable for row in items if isinstance(row, Socket) for holder in row.holders]
    paths += [words[0] for row in items if isinstance(row, Unit) for words, _ in row.commands]
    for path in dict.fromkeys(path for path in paths if path.startswith("/")):
        inside = tree.inside(path)
        if inside not in known and is_capable(tree.root + inside):
            known.add(inside)
            found = executable(tree, inside)
            if found is not None:
                yield Capable(found)


def _matters(rules: list[Rule], asked: frozenset[int]) -> Callable[[int], bool]:
    """Which ports are looked at: privileged ones, those that rules take or lead to, and those that are asked for."""
    ranges = [r.ports for r in rules] + [r.target for r in rules if r.target]

    def matters(port: int) -> bool:
        return port < PRIVILEGED or port in asked or any(one.first <= port <= one.last for one in ranges)

    return matters


class _Rules(NamedTuple):
    """NAT rules of ours and others; the tables that others' are in; our ruleset, and how the kernel differs from it."""

    rules: list[Rule]
    tables: list[Table]
    ruleset: Ruleset | None
    drift: str


def _rules(history: History, failures: list[str]) -> _Rules:
    from redirector.host import firewalls

    found = _Rules([], [], None, "")
    try:
        found = _ours(history)
    except (RedirectorError, OSError) as error:
        failures.append(f"our own rules cannot be read: {printable(str(error))}")
    try:
        gathered = firewalls.gather(listing=True)
        tables = nat.tables(gathered)
        found = found._replace(rules=[*found.rules, *nat.others(tables)], tables=tables)
        failures += gathered.failures
    except (RedirectorError, OSError) as error:
        failures.append(f"the rules of others cannot be read: {printable(str(error))}")
    return found


def _ours(history: History) -> _Rules:
    import contextlib

    from redirector.diagnose import IPTABLES_PRIORITY
    from redirector.history import Record
    from redirector.plan import make_plan
    from redirector.reconcile import desired_program
    from redirector.selection import backend_for

    current = history.current()
    record = current if isinstance(current, Record) else None
    ruleset = record.ruleset if record else Ruleset()
    with contextlib.closing(backend_for("auto", history)) as backend:
        program = backend.observe().program
    if program is None:
        return _Rules([], [], record.ruleset if record else None, "")
    plan = make_plan(desired_program(ruleset, record.purged), program) if record else None
    names = [change.mapping or "its structure" for change in plan.changes] if plan else []
    hooks = [chain.hook for chain in program.chains.values() if chain.hook and chain.hook.type == "nat"]
    priority = hooks[0].priority if hooks and backend.name == "nftables" else IPTABLES_PRIORITY
    where = places(Tree(), record.origin if record else "")
    rules = list(nat.of_program(program, ruleset, priority, where))
    return _Rules(rules, [], record.ruleset if record else None, ", ".join(dict.fromkeys(names)))


def places(tree: Tree, origin: str) -> dict[str, Where]:
    """The line of each mapping in the file, or folder, that it comes from."""
    from redirector import mappings, source

    if not origin.startswith("/"):
        return {}
    try:
        files = source.read(origin if tree.live else tree.real(origin), insist=True)
    except (RedirectorError, OSError):
        return {}
    return {name: Where(tree.outside_in(file), line) for name, (file, line) in mappings.places(files).items()}


def _file(tree: Tree, failures: list[str]) -> Ruleset | None:
    """The ruleset of the mapping file in another root."""
    from redirector import mappings, source

    if tree.stat(MAPPINGS) is None:
        return None
    try:
        return mappings.parse(source.read(tree.real(MAPPINGS), insist=True))
    except (RedirectorError, OSError) as error:
        failures.append(f"{MAPPINGS} cannot be used: {printable(str(error))}")
        return None


def _databases() -> tuple[dict[int, str], dict[int, str]]:
    """Users and groups of the running system, whatever database knows them."""
    import grp
    import pwd

    users = {entry.pw_uid: entry.pw_name for entry in reversed(pwd.getpwall())}
    return users, {entry.gr_gid: entry.gr_name for entry in reversed(grp.getgrall())}


def _names(tree: Tree, path: str) -> dict[int, str]:
    """Names by id of passwd(5) or group(5)."""
    found: dict[int, str] = {}
    for line in (tree.read(path) or "").split("\n"):
        fields = line.split(":")
        if len(fields) >= 3 and fields[2].isascii() and fields[2].isdigit():
            found.setdefault(int(fields[2]), fields[0])
    return found


def _ephemeral() -> Ports:
    try:
        first, last = map(int, text_of(RANGE).split())
    except (OSError, ValueError):
        return Facts().ephemeral
    return Ports(first, last)


def _reserved() -> Iterator[Ports]:
    try:
        text = text_of(RESERVED).strip()
    except OSError:
        return
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        yield Ports(int(first), int(last or first))
