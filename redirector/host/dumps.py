"""Netlink dumps that are read again when the kernel's lists changed meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from redirector.netlink import DumpInterrupted

ATTEMPTS = 10

Rows = TypeVar("Rows")


def steadily(dump: Callable[[], Rows]) -> Rows:
    """What `dump` returns, called again when it raises `DumpInterrupted`.

    Raises OSError (EBUSY) when ATTEMPTS dumps in a row were interrupted, and whatever else `dump` raises.
    """
    for _ in range(ATTEMPTS):
        try:
            return dump()
        except DumpInterrupted:
            continue
    raise OSError(errno.EBUSY, f"the kernel's lists changed during each of {ATTEMPTS} attempts to read them")
