"""A kernel that says again what was heard of a real one, or what has become of that: a netlink socket from a script.

A script is a list of datagrams, each labelled "KIND.N": part of the answer to the N-th request of that message type
(nlmsg_type of the first message; a batch has 16, its BEGIN). A request that comes more often than the script knows is
answered as it was the last time. Sequence numbers are kept relative to the request's.
"""

import _socket as socket
from collections import Counter

from redirector.netlink import HEADER, NetlinkSocket
from tests.fuzz.engine import Case


def _label(sent: bytes, counts: Counter[int]) -> tuple[str, int]:
    """(label of the next answers, sequence number) of a request."""
    _length, kind, _flags, seq, _port = HEADER.unpack_from(sent)
    counts[kind] += 1
    return f"{kind}.{counts[kind] - 1}", seq


def _shifted(datagram: bytes, by: int) -> bytes:
    """The datagram with its sequence numbers moved."""
    found, offset = bytearray(datagram), 0
    while offset + HEADER.size <= len(found):
        length, kind, flags, seq, _port = HEADER.unpack_from(found, offset)
        HEADER.pack_into(found, offset, length, kind, flags, (seq + by) % 2**32, 0)
        if length < HEADER.size:
            break
        offset += (length + 3) & ~3
    return bytes(found)


class Recorder:
    """Stands before a real socket, and writes down what it says."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self._counts: Counter[int] = Counter()
        self._label, self._seq = "", 0
        self.heard: Case = []

    def send(self, data: bytes) -> int:
        self._label, self._seq = _label(data, self._counts)
        return self._real.send(data)

    def recv(self, size: int) -> bytes:
        data = self._real.recv(size)
        self.heard.append((self._label, _shifted(data, -self._seq)))
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


class Script:
    """Stands in place of a socket, and says what is in a script. Where that ends it is silent, as after a timeout."""

    def __init__(self, case: Case) -> None:
        self._answers: dict[str, list[bytes]] = {}
        for label, datagram in case:
            self._answers.setdefault(label, []).append(datagram)
        self._last: dict[str, str] = {}  # the last label known, by kind
        self._counts: Counter[int] = Counter()
        self._waiting: list[bytes] = []
        self._timeout = 1.0

    def send(self, data: bytes) -> int:
        label, seq = _label(data, self._counts)
        kind = label.partition(".")[0]
        if label in self._answers:
            self._last[kind] = label
        self._waiting = [_shifted(one, seq) for one in self._answers.get(self._last.get(kind, ""), [])]
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._waiting:
            return self._waiting.pop(0)[:size]
        raise TimeoutError("timed out") if self._timeout else BlockingIOError

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def setsockopt(self, *_: object) -> None:
        """Whatever size."""

    def getsockopt(self, _level: int, _name: int, size: int = 0) -> int | bytes:
        return bytes(size) if size else 1 << 30

    def close(self) -> None:
        """Nothing to close."""


def speaking(case: Case) -> NetlinkSocket:
    """A NetlinkSocket whose other end is the script."""
    found = NetlinkSocket.__new__(NetlinkSocket)
    found._seq = 0
    setattr(found, "_socket", Script(case))  # noqa: B010 - of another type, which mypy would refuse
    return found


def recorded(netlink: NetlinkSocket) -> Recorder:
    """What is heard on `netlink` from now on."""
    found = Recorder(netlink._socket)
    setattr(netlink, "_socket", found)  # noqa: B010 - as above
    return found
