"""Reading the bytes of a mapping file: a regular file, a folder of *.toml, or "-"; and who else could write it.

Files are opened once, without blocking (a FIFO must not hang us), judged by the open descriptor, and read from it, so
that what was judged is what is read.

The way to a file is judged as the kernel walks it, name by name and link by link, each step before it is followed: from
then on nobody else can change it. So what stands at the end can only be put there by root or the caller; and it has to
be the file that was opened, or somebody has changed the way meanwhile.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator

from redirector import layout
from redirector.errors import BadConfiguration, printable
from redirector.records import NamedTuple

MAX_BYTES = 16 << 20
SETTLED_NS = 3 * 10**9  # more than a tick of the coarsest clock of a file system (FAT's: 2 s)
LINKS = 40  # linux/namei.h, MAXSYMLINKS


class SourceFile(NamedTuple):
    """One file as it was read: its name as the person gave it, and its bytes."""

    name: str
    data: bytes


def stamp(path: str) -> str:
    """What changes with the content behind `path`: keys of the file, or of a folder and all its files. "" where that
    cannot be told: there is none, it is "-", or it was changed so lately that another change could look the same."""
    try:
        found = os.stat(path)
        states = [found]
        if stat.S_ISDIR(found.st_mode):
            states += [os.stat(os.path.join(path, entry)) for entry in _entries(path)]
    except OSError:
        return ""
    if max(max(state.st_ctime_ns, state.st_mtime_ns) for state in states) > time.time_ns() - SETTLED_NS:
        return ""
    return " ".join("/".join(map(str, layout.file_key(state))) for state in states)


def read(path: str, *, insist: bool = True, most: int = MAX_BYTES) -> list[SourceFile]:
    """The files behind `path`, in the order in which they count, of at most `most` bytes each.

    With insist=False also refuses what others than root or the caller may write. Raises BadConfiguration.
    """
    if path == "-":
        return [SourceFile("<stdin>", _limited("<stdin>", sys.stdin.buffer.read(most + 1), most))]
    shown = printable(path)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return [_read_one(path, insist, most)]
        entries = _entries(path)
        if not insist:
            _judge_way(path)
    except OSError as error:
        raise _unreadable(shown, error) from None
    except ValueError:  # a NUL inside the name
        raise BadConfiguration(f"{shown}: no file can have that name") from None
    if not entries:
        raise BadConfiguration(f"{shown}: this folder holds no *.toml file", "put a mapping file into it")
    return [_read_one(os.path.join(path, entry), insist, most) for entry in entries]


def _entries(folder: str) -> list[str]:
    """The mapping files in a folder, in the order in which they count."""
    return sorted(e for e in os.listdir(folder) if e.endswith(".toml") and not e.startswith("."))


def _read_one(name: str, insist: bool, most: int) -> SourceFile:
    shown = printable(name)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadConfiguration(f"{shown}: not a regular file", "name a file, a folder of *.toml files, or -")
            if not insist:
                judge(shown, status)
                if not os.path.samestat(status, _judge_way(name)):
                    raise BadConfiguration(f"{shown}: unsafe: it was replaced while it was read", "read it again")
            with open(descriptor, "rb", closefd=False) as file:
                return SourceFile(shown, _limited(shown, file.read(most + 1), most))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(shown, error) from None


def _unreadable(shown: str, error: OSError) -> BadConfiguration:
    hint = "name the file, or put it at that path" if isinstance(error, FileNotFoundError) else ""
    return BadConfiguration(f"{shown}: {error.strerror}", hint)


def _limited(shown: str, data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise BadConfiguration(f"{shown}: larger than {most >> 20} MiB", "split it into a folder of files")
    return data


def _judge_way(name: str) -> os.stat_result:
    """Refuse a name on the way to which somebody else could put something else; what stands at its end."""
    status = os.lstat("/")
    for step in steps(os.path.join(os.getcwd(), name)):
        status = os.lstat(step)
        judge(step, status, folder=stat.S_ISDIR(status.st_mode))
    return status


def steps(path: str) -> Iterator[str]:
    """Every folder, link and file on the way to an absolute path, each without a link in its own way, and a link before
    it is followed; from the first that is missing on they are what the path says."""
    here, rest, links = "/", path.split("/")[::-1], 0
    yield here
    while rest:
        name = rest.pop()
        if name in ("", ".", ".."):
            here = os.path.dirname(here) if name == ".." else here
            continue
        step = os.path.join(here, name)
        yield step
        try:
            target = os.readlink(step) if links < LINKS else ""
        except OSError:  # no link
            target = ""
        if target:
            links += 1
            here = "/" if target.startswith("/") else here
            rest += target.split("/")[::-1]
        else:
            here = step


def judge(shown: str, status: os.stat_result, *, folder: bool = False, by_owner: bool = True) -> None:
    """Raises BadConfiguration where others than root or the caller may write a file, or replace what is in a folder;
    with by_owner=False others than its owner."""
    hint = "mend its owner and mode, or insist with --allow-unsafe-file"
    if by_owner and status.st_uid not in (0, os.geteuid()):
        raise BadConfiguration(f"{printable(shown)}: unsafe: it belongs to user id {status.st_uid}", hint)
    # In a sticky folder (/tmp) nobody can replace what is ours; a link's own mode means nothing.
    if (folder and status.st_mode & stat.S_ISVTX) or stat.S_ISLNK(status.st_mode):
        return
    if status.st_mode & stat.S_IWOTH:
        raise BadConfiguration(f"{printable(shown)}: unsafe: everybody may write it", hint)
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        raise BadConfiguration(f"{printable(shown)}: unsafe: group id {status.st_gid} may write it", hint)
