"""Files that are whole or not there, in a folder of our own, and the lock that orders our own writers.

Theory of operation. A file is written to a temporary one beside it and flushed to the disk (fsync); it counts once it
is renamed, and the folder flushed. A crash at any moment leaves the old file, or the new one, and at most a temporary
file that nobody reads. The lock is flock(2)'s, on a file that stays: it dies with the process that holds it,
and with those of its children that were given the descriptor (`held`), because they change the kernel in its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from redirector import source
from redirector.errors import BadConfiguration, NotPermitted, Refused, TryAgain, printable

LOCK_SECONDS = 8.0
LOCK_POLL_SECONDS = 0.02
READS = 3


class Unsynced(OSError):
    """A file counts, but the disk did not confirm it: a power cut may undo it."""


class Prepared:
    """A file that lies on the disk, one rename away from counting."""

    def __init__(self, temporary: str, final: str) -> None:
        self._temporary, self._final = temporary, final

    def keep(self) -> None:
        """Let it count. Raises Unsynced if it does, but may not outlast a power cut; another OSError if it does not."""
        replaces = os.path.lexists(self._final)
        os.rename(self._temporary, self._final)
        try:
            sync_folder(os.path.dirname(self._final))
        except OSError as error:
            # Whoever is told that it failed must not find it there; but what it replaced cannot be brought back.
            with contextlib.suppress(OSError):
                if not replaces:
                    os.unlink(self._final)
            if os.path.lexists(self._final):
                raise Unsynced(error.errno, error.strerror) from None
            raise

    def discard(self) -> None:
        """Take it away; where even that fails it stays, and nobody reads it."""
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)


def prepare(path: str, data: bytes) -> Prepared:
    """Write `data` next to `path`, private to the user, and flush it. Raises Refused or NotPermitted."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise unwritable(os.path.dirname(path), error) from None
    return Prepared(temporary, path)


def replace(final: str, data: bytes, mode: int, *, flush: bool = False) -> None:
    """The whole file or nothing, whatever was there before, with these permissions whatever the umask; `flush`: to the
    disk. For files that others read; the temporary one has no name that they would look for. Raises OSError."""
    folder, name = os.path.split(final)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):  # of a dead process of the same number
            os.unlink(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.rename(temporary, final)
        if flush:
            sync_folder(folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def make_private(folder: str) -> None:
    """Make a folder that only its owner can enter. Raises Refused for one that others may write or replace,
    NotPermitted."""
    try:
        _judge(folder, make=True)
    except OSError as error:
        raise unwritable(folder, error) from None


def is_private(folder: str) -> bool:
    """Whether what is recorded there can be trusted: only root or we could have written it."""
    try:
        _judge(folder, make=False)
    except (Refused, OSError):
        return False
    return True


def _judge(folder: str, *, make: bool) -> None:
    """Every step on the way to a folder, before it is followed (see `source`). What is missing is made step by step: in
    a folder where others may write, such as /tmp, they could have put a link in its place meanwhile."""
    status = os.lstat("/")
    for step in source.steps(os.path.abspath(folder)):
        if make and not os.path.lexists(step):
            with contextlib.suppress(FileExistsError):
                os.mkdir(step, 0o700)
        status = os.lstat(step)
        try:
            source.judge(step, status, folder=True, by_owner=not _unknown(status.st_uid))
        except BadConfiguration as error:
            raise _unsafe(folder, error.message) from None
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unsafe(folder, "")


def _unsafe(folder: str, why: str) -> Refused:
    hint = "make it, and what is above it, root's own with mode 0700, or choose another --state-dir"
    message = f"the state folder {printable(folder)} can be written by others"
    return Refused(f"{message} ({why})" if why else message, hint)


def _unknown(uid: int) -> bool:
    """Whether this is how the owners of everything outside look in here: in a user namespace that maps a few users, /
    belongs to nobody known, and we are root of our own things only."""
    if uid in (0, os.geteuid()):
        return False
    with open("/proc/self/uid_map", "rb") as mapped, open("/proc/sys/kernel/overflowuid", "rb") as overflow:
        return uid == int(overflow.read()) and mapped.read().split()[2] != b"4294967295"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the lock of a folder. Raises TryAgain after LOCK_SECONDS, and says who holds it."""
    make_private(folder)
    try:
        descriptor = _open_lock(os.path.join(folder, "lock"))
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        _acquire(descriptor)
        _held.append(descriptor)
        with contextlib.suppress(OSError):  # no room, say: the name is for people, the lock holds without it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(ValueError):
            _held.remove(descriptor)
        with contextlib.suppress(OSError):  # close(2) gives the descriptor back even where it fails
            os.close(descriptor)  # and with it the lock, as when the process dies


_held: list[int] = []  # descriptors of the locks that this process holds


def held() -> tuple[int, ...]:
    """Descriptors of the locks that this process holds: a child that has them open holds them as long as it lives."""
    return tuple(_held)


def _open_lock(path: str) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno == errno.EROFS:  # flock(2) asks for no more, and going back must be possible there, too
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, flags | os.O_RDONLY)
        raise


def _acquire(descriptor: int) -> None:
    """Take the lock; flock has no time-out of its own, so ask again and again within bounds."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
        else:
            return
        if time.monotonic() > deadline:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise TryAgain(f"{who} has been changing the mappings for {LOCK_SECONDS:.0f} s", "try again later")
        time.sleep(LOCK_POLL_SECONDS)


def read(path: str) -> bytes:
    """The bytes of a file that is no link. Raises OSError where READS attempts in a row fail: what is read here decides
    what is taken back, and one interruption, or a moment without memory, must not."""
    for attempt in range(READS):
        try:
            with open(path, "rb", opener=no_follow) as file:
                return file.read()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == READS - 1:
                raise
    raise AssertionError


def no_follow(path: str, flags: int) -> int:
    """An opener (see `open`) that refuses symbolic links, and does not wait for the other end of a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def sync_folder(path: str) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forbidden(folder: str) -> NotPermitted:
    return NotPermitted(f"you may not read the state in {printable(folder)}", "run it as root, or choose a --state-dir")


def unwritable(folder: str, error: OSError) -> NotPermitted | Refused:
    """What it means that nothing can be written there."""
    if error.errno in (errno.EACCES, errno.EPERM):
        message = f"you may not write the state in {printable(folder)}; nothing was changed"
        return NotPermitted(message, "run it as root, or choose a --state-dir")
    message = f"the state in {printable(folder)} cannot be written ({error.strerror}); nothing was changed"
    return Refused(message, "make room there, or choose another --state-dir")
