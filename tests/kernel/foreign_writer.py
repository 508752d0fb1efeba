"""Another program that commits to nf_tables all the time, in tables of its own: a container engine, say, on a busy day.

`python -m tests.kernel.foreign_writer PAUSE CHAINS` prints "writing" after its first commit, goes on until its standard
input ends, with so many seconds between two commits, and then prints how many of them were acknowledged; its table then
holds the last one's number. LIMIT commits are the end in any case.

A table that was there before ours, and has chains of which one comes and goes, is the worst for whoever reads: the
kernel counts chains over all tables, so a dump that takes two datagrams may miss one of ours, or have one twice. It
does so where the first datagram ends among ours: `chains_before_ours` says how many of others it takes.
"""

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator

from redirector.backends.nftables import wire
from redirector.backends.nftables.message import header, nfgenmsg
from redirector.backends.nftables.wire import be32, text
from redirector.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
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
PLENTY = 2000  # chains: more than one datagram of a dump holds
LIMIT = 1_000_000
PATIENCE = 60.0

_PLACE = attr(1, text(TABLE))  # NFTA_TABLE_NAME, NFTA_SET_TABLE, NFTA_CHAIN_TABLE and others are all 1
_SET = _PLACE + attr(wire.SET_NAME, text("ports"))


def _frame(chains: int) -> list[tuple[int, bytes]]:
    """The table, a base chain at our hook, many others, and a set of numbers."""
    hook = nest(wire.CHAIN_HOOK, attr(wire.HOOK_NUM, be32(0)), attr(wire.HOOK_PRIORITY, be32(-100)))
    chain = _PLACE + attr(wire.CHAIN_NAME, text("prerouting")) + hook + attr(wire.CHAIN_TYPE, text("nat"))
    kind = attr(wire.SET_KEY_TYPE, be32(0)) + attr(wire.SET_KEY_LEN, be32(4)) + attr(wire.SET_FLAGS, be32(0))
    return [
        (wire.NEWTABLE, _PLACE),
        (wire.NEWCHAIN, chain),
        *((wire.NEWCHAIN, _chain(f"of_somebody_else_number_{number}")) for number in range(chains)),
        (wire.NEWSET, _SET + kind + attr(wire.SET_ID, be32(1))),
        (wire.NEWSETELEM, _element(0)),
    ]


def _chain(name: str) -> bytes:
    return _PLACE + attr(wire.CHAIN_NAME, text(name))


def _element(number: int) -> bytes:
    key = nest(wire.ELEM_KEY, wire.data_value(be32(number)))
    return _SET + nest(wire.ELEMENTS_LIST, nest(wire.LIST_ELEM, key))


def commit(netlink: NetlinkSocket, bodies: list[tuple[int, bytes]]) -> None:
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


def write(pause: float, chains: int) -> None:
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    commit(netlink, _frame(chains))
    commits = 1
    print("writing", flush=True)  # noqa: T201 - what the test waits for
    while commits < LIMIT and not select.select([sys.stdin], [], [], pause)[0]:
        moving = wire.NEWCHAIN if commits % 2 else wire.DELCHAIN
        element = [(wire.DELSETELEM, _element(commits - 1)), (wire.NEWSETELEM, _element(commits))]
        commit(netlink, [(moving, _chain("moving")), *element])
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
def writing(lab: Lab, pause: float = 0.0, chains: int = 1) -> Iterator[Writer]:
    """On the host, from before the block begins until it ends."""
    argv = [sys.executable, "-m", "tests.kernel.foreign_writer", str(pause), str(chains)]
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


def chains_before_ours(lab: Lab) -> int:
    """With so many chains in the writer's table, the first datagram of a dump ends a few chains behind them."""
    netlink = lab.host.namespace.call(NetlinkSocket, NETLINK_NETFILTER)
    with contextlib.closing(netlink):
        with writing(lab, chains=PLENTY):
            pass
        netlink.request(header(wire.GETGEN), nfgenmsg(0))  # the kernel learns how much we read at once
        netlink.send(message(header(wire.GETCHAIN), NLM_F_REQUEST | NLM_F_DUMP, netlink.next_seq(), nfgenmsg()))
        held = len(netlink.receive())
    lab.host.nft(f"delete table inet {TABLE}")
    assert 100 < held < PLENTY
    return held - 8


def holds(machine: Machine, commits: int) -> bool:
    """Whether its table holds what so many commits leave."""
    found = machine.nft_list(f"table inet {TABLE}")
    return f"{commits - 1:#x}" in found and ("chain moving" in found) == (commits % 2 == 0)


if __name__ == "__main__":
    write(float(sys.argv[1]), int(sys.argv[2]))
