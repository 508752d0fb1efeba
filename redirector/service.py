"""The systemd unit that loads the redirects at boot: its text, and how it gets onto a system and off it.

Theory of operation. The unit stands before network-pre.target, so that no packet meets a host without its redirects.
Whatever nftables.service does ends in an empty kernel (its ExecStop flushes everything, and the stock
/etc/nftables.conf starts with a flush), so we come after it, and follow: PartOf= takes us along when it is stopped or
restarted, ReloadPropagatedFrom= when it is reloaded, and as its Wants= we are started again with it, even if the last
time had failed. Stopping the unit does nothing to the kernel: only `redirector remove` takes redirects away.

`systemctl` is asked only about the system that runs (no --root, and systemd is process 1); in an image the link that
`systemctl enable` would make is made here, from the same WantedBy=.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess

from redirector import store
from redirector.errors import NotPermitted, Refused, Unavailable, printable

NAME = "redirector.service"
FOLDER = "/etc/systemd/system"  # systemd.unit(5): units that the administrator installed
MARK = "# Written by `redirector service install`, and removed by `redirector service uninstall`.\n"
MODE = 0o644  # systemd.exec(5) and its tools read units as anybody
DEFAULT_STATE = "/var/lib/redirector"
WANTED_BY = ("sysinit.target", "nftables.service")
TIMEOUT = 60.0  # seconds for systemctl, or for a Python to start
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Each line narrows what a process with CAP_NET_ADMIN could do (systemd.exec(5)). ProtectHome= is read-only, not "yes":
# the mapping file or Python may be in a home. /proc stays whole: the boot's id is read there.
_TEXT = """\
{mark}[Unit]
Description=Port redirects, the last confirmed generation
Documentation=https://www.freedesktop.org/software/systemd/man/latest/bootup.html
DefaultDependencies=no
After=local-fs.target nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
ExecReload={command}
TimeoutSec=90s
StandardInput=null
WorkingDirectory=/
{state}
UMask=0077
CapabilityBoundingSet=CAP_NET_ADMIN
DevicePolicy=closed
IPAddressDeny=any
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RestrictAddressFamilies=AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy={wanted_by}
"""


def unit_text(python: str, file: str, state_dir: str = DEFAULT_STATE) -> str:
    """The unit; all three paths absolute. Raises Refused for a path that no unit can name."""
    argv = [python, "-I", "-m", "redirector"]
    state = "StateDirectory=redirector\nStateDirectoryMode=0700"
    if state_dir != DEFAULT_STATE:
        argv += ["--state-dir", state_dir]
        state = f"ReadWritePaths={_quoted(state_dir)}"
    # Only a program's arguments know variables, and so $$; and only the program's place takes a prefix such as "@".
    command = " ".join([_quoted(argv[0]), *(_quoted(arg).replace("$", "$$") for arg in [*argv[1:], "boot", file])])
    return _TEXT.format(mark=MARK, command=command, state=state, wanted_by=" ".join(WANTED_BY))


def _quoted(text: str) -> str:
    """One word of a unit file (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers")."""
    if not text.isprintable():
        raise Refused(f"{printable(text)}: a path with such characters cannot stand in a unit", "choose another path")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    plain = escaped == text and text.isascii() and not set(text) & set(" ';#")
    return text if plain else f'"{escaped}"'


def require_isolated_python(python: str) -> None:
    """Raises Refused unless this Python finds the package with -I, with nothing of the environment or the folder."""
    code = "import redirector.cli"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=ENVIRONMENT,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{printable(python)} cannot be run: {printable(str(error))}") from None
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        message = f"{printable(python)} -I does not find redirector ({printable(told)}); nothing was changed"
        raise Refused(message, "install the package for that Python (pip install, or pipx), then run it from there")


def path(root: str = "") -> str:
    """Where the unit is, under `root` ("" for the running system)."""
    return f"{root.rstrip('/')}{FOLDER}/{NAME}"


def read(root: str = "") -> str | None:
    """The unit that is installed; None if there is none. Raises Refused for something that cannot be read."""
    try:
        with open(path(root), "rb", opener=store.no_follow) as file:
            return file.read().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(f"{printable(path(root))}: {error.strerror}") from None


def install(text: str, root: str = "") -> bool:
    """Put the unit there and enable it; False if it was there, the same. Raises Refused for one that is not ours."""
    found = read(root)
    if found is not None and not found.startswith(MARK):
        raise Refused(f"{printable(path(root))} is not ours; nothing was changed", "move it away first")
    if found != text:
        _write(path(root), text.encode())
    if _manages(root):
        _systemctl("daemon-reload")
        _systemctl("enable", NAME)
    else:
        for link in _links(root):
            _link(link)
    return found != text


def uninstall(root: str = "") -> bool:
    """Disable and remove the unit; False if there is none. What is in the kernel stays. Raises Refused."""
    found = read(root)
    if found is None:
        return False
    if not found.startswith(MARK):
        raise Refused(f"{printable(path(root))} is not ours; nothing was changed", "remove it yourself")
    managed = _manages(root)
    try:
        for link in _links(root):
            if os.path.islink(link):
                os.unlink(link)
        os.unlink(path(root))
        store.sync_folder(os.path.dirname(path(root)))
    except OSError as error:
        raise _unwritable(error) from None
    if managed:
        _systemctl("daemon-reload")
    return True


def _links(root: str) -> list[str]:
    """The links that WantedBy= stands for."""
    return [f"{root.rstrip('/')}{FOLDER}/{unit}.wants/{NAME}" for unit in WANTED_BY]


def _manages(root: str) -> bool:
    """Whether systemd runs the system at `root`, as sd_booted(3) asks."""
    return not root and os.path.isdir("/run/systemd/system")


def _write(final: str, data: bytes) -> None:
    """The whole file or nothing, whatever was there before; readable for everybody."""
    try:
        os.makedirs(os.path.dirname(final), mode=0o755, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from None
    temporary = f"{final}.{os.getpid()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, MODE), "wb") as file:
            os.fchmod(file.fileno(), MODE)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, final)
        store.sync_folder(os.path.dirname(final))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _unwritable(error) from None


def _link(name: str) -> None:
    """`name` → the unit, as `systemctl enable` makes it. The target is absolute inside the system that will boot."""
    target = f"{FOLDER}/{NAME}"
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
        done = subprocess.run(
            ["/usr/bin/systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ENVIRONMENT,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"systemctl {arguments[0]}: {printable(str(error))}") from None
    if done.returncode:
        told = printable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise Unavailable(f"systemctl {arguments[0]} failed: {told}", f"the unit is written: {FOLDER}/{NAME}")
