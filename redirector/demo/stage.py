"""Where the demo plays: two private network namespaces joined by a cable, servers in one, clients in both.

    client                    host
    eth0 192.0.2.100          eth0 192.0.2.1       HTTP on 8080 and 8443, UDP echo on 5353 (redirector.demo.server)
         2001:db8::100             2001:db8::1

The addresses are those for documentation (RFC 5737, RFC 3849). The namespaces have no names, and end with this process
at the latest; the servers end when the pipe to them is closed, by us or by the kernel. Only the temporary folder would
stay behind, and only after SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redirector.errors import OutcomeUnknown, RedirectorError, Unavailable, printable
from redirector.host import namespaces
from redirector.host.namespaces import Namespace
from redirector.host.privileges import become_user_namespace_root

if TYPE_CHECKING:
    from typing import Self

HOST = ("192.0.2.1", "2001:db8::1")
CLIENT = ("192.0.2.100", "2001:db8::100")

# A fresh namespace may start with the machine's own settings (net.core.devconf_inherit_init_net).
SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv4/icmp_ratemask": "0",  # no ICMP error is withheld: that is how a UDP client learns that nobody is there
}
CAP_SYS_ADMIN = 21  # linux/capability.h
COMMAND_SECONDS = 30.0  # far beyond what anything here takes, for what hangs
INHERITED = ("TERM", "NO_COLOR", "COLUMNS", "LINES", "LANG", "LC_ALL", "LC_CTYPE")
CLIENT_SECONDS = 5.0
HINT = (
    "run it as root, or let plain users make user namespaces (sysctl user.max_user_namespaces, among others); "
    "some containers forbid both"
)


class Finished(NamedTuple):
    """A command that has ended: its exit status, and its output and complaints as they came."""

    status: int
    text: str


class Stage:
    """A context manager; leaving it takes everything away. Raises Unavailable where it cannot be set up.

    Build it before the process has a second thread: a plain user becomes root of a user namespace.
    """

    def __init__(self, *, terminal: bool) -> None:
        """With `terminal` the commands see one, and so print in colours."""
        self._terminal = terminal
        with contextlib.ExitStack() as undo:
            caller = os.geteuid()
            self.in_user_namespace = not _may_make_namespaces()
            if not os.path.exists("/proc/sys/net/ipv6"):
                raise Unavailable("this kernel has no IPv6, which is half of what the demo shows", "boot it with IPv6")
            try:
                if self.in_user_namespace:
                    become_user_namespace_root()
                self.host = undo.enter_context(Namespace.create("host"))
                self.client = undo.enter_context(Namespace.create("client"))
                _wire(self.host, self.client)
            except OSError as error:
                raise _forbidden(error) from None
            self.host.call(_require_nftables)
            self.folder = tempfile.mkdtemp(prefix="redirector-demo-")
            undo.callback(shutil.rmtree, self.folder)
            self.servers, self.refusal, uid = self._serve()
            undo.callback(_end, self.servers)
            # In a user namespace with a single user, 0 is the caller.
            self.owner = _user_name(uid or caller)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def put(self, name: str, data: bytes) -> None:
        """Make a file in the temporary folder, the caller's alone."""
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)

    def redirector(self, *args: str) -> Finished:
        """`redirector ARGS` on the host, in the temporary folder, with the generations in there too."""
        reading, writing = _channel(terminal=self._terminal)
        try:
            argv = [sys.executable, "-m", "redirector", *args]
            child = self._start(argv, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with child:
            try:
                data = _read_all(reading)
            except BaseException:
                child.kill()
                raise
            finally:
                os.close(reading)
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        # On a terminal, what takes long shows progress in a line that it wipes in the end.
        lines = [line.rpartition("\r\x1b[K")[2] for line in text.removesuffix("\n").split("\n")]
        return Finished(child.returncode, "\n".join(lines))

    def http(self, who: str, address: str, port: int) -> str:
        """What a web client on `who` ("host", "client") gets to see: status and page, or why not."""
        try:
            with _connected(self._at(who), socket.SOCK_STREAM, address, port) as one:
                one.sendall(f"GET / HTTP/1.0\r\nHost: {url_host(address)}\r\n\r\n".encode())
                answer = b""
                while data := one.recv(65536):
                    answer += data
        except OSError as error:
            return error.strerror or "no answer"
        head, _, body = answer.decode("utf-8", "replace").partition("\r\n\r\n")
        return f"{head.partition(chr(13))[0].partition(' ')[2]}: {body}"

    def udp(self, who: str, address: str, port: int, question: str) -> str:
        """What a UDP client on `who` gets back, or why not."""
        try:
            with _connected(self._at(who), socket.SOCK_DGRAM, address, port) as one:
                one.send(question.encode())
                return one.recv(65536).decode("utf-8", "replace")
        except OSError as error:
            return error.strerror or "no answer"

    def delete_element(self, protocol: str, port: int) -> str:
        """Delete one element behind Redirector's back, and say from which map. Raises RedirectorError."""
        return self.host.call(_delete_element, protocol, port)

    def _at(self, who: str) -> Namespace:
        return {"host": self.host, "client": self.client}[who]

    def _serve(self) -> tuple[subprocess.Popen[Any], str, int]:
        """The servers, listening; why they could not have port 80; and their user."""
        argv = [sys.executable, "-m", "redirector.demo.server"]
        child = self._start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        line = b""
        try:
            if child.stdout is not None and select.select([child.stdout], [], [], COMMAND_SECONDS)[0]:
                line = child.stdout.readline()
            said = json.loads(line)
            return child, str(said["refusal"]), int(said["uid"])
        except BaseException as error:
            child.kill()
            rest = child.communicate()[0]
            if isinstance(error, ValueError):
                why = (line + rest).decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise RedirectorError(f"the demo's server did not start: {printable(why) or 'no answer'}") from None
            raise

    def _start(self, argv: list[str], **streams: Any) -> subprocess.Popen[Any]:
        """A child process on the host, out of reach of the terminal's Ctrl-C: we end it."""
        try:
            return self.host.popen(argv, cwd=self.folder, env=self._environment(), process_group=0, **streams)
        except OSError as error:
            message = f"{printable(str(error.filename))} cannot be run here: {error.strerror}"
            raise Unavailable(message, "install Python and Redirector where you may run them") from None

    def _environment(self) -> dict[str, str]:
        """Of the caller's, what concerns the terminal and its language."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # Modules come from where ours do, also when that is the folder that we were called in.
        modules = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        own = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "REDIRECTOR_STATE_DIR": os.path.join(self.folder, "state"),
            "REDIRECTOR_JOURNAL": "",
            "PYTHONPATH": modules,
        }
        return {**inherited, **own, "PYTHONIOENCODING": "utf-8"}


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _may_make_namespaces() -> bool:
    """Whether this process may by itself."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> CAP_SYS_ADMIN & 1)


def _user_name(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _forbidden(error: OSError) -> Unavailable:
    # "No space left on device" is what the kernel says at a limit of user.max_net_namespaces and the like.
    why = "the limit is reached" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return Unavailable(f"private network namespaces cannot be made here: {why}", HINT)


def _wire(host: Namespace, client: Namespace) -> None:
    for namespace in (host, client):
        for name, value in SYSCTLS.items():
            namespaces.sysctl(namespace, name, value)
        namespaces.link_up(namespace, "lo")
    namespaces.connect(host, "eth0", client, "eth0")
    for namespace, (v4, v6) in ((host, HOST), (client, CLIENT)):
        namespaces.address(namespace, "eth0", f"{v4}/24")
        namespaces.address(namespace, "eth0", f"{v6}/64")


def _require_nftables() -> None:
    """Raise Unavailable where the kernel of this namespace has none."""
    from redirector.backends.nftables.backend import NftablesBackend

    with contextlib.closing(NftablesBackend()) as backend:
        backend.genid()


def _end(servers: subprocess.Popen[Any]) -> None:
    """Let the servers end; make them, where they do not."""
    with servers:
        if servers.stdin:
            servers.stdin.close()
        try:
            servers.wait(CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            servers.kill()


def _channel(*, terminal: bool) -> tuple[int, int]:
    """Two descriptors, to read from and to write to: a terminal's, or a pipe's where there is none to be had."""
    if terminal:
        with contextlib.suppress(OSError):  # /dev/pts is not mounted, say
            return os.openpty()
    return os.pipe()


def _read_all(descriptor: int) -> bytes:
    """What comes until the last writer is gone. Raises OutcomeUnknown after COMMAND_SECONDS."""
    data = b""
    deadline = time.monotonic() + COMMAND_SECONDS
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            more = os.read(descriptor, 65536)
        except OSError:  # EIO: nobody has the terminal's other side any more
            more = b""
        if not more:
            return data
        data += more
    raise OutcomeUnknown(f"a command did not end within {COMMAND_SECONDS:.0f} s")


def _connected(where: Namespace, kind: int, address: str, port: int) -> socket.socket:
    one = where.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        one.settimeout(CLIENT_SECONDS)
        one.connect((address, port))
    except BaseException:
        one.close()
        raise
    return one


def _delete_element(protocol: str, port: int) -> str:
    from redirector.backends.nftables.backend import NftablesBackend
    from redirector.model import PROTOCOLS
    from redirector.plan import DeleteEntries
    from redirector.program import PORTS, port_key

    with contextlib.closing(NftablesBackend()) as backend:
        snapshot = backend.observe()
        maps = snapshot.program.maps if snapshot.program else {}
        key = port_key(PROTOCOLS[protocol], port)
        for name, found in maps.items():
            if found.kind == PORTS and key in found.entries:
                backend.commit((DeleteEntries(name, found.kind, (key,)),), snapshot.genid)
                return name
    raise RedirectorError(f"no map of ours has {protocol} {port}")
