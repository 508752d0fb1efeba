"""Whether a unit that runs as root can and may run this Python: who could change what it loads, and whether that is
there when the machine starts.

Theory of operation. `service install` runs a child with the Python, the options and the environment that the unit will
have; it imports what boot imports, and then looks at every file that this came from, at the folders that Python
searches, and at the interpreter. Each path is followed as the kernel follows it, name by name and link by link, for
whoever may write any folder on the way decides what is loaded. In an image the child runs behind chroot(1), and sees
what will be there.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence

from redirector import source
from redirector.errors import BadConfiguration, NotPermitted, Refused, printable

# Emptied before or while the machine starts, or not of the disk at all (file-hierarchy(7)).
VOLATILE = ("/tmp", "/var/tmp", "/run", "/dev", "/proc", "/sys")  # noqa: S108 (these are refused)
CHROOT = "/usr/sbin/chroot"  # coreutils
SECONDS = 60.0  # for a Python to start
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
CHILD = """
import redirector.backends.nftables.backend, redirector.boot, redirector.cli.serving, redirector.trusted
redirector.trusted.main()
"""
UNTRUSTED = 3  # the child's exit code where it has something to complain of


def require(python: str, file: str, state_dir: str, root: str = "") -> None:
    """Raises BadConfiguration, Refused or NotPermitted unless a unit of the system at `root` can and may run this
    Python, for this file and this state folder."""
    hint = "install the package for that Python (python3 -m venv /opt/redirector), and call it from there"
    if root:
        if os.geteuid():
            raise NotPermitted("only root can look into another system; nothing was changed", "run it as root")
        hint = f"install the package in there, and call it from there: chroot {printable(root)} …"
    argv = [*([CHROOT, root] if root else []), python, "-I", "-c", CHILD, file, state_dir]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", env=ENVIRONMENT, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{printable(python)} cannot be run: {printable(str(error))}; nothing was changed"
        raise Refused(message, hint) from None
    if done.returncode == UNTRUSTED:
        message = f"the unit, which runs as root, cannot rely on {printable(done.stdout.decode(errors='replace'))}"
        hint = "mend its owner and mode, or have it in a folder of root's own, such as /opt"
        raise BadConfiguration(f"{message}; nothing was changed", hint)
    if done.returncode:
        told = printable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise Refused(f"{printable(python)} -I does not load redirector ({told}); nothing was changed", hint)


def main() -> None:
    """The child. Its arguments need not be there yet, and who may write them is judged elsewhere."""
    package = os.path.dirname(os.path.abspath(__file__))
    ours = (os.path.join(folder, name) for folder, _, names in os.walk(package) for name in names)
    found = {path for path in (sys.executable, *_searched(), *_loaded(), *ours) if os.path.isabs(path)}
    for fault in (*map(unsafe, sorted(found)), *map(volatile, (sys.executable, package, *sys.argv[1:]))):
        if fault:
            sys.stdout.write(fault)
            sys.exit(UNTRUSTED)


def _searched() -> Iterator[str]:
    """Where Python looks for modules, and what tells it where to look (site, venv)."""
    yield os.path.join(sys.prefix, "pyvenv.cfg")
    for folder in sys.path:
        yield folder
        if os.path.isdir(folder):
            yield from (os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth"))


def _loaded() -> Iterator[str]:
    """The files of the modules that are loaded, and those that hold them compiled."""
    for module in tuple(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        yield from filter(None, (getattr(module, "__file__", None), getattr(spec, "cached", None)))


def unsafe(path: str) -> str:
    """Which file, link or folder on the way to `path` others than root or the caller could change; "" for none."""
    try:
        for step in source.steps(path):
            if not os.path.lexists(
                step
            ):  # could others put something there? Then a sticky folder is no better than any
                folder = os.path.dirname(step)
                source.judge(folder, os.lstat(folder))
                break
            status = os.lstat(step)
            source.judge(step, status, folder=stat.S_ISDIR(status.st_mode))
    except BadConfiguration as error:
        return error.message
    except OSError as error:
        return f"{printable(path)}: {error.strerror}"
    return ""


def volatile(path: str, folders: Sequence[str] = VOLATILE) -> str:
    """Why nothing is to be found at `path` when the machine starts; "" if nothing speaks against it."""
    for step in source.steps(path):
        for folder in folders:
            if f"{step}/".startswith(f"{folder}/"):
                return f"{printable(path)}: {folder} is emptied, or not there yet, when the machine starts"
    return ""
