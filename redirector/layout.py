"""What lies where in a state folder, for those who look at it without reading all that is in it."""

from __future__ import annotations

import os

NOTE = "pending.json"  # what waits for confirm, see `pending`
PROOF = "proof"  # what the kernel was last known to hold, see `proof`

Key = tuple[int, ...]


def generations(folder: str) -> str:
    return os.path.join(folder, "generations")


def record(folder: str, number: int) -> str:
    """The file of one generation."""
    return os.path.join(generations(folder), f"{number:06d}.json")


def numbers(folder: str) -> list[int]:
    """Every generation that has a file, readable or not, in ascending order. Raises OSError."""
    try:
        names = os.listdir(generations(folder))
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    found = ((int(stem), stem) for stem in stems if stem.isascii() and stem.isdigit())
    return sorted(number for number, stem in found if stem == f"{number:06d}")


def record_key(folder: str, number: int) -> Key:
    """What tells a generation's file from any other: our files are replaced and never written to. Raises OSError."""
    return number, *file_key(os.lstat(record(folder, number)))


def file_key(status: os.stat_result) -> Key:
    """What changes with a file's content: inode, device, size, and when it was written and changed, in ns."""
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns
