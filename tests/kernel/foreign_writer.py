"""Another program that commits to nf_tables all the time, in tables of its own: a container engine, say, on a busy day.

`python -m tests.kernel.foreign_writer` prints "writing" after its first commit, goes on until its standard input ends,
and then prints how many commits of its own were acknowledged, which is also what its table then holds. Everything in
that table is named as ours is. LIMIT commits are the end in any case.
"""

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator

from redirector.backends.nftables import wire
from redirector.backends.nftables.encode import header, nfgenmsg
from redirector.backends.nftables.wire import be32, text
from redirector.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NetlinkSocket,
    attr,
    error_number,
    message,
    nest,
)
from tests.kernel.lab import Lab, Machine

TABLE = "redirector_busy"
LIMIT = 1_000_000
PATIENCE = 60.0

_PLACE = attr(1, text(TABLE))  # NFTA_TABLE_NAME, NFTA_SET_TABLE, NFTA_CHAIN_TABLE and others are all 1
_SET = _PLACE + attr(wire.SET_NAME, text("ports"))


def _frame() -> list[tuple[int, bytes]]:
    """The table, a base chain at our hook, and a set of numbers."""
    hook = nest(wire.CHAIN_HOOK, attr(wire.HOOK_NUM, be32(0)), attr(wire.HOOK_PRIORITY, be32(-100)))
    chain = _PLACE + attr(wire.CHAIN_NAME, text("prerouting")) + hook + attr(wire.CHAIN_TYPE, text("nat"))
    kind = attr(wire.SET_KEY_TYPE, be32(0)) + attr(wire.SET_KEY_LEN, be32(4)) + attr(wire.SET_FLAGS, be32(0))
    return [
        (wire.NEWTABLE, _PLACE),
        (wire.NEWCHAIN, chain),
        (wire.NEWSET, _SET + kind + attr(wire.SET_ID, be32(1))),
        (wire.NEWSETELEM, _element(0)),
    ]


def _element(number: int) -> bytes:
    key = nest(wire.ELEM_KEY, wire.data_value(be32(number)))
    return _SET + nest(wire.ELEMENTS_LIST, nest(wire.LIST_ELEM, key))


def _commit(netlink: NetlinkSocket, bodies: list[tuple[int, bytes]]) -> None:
    """One transaction, acknowledged. Raises OSError where the kernel refuses it."""
    seq = netlink.next_seq()
    end = seq + len(bodies) + 1
    netlink.reserve(end)
    parts = [message(wire.BATCH_BEGIN, NLM_F_REQUEST, seq, nfgenmsg(0, wire.SUBSYSTEM))]
    for number, (kind, payload) in enumerate(bodies, seq + 1):
        parts.append(message(header(kind), NLM_F_REQUEST | NLM_F_CREATE, number, nfgenmsg() + payload))
    parts.append(message(wire.BATCH_END, NLM_F_REQUEST | NLM_F_ACK, end, nfgenmsg(0, wire.SUBSYSTEM)))
    netlink.send(b"".join(parts))
    while True:
        for reply in netlink.receive():
            if reply.kind == NLMSG_ERROR and seq <= reply.seq <= end:
                if error_number(reply):
                    raise OSError(error_number(reply), "the kernel refuses a foreign commit")
                return


def write() -> None:
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    _commit(netlink, _frame())
    commits = 1
    print("writing", flush=True)  # noqa: T201 - what the test waits for
    while commits < LIMIT and not select.select([sys.stdin], [], [], 0)[0]:
        _commit(netlink, [(wire.DELSETELEM, _element(commits - 1)), (wire.NEWSETELEM, _element(commits))])
        commits += 1
    print(commits, flush=True)  # noqa: T201


class Writer:
    """The process while it writes; `commits` is how many there were, once it has ended."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self.child = child
        self.commits = 0

    def end(self) -> None:
        """Let it end. Raises AssertionError if it did not go well: a refused commit is a lost one."""
        told, complaints = self.child.communicate(timeout=PATIENCE)
        assert self.child.returncode == 0, complaints
        self.commits = int(told)


@contextlib.contextmanager
def writing(lab: Lab) -> Iterator[Writer]:
    """On the host, from before the block begins until it ends."""
    argv = [sys.executable, "-m", "tests.kernel.foreign_writer"]
    pipe = subprocess.PIPE
    streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    with lab.host.namespace.popen(argv, env=lab.environment(), text=True, **streams) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "writing\n"
            writer = Writer(child)
            yield writer
            writer.end()
        finally:
            child.kill()


def left_by(machine: Machine) -> str:
    """What its table holds: of a number of commits, always the same, but for handles."""
    return machine.nft_list(f"table inet {TABLE}")


if __name__ == "__main__":
    write()
