"""Private network namespaces, and the links and privileges inside them (network_namespaces(7), setns(2), unshare(2)).

Theory of operation:

- On Linux the network namespace belongs to the *thread*: setns and unshare move the calling thread and nobody else.
  So each `Namespace` keeps one worker thread that lives inside it, and `Namespace.call` runs functions there. A socket
  belongs for good to the namespace of the thread that made it, and may be used from any thread afterwards. A child
  process inherits the namespace of the thread that started it.
- A namespace lives as long as something refers to it: a thread or process inside it, an open descriptor, a mount.
  These here have no name, so there is no mount in /run/netns that would stay behind: when this process ends, however
  it ends, the kernel takes the namespace away, with its links, addresses, rules and connections. A child that was
  started inside keeps it alive, so long-lived ones should end when their standard input does.
- /proc/sys/net shows the namespace of the thread that opens the file; /proc/net and /proc/self/net always show that
  of the process's main thread (/proc/thread-self/net is the thread's own).
- pyroute2's sockets are per thread: an IPRoute that was made inside a namespace and is used from another thread
  quietly opens a second socket *there*, and changes the links of the wrong namespace. So each request here makes,
  uses and closes its IPRoute within one `call` (about 1 ms).
- unshare(CLONE_NEWUSER) is refused (EINVAL) in a process with more than one thread, and `drop_privileges` changes
  the capabilities of the calling thread only: both are for processes that have no second thread yet.

os.setns and os.unshare exist from Python 3.12 on only, hence ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")

NAMED = "/run/netns"  # where ip-netns(8) keeps its names

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h, _LINUX_CAPABILITY_VERSION_3
IFA_F_NODAD = 0x02  # linux/if_addr.h
RTMGRP_LINK = 1  # linux/rtnetlink.h
CARRIER_TIMEOUT = 10.0
NOBODY = 65534  # the conventional unprivileged user, and the kernel's overflow id

# struct __user_cap_header_struct (version, thread; 0 is the caller) and twice struct __user_cap_data_struct
# (effective, permitted, inheritable), all of it zero: no capabilities at all.
_CAP_HEADER = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
_NO_CAPABILITIES = bytes(24)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


class Namespace:
    """A network namespace with a worker thread inside it; made by `create` or `named`. Closing it twice is harmless."""

    def __init__(self, label: str, move: Callable[[], None]) -> None:
        """`move` brings the calling thread into the namespace; what it raises is raised here."""
        self.label = label
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open = True
        self._closing = threading.Lock()
        self._fd = -1
        self._thread = threading.Thread(target=self._work, name=f"netns {label}", daemon=True)
        self._thread.start()
        try:
            self.call(move)
            self._fd = self.call(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, label: str) -> Namespace:
        """A fresh namespace: nothing in it but `lo`, down. `label` is for people; it appears nowhere in the kernel.

        Raises OSError: EPERM without CAP_SYS_ADMIN, ENOSPC past the limit user.max_net_namespaces.
        """
        return cls(label, lambda: _check(_libc.unshare(CLONE_NEWNET)))

    @classmethod
    def named(cls, name: str) -> Namespace:
        """The namespace that ip-netns(8) calls `name`. Raises OSError as `enter` does."""
        return cls(name, lambda: enter(name))

    @property
    def fd(self) -> int:
        """A descriptor of the namespace, for IFLA_NET_NS_FD or setns(2); -1 once closed."""
        return self._fd

    @property
    def cookie(self) -> int:
        """The kernel's number for this namespace, never used twice until the next boot. Raises OSError before 5.14."""
        with self.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])

    def call(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `fn(*args, **kwargs)` returns or raises, run inside the namespace; calls from other threads queue up.

        Raises OSError (EBADF) once the namespace is closed.
        """
        if threading.current_thread() is self._thread:
            return fn(*args, **kwargs)
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def job() -> None:
            try:
                results.append(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is the caller's: raised again over there
                errors.append(error)
            done.set()

        with self._closing:
            if not self._open:
                raise OSError(errno.EBADF, "the namespace is closed", self.label)
            self._jobs.put(job)
        done.wait()
        if errors:
            raise errors.pop()
        return results.pop()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to the namespace; any thread may use it. Raises OSError."""
        return self.call(socket.socket, family, kind, protocol)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a child process inside the namespace; `options` and errors are those of subprocess.Popen."""
        import subprocess

        def start() -> subprocess.Popen[Any]:
            return subprocess.Popen(argv, **options)

        return self.call(start)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess.run calls it
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """subprocess.run inside the namespace, output captured unless `options` say otherwise; errors as there.

        The calling thread does the waiting, so that the namespace serves others while the child runs.
        """
        import subprocess

        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        with self.popen(argv, **options) as child:
            try:
                output, complaints = child.communicate(input, timeout)
            except BaseException:
                child.kill()
                raise
        finished = subprocess.CompletedProcess(child.args, child.returncode, output, complaints)
        if check:
            finished.check_returncode()
        return finished

    def close(self) -> None:
        """Leave the namespace; it ends with the last of its sockets and processes."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            self._jobs.put(None)
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and with it the caller's arguments, before the wait for the next


def enter(name: str) -> None:
    """Move the calling thread into the namespace that ip-netns(8) calls `name`.

    Call it before there are other threads: they would stay behind. Raises OSError: EINVAL if `name` is no plain file
    name or what bears it is no network namespace, ENOENT if there is none, EPERM without CAP_SYS_ADMIN.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "not the name of a network namespace", name)
    path = f"{NAMED}/{name}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(_libc.setns(fd, CLONE_NEWNET), path)
    finally:
        os.close(fd)


def become_user_namespace_root() -> None:
    """Make this process root of a user namespace of its own, in a network namespace of its own (user_namespaces(7)).

    For plain users: afterwards there is one user and one group, 0, which stand for the caller's; files of everybody
    else appear to belong to 65534. It cannot be undone, and after an error the process is good for nothing but
    saying so. Raises OSError: EINVAL if the process has other threads; EPERM, ENOSPC or EACCES where the system
    forbids it (sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces,
    kernel.apparmor_restrict_unprivileged_userns).
    """
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER))
    # The kernel lets an unprivileged writer map its group only once setgroups(2) is out of reach.
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
            stream.write(text)
    # A step of its own: some systems let anyone make a user namespace, and withhold the capabilities inside it.
    _check(_libc.unshare(CLONE_NEWNET))


def drop_privileges() -> None:
    """Make this process an unprivileged one for good: no capabilities, none to be had by exec, ports from 1024 on.

    As root where user 65534 exists it becomes that user, without groups. In a user namespace with a single user it
    stays user 0 of it, without the powers. Import what is needed before: the user 65534 may not read the modules.
    Call it before there are other threads. Raises OSError.
    """
    if os.geteuid() == 0 and _is_mapped("uid_map", NOBODY) and _is_mapped("gid_map", NOBODY):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # Without this, exec gives the user 0 all of its capabilities back (capabilities(7)).
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.capset(_CAP_HEADER, _NO_CAPABILITIES))


def sysctl(namespace: Namespace, name: str, value: str) -> None:
    """Set a sysctl of the namespace, such as "net/ipv4/ip_forward".

    Raises OSError: EINVAL for names outside net/, which would be the machine's; ENOENT, EACCES.
    """
    if not name.startswith("net/") or ".." in name:
        raise OSError(errno.EINVAL, "not a sysctl of a network namespace", name)

    def write() -> None:
        with open(f"/proc/sys/{name}", "w", encoding="ascii") as stream:
            stream.write(value + "\n")

    namespace.call(write)


def link_up(namespace: Namespace, name: str) -> None:
    """Bring an interface up. Raises OSError: ENODEV, EPERM."""
    _request(namespace, lambda route: route.link("set", index=socket.if_nametoindex(name), state="up"))


def connect(a: Namespace, name_a: str, b: Namespace, name_b: str) -> None:
    """Join two namespaces by a cable: a veth pair with one end in each, both up and usable at once.

    Raises OSError: EEXIST, EPERM, ENOENT in a kernel without IPv6, ETIMEDOUT.
    """
    peer = {"ifname": name_b, "net_ns_fd": b.fd}
    _request(a, lambda route: route.link("add", ifname=name_a, kind="veth", peer=peer))
    for namespace, name in ((a, name_a), (b, name_b)):
        # Until the link-local address has passed duplicate address detection, which takes a second or two, a router
        # asks for no IPv6 neighbour, and what it forwards waits (ndisc_send_ns in net/ipv6/ndisc.c).
        sysctl(namespace, f"net/ipv6/conf/{name}/accept_dad", "0")
    with a.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, RTMGRP_LINK))
        changes.settimeout(CARRIER_TIMEOUT)
        link_up(a, name_a)
        link_up(b, name_b)
        # The end that came up first was without carrier then, and loses what it sends until the kernel's link watch
        # has noticed the other end (linkwatch_do_dev in net/core/link_watch.c): the first ARP request, one second.
        _request(a, lambda route: _await_operational(route, name_a, changes))


def _await_operational(route: Any, name: str, changes: socket.socket) -> None:
    """Return when the interface is operational (RFC 2863); `changes` has a message for each change of a link."""
    index = socket.if_nametoindex(name)
    while route.get_links(index)[0].get_attr("IFLA_OPERSTATE") != "UP":
        changes.recv(65536)


def bridge(namespace: Namespace, name: str) -> None:
    """A bridge without ports, up: an interface to hold addresses. Raises OSError: EEXIST, EPERM.

    Not a dummy link, which is for the same: kernels are built without those, and hardly without bridges.
    """
    _request(namespace, lambda route: route.link("add", ifname=name, kind="bridge"))
    link_up(namespace, name)


def address(namespace: Namespace, name: str, prefix: str) -> None:
    """Give an interface an address such as "192.0.2.1/24" or "2001:db8::1/64", usable at once.

    Raises OSError: ENODEV, EEXIST, EPERM.
    """
    text, _, length = prefix.partition("/")
    # Duplicate address detection would keep an IPv6 address tentative, and unusable, for a second or more.
    flags = IFA_F_NODAD if ":" in text else 0

    def add(route: Any) -> None:
        route.addr("add", index=socket.if_nametoindex(name), address=text, prefixlen=int(length), flags=flags)

    _request(namespace, add)


def route(namespace: Namespace, destination: str, via: str) -> None:
    """Send what is for `destination` ("198.51.100.0/24", "default") through the router `via`, of the same family.

    Raises OSError: ENETUNREACH if `via` is not on a connected network, EEXIST, EPERM.
    """
    family = socket.AF_INET6 if ":" in via else socket.AF_INET
    _request(namespace, lambda route: route.route("add", family=family, dst=destination, gateway=via))


def _request(namespace: Namespace, request: Callable[[Any], object]) -> None:
    """Run `request(iproute)` inside the namespace; the kernel's refusals come as OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def inside() -> None:
        with IPRoute() as iproute:
            request(iproute)

    try:
        namespace.call(inside)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), namespace.label) from error


def _is_mapped(file: str, number: int) -> bool:
    """Whether user or group `number` exists in this user namespace; lines are: first inside, first outside, count."""
    with open(f"/proc/self/{file}", encoding="ascii") as stream:
        ranges = [line.split() for line in stream]
    return any(int(first) <= number < int(first) + int(count) for first, _outside, count in ranges)


def _check(result: int, path: str | None = None) -> None:
    """Raise OSError for a libc call that failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
