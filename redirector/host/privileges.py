"""More privileges for a plain user, in a user namespace of its own, and none at all for a server.

Theory of operation: the right to configure a network namespace, or to listen on its ports below 1024, is a capability
in the user namespace that owns it (user_namespaces(7)). A plain user may make a user namespace and has every
capability in it, so also in the network namespaces that are made there, and in no other.

unshare(CLONE_NEWUSER) is refused in a process with more than one thread, and capabilities belong to the thread: both
functions are for processes that have no second thread yet.
"""

from __future__ import annotations

import os

from redirector.host.libc import CLONE_NEWNET, CLONE_NEWUSER, clear_capabilities, set_no_new_privileges, unshare

NOBODY = 65534  # the conventional unprivileged user and group


def become_user_namespace_root() -> None:
    """Make this process root of a user namespace of its own, in a network namespace of its own.

    Afterwards there is one user and one group, 0, which stand for the caller's; files of everybody else appear to
    belong to 65534 (/proc/sys/kernel/overflowuid). It cannot be undone, and after an error the process is good for
    nothing but saying so.

    Raises OSError: EINVAL if the process has other threads; EPERM, ENOSPC or EACCES where the system forbids it
    (sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns).
    """
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    # The kernel lets an unprivileged writer map its group only once setgroups(2) is out of reach.
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
            stream.write(text)
    # A step of its own: some systems let anyone make a user namespace, and withhold the capabilities inside it.
    unshare(CLONE_NEWNET)


def drop_privileges() -> None:
    """Make this process an unprivileged one for good: no capabilities, none to be had by exec, ports from 1024 on.

    As root where the user 65534 exists it becomes that user, without other groups. In a user namespace with a single
    user it stays user 0 of it, without the powers. Import what is needed before: 65534 may not be allowed to read the
    modules. Raises OSError.
    """
    if os.geteuid() == 0 and _exists("uid_map", NOBODY) and _exists("gid_map", NOBODY):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # Without this, exec gives user 0 all of its capabilities back (capabilities(7)).
    set_no_new_privileges()
    clear_capabilities()


def _exists(file: str, number: int) -> bool:
    """Whether a user or group exists in this user namespace; lines are: first inside, first outside, count."""
    with open(f"/proc/self/{file}", encoding="ascii") as stream:
        ranges = [line.split() for line in stream]
    return any(int(first) <= number < int(first) + int(count) for first, _outside, count in ranges)
