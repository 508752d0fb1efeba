"""What a real kernel says in answer to everything that we ask of it: the corpus that the decoder's fuzz target damages.

    python -m tests.fuzz.record        writes tests/fuzz/corpus.json.gz anew; as root

Each scene sets a machine up, and asks. Hosts, clients and what others put into the tables are of a `Lab`: nothing of
the machine's own is asked. The corpus is kept in the tree so that a case is the same on every machine, without root.
"""

import gzip
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from redirector.backends.base import OutcomeDoubtful, Overtaken
from redirector.backends.nftables.backend import NftablesBackend
from redirector.compile import compile_ruleset
from redirector.errors import Refused
from redirector.host import conntrack, listeners
from redirector.host.addresses import IFADDRMSG, RTM_GETADDR
from redirector.mappings import load
from redirector.netlink import NETLINK_ROUTE, NETLINK_SOCK_DIAG, NetlinkSocket
from redirector.plan import AddRules, DeleteMap, make_plan
from redirector.program import LocalJump
from tests.fuzz.engine import Case
from tests.fuzz.scripted import recorded
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, mapping, ruleset

CORPUS = Path(__file__).with_name("corpus.json.gz")
RULES = Path(__file__).parents[2] / "rules"


class Scene(NamedTuple):
    """`asks` is what is asked: observe, commit, conntrack, listeners, addresses; `rules` the mapping file in force."""

    name: str
    asks: str
    rules: str
    heard: Case


EVERY = (
    mapping("web", [80, "8000-8003"], 8080, protocol=["tcp", "udp", "sctp"], exclusive=True)
    + mapping("staff", 80, 8090, source=["198.51.100.0/24", "2001:db8::/32"])
    + mapping("dns", 53, 5300, protocol=["tcp", "udp"], address=["192.0.2.53", "fd00::53"], exclusive=True)
    + mapping("link", "9000-9004", "19000-19004", interface=["br-*", "eth0"], local=True, rewrite="redirect")
    + mapping("four", 81, 8081, family="ipv4")
)

# What others may put into our table, or make of it.
MEDDLED = """
add chain inet redirector mine { type filter hook forward priority 5; policy drop; }
add chain inet redirector theirs
add set inet redirector slow { type ipv4_addr; flags timeout,interval; timeout 1h; }
add element inet redirector slow { 10.0.0.0/8, 192.0.2.1 timeout 5m comment "x" }
add map inet redirector verdicts { type inet_service : verdict; counter; }
add element inet redirector verdicts { 7 : drop, 9 : goto theirs }
add counter inet redirector seen { packets 3 bytes 4; }
add quota inet redirector most { over 10 mbytes; }
add rule inet redirector mine tcp dport { 1, 2-5 } limit rate 5/second log prefix "odd " counter accept
add rule inet redirector mine ct state established,related ip saddr @slow drop comment "ünï"
add rule inet redirector arriving meta mark set 7 return
add element inet redirector ports { tcp . 99 comment "stranger" : 98 }
add element inet redirector counts { tcp . 99 : "seen" }
delete element inet redirector ports { tcp . 80 }
"""
FOREIGN = 'table inet redirector { comment "made by redirectors"; chain c { type nat hook prerouting priority -9; }; }'


def scenes(lab: Lab) -> list[Scene]:
    """Every scene, each heard anew."""
    with Product(lab) as product:
        found = []

        def hear(name: str, asks: str, text: str, ask: Callable[[], Case]) -> None:
            found.append(Scene(name, asks, text, ask()))

        def observe() -> Case:
            return _observed(lab)

        hear("absent", "observe", EVERY, observe)
        for name in ("web", "dns"):
            text = (RULES / f"{name}.toml").read_text(encoding="utf-8").replace("version = 1", "", 1)
            product.apply(load(str(RULES / f"{name}.toml")))
            hear(name, "observe", text, observe)
        product.apply(EVERY)
        hear("every", "observe", EVERY, observe)
        hear("refused", "commit", EVERY, lambda: _refused(lab))
        lab.host.nft(MEDDLED)
        hear("meddled", "observe", EVERY, observe)
        hear("taken", "commit", EVERY, lambda: _taken(lab))
        product.remove()
        hear("drained", "observe", EVERY, observe)
        lab.host.nft(f"delete table inet redirector; {FOREIGN}")
        hear("foreign", "observe", EVERY, observe)
        lab.host.nft("flush ruleset")
        product.apply(EVERY)
        hear("flows", "conntrack", EVERY, lambda: _flows(lab))
        hear("sockets", "listeners", EVERY, lambda: _sockets(lab))
        hear("addresses", "addresses", EVERY, lambda: _addresses(lab))
        return found


def _observed(lab: Lab) -> Case:
    with closing(lab.host.namespace.call(NftablesBackend)) as backend:
        heard = recorded(backend._netlink)
        backend.observe()
        return heard.heard


def _refused(lab: Lab) -> Case:
    """Three transactions that are not taken: overtaken, of wrong contents, of something in use; and a dry run."""
    with closing(lab.host.namespace.call(NftablesBackend)) as backend:
        genid = backend.genid()
        heard = recorded(backend._netlink)
        wrong = (AddRules("own", (LocalJump("nowhere"),)), AddRules("nowhere", (LocalJump("own"),)))
        for steps, expect in ((wrong, genid + 1), (wrong, genid), ((DeleteMap("ports"),), genid)):
            with suppress(Overtaken, Refused, OutcomeDoubtful):
                backend.commit(steps, expect)
        with suppress(Refused):
            backend.check(wrong)
        return heard.heard


def _taken(lab: Lab) -> Case:
    with closing(lab.host.namespace.call(NftablesBackend)) as backend:
        snapshot = backend.observe()
        heard = recorded(backend._netlink)
        plan = make_plan(compile_ruleset(ruleset(EVERY)), snapshot.program)
        backend.check(plan.steps)
        backend.commit(plan.steps, backend.genid())
        backend.genid()
        return heard.heard


def _flows(lab: Lab) -> Case:
    """UDP flows to mapped and other ports, over both families; then the rules that they contradict."""
    for address in ("0.0.0.0", "::"):
        lab.host.serve("udp", address, 8080, 7000)
    for address in HOST:
        for port in (80, 8001, 7000):
            lab.client.ask_udp(address, port)
    with closing(lab.host.namespace.call(NftablesBackend)) as backend:
        heard = recorded(backend._netlink)
        conntrack.forget(backend._netlink, list)
        return heard.heard


def _sockets(lab: Lab) -> Case:
    for protocol, address in (("tcp", "0.0.0.0"), ("tcp", HOST[1]), ("udp", "::"), ("udp", HOST[0])):
        lab.host.serve(protocol, address, 4000, 4001)  # type: ignore[arg-type]
    held = [lab.client.talk("tcp", HOST[0], 4000), lab.client.talk("tcp", HOST[1], 4001)]
    with closing(lab.host.namespace.call(NetlinkSocket, NETLINK_SOCK_DIAG)) as diag:
        heard = recorded(diag)
        for protocol in ("tcp", "udp"):
            for family in listeners.FAMILIES:
                listeners._dump(diag, listeners.request(family, protocol, listeners.WAITING[protocol]))
        for family in listeners.FAMILIES:
            listeners._dump(diag, listeners.request(family, "tcp", listeners.TCP_ESTABLISHED))
    for conversation in held:
        conversation.close()
    return heard.heard


def _addresses(lab: Lab) -> Case:
    with closing(lab.host.namespace.call(NetlinkSocket, NETLINK_ROUTE)) as route:
        heard = recorded(route)
        route.dump(RTM_GETADDR, IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        return heard.heard


def read() -> list[Scene]:
    """The scenes of the corpus."""
    rows = json.loads(gzip.decompress(CORPUS.read_bytes()))["scenes"]
    return [Scene(n, a, r, [(label, bytes.fromhex(data)) for label, data in heard]) for n, a, r, heard in rows]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Lab(os.path.join(folder, "state")) as lab:
        found = scenes(lab)
    rows = [[s.name, s.asks, s.rules, [[label, data.hex()] for label, data in s.heard]] for s in found]
    content = {"kernel": os.uname().release, "scenes": rows}
    CORPUS.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    sys.stdout.write(f"{CORPUS}: {len(rows)} scenes, {sum(len(s.heard) for s in found)} datagrams\n")


if __name__ == "__main__":
    main()
