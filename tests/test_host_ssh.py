"""Where ssh lives: each source alone, and all together."""

from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.host.listeners import Connection, Listener
from redirector.host.ssh import SshUse, ssh_ports
from tests.fakeproc import FakeProc


def tcp(port: int, inode: int, address: str = "0.0.0.0", protocol: str = "tcp") -> Listener:
    family = "ipv6" if ":" in address else "ipv4"
    return Listener(protocol, family, address, port, 0, inode, 0, None if family == "ipv4" else False)


class Host:
    """A host made of files and lists."""

    def __init__(self, root: Path) -> None:
        (root / "proc").mkdir()
        self.fake = FakeProc(root / "proc")
        self.units = root / "units"
        self.listeners: list[Listener] = []
        self.connections: list[Connection] = []

    def unit(self, name: str, text: str) -> None:
        path = self.units / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def ask(
        self, environ: dict[str, str] | None = None, candidates: AbstractSet[int] = frozenset({22, 2222})
    ) -> list[SshUse]:
        return ssh_ports(
            environ or {},
            self.listeners,
            candidates,
            proc=self.fake.proc,
            unit_folders=[str(self.units)],
            connections=lambda inodes: [c for c in self.connections if c.inode in inodes],
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def connection(value: str) -> dict[str, str]:
    return {"SSH_CONNECTION": value}


def test_a_host_without_ssh(host: Host) -> None:
    host.fake.add(1, "init", 0).add(50, "sh", 1).add(51, "redirector", 50).me(51)
    assert host.ask() == []


@pytest.mark.parametrize(
    ("value", "use"),
    [
        ("192.0.2.9 51000 192.0.2.1 22", (22, "192.0.2.1", "192.0.2.9")),
        ("2001:DB8:0::9 51000 2001:db8::1 2222", (2222, "2001:db8::1", "2001:db8::9")),
        ("fe80::9%eth0 51000 fe80::1%eth0 22", (22, "fe80::1", "fe80::9")),
        ("::ffff:192.0.2.9 51000 ::ffff:192.0.2.1 22", (22, "192.0.2.1", "192.0.2.9")),
    ],
)
def test_ssh_connection(host: Host, value: str, use: tuple[int, str, str]) -> None:
    port, address, client = use
    why = f"your ssh connection from {client} uses it (SSH_CONNECTION)"
    assert host.ask(connection(value)) == [SshUse(port, address, why)]


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "22",
        "192.0.2.9 51000 192.0.2.1",
        "192.0.2.9 51000 192.0.2.1 22 22",
        "192.0.2.9 51000 192.0.2.1 0",
        "192.0.2.9 51000 192.0.2.1 65536",
        "192.0.2.9 51000 192.0.2.1 -22",
        "192.0.2.9 51000 192.0.2.1 ssh",
        "192.0.2.9 51000 192.0.2.1 ٢٢",
        "192.0.2.9 51000 192.0.2.1 0.0.0.0:22",
        "192.0.2.9 51000 192.0.2.1 " + "9" * 5000,
        "UNKNOWN 65535 UNKNOWN 65535",
        "\x1b[31m 51000 192.0.2.1 22",
        "192.0.2.9\0 51000 192.0.2.1 22",
        "\udcff 1 \udcff 22",
    ],
)
def test_junk_in_ssh_connection(host: Host, value: str) -> None:
    assert host.ask(connection(value)) == []


@given(st.text(max_size=60))
def test_any_text_in_ssh_connection(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    root = tmp_path_factory.getbasetemp()
    for use in ssh_ports(
        connection(value), [], set(), proc=str(root / "none"), unit_folders=[], connections=lambda _: ()
    ):
        assert 1 <= use.port <= 65535
        assert use.address


def behind_sudo(host: Host, namespace: int = 1) -> None:
    """sshd (listening) → sshd-session → bash → sudo → redirector."""
    host.fake.add(1, "systemd", 0).add(700, "sshd", 1, (70,)).add(811, "sshd-session", 700, (90, 91), namespace)
    host.fake.add(812, "bash", 811, (92,)).add(900, "sudo", 812).add(901, "redirector", 900).me(901)
    host.connections = [
        Connection("192.0.2.1", 2222, 90),
        Connection("192.0.2.1", 443, 92),
        Connection("192.0.2.1", 80, 99),
    ]


ANCESTOR = "sshd-session (pid 811), an ancestor of this process, is connected on it"


def test_an_ancestor_is_connected(host: Host) -> None:
    behind_sudo(host)
    assert host.ask() == [SshUse(2222, "192.0.2.1", ANCESTOR)]
    assert host.ask(candidates=frozenset()) == [SshUse(2222, "192.0.2.1", ANCESTOR)]


def test_two_reasons_for_one_port_are_one_use(host: Host) -> None:
    behind_sudo(host)
    found = host.ask(connection("192.0.2.9 51000 192.0.2.1 2222"))
    assert [(use.port, use.address) for use in found] == [(2222, "192.0.2.1")]
    assert "SSH_CONNECTION" in found[0].why


def test_a_connection_of_another_network_namespace_does_not_count(host: Host) -> None:
    behind_sudo(host, namespace=2)
    (host.fake.root / "700" / "ns" / "net").unlink()
    (host.fake.root / "700" / "ns" / "net").symlink_to("net:[2]")
    assert host.ask() == []
    assert host.ask(connection("192.0.2.9 51000 192.0.2.1 2222")) == []


def test_an_unreadable_network_namespace_counts_as_ours(host: Host) -> None:
    behind_sudo(host, namespace=2)
    (host.fake.root / "811" / "ns" / "net").unlink()
    assert host.ask() == [SshUse(2222, "192.0.2.1", ANCESTOR)]


def test_a_listening_sshd(host: Host) -> None:
    host.fake.add(700, "sshd", sockets=(70, 71, 72)).add(710, "dropbear", sockets=(73,)).me(700)
    host.listeners = [tcp(22, 70), tcp(22, 71, "::"), tcp(2222, 72, "192.0.2.1"), tcp(2022, 73), tcp(2222, 73, "::1")]
    assert host.ask() == [
        SshUse(22, "", "sshd (pid 700) listens on it"),
        SshUse(2222, "192.0.2.1", "sshd (pid 700) listens on it"),
        SshUse(2222, "::1", "dropbear (pid 710) listens on it"),
    ]


def test_only_tcp_candidates_are_looked_at(host: Host) -> None:
    host.fake.add(700, "sshd", sockets=(70, 71)).me(700)
    host.listeners = [tcp(22, 70), tcp(2222, 71, protocol="udp")]
    assert host.ask(candidates=frozenset({2222})) == []


def test_other_servers_are_not_ssh(host: Host) -> None:
    host.fake.add(700, "nginx", sockets=(70, 71)).me(700)
    host.listeners = [tcp(22, 70), tcp(2222, 71)]
    host.unit("ssh.socket", "[Socket]\nListenStream=22\n")
    assert host.ask() == []


def test_an_owner_that_cannot_be_seen(host: Host) -> None:
    host.fake.add(700, "sh").me(700)
    host.listeners = [tcp(22, 70), tcp(2222, 71), tcp(22, 0, "192.0.2.1")]
    why = "it is the port of ssh, and who listens on it cannot be seen"
    assert host.ask() == [SshUse(22, "", why), SshUse(22, "192.0.2.1", why)]
    host.unit("ssh.socket", "[Socket]\nListenStream=2222\n")
    assert SshUse(2222, "", "ssh.socket names it, and who listens on it cannot be seen") in host.ask()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ssh.socket", "[Socket]\nListenStream=2222\n"),
        ("sshd.socket", "[Socket]\nListenStream=0.0.0.0:2222\nAccept=yes\n"),
        ("dropbear.socket", "[Socket]\nListenStream=[::]:2222\n"),
        ("ssh.socket.d/port.conf", "[Socket]\nListenStream=\nListenStream=192.0.2.1:2222\n"),
        ("maintenance.socket", "[Socket]\nListenStream=2222\nService=sshd@.service\n"),
    ],
)
@pytest.mark.parametrize(("pid", "command"), [(1, "init"), (1, "systemd"), (650, "systemd")])
def test_socket_activation(host: Host, name: str, text: str, pid: int, command: str) -> None:
    host.fake.add(pid, command, 0, sockets=(70, 71)).add(60, "redirector").me(60)
    host.listeners = [tcp(2222, 70, "::"), tcp(22, 71)]
    host.unit(name, text)
    unit = name.partition("/")[0].removesuffix(".d")
    assert host.ask() == [SshUse(2222, "", f"{unit} is activated on it by systemd")]


def test_systemd_listens_for_others_too(host: Host) -> None:
    host.fake.add(1, "systemd", 0, sockets=(70,)).me(1)
    host.listeners = [tcp(22, 70)]
    host.unit("web.socket", "[Socket]\nListenStream=22\n")
    assert host.ask() == []
    host.unit("ssh.socket", "[Socket]\nListenStream=22\n")
    host.unit("ssh.socket.d/moved.conf", "[Socket]\nListenStream=\nListenStream=2022\n")
    assert host.ask() == []


def test_an_activated_service_that_runs_is_named(host: Host) -> None:
    host.fake.add(1, "systemd", 0, sockets=(70,)).add(700, "sshd", sockets=(70,)).me(700)
    host.listeners = [tcp(22, 70)]
    host.unit("ssh.socket", "[Socket]\nListenStream=22\n")
    assert host.ask() == [SshUse(22, "", "sshd (pid 700) listens on it")]
