"""How the units get onto a system and off it; `unit` has their text.

`systemctl` is asked only about the system that runs (no --root, and systemd is process 1); in an image the links that
`systemctl enable` would make are made here, from the same WantedBy=.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

from redirector import store
from redirector.errors import NotPermitted, Refused, Unavailable, printable
from redirector.host import children, systemd
from redirector.unit import AFTERWARDS, MARK, NAME, STAND_IN, WANTED_BY, WATCH

FOLDER = "/etc/systemd/system"  # systemd.unit(5): units that the administrator installed
MODE = 0o644  # systemd's tools read units as anybody
SECONDS = 60.0  # for systemctl


def path(root: str = "", name: str = NAME) -> str:
    """Where a unit is, under `root` ("" for the running system)."""
    return f"{root.rstrip('/')}{FOLDER}/{name}"


def read(root: str = "", name: str = NAME) -> str | None:
    """The unit that is installed; None if there is none. Raises Refused for something that cannot be read."""
    try:
        with open(path(root, name), "rb", opener=store.no_follow) as file:
            return file.read().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(f"{printable(path(root, name))}: {error.strerror}") from None


def install(texts: Mapping[str, str], root: str = "") -> bool:
    """Put the units there and enable them; False if they were there, the same. Raises Refused where one is not ours."""
    found = _ours(root, "move it away first")
    for name, text in texts.items():
        if found[name] != text:
            _write(path(root, name), text.encode())
    if manages(root):
        _systemctl("daemon-reload")
        _systemctl("enable", *(name for name in WANTED_BY if name in texts))
    else:
        for link, name in _links(root).items():
            if name in texts:
                _link(link, name)
    return any(found[name] != text for name, text in texts.items())


def uninstall(root: str = "") -> bool:
    """Disable and remove the units; False if there are none. What is in the kernel stays. Raises Refused."""
    found = [name for name, text in _ours(root, "remove it yourself").items() if text is not None]
    if not found:
        return False
    managed = manages(root)
    if managed:
        _systemctl("stop", *found)
        with contextlib.suppress(Unavailable):  # it complains of units that systemd has forgotten already
            _systemctl("reset-failed", *found)
    try:
        for link in filter(os.path.islink, _links(root)):
            os.unlink(link)
            with contextlib.suppress(OSError):  # others are wanted there, too
                os.rmdir(os.path.dirname(link))
        for name in found:
            os.unlink(path(root, name))
        store.sync_folder(os.path.dirname(path(root)))
    except OSError as error:
        raise _unwritable(error) from None
    if managed:
        _systemctl("daemon-reload")
    return True


def _ours(root: str, hint: str) -> dict[str, str | None]:
    """What is there of each unit. Raises Refused where one was written by others."""
    found = {name: read(root, name) for name in (NAME, STAND_IN, AFTERWARDS, WATCH)}
    for name, text in found.items():
        if text is not None and not text.startswith(MARK):
            raise Refused(f"{printable(path(root, name))} is not ours; nothing was changed", hint)
    return found


def _links(root: str) -> dict[str, str]:
    """The links that WantedBy= stands for, and the units that they lead to."""
    folder = f"{root.rstrip('/')}{FOLDER}"
    return {f"{folder}/{by}.wants/{name}": name for name, wanted_by in WANTED_BY.items() for by in wanted_by}


def manages(root: str) -> bool:
    """Whether systemd runs the system at `root`."""
    return not root and systemd.booted()


def _write(final: str, data: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(final), mode=0o755, exist_ok=True)
        store.replace(final, data, MODE, flush=True)
    except OSError as error:
        raise _unwritable(error) from None


def _link(name: str, unit: str) -> None:
    """`name` → the unit, as `systemctl enable` makes it. The target is absolute inside the system that will boot."""
    target = f"{FOLDER}/{unit}"
    try:
        os.makedirs(os.path.dirname(name), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(name).st_mode) and os.readlink(name) == target:
                return
            os.unlink(name)
        os.symlink(target, name)
        store.sync_folder(os.path.dirname(name))
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> NotPermitted | Refused:
    message = f"{printable(str(error.filename or FOLDER))}: {error.strerror}"
    return NotPermitted(message, "run it as root") if isinstance(error, PermissionError) else Refused(message)


def _systemctl(*arguments: str) -> None:
    """Raises Unavailable with what systemctl complained of."""
    try:
        done = children.run(["/usr/bin/systemctl", *arguments], SECONDS)
    except OSError as error:
        reason = str(error) or f"it did not end within {SECONDS:.0f} s"
        raise Unavailable(f"systemctl {arguments[0]}: {printable(reason)}") from None
    if done.code:
        told = printable(done.complaint.strip().rpartition("\n")[2])
        raise Unavailable(f"systemctl {arguments[0]} failed: {told}", f"the units are in {FOLDER}")
