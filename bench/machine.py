"""What machine it was that measured, in words."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time

import peers
from workshop import HERE, Workshop

import redirector

# Arguments by which each program tells its version.
PEERS = {
    "nft": ["--version"],
    "iptables-nft": ["--version"],
    "firewall-offline-cmd": ["--version"],  # of firewalld: itself it tells none
    "socat": ["-V"],
    "haproxy": ["-v"],
    "nginx": ["-v"],
    "systemd-socket-activate": ["--version"],
}


def machine(shop: Workshop) -> dict[str, str]:
    """In lines of name: value."""
    threads = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "CPU": f"{_cpu_model()}, {threads} of {os.cpu_count()} usable; {memory:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": _file_system(shop.folder),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "peers": peers.versions(shop, PEERS),
        "redirector": f"{redirector.__version__}{_commit()}",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load before": load(),
    }


def _commit() -> str:
    """Which commit of a checkout it is; "" where there is none, or no git."""
    if not shutil.which("git"):
        return ""
    argv = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()
    return f", commit {found}" if found else ""


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _file_system(folder: str) -> str:
    """The type of the file system that holds `folder` (proc(5), mounts)."""
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, point, kind, *_ = line.split(" ")
            inside = os.path.commonpath((point, os.path.realpath(folder))) == point
            if inside and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]
