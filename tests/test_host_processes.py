"""Owners and ancestors, in trees that look like /proc."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.host.processes import Process, ancestors, owners, parse_stat, sockets
from tests.fakeproc import FakeProc


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


ME = os.geteuid()  # who owns the files of the fake tree


@pytest.mark.parametrize("command", ["sh", "a b", ") (", "(sd-pam)", "x) S 99 (y", "", ")", "ta\tb\nnl"])
def test_stat_with_any_comm(command: str) -> None:
    assert parse_stat(b"812 (" + command.encode() + b") S 700 812 812 0 -1\n") == (812, command, 700)


@given(st.integers(1, 2**22), st.binary(max_size=15), st.integers(0, 2**22))
def test_stat_round_trip(pid: int, comm: bytes, parent: int) -> None:
    found = parse_stat(b"%d (%s) R %d %d 0 0 -1 4194304 0\n" % (pid, comm, parent, parent))
    assert found == (pid, comm.decode("utf-8", "surrogateescape"), parent)


@given(st.binary(max_size=40))
def test_rubbish_stat_never_raises(data: bytes) -> None:
    parse_stat(data)


@pytest.mark.parametrize("data", [b"", b"1", b"1 (sh", b"1 (sh) S", b"x (sh) S 1", b"1 (sh) S x"])
def test_what_is_no_stat_is_none(data: bytes) -> None:
    assert parse_stat(data) is None


def test_ancestors_from_parent_to_init(fake: FakeProc) -> None:
    fake.add(1, "systemd", 0).add(700, "sshd").add(812, ") (", 700).add(900, "sudo", 812).add(901, "redirector", 900)
    fake.me(901)
    assert ancestors(fake.proc) == [
        Process(900, "sudo", ME),
        Process(812, ") (", ME),
        Process(700, "sshd", ME),
        Process(1, "systemd", ME),
    ]


def test_ancestors_end_where_nothing_can_be_seen(fake: FakeProc) -> None:
    fake.add(900, "sh", 812).add(901, "redirector", 900).me(901)
    assert ancestors(fake.proc) == [Process(900, "sh", ME)]


def test_ancestors_in_a_ring_end(fake: FakeProc) -> None:
    fake.add(5, "a", 6).add(6, "b", 5).me(5)
    assert [process.pid for process in ancestors(fake.proc)] == [6, 5]


def test_without_proc_nothing_is_seen(tmp_path: Path) -> None:
    assert ancestors(str(tmp_path / "none")) == []
    assert owners({7}, str(tmp_path / "none")) == {}
    assert sockets(1, str(tmp_path / "none")) == set()


def test_real_ancestors_start_with_the_parent() -> None:
    found = ancestors()
    assert found[0].pid == os.getppid()
    assert len({process.pid for process in found}) == len(found)


def test_owners_by_inode(fake: FakeProc) -> None:
    fake.add(100, "nginx", sockets=(10, 11)).add(200, "x) (", sockets=(12,)).add(300, "idle")
    assert owners({10, 11, 12, 99}, fake.proc) == {
        10: [Process(100, "nginx", ME)],
        11: [Process(100, "nginx", ME)],
        12: [Process(200, "x) (", ME)],
    }
    assert sockets(100, fake.proc) == {10, 11}


def test_pids_are_searched_in_numeric_order_until_all_is_found(fake: FakeProc) -> None:
    fake.add(1000, "worker", sockets=(10,)).add(99, "master", sockets=(10,))
    assert owners({10}, fake.proc) == {10: [Process(99, "master", ME)]}
    fake.add(100, "other", sockets=(20,)).add(98, "third", sockets=(10,))
    assert owners({10, 20}, fake.proc)[10] == [Process(98, "third", ME), Process(99, "master", ME)]


def test_process_1_comes_last(fake: FakeProc) -> None:
    fake.add(1, "systemd", 0, sockets=(10, 11)).add(700, "sshd", sockets=(10,))
    found = owners({10}, fake.proc)
    assert found == {10: [Process(700, "sshd", ME)]}
    found = owners({10, 11}, fake.proc)
    assert found[11] == [Process(1, "systemd", ME)]


def test_inode_0_belongs_to_nobody(fake: FakeProc) -> None:
    fake.add(100, sockets=(0,))
    assert owners({0}, fake.proc) == {}


def test_a_process_that_ends_meanwhile_is_passed_over(fake: FakeProc) -> None:
    fake.add(100, sockets=(10,)).add(200, sockets=(10,))
    (fake.root / "100" / "stat").unlink()
    assert [process.pid for process in owners({10}, fake.proc)[10]] == [200]


def test_closed_folders_are_passed_over(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(100, "secret", sockets=(10,)).add(200, "mine", sockets=(11,))
    for folder, mode in ((fake.root / "100" / "fd", 0), (fake.root / "200" / "fd", 0o755), (fake.root, 0o755)):
        folder.chmod(mode)
    monkeypatch.chdir(fake.root)  # the folders above are closed to others
    user = os.geteuid()
    try:
        if user == 0:  # root would read them all the same
            os.seteuid(65534)
        found = owners({10, 11}, ".")
    finally:
        os.seteuid(user)
    assert list(found) == [11]
