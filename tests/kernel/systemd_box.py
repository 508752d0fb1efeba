"""A real systemd as process 1, in namespaces of its own: what units do at boot, without a machine to boot.

Theory of operation. `unshare` makes new PID, mount, UTS, IPC, network and cgroup namespaces. The system inside is an
overlay of this machine's root file system whose changes go to a tmpfs; nothing of the machine can be written from in
there but the box's own folder, /box: no other folder is mounted, /sys and /proc/sys are read-only, there are no devices
but the harmless ones. Of the machine's own units nothing is started: /etc/systemd/system, the generators (which would
mount what fstab says) and the distribution's wants are empty in the overlay, all but the journal.

The package lies in the box as it does on a host, in a venv of root's at /opt/redirector: wherever the tests run from, a
home or /tmp, a unit could not rely on it there. Its Python is the system's own, else the one that runs the tests.

A script, the scenario, runs as a unit once the network could begin; a FIFO tells when it has ended. Killing process 1
then kills everything inside; if this process dies, the kernel does so (--pdeathsig, --kill-child).

Needs root: nobody else's systemd may have cgroups.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import redirector

PATIENCE = 90.0  # seconds until a box counts as stuck: it takes about three
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
REDIRECTOR = "/opt/redirector/bin/python -I -m redirector"
SYSTEM_PYTHON = "/usr/bin/python3"

# Run by sh in the new namespaces: the box's folder, the cgroup, Python, and folders that Python needs.
OUTER = """
mkdir "$1/cgroups"
mount -t cgroup2 none "$1/cgroups"
mkdir "$1/cgroups/$2"
echo $$ > "$1/cgroups/$2/cgroup.procs"
exec unshare --cgroup sh -euc "$INNER" sh "$@"
"""
INNER = """
box=$1 python=$3; shift 3
cd "$box"
mkdir over new
mount -t tmpfs tmpfs over
mkdir over/upper over/work
mount -t overlay overlay -o lowerdir=/,upperdir=over/upper,workdir=over/work new
cd new
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
for folder in etc/systemd/system lib/systemd/system-generators \\
    lib/systemd/system/sysinit.target.wants lib/systemd/system/local-fs.target.wants; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
ln -s ../systemd-journald.service lib/systemd/system/sysinit.target.wants/
mkdir box
mount --bind "$box/shared" box
for folder; do
    mkdir -p ".$folder"
    mount --rbind "$folder" ".$folder"
    mount -o remount,bind,ro ".$folder"
done
rm -rf opt/redirector var/lib/redirector etc/redirector etc/machine-id etc/systemd/*.conf*
echo 0123456789abcdef0123456789abcdef > etc/machine-id
chroot . "$python" -I -m venv --without-pip --symlinks /opt/redirector
cp -a box/packages/. opt/redirector/lib/python3.*/site-packages/
chmod -R go-w opt/redirector # whatever the checkout's umask
sh -eu box/prepare
ip link set lo up
mkdir old
pivot_root . old # not chroot: in there nobody may make a user namespace (PrivateUsers=)
umount -l old
rmdir old
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    setpriv --bounding-set -sys_module,-sys_time,-syslog,-sys_boot,-sys_rawio \\
    /lib/systemd/systemd --system --unit=box.target --show-status=no --log-level=warning --log-target=console
"""
UNITS = {
    "box.target": "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\nWants=scenario.service\nAllowIsolate=yes\n",
    "scenario.service": "[Unit]\nDefaultDependencies=no\nAfter=sysinit.target network-pre.target\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -eu /box/scenario\nExecStopPost=/bin/sh -c 'echo > /box/end'\n"
    "StandardOutput=file:/box/out\nStandardError=file:/box/complaints\n",
}
# For scenarios. `wire` gives the box an external client of two addresses, in a network namespace of its own, and `plug`
# servers on 8080 and up besides; `ask ADDRESS PORT` is what that client is told. `hear FILE` writes the times of
# commits. `settle` returns when systemd has nothing of ours left to do.
FUNCTIONS = """
ADDRESSES="192.0.2.1 2001:db8:1::1"
wire() {
    ip netns add client
    ip link add uplink type veth peer name eth0 netns client
    ip addr add 192.0.2.1/24 dev uplink
    ip addr add 2001:db8:1::1/64 dev uplink nodad
    ip link set uplink up
    for address in 192.0.2.100/24 192.0.2.101/24 2001:db8:1::101/64 2001:db8:1::100/64; do # as in lab.py
        ip -n client addr add $address dev eth0 $(test "${address#*:}" = "$address" || echo nodad)
    done
    ip -n client link set eth0 up
}
plug() {
    wire
    $PYTHON -I /box/peer.py serve 8080 8081 8082
}
hear() { $PYTHON -I /box/peer.py hear "$@"; }
ask() { nsenter --net=/run/netns/client $PYTHON -I /box/peer.py ask "$@"; }
settle() { while systemctl list-jobs --no-legend | grep -q redirector; do :; done; }
state() { systemctl show -P ActiveState "${1:-redirector.service}"; }
"""


def run(folder: Path, prepare: str, scenario: str) -> str:
    """What `scenario` printed, a script of sh in the box, after boot; `prepare` runs before process 1, in its root.

    The folder `shared` in `folder` is the box's /box. Raises AssertionError for a box that does not come to its end.
    """
    if os.geteuid() or Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] != "4294967295":
        raise AssertionError("a box with systemd needs root, and not that of a user namespace: run these tests as root")
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    python, homes = system_python()
    units = "".join(f"cat > etc/systemd/system/{name} <<'END'\n{text}END\n" for name, text in UNITS.items())
    (shared / "prepare").write_text(f"{units}{prepare}")
    (shared / "scenario").write_text(f"PYTHON={python}\n{FUNCTIONS}{scenario}")
    shutil.copy(Path(__file__).with_name("peer.py"), shared)
    packages = shared / "packages"
    shutil.copytree(Path(redirector.__file__ or "").parent, packages / "redirector")  # with what is compiled of it
    for name in ("click", "crossplane", "tomli"):
        for file in metadata.files(name) or ():
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), packages / file)
    os.mkfifo(shared / "end")
    for name in ("out", "complaints"):
        (shared / name).touch()
    cgroup = f"redirector-box-{os.getpid()}"
    namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--uts", "--ipc", "--net"]
    inside = ["sh", "-euc", OUTER, "sh", str(folder), cgroup, python, *homes]
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *inside]
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
        _end(process)
        os.close(end)
        _forget_cgroup(folder, cgroup)
    for told in (folder / "console", shared / "complaints"):
        sys.stderr.write(told.read_text(errors="replace"))  # what pytest shows of a test that fails
    assert end in ready, f"the box did not come to its end; so far: {(shared / 'out').read_text()}"
    return (shared / "out").read_text()


def system_python() -> tuple[str, list[str]]:
    """A Python of the box, and the folders that it needs from outside of this machine's root file system."""
    code = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(FileNotFoundError):
        if not subprocess.run([SYSTEM_PYTHON, "-I", "-c", code], check=False, capture_output=True).returncode:
            return SYSTEM_PYTHON, []
    return f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}", [sys.base_prefix]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the box. Process 1 goes first, so that `unshare` reaps it: not every machine's own does."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for child in children.read_text(encoding="ascii").split():
            os.kill(int(child), signal.SIGKILL)  # it ignores everything milder
        process.wait(10.0)
    process.kill()
    process.wait()


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
    subprocess.run(argv, env={"PATH": PATH}, check=False, timeout=30)
