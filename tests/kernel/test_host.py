"""What the host modules say of real sockets, processes and addresses, in private namespaces."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import redirector
from redirector.host.addresses import interfaces, local_addresses
from redirector.host.listeners import Listener, connections_of, listeners
from redirector.host.namespaces import Namespace, address, connect, link_up
from redirector.host.processes import Process, owners, sockets
from tests.kernel.ssh_scene import OTHER_PORT, PORT

pytestmark = pytest.mark.kernel

CHECKOUT = Path(redirector.__file__).parent.parent
PATIENCE = 10.0  # seconds before something that does not happen fails a test


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace.create("host") as made:
        link_up(made, "lo")
        yield made


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def bound(
    namespace: Namespace,
    stack: contextlib.ExitStack,
    host: str,
    port: int = 0,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    *,
    v6only: bool = False,
) -> socket.socket:
    """A socket with a local address, TCP ones listening; IPv6 ones serve IPv4 too unless `v6only`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = stack.enter_context(namespace.socket(family, kind))
    made.settimeout(PATIENCE)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    made.bind((host, port))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def inode(made: socket.socket) -> int:
    return os.fstat(made.fileno()).st_ino


def told(namespace: Namespace, *protocols: str) -> list[Listener]:
    return namespace.call(listeners, protocols)


def test_nothing_listens_in_a_fresh_namespace(namespace: Namespace) -> None:
    assert told(namespace, "tcp", "udp") == []


@pytest.mark.parametrize(
    ("host", "v6only", "family", "shown", "said_v6only"),
    [
        ("0.0.0.0", False, "ipv4", "0.0.0.0", None),
        ("127.0.0.2", False, "ipv4", "127.0.0.2", None),
        ("::", False, "ipv6", "::", False),
        ("::", True, "ipv6", "::", True),
        ("::1", False, "ipv6", "::1", True),  # the kernel's own doing, when the address is not ::
        ("::ffff:127.0.0.1", False, "ipv4", "127.0.0.1", None),
        ("::ffff:0.0.0.0", False, "ipv4", "0.0.0.0", None),
    ],
)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_listener_is_told_as_it_is(
    namespace: Namespace,
    stack: contextlib.ExitStack,
    protocol: str,
    host: str,
    v6only: bool,
    family: str,
    shown: str,
    said_v6only: bool | None,
) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = bound(namespace, stack, host, kind=kind, v6only=v6only)
    port = server.getsockname()[1]
    expected = Listener(protocol, family, shown, port, os.geteuid(), inode(server), 0, said_v6only)
    assert told(namespace, protocol) == [expected]
    assert told(namespace, "tcp", "udp", "tcp") == [expected]
    other = "udp" if protocol == "tcp" else "tcp"
    assert told(namespace, other) == []
    reached = {name for name in ("ipv4", "ipv6") if reaches(namespace, server, name)}
    assert {name for name in ("ipv4", "ipv6") if expected.accepts(name)} == reached


def reaches(namespace: Namespace, server: socket.socket, family: str) -> bool:
    """Whether a client of this family, at the server's own address or at the loopback one, is served."""
    host, port = server.getsockname()[:2]
    if family == "ipv6":
        target = "::1"
    else:
        plain = host.removeprefix("::ffff:")
        target = plain if plain.startswith("127.") else "127.0.0.1"
    kind = server.type
    with namespace.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, kind) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect((target, port))
            if kind == socket.SOCK_STREAM:
                server.accept()[0].close()
                return True
            client.send(b"?")
        except ConnectionRefusedError:
            return False
        # Over loopback the refusal of a datagram is there when send returns, and so is the datagram itself.
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
            return False
        return server.recv(10) == b"?"


def test_what_does_not_wait_for_clients_is_not_told(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    server = bound(namespace, stack, "127.0.0.1")
    client = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
    client.connect(server.getsockname())
    accepted = stack.enter_context(server.accept()[0])
    silent = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
    silent.bind(("127.0.0.1", 0))  # bound, and not listening
    answering = bound(namespace, stack, "127.0.0.1", kind=socket.SOCK_DGRAM)
    asking = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
    asking.connect(answering.getsockname())
    stack.enter_context(namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM))  # without a port
    assert accepted.getpeername() == client.getsockname()
    assert {one.inode for one in told(namespace, "tcp", "udp")} == {inode(server), inode(answering)}


def test_owner_and_interface_of_a_socket(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    made = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
    os.fchown(made.fileno(), 65534, -1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    made.bind(("0.0.0.0", 0))
    made.listen()
    (found,) = told(namespace, "tcp")
    assert (found.uid, found.interface) == (65534, namespace.call(socket.if_nametoindex, "lo"))


def test_namespaces_do_not_see_each_other(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    server = bound(namespace, stack, "0.0.0.0", 8080)
    with Namespace.create("other") as other:
        assert told(other, "tcp") == []
        twin = bound(other, stack, "0.0.0.0", 8080)
        assert [one.inode for one in told(other, "tcp")] == [inode(twin)]
    assert [one.inode for one in told(namespace, "tcp")] == [inode(server)]


def test_more_listeners_than_one_message_holds(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    made = [bound(namespace, stack, host) for host in ("127.0.0.1", "::1") for _ in range(400)]
    found = told(namespace, "tcp")
    assert sorted(one.inode for one in found) == sorted(inode(one) for one in made)


def test_sctp_listeners_where_the_kernel_has_sctp(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    try:
        server = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
    except OSError:
        assert told(namespace, "sctp") == []
        return
    server.bind(("127.0.0.1", 0))
    server.listen()
    found = [(one.address, one.port, one.inode) for one in told(namespace, "sctp")]
    assert found == [(*server.getsockname(), inode(server))]


def test_connections_by_inode(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    server = bound(namespace, stack, "::")
    port = server.getsockname()[1]
    ends = []
    for host in ("127.0.0.1", "::1"):
        client = stack.enter_context(namespace.call(socket.create_connection, (host, port)))
        accepted = stack.enter_context(server.accept()[0])
        assert namespace.call(connections_of, {inode(accepted)}) == [(host, port, inode(accepted))]
        ends += [(host, client.getsockname()[1], inode(client)), (host, port, inode(accepted))]
    every = {inode(server), *(end[2] for end in ends)}
    assert sorted(namespace.call(connections_of, every)) == sorted(ends)
    assert namespace.call(connections_of, {inode(server)}) == []
    assert namespace.call(connections_of, set()) == []


def test_owners_of_real_sockets(namespace: Namespace, stack: contextlib.ExitStack) -> None:
    mine = bound(namespace, stack, "127.0.0.1")
    found = owners({inode(mine)})
    with open("/proc/self/comm", encoding="utf-8") as comm:
        me = Process(os.getpid(), comm.read().rstrip("\n"), os.geteuid())
    assert found == {inode(mine): [me]}
    assert inode(mine) in sockets(os.getpid())
    gone = inode(mine)
    mine.close()
    assert owners({gone}) == {}


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_ssh_session(namespace: Namespace, stack: contextlib.ExitStack, where: str) -> None:
    """Real processes: one that calls itself sshd and has a client, and below it one that asks where ssh lives."""
    environment = dict(os.environ)
    environment.pop("SSH_CONNECTION", None)  # as after sudo
    if where == "elsewhere":
        environment["SSH_CONNECTION"] = f"127.0.0.1 51000 127.0.0.1 {PORT}"
    argv = [sys.executable, "-m", "tests.kernel.ssh_scene", "serve", where]
    sshd = stack.enter_context(namespace.popen(argv, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True))
    stack.callback(sshd.kill)
    assert sshd.stdout
    assert sshd.stdout.readline() == "listening\n"
    stack.enter_context(namespace.call(socket.create_connection, ("127.0.0.1", PORT)))
    uses = json.loads(sshd.stdout.read())
    assert sshd.wait(PATIENCE) == 0
    if where == "elsewhere":
        assert uses == []
        return
    assert uses == [
        [PORT, "127.0.0.1", f"sshd (pid {sshd.pid}), an ancestor of this process, is connected on it"],
        [OTHER_PORT, "::1", f"sshd (pid {sshd.pid}) listens on it"],
    ]


def test_addresses_and_interfaces() -> None:
    with Namespace.create("host") as namespace:
        assert namespace.call(local_addresses) == set()
        assert namespace.call(interfaces) == {"lo"}
        link_up(namespace, "lo")
        assert namespace.call(local_addresses) == {"127.0.0.1", "::1"}
        connect(namespace, "d0", namespace, "d1")
        given = ("192.0.2.1/24", "192.0.2.2/24", "198.51.100.7/32", "2001:db8:0:0::1/64", "2001:db8::FF/128")
        for prefix in given:
            address(namespace, "d0", prefix)
        namespace.run(["ip", "address", "add", "203.0.113.1", "peer", "203.0.113.9/32", "dev", "d0"], check=True)
        found = {one for one in namespace.call(local_addresses) if not one.startswith("fe80:")}
        expected = {"192.0.2.1", "192.0.2.2", "198.51.100.7", "2001:db8::1", "2001:db8::ff", "203.0.113.1"}
        assert found == {"127.0.0.1", "::1", *expected}
        assert namespace.call(interfaces) == {"lo", "d0", "d1"}


def test_more_addresses_than_one_message_holds(namespace: Namespace) -> None:
    made = {f"10.{i // 250}.{i % 250}.1" for i in range(1500)}
    batch = "".join(f"address add {one}/32 dev lo\n" for one in made)
    namespace.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    assert namespace.call(local_addresses) == {"127.0.0.1", "::1", *made}


def test_process_1_does_not_share_the_network_of_a_namespace(namespace: Namespace) -> None:
    """Which also keeps these tests away from the systemd of the machine that they run on."""
    code = "from redirector.host import systemd; print(systemd.shares_our_network())"
    done = namespace.run([sys.executable, "-c", code], cwd=CHECKOUT, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("False\n", "")
