"""Programs that do what redirector does, or something like it, and may be missing here.

Theory of operation. A benchmark must not install a firewall or a web server on somebody's machine: Debian's packages
start what they bring. So `make bench-packages` only downloads the packages that are missing, and unpacks them into a
folder of this checkout, UNPACKED. A program that is not in PATH but in there runs in a mount namespace of its own, in
which that folder's usr lies over /usr; nothing else changes, and it ends with the program.

firewalld needs a D-Bus: it gets one of its own, with its own socket, and its own configuration, all in the place's
folder. What it is told is a zone file; what is measured is `firewall-cmd --reload`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measure import Failed, Place, Sample
from workshop import HERE, Workshop

UNPACKED = HERE.parent / ".bench-packages" / "root"
OVERLAY = 'mount -t overlay overlay -o "lowerdir=$0/usr:/usr" /usr && exec "$@"'
PATIENCE = 20  # seconds that a daemon may take to start
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow send_type="method_call"/>
<allow receive_sender="*"/></policy></busconfig>
"""
VERSION = re.compile(r"\d+(\.\d+)+")
TICK = os.sysconf("SC_CLK_TCK")


def command(shop: Workshop, name: str) -> list[str] | None:
    """How to run the program, without its arguments; None where it is missing."""
    path = shutil.which(name, path=shop.environ["PATH"] + ":/lib/systemd")
    if path:
        return [path]
    for folder in ("usr/sbin", "usr/bin"):
        if (UNPACKED / folder / name).exists():
            return ["unshare", "--mount", "sh", "-ec", OVERLAY, str(UNPACKED), f"/{folder}/{name}"]
    return None


def nginx_modules() -> str | None:
    """The folder with nginx's stream module."""
    for root in ("", str(UNPACKED)):
        if os.path.exists(f"{root}/usr/lib/nginx/modules/ngx_stream_module.so"):
            return "/usr/lib/nginx/modules"
    return None


@contextmanager
def firewalld(shop: Workshop, here: Place) -> Iterator[Callable[[str], Sample] | None]:
    """A firewalld that runs in the place; the function makes it reload with these lines in its zone, and returns what
    that cost: its own CPU time and that of firewall-cmd. None where there is no firewalld. Raises Failed."""
    daemon, client, bus = (command(shop, name) for name in ("firewalld", "firewall-cmd", "dbus-daemon"))
    if not (daemon and client and bus):
        yield None
        return
    address = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={here.folder}/bus"}
    config = os.path.join(here.folder, "firewalld")
    os.makedirs(f"{config}/zones")
    for root in ("", str(UNPACKED)):
        with contextlib.suppress(OSError):
            shutil.copy(f"{root}/etc/firewalld/firewalld.conf", config)
    with open(f"{here.folder}/bus.conf", "w", encoding="ascii") as file:
        file.write(BUS.format(path=f"{here.folder}/bus"))
    log = ["--log-file", f"{here.folder}/firewalld.log"]
    with (
        here.daemon([*bus, f"--config-file={here.folder}/bus.conf", "--nofork", "--nopidfile"]),
        here.daemon([*daemon, "--nofork", "--nopid", "--system-config", config, *log], address) as process,
    ):
        _await(here, [*client, "--state"], address)

        def reload(lines: str) -> Sample:
            with open(f"{config}/zones/public.xml", "w", encoding="ascii") as zone:
                zone.write(f'<?xml version="1.0" encoding="utf-8"?>\n<zone><short>Public</short>\n{lines}</zone>\n')
            before = _cpu(process.pid)
            spent = here.run([*client, "--reload"], environ=address)
            return Sample(spent.seconds, spent.cpu + _cpu(process.pid) - before)

        yield reload


def _await(here: Place, argv: list[str], environ: dict[str, str]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            here.run(argv, environ=environ)
        except Failed:
            if time.monotonic() > end:
                raise Failed(f"firewalld did not start: {here.said()}") from None
            time.sleep(0.1)
        else:
            return


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has had, user and system, and children that it has waited for."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def versions(shop: Workshop, names: dict[str, list[str]]) -> str:
    """What each program says of its version, by the arguments that make it say so."""
    found = []
    for name, arguments in names.items():
        argv = command(shop, name)
        if argv:
            done = subprocess.run([*argv, *arguments], check=False, capture_output=True, text=True, env=shop.environ)
            version = VERSION.search(done.stdout + done.stderr)
            found += [f"{name} {version[0]}"] if version else []
    return ", ".join(found)
