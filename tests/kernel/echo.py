"""Echo servers that answer with who they are, and the clients that ask them.

A server answers each line (TCP) or datagram (UDP) with its own port, the client's address and its own address, as it
sees them, and the line itself. So an answer tells which server was reached, whatever was rewritten on the way.

One thread serves all sockets of a lab by epoll. Sockets are bound and listening when `serve` returns; from there on
the kernel queues clients, so nobody has to wait for a server to come up.
"""

import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from redirector.host.namespaces import Namespace

PATIENCE = 5.0  # seconds to wait for what should come: costs nothing when it does
SILENCE = 0.3  # seconds to wait for what should not come: ask with `patience=SILENCE` and expect Silent

IP_PKTINFO = 8  # linux/in.h; in the socket module from Python 3.12 on only
IN_PKTINFO = struct.Struct("=i4s4s")  # interface index, local address, the packet's destination
IN6_PKTINFO = struct.Struct("=16si")  # destination, interface index

Protocol: TypeAlias = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Answered:
    """The server on `port` answered: it was reached at `local`, by a client that it saw as `peer`."""

    port: int
    peer: str
    local: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A TCP reset instead of a connection, or ICMP port unreachable."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The other side ended a connection that existed."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing came back in time."""


Answer: TypeAlias = Answered | Refused | Reset | Silent


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Conversation:
    """A TCP connection or UDP flow of a client: one source port, any number of questions."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._asked = 0
        self._unread = b""

    def ask(self, patience: float = PATIENCE) -> Answer:
        """Who answers now. Late answers to earlier questions are not taken for this one's."""
        self._asked += 1
        token = str(self._asked)
        deadline = time.monotonic() + patience
        try:
            self.socket.settimeout(patience)
            self.socket.sendall(f"{token}\n".encode())
            while True:
                line, newline, rest = self._unread.partition(b"\n")
                if newline:
                    self._unread = rest
                    port, peer, local, question = line.decode().split(" ")
                    if question == token:
                        return Answered(int(port), peer, local)
                    continue
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                received = self.socket.recv(65536)
                if not received:
                    return Reset()
                self._unread += received
        except ConnectionRefusedError:
            return Refused()
        except (ConnectionResetError, BrokenPipeError):
            return Reset()
        except TimeoutError:
            return Silent()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def talk(
    namespace: Namespace,
    protocol: Protocol,
    address: str,
    port: int,
    source: str | None = None,
    patience: float = PATIENCE,
) -> Conversation:
    """Connect from inside `namespace`; raises OSError (ConnectionRefusedError, TimeoutError, …)."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    connected = namespace.socket(family_of(address), kind)
    try:
        connected.settimeout(patience)
        if source is not None:
            connected.bind((source, 0))
        connected.connect((address, port))
    except BaseException:
        connected.close()
        raise
    return Conversation(connected)


def ask(
    namespace: Namespace,
    protocol: Protocol,
    address: str,
    port: int,
    source: str | None = None,
    patience: float = PATIENCE,
) -> Answer:
    """Who answers a new client inside `namespace`. Raises OSError for anything but an `Answer`, such as no route."""
    try:
        conversation = talk(namespace, protocol, address, port, source, patience)
    except ConnectionRefusedError:
        return Refused()
    except TimeoutError:
        return Silent()
    with conversation:
        return conversation.ask(patience)


class Server:
    """What one `serve` opened: sockets of one protocol on one address, on `ports`, and the connections to them."""

    def __init__(self, servers: "EchoServers", sockets: list[socket.socket]) -> None:
        self._servers = servers
        self.sockets = set(sockets)
        self.ports: tuple[int, ...] = tuple(one.getsockname()[1] for one in sockets)

    def close(self) -> None:
        """Stop listening and end the connections. Harmless when repeated."""
        self._servers.stop(self)


class EchoServers:
    """The thread that serves, and everything that it serves."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._end, select.EPOLLIN)
        self._lock = threading.Lock()  # held while handlers run, so nothing is closed under one
        self._handlers: dict[int, Callable[[], None]] = {}
        self._open: list[Server] = []
        self._thread = threading.Thread(target=self._work, name="echo servers", daemon=True)
        self._thread.start()

    def serve(self, namespace: Namespace, protocol: Protocol, address: str, ports: Iterable[int]) -> Server:
        """Listen inside `namespace`; address "0.0.0.0" or "::" for all (IPv6 alone), port 0 for any free one.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL, …
        """
        wanted = list(ports)
        _raise_descriptor_limit(2 * len(wanted))
        sockets: list[socket.socket] = []

        def listen() -> None:
            for port in wanted:
                sockets.append(_listening(protocol, address, port))  # noqa: PERF401 - those before an error count

        try:
            namespace.call(listen)
        except BaseException:
            for one in sockets:
                one.close()
            raise
        server = Server(self, sockets)
        with self._lock:
            self._open.append(server)
            for one in sockets:
                self._watch(one, self._acceptor(server, one) if protocol == "tcp" else _datagram_handler(one))
        return server

    def stop(self, server: Server) -> None:
        with self._lock:
            for one in list(server.sockets):
                self._forget(server, one)
            if server in self._open:
                self._open.remove(server)

    def stop_all(self) -> None:
        for server in list(self._open):
            self.stop(server)

    def close(self) -> None:
        self.stop_all()
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._end)

    def _work(self) -> None:
        while True:
            ready = [fd for fd, _events in self._epoll.poll()]
            if self._end in ready:
                return
            with self._lock:
                for fd in ready:
                    # Absent if closed since; of another socket if the number was used again, which then has nothing
                    # to read: no handler blocks.
                    handler = self._handlers.get(fd)
                    if handler:
                        handler()

    def _watch(self, one: socket.socket, handler: Callable[[], None]) -> None:
        self._handlers[one.fileno()] = handler
        self._epoll.register(one.fileno(), select.EPOLLIN)

    def _forget(self, server: Server, one: socket.socket) -> None:
        self._epoll.unregister(one.fileno())
        del self._handlers[one.fileno()]
        server.sockets.discard(one)
        one.close()

    def _acceptor(self, server: Server, listening: socket.socket) -> Callable[[], None]:
        def accept() -> None:
            try:
                connected, _peer = listening.accept()
            except OSError:
                return  # gone again
            try:
                connected.setblocking(False)
                local, port = connected.getsockname()[:2]
                identity = f"{port} {connected.getpeername()[0]} {local} ".encode()
            except OSError:
                connected.close()
                return
            server.sockets.add(connected)
            self._watch(connected, self._stream_handler(server, connected, identity))

        return accept

    def _stream_handler(self, server: Server, connected: socket.socket, identity: bytes) -> Callable[[], None]:
        unread = bytearray()

        def converse() -> None:
            try:
                received = connected.recv(65536)
                unread.extend(received)
                *lines, rest = bytes(unread).split(b"\n")
                unread[:] = rest
                connected.sendall(b"".join(identity + line + b"\n" for line in lines))
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:
                self._forget(server, connected)

        return converse


def _datagram_handler(bound: socket.socket) -> Callable[[], None]:
    port = bound.getsockname()[1]
    v6 = bound.family == socket.AF_INET6

    def answer() -> None:
        try:
            question, control, _flags, peer = bound.recvmsg(65536, socket.CMSG_SPACE(IN6_PKTINFO.size))
            for level, kind, data in control:
                if v6:
                    packed, _interface = IN6_PKTINFO.unpack(data)
                    reply_from = IN6_PKTINFO.pack(packed, 0)
                else:
                    _interface, _local, packed = IN_PKTINFO.unpack(data)
                    reply_from = IN_PKTINFO.pack(0, packed, bytes(4))
                local = socket.inet_ntop(bound.family, packed)
                identity = f"{port} {peer[0]} {local} ".encode()
                # From the address that was asked, also where the socket is bound to all of them.
                bound.sendmsg([identity, question], [(level, kind, reply_from)], 0, peer)
        except OSError:
            return  # nothing to read after all, or an ICMP error that an earlier answer met

    return answer


def _listening(protocol: Protocol, address: str, port: int) -> socket.socket:
    family = family_of(address)
    one = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    try:
        one.setblocking(False)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        one.bind((address, port))
        if protocol == "tcp":
            one.listen(4096)
    except BaseException:
        one.close()
        raise
    return one


def _raise_descriptor_limit(more: int) -> None:
    """Debian allows a process 1,024 descriptors until it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + more + 256
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
