"""The disk of the boot test: Debian as it is shipped, with Redirector put onto it as the Vagrantfile says.

Theory of operation. There are two layers. The base is Debian alone, its kernel and what provision.sh would have to
download: mmdebstrap makes it from this machine's own apt sources, once, and it is kept under the digest of its recipe.
Each run unpacks it and adds the checkout, the test's units, and Redirector: provision.sh runs in a chroot that has no
network, with the arguments that the Vagrantfile gives it. What pip needs lies beside it, in the locked versions.

The machine then writes to an overlay (qcow2) above that disk. qemu keeps the overlay's map of new clusters in memory
until the guest flushes its disk: after a SIGKILL whatever the guest had not flushed is gone, as in the cache of a real
disk when the power goes. And the next run finds the disk below as it was made.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

VAGRANT = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(VAGRANT)
CACHE = os.path.join(VAGRANT, ".boot-test")
RUN = "run-"
DISK_BYTES = 1 << 30  # sparse: about 380 MB of it are used
ROOM_BYTES = 3 << 29  # base, unpacked base and disk at once

PACKAGES = (
    *("systemd-sysv", "udev", "kmod", "initramfs-tools", "linux-image-cloud-amd64", "usr-is-merged"),
    *("iproute2", "netbase", "nftables", "python3", "python3-venv"),
)
RECIPE = (
    *("--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
    '--aptopt=APT::Install-Recommends "false"',
    "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr",
    # An initramfs that finds this disk and no other: a software emulation unpacks the usual one for seconds.
    """--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" """,
    """--essential-hook=echo MODULES=list > "$1/etc/initramfs-tools/conf.d/boot-test" """,
    r"""--essential-hook=printf '%s\n' virtio_pci virtio_blk ext4 > "$1/etc/initramfs-tools/modules" """,
    """--customize-hook=echo redirector > "$1/etc/hostname" """,
    """--customize-hook=echo '/dev/vda / ext4 defaults 0 1' > "$1/etc/fstab" """,
)
# Of apt's settings, those that say how to reach and to trust a mirror.
APT_SETTINGS = re.compile(r"Acquire::(https?::|Check-|ForceIPv|Max-ValidTime|Min-ValidTime|Retries)")

# What the test needs in the machine, from guest/.
UNITS = ("boot-test.service", "web.service", "witness.service")
GUEST = {
    **{name: f"opt/boot-test/{name}" for name in ("agent.py", "web.py")},
    **{name: f"etc/systemd/system/{name}" for name in UNITS},
    "card.network": "etc/systemd/network/card.network",
}
# nftables.service is Debian's own, with the flush in Debian's own nftables.conf; it is only off by default.
ENABLE = f"systemctl -q enable nftables.service systemd-networkd.service {' '.join(UNITS)}; systemctl -q mask {{}}"
MASKED = ("e2scrub_reap.service", "systemd-networkd-wait-online.service")  # slow, and of no use here

# Run by sh with: folder, script. A pid namespace, so that nothing in there outlives us; /proc goes with the mounts.
CHROOT = """
mount -t proc proc "$1/proc"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
    bash -euc "$2"
"""
ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")


class Failed(Exception):
    """The disk could not be made; the message says what failed, and how it complained."""


class Image(NamedTuple):
    """Paths of what a machine boots from. The disk is raw, and nobody writes to it."""

    kernel: str
    initrd: str
    disk: str

    def overlay(self, path: str) -> None:
        """Make a fresh disk above this one."""
        options = ["-o", "cluster_size=4096"]  # the page of a guest: what it did not write is not written with it
        _run("qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", self.disk, "-F", "raw", path)


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for one run, removed afterwards. Raises Failed while another run is under way."""
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock"), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed("another run is under way") from None
        for name in os.listdir(CACHE):
            if name.startswith(RUN):  # of a run that was killed
                shutil.rmtree(os.path.join(CACHE, name))
        with tempfile.TemporaryDirectory(prefix=RUN, dir=CACHE) as folder:
            yield folder


def vagrantfile(key: str) -> list[str]:
    """The list of strings after `key:` in the Vagrantfile."""
    with open(os.path.join(VAGRANT, "Vagrantfile"), encoding="utf-8") as file:
        found = re.search(rf"\b{key}: (\[[^\]]*\])", file.read())
    if not found:
        raise Failed(f"the Vagrantfile has no {key}")
    strings: list[str] = json.loads(found[1])
    return strings


def make(folder: str) -> Image:
    """A new disk, and what boots it, in `folder`. Raises Failed."""
    if shutil.disk_usage(CACHE).free < ROOM_BYTES:
        raise Failed(f"{CACHE}: less than {ROOM_BYTES / (1 << 30)} GiB are free")
    base, wheels = _base(), _wheels()
    tree = os.path.join(folder, "tree")
    os.mkdir(tree)
    _run("tar", "-xpf", base, "-C", tree)
    _copy_checkout(f"{tree}/vagrant")
    shutil.copytree(wheels, f"{tree}/wheels")
    for name, where in GUEST.items():
        os.makedirs(os.path.dirname(f"{tree}/{where}"), exist_ok=True)
        shutil.copyfile(os.path.join(VAGRANT, "guest", name), f"{tree}/{where}")
    _chroot(tree, ENABLE.format(" ".join(MASKED)))
    _chroot(tree, f"bash /vagrant/vagrant/provision.sh --image {' '.join(vagrantfile('args'))}")
    image = Image(os.path.join(folder, "vmlinuz"), os.path.join(folder, "initrd"), os.path.join(folder, "disk.raw"))
    for stem, path in (("vmlinuz-", image.kernel), ("initrd.img-", image.initrd)):
        name = next(name for name in os.listdir(f"{tree}/boot") if name.startswith(stem))
        shutil.copyfile(f"{tree}/boot/{name}", path)
    _run("mkfs.ext4", "-q", "-d", tree, image.disk, f"{DISK_BYTES >> 10}k")
    shutil.rmtree(tree)
    return image


def _base() -> str:
    """A tar file of the base, made if it is not there."""
    path = _kept("base", [*RECIPE, _suite()], ".tar")
    if not os.path.exists(path):
        print("making the base image; it is kept for the next run", flush=True)
        part = f"{path}.part"
        settings = [f"--aptopt={line}" for line in _apt_settings()]
        work = os.path.join(CACHE, "mmdebstrap")
        os.makedirs(work, exist_ok=True)
        try:
            made = ["mmdebstrap", "--format=tar", *RECIPE, *settings, _suite(), part, *_apt_sources()]
            _run(*ALONE, *made, env={**os.environ, "TMPDIR": work})
        finally:
            shutil.rmtree(work)
        os.rename(part, path)
    return path


def _wheels() -> str:
    """A folder with the wheels that `pip install` of the checkout needs, in the versions of constraints.txt."""
    with open(os.path.join(CHECKOUT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)
    constraints = os.path.join(CHECKOUT, "constraints.txt")
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    with open(constraints, encoding="utf-8") as file:
        path = _kept("wheels", [*wanted, file.read()])
    if not os.path.exists(path):
        part = f"{path}.part"
        shutil.rmtree(part, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        _run(*pip, "wheel", "-q", "-w", part, "-c", constraints, *wanted)
        os.rename(part, path)
    return path


def _kept(kind: str, recipe: list[str], ending: str = "") -> str:
    """Where a thing made by this recipe is kept; those of other recipes are removed."""
    name = f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}{ending}"
    for other in os.listdir(CACHE):
        if other.startswith(f"{kind}-") and other != name:
            path = os.path.join(CACHE, other)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    return os.path.join(CACHE, name)


def _suite() -> str:
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or platform.machine() != "x86_64":
        raise Failed("the virtual machine is made from this one's apt sources, and so this has to be Debian on amd64")
    return release["VERSION_CODENAME"]


def _apt_sources() -> list[str]:
    """The files with this machine's sources of Debian's own packages."""

    def found() -> list[str]:
        form = "$(ORIGIN) $(SOURCESENTRY)"  # … file:number
        targets = _run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
        ours = [line.partition(" ")[2].rpartition(":")[0] for line in targets if line.startswith("Debian ")]
        return list(dict.fromkeys(ours))

    if not found():  # the origin is known once the lists are there
        _run("apt-get", "-q", "update")
    sources = found()
    if not sources:
        raise Failed("apt knows no source of Debian's own packages")
    return sources


def _apt_settings() -> list[str]:
    lines = _run("apt-config", "dump", "--format", '%f "%v";%n', "Acquire").splitlines()
    return [line for line in lines if APT_SETTINGS.match(line) and not line.endswith('"";')]


def _copy_checkout(target: str) -> None:
    """What `vagrant up` copies to /vagrant."""
    excluded = [pattern.removesuffix("/") for pattern in vagrantfile("rsync__exclude")]
    anywhere = shutil.ignore_patterns(*(pattern for pattern in excluded if "/" not in pattern))

    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = os.path.relpath(folder, CHECKOUT)
        return {*anywhere(folder, names), *(name for name in names if os.path.join(inside, name) in excluded)}

    shutil.copytree(CHECKOUT, target, symlinks=True, ignore=ignore)


def _chroot(tree: str, script: str) -> None:
    _run(*ALONE, "--net", "sh", "-euc", CHROOT, "sh", tree, script)


def _run(*argv: str, env: dict[str, str] | None = None) -> str:
    """What a command printed. Raises Failed with the end of what it complained of."""
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise Failed(f"{' '.join(argv)[:200]}: exit {done.returncode}\n{complaint}")
    return done.stdout
