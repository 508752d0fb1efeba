"""System calls that the standard library lacks, or has from Python 3.12 on only (os.setns, os.unshare).

Each acts on the calling thread alone, and raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h, _LINUX_CAPABILITY_VERSION_3


class _CapabilityHeader(ctypes.Structure):
    """struct __user_cap_header_struct; `pid` 0 is the caller."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    """struct __user_cap_data_struct, of which version 3 takes two: capabilities 0 to 31, and the rest."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def unshare(flags: int) -> None:
    """Into fresh namespaces of the kinds in `flags` (unshare(2))."""
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Into the namespace that `fd` refers to (setns(2)); EINVAL if that is not of `kind`."""
    _check(_libc.setns(fd, kind))


def set_no_new_privileges() -> None:
    """From now on, exec gives nothing that the caller has not (prctl(2))."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def clear_capabilities() -> None:
    """No capabilities at all (capset(2)); the ambient ones go with the others."""
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    none = (_CapabilityData * 2)()
    _check(_libc.capset(ctypes.byref(header), none))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
