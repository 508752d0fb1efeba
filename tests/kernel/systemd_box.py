"""A real systemd as process 1, in namespaces of its own: what units do at boot, without a machine to boot.

Theory of operation. `unshare` makes new PID, mount, UTS, IPC and network namespaces and a cgroup of their own; the
system inside is an overlay of this machine's files whose changes go to a tmpfs, with an empty /etc/systemd/system, its
own /run and /dev, and /sys and /proc/sys read-only, so that nothing inside configures this machine. A script, the
scenario, runs as a unit once sysinit.target is reached; a FIFO tells when it has ended. Killing `unshare` then kills
process 1 (--kill-child), and with it everything inside.

Needs root: only root's systemd may own a cgroup.
"""

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import redirector

PATIENCE = 90.0  # seconds until a box counts as stuck: it takes about five
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# Run by sh in the new namespaces: the box's folder, the cgroup, folders to be seen inside…
OUTER = """
mkdir "$1/cgroups"
mount -t cgroup2 none "$1/cgroups"
mkdir "$1/cgroups/$2"
echo $$ > "$1/cgroups/$2/cgroup.procs"
exec unshare --cgroup sh -euc "$INNER" sh "$@"
"""
INNER = """
box=$1; shift 2
mkdir "$box/over" "$box/new"
mount -t tmpfs tmpfs "$box/over"
mkdir "$box/over/upper" "$box/over/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$box/over/upper,workdir=$box/over/work" "$box/new"
cd "$box/new"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    : > "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs etc/systemd/system
mkdir box
mount --bind "$box/shared" box
for folder; do
    mkdir -p ".$folder"
    mount --bind "$folder" ".$folder"
done
sh -eu box/prepare
ip link set lo up
exec chroot . env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set -sys_module,-sys_time,-syslog,-sys_boot \
    /lib/systemd/systemd --system --unit=box.target --show-status=no --log-level=warning --log-target=console
"""
UNITS = {
    "box.target": "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\nWants=scenario.service\n",
    "scenario.service": "[Unit]\nDefaultDependencies=no\nAfter=sysinit.target\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -eu /box/scenario\nExecStopPost=/bin/sh -c 'echo > /box/end'\n"
    "StandardOutput=file:/box/out\nStandardError=inherit\n",
}
# Of what the distribution wants at sysinit.target, what this machine would have to answer for, or what takes long.
MASKED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-hwdb-update.service")


def run(folder: Path, prepare: str, scenario: str) -> str:
    """What `scenario` printed, a script of sh in the box, after boot; `prepare` runs before process 1, in its root.

    `folder` is empty, and shared with the box as /box. Raises AssertionError for a box that does not end.
    """
    shared = folder / "shared"
    shared.mkdir()
    units = "".join(f"cat > etc/systemd/system/{name} <<'END'\n{text}END\n" for name, text in UNITS.items())
    masks = "".join(f"ln -s /dev/null etc/systemd/system/{name}\n" for name in MASKED)
    (shared / "prepare").write_text(f"{units}{masks}{prepare}")
    (shared / "scenario").write_text(scenario)
    os.mkfifo(shared / "end")
    cgroup = f"redirector-box-{os.getpid()}"
    # The overlay shows one file system only: what Python and we are made of may lie on others.
    homes = {os.path.dirname(os.path.dirname(redirector.__file__)), sys.prefix, sys.base_prefix} - {"/usr", "/"}
    namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--uts", "--ipc", "--net"]
    argv = ["unshare", *namespaces, "sh", "-euc", OUTER, "sh", str(folder), cgroup, *sorted(homes)]
    end = os.open(shared / "end", os.O_RDONLY | os.O_NONBLOCK)
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(
            argv, env={"PATH": PATH, "INNER": INNER}, stdin=subprocess.DEVNULL, stdout=console, stderr=console
        )
    try:
        exited = os.pidfd_open(process.pid)
        ready, _, _ = select.select([end, exited], [], [], PATIENCE)
        os.close(exited)
    finally:
        process.kill()  # it ignores everything milder
        process.wait()
        os.close(end)
        _forget_cgroup(folder, cgroup)
    told = (folder / "console").read_text(errors="replace")
    assert end in ready, f"the box did not come to its end: {told}"
    return (shared / "out").read_text()


def _forget_cgroup(folder: Path, name: str) -> None:
    """Remove the cgroups that the box leaves, in a mount namespace again: the machine may have them anywhere."""
    script = """
    mount -t cgroup2 none "$1/cgroups"
    if [ -d "$1/cgroups/$2" ]; then
        timeout 10 sh -c 'while grep -q "populated 1" "$1/cgroup.events"; do :; done' sh "$1/cgroups/$2"
        find "$1/cgroups/$2" -depth -type d -exec rmdir {} +
    fi
    """
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", str(folder), name]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(argv, env={"PATH": PATH}, check=True, timeout=30)
