"""The backend's answers to what the kernel says, and to its silence.

The kernel's part is scripted here; that a real one speaks so is what tests/kernel is for.
"""

import errno
import struct
from inspect import signature

import pytest

from redirector.backends.base import OutcomeDoubtful, Overtaken
from redirector.backends.nftables import wire
from redirector.backends.nftables.backend import READINGS, NftablesBackend, kernel_fault
from redirector.backends.nftables.encode import MARK
from redirector.backends.nftables.message import header
from redirector.errors import NotPermitted, Refused, TryAgain, Unavailable
from redirector.netlink import NLMSG_ERROR, DumpInterrupted, Message, NetlinkSocket, attr, messages
from redirector.plan import AddChain, AddTable
from redirector.program import Chain, Program

Answer = list[Message] | OSError
STEPS = (AddTable(), AddChain("own", None))  # BEGIN is 1, END 4


class Script:
    """In place of a netlink socket: `answers` to what is sent, `genids` one after another, and a table's rows."""

    def __init__(self, *answers: Answer, genids: tuple[int, ...] = (1,)) -> None:
        self.answers = list(answers)
        self.genids = list(genids)
        self.sent: list[bytes] = []
        self.sending: OSError | None = None
        self.chains: list[tuple[str, ...] | Exception] = [()]
        self.mark: str | None = MARK
        self._seq = 0

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def reserve(self, last: int) -> None:
        self._seq = max(self._seq, last)

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        if self.sending:
            raise self.sending

    def receive(self) -> list[Message]:
        found = self.answers.pop(0) if self.answers else TimeoutError("timed out")
        if isinstance(found, OSError):
            raise found
        return found

    def pending(self) -> list[Message]:
        rest = [m for found in self.answers if isinstance(found, list) for m in found]
        self.answers.clear()
        return rest

    def request(self, kind: int, payload: bytes) -> Message:
        if kind & 0xFF == wire.GETGEN:
            genid = self.genids.pop(0) if len(self.genids) > 1 else self.genids[0]
            return Message(0, 0, 1, bytes(4) + attr(wire.GEN_ID, wire.be32(genid)))
        if self.mark is None:
            raise FileNotFoundError(errno.ENOENT, "")
        return Message(0, 0, 1, b"\1\0\0\0" + attr(wire.TABLE_USERDATA, wire.comment(self.mark)))

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        if kind & 0xFF != wire.GETCHAIN:
            return []
        found = self.chains.pop(0) if len(self.chains) > 1 else self.chains[0]
        if isinstance(found, Exception):
            raise found
        place = attr(wire.CHAIN_TABLE, wire.text("redirector"))
        return [Message(0, 0, 1, b"\1\0\0\0" + place + attr(wire.CHAIN_NAME, wire.text(name))) for name in found]


def backend(script: Script) -> NftablesBackend:
    """One that speaks to the script."""
    found = NftablesBackend.__new__(NftablesBackend)
    setattr(found, "_netlink", script)  # noqa: B010 (of another type, which mypy would refuse)
    return found


def says(*pairs: tuple[int, int]) -> list[Message]:
    """Acknowledgements (0) and errors, by sequence number."""
    return [Message(NLMSG_ERROR, 0, seq, struct.pack("=i", -number)) for seq, number in pairs]


def commit(script: Script) -> None:
    backend(script).commit(STEPS, 7)


@pytest.mark.parametrize(
    "answers",
    [
        [says((4, 0))],
        [says((9, errno.EPERM), (4, 0))],  # an answer to something else
        [says((9, 0)), [], says((4, 0))],
    ],
)
def test_the_acknowledgement_of_the_end_is_a_commit(answers: list[Answer]) -> None:
    script = Script(*answers)
    commit(script)
    assert script.answers == []
    assert script.next_seq() == 5  # numbers of a batch are used up


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([says((1, errno.ERESTART))], Overtaken),
        ([says((1, errno.ERESTART), (2, errno.EPERM))], Overtaken),
        ([says((2, errno.EPERM))], NotPermitted),
        ([says((2, errno.EINVAL))], Refused),
        ([says((3, errno.EEXIST)), says((4, 0))], Refused),
        ([says((2, errno.ENOENT), (3, errno.ENOENT))], Refused),
        ([says((4, errno.ENOMEM))], Refused),
        ([TimeoutError("timed out")], OutcomeDoubtful),
        ([OSError(errno.ENOBUFS, "No buffer space available")], OutcomeDoubtful),
        ([[], says((9, 0))], OutcomeDoubtful),
    ],
)
def test_other_answers_are_what_they_mean(answers: list[Answer], expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught:
        commit(Script(*answers))
    assert type(caught.value) is expected


def test_a_refusal_names_what_was_refused() -> None:
    with pytest.raises(Refused) as caught:
        commit(Script(says((2, errno.EINVAL)), says((3, errno.EEXIST))))
    assert "the table: Invalid argument; chain own: File exists" in caught.value.message
    assert "nothing was changed" in caught.value.message


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EMSGSIZE, Refused),  # before the kernel looked at it
        (errno.EPERM, NotPermitted),
        (errno.EAGAIN, Refused),
        (errno.ENOBUFS, OutcomeDoubtful),  # perhaps afterwards
        (errno.EINTR, OutcomeDoubtful),
    ],
)
def test_an_error_of_sending_says_nothing_or_that_nothing_happened(number: int, expected: type[Exception]) -> None:
    script = Script()
    script.sending = OSError(number, "")
    with pytest.raises(expected):
        commit(script)


def test_a_check_ends_without_an_end() -> None:
    script = Script(says((3, 0)))
    backend(script).check(STEPS)
    (data,) = script.sent
    assert [m.kind for m in messages(data)] == [wire.BATCH_BEGIN, header(wire.NEWTABLE), header(wire.NEWCHAIN)]
    with pytest.raises(Refused):
        backend(Script(says((2, errno.EINVAL)))).check(STEPS)


def test_an_observation_is_what_was_read_within_one_generation() -> None:
    script = Script(genids=(7, 7))
    script.chains = [("own",)]
    found = backend(script).observe()
    assert (found.program, found.genid) == (Program({"own": Chain(None, ())}, {}), 7)


def test_readings_between_which_others_committed_are_thrown_away() -> None:
    script = Script(genids=(1, 2, 2, 3, 3))
    script.chains = [("half",), ("own", "half"), ("own",)]
    assert backend(script).observe().genid == 3
    script = Script(genids=(1, 2, 2, 2))
    script.chains = [("half",), ("own",)]
    found = backend(script).observe()
    assert (set(found.program.chains if found.program else ()), found.genid) == ({"own"}, 2)


def test_two_equal_readings_in_a_row_are_as_good() -> None:
    script = Script(genids=tuple(range(1, 200)))
    found = backend(script).observe()
    assert found.program == Program({}, {})
    assert found.genid == 4  # the number after the second of them


def test_what_never_holds_still_is_not_waited_for_for_ever() -> None:
    script = Script(genids=tuple(range(1, 500)))
    script.chains = [(f"c{i}",) for i in range(200)]
    with pytest.raises(TryAgain):
        backend(script).observe()
    assert len(script.chains) == 200 - READINGS


@pytest.mark.parametrize("interruption", [DumpInterrupted(), FileNotFoundError(errno.ENOENT, "")])
def test_an_interrupted_reading_is_tried_again(interruption: Exception) -> None:
    script = Script()
    script.chains = [interruption, interruption, ("own",)]
    found = backend(script).observe()
    assert found.program is not None
    assert set(found.program.chains) == {"own"}


def test_no_table_and_somebody_elses() -> None:
    script = Script()
    script.mark = None
    assert backend(script).observe().program is None
    script.mark = "made by hand"
    assert "does not carry our mark" in backend(script).observe().foreign


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EPERM, NotPermitted),
        (errno.EOPNOTSUPP, Unavailable),
        (errno.EINVAL, Unavailable),
        (errno.ENOBUFS, OSError),
    ],
)
def test_a_kernel_that_does_not_talk_is_told_as_what_it_means(number: int, expected: type[Exception]) -> None:
    script = Script()
    script.chains = [OSError(number, "")]
    with pytest.raises(expected):
        backend(script).observe()


@pytest.mark.parametrize(
    ("release", "fault"),
    [
        ("5.10.0", False),
        ("5.10", False),
        ("6.1.0-18-amd64", False),
        ("10.0.0", False),
        ("5.9.16", True),
        ("4.19.0-26-amd64", True),
        ("5.4.0-150-generic", True),
        ("strange", False),
        ("5", False),
        ("", False),
        ("x.y", False),
    ],
)
def test_the_lowest_kernel(release: str, fault: bool) -> None:
    assert bool(kernel_fault(release)) == fault
    assert kernel_fault(release).isprintable()


def test_the_script_speaks_like_the_socket() -> None:
    for name in ("next_seq", "reserve", "send", "receive", "pending", "request", "dump"):
        real, scripted = getattr(NetlinkSocket, name), getattr(Script, name)
        assert list(signature(real).parameters) == list(signature(scripted).parameters)
