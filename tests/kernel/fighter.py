"""Somebody who does not want our table: he hears of each commit, and deletes it as soon as it is there.

`python -m tests.kernel.fighter` prints "fighting" when he has deleted it for the first time, and ends when killed.
"""

import contextlib
import select

from redirector.backends.nftables import wire
from redirector.naming import TABLE
from redirector.netlink import NETLINK_NETFILTER, NetlinkSocket, attr
from redirector.watch.commits import GROUP
from tests.kernel.foreign_writer import commit

OURS = (wire.DELTABLE, attr(wire.TABLE_NAME, wire.text(TABLE)))


def main() -> None:
    heard, netlink = NetlinkSocket(NETLINK_NETFILTER), NetlinkSocket(NETLINK_NETFILTER)
    heard.join(GROUP)
    commit(netlink, [OURS])
    print("fighting", flush=True)  # noqa: T201 - what the test waits for
    while True:
        select.select([heard], [], [])
        for _ in heard.arrived():
            pass
        with contextlib.suppress(FileNotFoundError):  # it is not there
            commit(netlink, [OURS])


if __name__ == "__main__":
    main()
