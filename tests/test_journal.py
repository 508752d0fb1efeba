"""The one line for each change: its two forms, where it goes, and that nothing of it can harm the change."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector import journal
from redirector.backends.base import OutcomeDoubtful, Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.errors import OutcomeUnknown, Refused
from redirector.history import History
from redirector.journal import Entry
from redirector.model import Ruleset
from redirector.reconcile import Origin, Wish, change
from tests.strategies import mapping

ENTRY = Entry("apply", "anna", "/etc/redirector/mappings.toml", 7, "2 added")
WEB = Ruleset((mapping("web", "80", "8080"),))
entries = st.builds(
    Entry,
    st.sampled_from(("apply", "cancel")),
    st.text(),
    st.text(),
    st.none() | st.integers(1),
    st.text(),
    failed=st.booleans(),
)


def listener(path: Path) -> socket.socket:
    """A datagram socket like the journal's, that never makes a test wait."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    made.setblocking(False)
    return made


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What is told from here on."""
    with listener(tmp_path / "journal") as made:
        monkeypatch.setenv(journal.ENVIRONMENT, str(tmp_path / "journal"))
        yield made


def told(heard: socket.socket) -> list[dict[str, str]]:
    """The fields of every line that has arrived."""
    found = []
    while True:
        try:
            found.append(dict(line.split("=", 1) for line in heard.recv(65536).decode().splitlines()))
        except BlockingIOError:
            return found


class TestForms:
    def test_the_journals(self) -> None:
        assert journal.as_journal(ENTRY).decode() == (
            "MESSAGE=apply /etc/redirector/mappings.toml by anna: 2 added; generation 7\n"
            "PRIORITY=5\n"
            "SYSLOG_IDENTIFIER=redirector\n"
            "REDIRECTOR_ACTION=apply\n"
            "REDIRECTOR_AUTHOR=anna\n"
            "REDIRECTOR_SOURCE=/etc/redirector/mappings.toml\n"
            "REDIRECTOR_GENERATION=7\n"
        )

    def test_syslogs(self) -> None:
        form = journal.as_syslog(ENTRY._replace(failed=True)).decode()
        assert re.fullmatch(
            rf"<27>[A-Z][a-z]{{2}} [ 1-3][0-9] [0-9:]{{8}} redirector\[{os.getpid()}]: {re.escape(ENTRY.message)}", form
        )

    @given(entries)
    def test_nobody_can_add_a_line_or_a_field(self, entry: Entry) -> None:
        """Names of files are other people's text."""
        lines = journal.as_journal(entry).decode().split("\n")
        assert [line.partition("=")[0] for line in lines] == [
            "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "REDIRECTOR_ACTION", "REDIRECTOR_AUTHOR", "REDIRECTOR_SOURCE",
            "REDIRECTOR_GENERATION", "",
        ]  # fmt: skip
        assert all(line.isprintable() for line in lines)
        assert journal.as_syslog(entry).decode().isprintable()


class TestWhereItGoes:
    def send(self, *paths: Path) -> None:
        journal._send(ENTRY, [(str(path), form) for path, form in zip(paths, self.forms, strict=True)])

    forms = (journal.as_journal, journal.as_syslog)

    def test_to_the_journal_alone_where_there_is_one(self, tmp_path: Path) -> None:
        with listener(tmp_path / "journal") as first, listener(tmp_path / "log") as second:
            self.send(tmp_path / "journal", tmp_path / "log")
            assert first.recv(4096) == journal.as_journal(ENTRY)
            with pytest.raises(BlockingIOError):
                second.recv(4096)

    def test_to_syslog_where_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "journal").write_bytes(b"no socket")
        with listener(tmp_path / "log") as second:
            self.send(tmp_path / "journal", tmp_path / "log")
            self.send(tmp_path / "nothing", tmp_path / "log")
            assert all(b"2 added" in second.recv(4096) for _ in range(2))

    def test_to_nobody_where_there_is_neither(self, tmp_path: Path) -> None:
        self.send(tmp_path / "nothing", tmp_path / "nothing")

    def test_without_waiting_for_one_that_does_not_read(self, heard: socket.socket) -> None:
        for _ in range(5000):  # far more than its queue takes (net.unix.max_dgram_qlen)
            journal.tell(ENTRY)
        assert 0 < len(told(heard)) < 5000

    def test_to_nobody_by_wish(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(journal.ENVIRONMENT, "")
        monkeypatch.setattr(journal, "_send", None)  # calling it would be an error
        journal.tell(ENTRY)


class TestWhatIsTold:
    def change(self, backend: MemoryBackend, tmp_path: Path, wanted: Ruleset) -> None:
        history = History(str(tmp_path / "state"), journal.tell)
        with history.locked():
            change(backend, history, Wish(wanted, Origin("apply", "a file", "anna")))

    def test_each_change_once(self, heard: socket.socket, tmp_path: Path) -> None:
        backend = MemoryBackend()
        self.change(backend, tmp_path, WEB)
        self.change(backend, tmp_path, WEB)  # nothing to do, nothing to tell
        backend.program = None
        self.change(backend, tmp_path, WEB)
        assert [line["MESSAGE"] for line in told(heard)] == [
            "apply a file by anna: 1 added; generation 1",
            "apply a file by anna: 1 added; drift mended; generation 1",
        ]

    def test_what_boot_loads_has_not_drifted(self, heard: socket.socket, tmp_path: Path) -> None:
        backend = MemoryBackend()
        self.change(backend, tmp_path, WEB)
        backend.program = None
        history = History(str(tmp_path / "state"), journal.tell)
        with history.locked():
            change(backend, history, Wish(WEB, Origin("boot", "generation 1", "boot")))
        assert told(heard)[-1]["MESSAGE"] == "boot generation 1 by boot: 1 added; generation 1"

    def test_a_refusal_is_no_change(self, heard: socket.socket, tmp_path: Path) -> None:
        backend = MemoryBackend()
        backend.fail(Refused("no"))
        with pytest.raises(Refused):
            self.change(backend, tmp_path, WEB)
        assert told(heard) == []

    def test_what_nobody_knows_is_told_as_a_failure(self, heard: socket.socket, tmp_path: Path) -> None:
        class Gone(MemoryBackend):
            """Answers once, and then never again."""

            reads = 0

            def observe(self) -> Snapshot:
                self.reads += 1
                if self.reads > 1:
                    raise TimeoutError
                return super().observe()

        backend = Gone()
        backend.fail(OutcomeDoubtful("no answer"))
        with pytest.raises(OutcomeUnknown):
            self.change(backend, tmp_path, WEB)
        (line,) = told(heard)
        assert (line["PRIORITY"], line["REDIRECTOR_GENERATION"]) == ("3", "")
        assert "could not be read" in line["MESSAGE"]
