"""Namespaces, the way into them, and the privileges in them; what a whole process does is done in child processes."""

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from redirector.host import namespaces
from redirector.host.announcements import await_state, changes
from redirector.host.namespaces import Namespace
from tests.kernel.lab import CLIENT, HOST, Lab

# Run in a child process. It ends by exec of a program that anyone may read, unlike, perhaps, this Python.
DROP = """
import os, shutil, socket, sys
from redirector.host.privileges import become_user_namespace_root, drop_privileges

def bind(port):
    with socket.socket() as one:
        try:
            one.bind(("0.0.0.0", port))
        except OSError as error:
            return error.errno
    return 0

if sys.argv[1] == "user namespace":
    become_user_namespace_root()
print(bind(80), bind(8080))
grep = shutil.which("grep")
drop_privileges()
print(bind(80), bind(8080))
print(*os.getresuid(), *os.getresgid(), flush=True)
os.execv(grep, ["grep", "-E", "^(Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):", "/proc/self/status"])
"""


@pytest.mark.parametrize("where", ["here", "user namespace"])
def test_dropped_privileges_are_gone_for_good(lab: Lab, where: str) -> None:
    printed = lab.host.run(sys.executable, "-c", DROP, where, env=lab.environment())
    before, after, ids, *status = printed.splitlines()
    assert before == "0 0"
    assert after == f"{errno.EACCES} 0"
    is_nobody = where == "here" and _has_nobody()
    assert set(ids.split()) == {"65534" if is_nobody else "0"}
    after_exec = dict(line.replace("\t", " ").split(":") for line in status)
    if is_nobody:
        assert after_exec.pop("Groups").strip() == ""
    else:
        del after_exec["Groups"]  # setgroups(2) is out of reach there
    none = " " + "0" * 16
    assert after_exec == {"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": " 1"}


def _has_nobody() -> bool:
    """Whether this process may become user 65534, as root may, and root of a user namespace of one user may not."""
    with open("/proc/self/uid_map", encoding="ascii") as stream:
        return any(int(line.split()[2]) > 65534 for line in stream)


def test_lab_works_in_a_user_namespace(lab: Lab) -> None:
    printed = lab.host.run(
        sys.executable,
        "-c",
        """if True:
        import sys
        from redirector.host.privileges import become_user_namespace_root
        from tests.kernel.lab import HOST, Lab
        become_user_namespace_root()
        with Lab("unused") as lab:
            for address in HOST:
                lab.host.serve("tcp", address, 8080)
                lab.host.nft(sys.argv[1])
                print(lab.client.ask_tcp(address, 80))
        """,
        "table inet t { chain c { type nat hook prerouting priority -110; tcp dport 80 redirect to :8080; }; }",
        env=lab.environment(),
    )
    assert printed.splitlines() == [
        f"Answered(port=8080, peer='{peer}', local='{local}')" for peer, local in zip(CLIENT, HOST, strict=True)
    ]


def test_user_namespace_is_refused_to_a_process_with_threads(lab: Lab) -> None:
    printed = lab.host.run(
        sys.executable,
        "-c",
        """if True:
        import threading
        from redirector.host.privileges import become_user_namespace_root
        end = threading.Event()
        threading.Thread(target=end.wait).start()
        try:
            become_user_namespace_root()
        except OSError as error:
            print(error.errno)
        end.set()
        """,
        env=lab.environment(),
    )
    assert printed == f"{errno.EINVAL}\n"


def test_sockets_threads_and_children_are_inside() -> None:
    with Namespace.create("one") as one, Namespace.create("two") as two:
        inodes = [os.fstat(namespace.fd).st_ino for namespace in (one, two)]
        assert len({*inodes, os.stat("/proc/self/ns/net").st_ino, one.cookie, two.cookie}) == 5
        for namespace, inode in zip((one, two), inodes, strict=True):
            assert namespace.call(os.stat, "/proc/thread-self/ns/net").st_ino == inode
            child = namespace.run(["readlink", "/proc/self/ns/net"], text=True, check=True)
            assert child.stdout == f"net:[{inode}]\n"
            assert _links(namespace) == ["lo"]


def test_cookie_is_the_same_for_everyone() -> None:
    with Namespace.create("one") as one, one.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        cookie = other.getsockopt(socket.SOL_SOCKET, namespaces.SO_NETNS_COOKIE, 8)
        assert int.from_bytes(cookie, sys.byteorder) == one.cookie


def test_call_returns_and_raises_what_the_function_does() -> None:
    with Namespace.create("one") as one:
        assert one.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            one.call(divmod, 7, 0)
        assert one.call(lambda: one.call(threading.current_thread)) is one.call(threading.current_thread)


def test_closed_namespace_takes_no_calls_and_leaves_no_thread() -> None:
    one = Namespace.create("one")
    thread, fd = one.call(threading.current_thread), one.fd
    one.close()
    one.close()
    assert not thread.is_alive()
    assert one.fd == -1
    with pytest.raises(OSError, match="closed") as refused:
        one.call(int)
    assert refused.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_nothing_outlives_a_killed_process() -> None:
    script = """if True:
    import sys
    from redirector.host.namespaces import Namespace, connect
    here = Namespace("here", lambda: None)
    connect(here, "cable", Namespace.create("doomed"), "cable")
    print("connected", flush=True)
    sys.stdin.read()
    """
    with Namespace.create("kept") as kept, changes(kept) as announced:
        argv = [sys.executable, "-c", script]
        with kept.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"connected\n"
            assert _links(kept) == ["lo", "cable"]
            child.kill()
        # A cable goes when one of its ends does, and that end goes with its namespace.
        await_state(announced, lambda: _links(kept) == ["lo"])


def _links(namespace: Namespace) -> list[str]:
    return [name for _, name in namespace.call(socket.if_nameindex)]


def test_others_are_served_while_a_child_runs() -> None:
    with Namespace.create("one") as one:
        with one.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            runner = threading.Thread(target=one.run, args=(["cat"],), kwargs={"stdin": child.stdout})
            runner.start()
            assert one.call(int, "7") == 7
            assert runner.is_alive()
            child.communicate("")
        runner.join()


def test_child_that_takes_too_long_is_ended() -> None:
    with Namespace.create("one") as one, one.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as silent:
        with pytest.raises(subprocess.TimeoutExpired):
            one.run(["cat"], stdin=silent.stdout, timeout=0.1)
        assert silent.poll() is None
        silent.communicate()


def test_failing_child_is_told_if_asked() -> None:
    with Namespace.create("one") as one:
        assert one.run(["false"]).returncode == 1
        with pytest.raises(subprocess.CalledProcessError):
            one.run(["false"], check=True)


def test_namespaces_by_name(lab: Lab) -> None:
    # In a mount namespace of its own, so that /run/netns of the machine stays as it is.
    script = """if True:
    import os
    from redirector.host.namespaces import Namespace, enter
    with Namespace.named("blue") as blue:
        print(blue.cookie)
    for wrong in ("green", "", ".", "..", "../netns/blue", "/run/netns/blue", "blue\\0", "file"):
        open("/run/netns/file", "w").close()
        for way in (Namespace.named, enter):
            try:
                print(way(wrong))
            except OSError as error:
                print(error.errno, end=" ")
    enter("blue")
    print(os.stat("/proc/self/ns/net").st_ino)
    """
    argv = lab.with_names({"blue": lab.client}, [sys.executable, "-c", script])
    cookie, rest = lab.host.run(*argv, env=lab.environment()).splitlines()
    assert int(cookie) == lab.client.namespace.cookie
    *errors, inode = map(int, rest.split())
    assert errors == [errno.ENOENT] * 2 + [errno.EINVAL] * 14
    assert inode == os.fstat(lab.client.namespace.fd).st_ino


def test_bridge_holds_addresses_that_the_client_reaches(lab: Lab) -> None:
    host = lab.host.namespace
    namespaces.bridge(host, "bridge0")
    for address in ("203.0.113.1", "2001:db8:3::1"):
        namespaces.address(host, "bridge0", f"{address}/{64 if ':' in address else 24}")
        lab.host.serve("tcp", address, 8080)
        answer = lab.client.ask_tcp(address, 8080)
        assert answer == lab.client.ask_tcp(address, 8080)
        assert getattr(answer, "local", answer) == address


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda one: namespaces.link_up(one, "eth9"), errno.ENODEV),
        (lambda one: namespaces.bridge(one, "lo"), errno.EEXIST),
        (lambda one: namespaces.address(one, "lo", "127.0.0.1/8"), errno.EEXIST),
        (lambda one: namespaces.route(one, "default", "192.0.2.1"), errno.ENETUNREACH),
        (lambda one: namespaces.sysctl(one, "kernel/hostname", "x"), errno.EINVAL),
        (lambda one: namespaces.sysctl(one, "net/../kernel/hostname", "x"), errno.EINVAL),
        (lambda one: namespaces.sysctl(one, "net/ipv4/nonsense", "1"), errno.ENOENT),
    ],
)
def test_refusals_carry_the_kernels_errno(change: Callable[[Namespace], None], number: int) -> None:
    with Namespace.create("one") as one:
        namespaces.link_up(one, "lo")
        with pytest.raises(OSError, match=r"\[Errno") as refused:
            change(one)
        assert refused.value.errno == number
