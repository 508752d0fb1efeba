"""How long from a tampering to its healing: `python -m tests.kernel.healing_times [TIMES] [PORTS]`, as root.

From right before somebody's commit is sent to the announcement of ours, the redirector's own whole process at work in
a lab. A figure of the machine and its load, and so no test.
"""

import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

from redirector.backends.nftables import wire
from redirector.backends.nftables.message import header
from redirector.naming import TABLE
from redirector.netlink import NETLINK_NETFILTER, NetlinkSocket, attr, messages
from redirector.watch.commits import GROUP
from redirector.watch.patience import AT_ONCE
from tests.kernel.foreign_writer import commit
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping
from tests.kernel.watching import watching

GONE = (wire.DELTABLE, attr(wire.TABLE_NAME, wire.text(TABLE)))


def commits(heard: NetlinkSocket) -> int:
    """How many have been announced."""
    return sum(found.kind == header(wire.NEWGEN) for data in heard.arrived() for found in messages(data))


def measure(lab: Lab, product: Product, times: int) -> list[float]:
    """Milliseconds. The watcher is started anew before it could take us for somebody who fights it."""
    netlink, heard = (lab.host.namespace.call(NetlinkSocket, NETLINK_NETFILTER) for _ in range(2))
    heard.join(GROUP)
    found: list[float] = []
    while len(found) < times:
        with watching(product) as watch:
            for _ in range(min(AT_ONCE - 1, times - len(found))):
                watch.asleep()
                commits(heard)
                begun = time.monotonic()
                commit(netlink, [GONE])
                seen = 0
                while seen < 2:  # his, and ours
                    select.select([heard], [], [])
                    seen += commits(heard)
                found.append((time.monotonic() - begun) * 1000)
    return found


def main() -> None:
    times, ports = (int(word) for word in (*sys.argv[1:3], *("200", "1")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder, Lab(str(Path(folder, "state"))) as lab, Product(lab) as product:
        product.apply(mapping("web", f"10000-{9999 + ports}", 8080))
        found = measure(lab, product, times)
    load = Path("/proc/loadavg").read_text(encoding="ascii").split()[0]
    print(  # noqa: T201 - the figures
        f"{ports} ports, table deleted {times} times: median {statistics.median(found):.1f} ms, "
        f"worst {max(found):.1f} ms, least {min(found):.1f} ms; load {load}"
    )


if __name__ == "__main__":
    main()
