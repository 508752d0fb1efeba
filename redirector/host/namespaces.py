"""Private network namespaces, and the links and addresses inside them (network_namespaces(7), setns(2), veth(4)).

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
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from redirector.host.libc import CLONE_NEWNET, setns, unshare

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")

NAMED = "/run/netns"  # where ip-netns(8) keeps its names

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14
IFA_F_NODAD = 0x02  # linux/if_addr.h
LINK_LOCAL = b"\xfe\x80"  # fe80::/64 (RFC 4291, 2.5.6)

_indices = itertools.count(1000)  # of the interfaces made here


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
        return cls(label, lambda: unshare(CLONE_NEWNET))

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
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)


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
    _request(namespace, lambda route: route.link("set", index=_index(name), state="up"))


def connect(a: Namespace, name_a: str, b: Namespace, name_b: str) -> None:
    """Join two namespaces by a cable: a veth pair with one end in each, both up and usable at once.

    Raises OSError: EEXIST, EPERM; ENOENT in a kernel without IPv6; TimeoutError.
    """
    from redirector.host.announcements import await_address, await_state, changes

    # An index of its own: if both ends had the same, the kernel would not see that there is another end, and would
    # take up to a second to notice that it is up (linkwatch_urgent_event in net/core/link_watch.c).
    peer = {"ifname": name_b, "net_ns_fd": b.fd}
    _request(a, lambda route: route.link("add", ifname=name_a, index=next(_indices), kind="veth", peer=peer))
    with changes(a) as announced_a, changes(b) as announced_b:
        for namespace, name in ((a, name_a), (b, name_b)):
            # Duplicate address detection would keep the link-local address unusable for a second or two.
            sysctl(namespace, f"net/ipv6/conf/{name}/accept_dad", "0")
        link_up(a, name_a)
        link_up(b, name_b)
        for namespace, name, announced in ((a, name_a, announced_a), (b, name_b, announced_b)):
            await_address(announced, LINK_LOCAL)
            await_state(announced, functools.partial(_is_operational, namespace, name))


def bridge(namespace: Namespace, name: str) -> None:
    """A bridge without ports, up: an interface to hold addresses. Raises OSError: EEXIST, EPERM.

    Not a dummy link, which is for the same: kernels are built without those, and hardly without bridges.
    """
    _request(namespace, lambda route: route.link("add", ifname=name, kind="bridge"))
    link_up(namespace, name)


def address(namespace: Namespace, name: str, prefix: str) -> None:
    """Give an interface an address such as "192.0.2.1/24" or "2001:db8::1/64", usable at once.

    Raises OSError: ENODEV, EEXIST, EPERM, TimeoutError.
    """
    from redirector.host.announcements import await_address, changes

    text, _, length = prefix.partition("/")
    v6 = ":" in text

    def add(route: Any) -> None:
        index = _index(name)
        route.addr("add", index=index, address=text, prefixlen=int(length), flags=IFA_F_NODAD if v6 else 0)

    with changes(namespace) as announced:
        _request(namespace, add)
        if v6:
            await_address(announced, socket.inet_pton(socket.AF_INET6, text))


def route(namespace: Namespace, destination: str, via: str) -> None:
    """Send what is for `destination` ("198.51.100.0/24", "default") through the router `via`, of the same family.

    Raises OSError: ENETUNREACH if `via` is not on a connected network, EEXIST, EPERM.
    """
    family = socket.AF_INET6 if ":" in via else socket.AF_INET
    _request(namespace, lambda route: route.route("add", family=family, dst=destination, gateway=via))


def _request(namespace: Namespace, request: Callable[[Any], T]) -> T:
    """`request(iproute)`, run inside the namespace; the kernel's refusals come as OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def inside() -> T:
        with IPRoute() as iproute:
            return request(iproute)

    try:
        return namespace.call(inside)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), namespace.label) from error


def _index(name: str) -> int:
    """The index of an interface in the calling thread's namespace. Raises OSError (ENODEV)."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:  # which has no errno before Python 3.13
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name) from error


def _is_operational(namespace: Namespace, name: str) -> bool:
    """Whether an interface can send (RFC 2863, ifOperStatus)."""

    def state(route: Any) -> object:
        return route.get_links(_index(name))[0].get_attr("IFLA_OPERSTATE")

    return _request(namespace, state) == "UP"
