"""socket units: load path, drop-ins, resets, masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.host.units import SocketUnit, assignments, socket_units, stream_port

# The folders in order of precedence, and write(folder number, file name, text).
LoadPath = tuple[list[str], Callable[[int, str, str], None]]


@pytest.mark.parametrize(
    ("value", "port"),
    [
        ("22", 22),
        ("65535", 65535),
        ("0.0.0.0:22", 22),
        ("192.0.2.1:2222", 2222),
        ("[::]:22", 22),
        ("[2001:db8::1]:2022", 2022),
        ("[fe80::1]:22%eth0", 22),
        ("0", None),
        ("65536", None),
        ("٢٢", None),
        ("+22", None),
        (" 22", None),
        ("/run/sshd.sock", None),
        ("/run/x:22", None),
        ("@abstract:22", None),
        ("vsock:2:22", None),
        ("vsock::22", None),
        ("::22", None),
        ("[::22", None),
        ("[192.0.2.1]:22", None),
        (":22", None),
        ("host:22", None),
        ("", None),
        ("1.2.3.4\0:22", None),
    ],
)
def test_stream_port(value: str, port: int | None) -> None:
    assert stream_port(value) == port


@given(st.text(max_size=30))
def test_stream_port_of_anything(value: str) -> None:
    found = stream_port(value)
    assert found is None or 1 <= found <= 65535


def test_assignments() -> None:
    text = """\
# ListenStream=1
ListenStream=2
[Unit]
ListenStream=3
[Socket]
; ListenStream=4
  ListenStream = 5
Nonsense
Service=ss\\
# in between
h.service
[Install]
ListenStream=6
[Socket]
ListenStream=
ListenStream=7\\"""
    assert list(assignments(text, "Socket")) == [
        ("ListenStream", "5"),
        ("Service", "ss h.service"),
        ("ListenStream", ""),
        ("ListenStream", "7"),
    ]


@pytest.fixture
def load_path(tmp_path: Path) -> LoadPath:
    folders = [tmp_path / name for name in ("etc", "run", "usr")]

    def write(number: int, name: str, text: str) -> None:
        path = folders[number] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return [str(folder) for folder in folders], write


def ports(folders: list[str]) -> dict[str, set[int]]:
    return {unit.name: set(unit.ports) for unit in socket_units(folders)}


def test_no_folders(load_path: LoadPath) -> None:
    assert socket_units(load_path[0]) == []


def test_the_first_file_in_the_load_path_counts(load_path: LoadPath) -> None:
    folders, write = load_path
    write(2, "ssh.socket", "[Socket]\nListenStream=22\nListenStream=[::]:2022\nListenStream=/run/x\n")
    write(2, "other.service", "[Socket]\nListenStream=1\n")
    assert ports(folders) == {"ssh.socket": {22, 2022}}
    write(1, "ssh.socket", "[Socket]\nListenStream=2222\n")
    assert ports(folders) == {"ssh.socket": {2222}}
    write(0, "ssh.socket", "[Socket]\nListenStream=3333\n")
    assert ports(folders) == {"ssh.socket": {3333}}


def test_drop_ins_add_and_reset_in_the_order_of_their_names(load_path: LoadPath) -> None:
    folders, write = load_path
    write(2, "ssh.socket", "[Socket]\nListenStream=22\n")
    write(0, "ssh.socket.d/20-add.conf", "[Socket]\nListenStream=2222\n")
    assert ports(folders) == {"ssh.socket": {22, 2222}}
    # The lesser folder's file sorts between the two of the greater one, and that is where it counts.
    write(2, "ssh.socket.d/10-reset.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:1022\n")
    assert ports(folders) == {"ssh.socket": {1022, 2222}}
    write(0, "ssh.socket.d/30-reset.conf", "[Socket]\nListenDatagram=\n")
    assert ports(folders) == {"ssh.socket": set()}
    write(0, "ssh.socket.d/40.txt", "[Socket]\nListenStream=4040\n")
    assert ports(folders) == {"ssh.socket": set()}


def test_of_drop_ins_of_one_name_the_first_counts(load_path: LoadPath) -> None:
    folders, write = load_path
    write(2, "ssh.socket", "[Socket]\nListenStream=22\n")
    write(2, "ssh.socket.d/port.conf", "[Socket]\nListenStream=1111\n")
    write(1, "ssh.socket.d/port.conf", "[Socket]\nListenStream=2222\n")
    assert ports(folders) == {"ssh.socket": {22, 2222}}


def test_masks(load_path: LoadPath, tmp_path: Path) -> None:
    folders, write = load_path
    write(2, "ssh.socket", "[Socket]\nListenStream=22\n")
    write(2, "ssh.socket.d/port.conf", "[Socket]\nListenStream=2222\n")
    (tmp_path / "etc" / "ssh.socket.d").mkdir(parents=True)
    (tmp_path / "etc" / "ssh.socket.d" / "port.conf").symlink_to("/dev/null")
    assert ports(folders) == {"ssh.socket": {22}}
    (tmp_path / "etc" / "ssh.socket").symlink_to("/dev/null")
    assert ports(folders) == {"ssh.socket": set()}


def test_a_unit_of_drop_ins_only(load_path: LoadPath) -> None:
    """Ubuntu's generator writes the addresses of ssh.socket into a drop-in of another folder."""
    folders, write = load_path
    write(1, "ssh.socket.d/addresses.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:22\nListenStream=[::]:22\n")
    assert ports(folders) == {"ssh.socket": {22}}


@pytest.mark.parametrize(
    ("name", "service", "starts"),
    [
        ("ssh.socket", "", "ssh"),
        ("sshd.socket", "sshd@.service", "sshd"),
        ("back-door.socket", "sshd@.service", "sshd"),
        ("ssh.socket", "web.service", "web"),
        ("sshd-unix-local.socket", "", "sshd-unix-local"),
    ],
)
def test_what_a_unit_starts(name: str, service: str, starts: str) -> None:
    assert SocketUnit(name, frozenset(), service).starts == starts


def test_service_is_read_and_reset(load_path: LoadPath) -> None:
    folders, write = load_path
    write(2, "a.socket", "[Socket]\nListenStream=22\nService=sshd.service\n")
    assert [unit.starts for unit in socket_units(folders)] == ["sshd"]
    write(0, "a.socket.d/x.conf", "[Socket]\nService=\n")
    assert [unit.starts for unit in socket_units(folders)] == ["a"]


def test_bytes_that_are_not_utf8(load_path: LoadPath, tmp_path: Path) -> None:
    folders, write = load_path
    write(0, "ssh.socket", "")
    (tmp_path / "etc" / "ssh.socket").write_bytes(b"[Socket]\n# \xff\xfe\nListenStream=22\n")
    assert ports(folders) == {"ssh.socket": {22}}
