"""Would this user, running this program, be able to bind this port? Pure: the kernel's own decision, step by step.

Theory of operation. A bind below the first unprivileged port needs CAP_NET_BIND_SERVICE in the effective set of the
process (inet_bind, in the user namespace that owns the network namespace). What a program has there after exec
(capabilities(7), "Transformation of capabilities during execve()"): root has everything that the bounding set has; a
setuid-root program, too, unless the file has capabilities, which then decide; else permitted is the file's permitted
within the bounding set, and effective is that if the file's effective bit is set, and nothing if it is not. If the
effective bit is set and something of the file's permitted set could not be had, exec itself is refused (EPERM). Of a
script the kernel executes the interpreter, and nothing about the script counts. A nosuid mount takes all of this away.

Ambient capabilities, authbind and systemd's sockets come from whoever *starts* the program: these are told as what
would have to start it. Whether the port is free is asked last, as the kernel does: EACCES comes before EADDRINUSE.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.capability import BIND
from redirector.audit.executables import Executable
from redirector.audit.facts import PRIVILEGED, Facts, Socket, Where
from redirector.audit.mechanisms.authbind import Grant
from redirector.audit.mechanisms.units import SocketListen, Unit, binds_by_ambient
from redirector.audit.ways import grants
from redirector.model import FAMILIES
from redirector.records import NamedTuple

YES, NO, IF = "yes", "no", "if"
WILDCARDS = {"ipv4": ("0.0.0.0", "0.0.0.0/0"), "ipv6": ("::", "::/0")}  # noqa: S104 - compared with, never bound


class User(NamedTuple):
    """Who would run it: `groups` with the main one."""

    name: str
    uid: int
    groups: frozenset[int] = frozenset()


class Attempt(NamedTuple):
    """`programs`: the program and what is behind it (see `executables.chain`); none: any program without privileges.
    `missing`: it was asked for, and is not there. `unreachable`: a folder on the way that the user may not enter.
    `authbind`: it is installed. `names`: the paths by which units start the program."""

    port: int
    user: User
    programs: tuple[Executable, ...] = ()
    protocol: str = "tcp"
    missing: str = ""
    unreachable: str = ""
    authbind: bool = True
    names: frozenset[str] = frozenset()


class Step(NamedTuple):
    """One mechanism: whether it `works` (yes, no, or if it is started so), and `why`."""

    mechanism: str
    works: str
    why: str
    where: Where = Where("")


class Verdict(NamedTuple):
    """`binds`: it would get the port, on every address, if it is just started. `mechanism` is what allows it, "" for
    none; `through` the mechanisms by which it would if it were started by them."""

    binds: bool
    mechanism: str
    reason: str
    steps: tuple[Step, ...]
    through: tuple[str, ...]
    taken: tuple[Socket, ...]


def verdict(attempt: Attempt, facts: Facts) -> Verdict:
    """The whole answer."""
    refusal = _start(attempt, facts)
    taken = tuple(_taken(attempt, facts))
    if refusal:
        return Verdict(False, "", refusal, (), (), taken)
    steps = tuple(_steps(attempt, facts))
    mechanism = next((step.mechanism for step in steps if step.works == YES), "")
    through = tuple(step.mechanism for step in steps if step.works == IF)
    if mechanism and taken:
        first = taken[0].listener
        holder = f" by {taken[0].holders[0].command} (process {taken[0].holders[0].pid})" if taken[0].holders else ""
        reason = f"the port is taken: {first.protocol} {first.address} is listened on{holder} (EADDRINUSE)"
    elif mechanism:
        reason = next(step.why for step in steps if step.mechanism == mechanism)
    else:
        reason = f"ports below {facts.port_start} need CAP_NET_BIND_SERVICE, and it has none (EACCES)"
    return Verdict(bool(mechanism) and not taken, mechanism, reason, steps, through, taken)


def _start(attempt: Attempt, facts: Facts) -> str:
    """Why the program cannot even be started; "" if it can."""
    if attempt.missing:
        return f"there is no program {attempt.missing}"
    if attempt.unreachable:
        return f"{attempt.user.name} may not enter {attempt.unreachable}"
    for one in attempt.programs:
        if not may(attempt.user, one.mode, one.uid, one.gid, 1):
            return f"{attempt.user.name} may not execute {one.path} (mode {one.mode:o})"
    last = attempt.programs[-1] if attempt.programs else None
    if last and last.caps and last.caps.effective and attempt.user.uid and not last.nosuid:
        lacking = last.caps.permitted & ~facts.bounding
        if lacking and not last.caps.rootid:
            return f"{last.path} has capabilities that the bounding set here lacks, so its start is refused (EPERM)"
    return ""


def may(user: User, mode: int, uid: int, gid: int, bit: int) -> bool:
    """Whether a user may read (4), write (2) or execute (1) by the mode. Root may execute what anybody may."""
    if user.uid == 0:
        return bit != 1 or bool(mode & 0o111)
    shift = 6 if user.uid == uid else 3 if gid in user.groups else 0
    return bool(mode >> shift & bit)


def _steps(attempt: Attempt, facts: Facts) -> Iterator[Step]:
    yield _unprivileged(attempt, facts)
    yield _root(attempt, facts)
    last = attempt.programs[-1] if attempt.programs else None
    if last is not None:
        yield _setuid(last)
        yield _capability(last, attempt, facts)
    if attempt.port >= facts.port_start:
        return
    yield from _authbind(attempt, last, facts)
    yield from _units(attempt, facts)


def _unprivileged(attempt: Attempt, facts: Facts) -> Step:
    start = facts.port_start
    if attempt.port >= start:
        mechanism = "unprivileged" if attempt.port >= PRIVILEGED else "sysctl"
        return Step(mechanism, YES, f"every user may bind ports from {start} on")
    return Step("unprivileged", NO, f"only ports from {start} on are everybody's")


def _root(attempt: Attempt, facts: Facts) -> Step:
    if attempt.user.uid:
        return Step("root", NO, f"{attempt.user.name} is not root")
    if not facts.bounding & BIND:
        return Step("root", NO, "root lacks it here, too: the bounding set is without it")
    return Step("root", YES, "root has every capability")


def _setuid(last: Executable) -> Step:
    if not last.setuid_root:
        return Step("setuid", NO, f"{last.path} is not setuid root")
    if last.nosuid:
        return Step("setuid", NO, "it is setuid root, and on a file system that is mounted nosuid")
    if last.caps:
        return Step("setuid", NO, "it is setuid root, but has file capabilities, which then decide")
    return Step("setuid", YES, f"{last.path} is setuid root: it runs as root")


def _capability(last: Executable, attempt: Attempt, facts: Facts) -> Step:
    where = Where(last.path)
    scripts = [one.path for one in attempt.programs[:-1] if one.caps]
    if last.caps is None:
        ignored = f"; that of {scripts[0]} is ignored, as that only starts another program" if scripts else ""
        return Step("capability", NO, f"{last.path} has no file capability{ignored}", where)
    said = f"{last.path} has {last.caps.text}"
    if not last.caps.permitted & BIND:
        return Step("capability", NO, f"{said}: not permitted to bind (what is inheritable alone is not had)", where)
    if last.nosuid:
        return Step("capability", NO, f"{said}, and is on a file system that is mounted nosuid", where)
    if last.caps.rootid:
        return Step(
            "capability", NO, f"{said}, which holds in the user namespace of user {last.caps.rootid} only", where
        )
    if not facts.bounding & BIND:
        return Step("capability", NO, f"{said}, and the bounding set is without it", where)
    if not last.caps.effective:
        return Step("capability", NO, f"{said}, without the effective bit: the program would have to raise it", where)
    return Step("capability", YES, said, where)


def _authbind(attempt: Attempt, last: Executable | None, facts: Facts) -> Iterator[Step]:
    if attempt.protocol not in ("tcp", "udp") or not attempt.user.uid:
        return
    refused = _ungranted(attempt, grants(facts, attempt.port))
    if refused:
        yield refused if attempt.authbind else refused._replace(why="authbind is not installed")
        return
    step = Step("authbind", NO, "")
    if not attempt.authbind:
        yield step._replace(why="there is a grant, but authbind is not installed")
    elif last and (last.static or last.go):
        yield step._replace(why=f"{last.path} does not bind by the C library, so authbind cannot help")
    elif last and (last.caps or last.mode & 0o6000) and not last.nosuid:
        yield step._replace(why=f"{last.path} has privileges of its own, so nothing is preloaded")
    else:
        yield step._replace(works=IF, why="if it is started by authbind --deep")


def _ungranted(attempt: Attempt, found: list[Grant]) -> Step | None:
    """What is in the way of a bind to every address of both families; None where authbind would allow that.

    A file by port decides, whatever it says; then one by address; then the lines of the user.
    """
    for family, (wildcard, everything) in WILDCARDS.items():
        files = [g for g in found if g.kind == "byport"]
        files += [g for g in found if g.kind == "byaddr" and g.address == wildcard]
        if files and may(attempt.user, files[0].mode, files[0].uid, files[0].gid, 1):
            continue
        if files:
            why = f"{attempt.user.name} may not execute {files[0].where.file} (mode {files[0].mode:o})"
            return Step("authbind", NO, why, files[0].where)
        lines = [g for g in found if (g.kind, g.for_uid) == ("byuid", attempt.user.uid)]
        if not any(g.address in (wildcard, everything) for g in lines):
            return Step("authbind", NO, f"authbind has no grant for it over {family}")
    return None


def _units(attempt: Attempt, facts: Facts) -> Iterator[Step]:
    for unit in facts.of(Unit):
        if binds_by_ambient(unit) and unit.last("User") in (attempt.user.name, str(attempt.user.uid)):
            for words, where in unit.commands:
                if words[0] in attempt.names or not attempt.programs:
                    yield Step("ambient", IF, f"if it is started as {unit.name}", where)
                    break
    for listen in facts.of(SocketListen):
        if (listen.port, listen.protocol) == (attempt.port, attempt.protocol):
            why = f"if it takes the socket that systemd opens for {listen.unit.name} (sd_listen_fds(3))"
            yield Step("socket-unit", IF, why, listen.where)


def _taken(attempt: Attempt, facts: Facts) -> Iterator[Socket]:
    """The sockets that a bind to every address would collide with."""
    for socket in facts.of(Socket):
        one = socket.listener
        if (one.port, one.protocol) == (attempt.port, attempt.protocol) and any(map(one.accepts, FAMILIES)):
            yield socket
