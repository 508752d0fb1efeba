"""The standard topology of the kernel tests: a host, a client of it, and a neighbour behind it.

    client                     host                                neighbour
    eth0 192.0.2.100, .101     eth0   192.0.2.1, .2 (secondary)
         2001:db8:1::100, 101         2001:db8:1::1, ::2
                               veth-b 198.51.100.1                 eth0 198.51.100.100
                                      2001:db8:2::1                     2001:db8:2::100

The host forwards between the two, both families. Each is a network namespace without a name (see
`redirector.host.namespaces`): the machine's own network is never touched, and nothing outlives the process.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

import redirector
from redirector.host import namespaces
from redirector.host.namespaces import Namespace
from tests.kernel import echo, sctp
from tests.kernel.echo import PATIENCE, Answer, Conversation, EchoServers, Protocol, Server
from tests.kernel.sctp import SctpEar

HOST = ("192.0.2.1", "2001:db8:1::1")
HOST_SECONDARY = ("192.0.2.2", "2001:db8:1::2")
HOST_B = ("198.51.100.1", "2001:db8:2::1")  # the host as the neighbour sees it
CLIENT = ("192.0.2.100", "2001:db8:1::100")
CLIENT_OTHER = ("192.0.2.101", "2001:db8:1::101")
NEIGHBOUR = ("198.51.100.100", "2001:db8:2::100")
LOOPBACK = ("127.0.0.1", "::1")

COMMAND_TIMEOUT = 60.0
# nft, mount and the like are in sbin, which a plain user's PATH may lack.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

# A namespace starts with the machine's own IPv4 settings (net.core.devconf_inherit_init_net): say what we rely on.
SYSCTLS = {
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/route_localnet": "0",
    "net/ipv4/conf/default/route_localnet": "0",
    # Refusals are ICMP errors: without this the kernel withholds all but the first few.
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv6/icmp/ratemask": "",
}
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}

# Run by sh with: (name, path of a namespace)… -- command…
WITH_NAMES = """
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns
while [ "$1" != -- ]; do
    : > "/run/netns/$1"
    mount --bind "$2" "/run/netns/$1"
    shift 2
done
shift
exec "$@"
"""


class Machine:
    """One namespace of the lab: what runs there, who is asked from there, and its nftables rules."""

    def __init__(self, label: str, servers: EchoServers) -> None:
        self.namespace = Namespace.create(label)
        self._servers = servers

    @property
    def path(self) -> str:
        """A path that names the namespace, for mount(8) or nsenter(1), as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.namespace.fd}"

    def serve(self, protocol: Protocol, address: str, *ports: int) -> Server:
        """Echo servers on `address`, listening when this returns; closed at the end of the test. Raises OSError."""
        return self._servers.serve(self.namespace, protocol, address, ports)

    def ask_tcp(self, address: str, port: int, source: str | None = None, patience: float = PATIENCE) -> Answer:
        """Who answers a new TCP client here; `patience=echo.SILENCE` where nobody should."""
        return echo.ask(self.namespace, "tcp", address, port, source, patience)

    def ask_udp(self, address: str, port: int, source: str | None = None, patience: float = PATIENCE) -> Answer:
        """Who answers a new UDP client here."""
        return echo.ask(self.namespace, "udp", address, port, source, patience)

    def talk(self, protocol: Protocol, address: str, port: int, source: str | None = None) -> Conversation:
        """A connection or flow that lasts, to be asked again and again. Raises OSError where it does not come about."""
        return echo.talk(self.namespace, protocol, address, port, source)

    def send_sctp_init(self, address: str, port: int, source: str | None = None) -> None:
        """Send one SCTP INIT; open the ear of whoever should hear it before."""
        sctp.send_init(self.namespace, address, port, source)

    def sctp_ear(self) -> SctpEar:
        """Hears SCTP packets that reach this machine's own addresses; a context manager."""
        return SctpEar(self.namespace)

    def run(self, *argv: str, input: str | None = None, env: Mapping[str, str] | None = None) -> str:  # noqa: A002 - as below
        """What a command prints, run here. Raises AssertionError with what it complained of if it fails."""
        environment = {**os.environ, "PATH": PATH, **(env or {})}
        done = self.namespace.run(argv, input=input, text=True, env=environment, timeout=COMMAND_TIMEOUT)
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stderr}"
        output: str = done.stdout
        return output

    def nft(self, text: str) -> None:
        """Load rules in nft's language, as one transaction. Raises AssertionError if nft refuses."""
        self.run("nft", "-f", "-", input=text)

    def nft_list(self, what: str = "ruleset") -> str:
        """What `nft list` prints of, say, "table inet redirector"."""
        return self.run("nft", "list", *what.split())

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl such as "net/ipv4/ip_forward" here. It stays: for tests with a lab of their own."""
        namespaces.sysctl(self.namespace, name, value)

    def flush(self) -> None:
        """No rules, and no connections that conntrack remembers."""
        self.run("nft", "flush", "ruleset")
        self.namespace.call(_forget_connections)


class Lab:
    """The three machines. `state_dir` is where `redirector` keeps its generations: a folder of each test's own."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        with contextlib.ExitStack() as undo:
            self._servers = EchoServers()
            undo.callback(self._servers.close)
            machines = []
            for label in ("host", "client", "neighbour"):
                machines.append(Machine(label, self._servers))
                undo.callback(machines[-1].namespace.close)
            self.machines = tuple(machines)
            self.host, self.client, self.neighbour = machines
            self._wire()
            self._undo = undo.pop_all()

    def machine(self, label: str) -> Machine:
        """One more machine, without links; whoever asks for it closes its namespace."""
        return Machine(label, self._servers)

    def command(self, *args: str) -> list[str]:
        """The argv of `redirector ARGS`, to be run with `environment()`."""
        return [sys.executable, "-m", "redirector", *args]

    def with_names(self, names: Mapping[str, Machine], argv: Sequence[str]) -> list[str]:
        """`argv`, in a mount namespace of its own where /run/netns holds these machines and the rest of /run is gone.

        By unshare and mount, which are in packages that every Debian has.
        """
        paths = [part for name, machine in names.items() for part in (name, machine.path)]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", WITH_NAMES, "sh", *paths, "--", *argv]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """For a `command`: this process's, without the ssh session that the tests may run in, plus `env`."""
        inherited = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
        checkout = os.path.dirname(os.path.dirname(redirector.__file__))
        return {
            **inherited,
            "PATH": PATH,
            "PYTHONPATH": checkout,
            "REDIRECTOR_STATE_DIR": self.state_dir,
            "REDIRECTOR_JOURNAL": "",  # nothing for the journal of the machine that runs the tests
            **(env or {}),
        }

    def redirector(
        self,
        *args: str,
        machine: Machine | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        names: Mapping[str, Machine] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `redirector ARGS` on the host (or `machine`) to its end; for `names` see `with_names`."""
        namespace = (machine or self.host).namespace
        argv = self.command(*args)
        if names:
            argv = self.with_names(names, argv)
        return namespace.run(argv, input=input, env=self.environment(env), text=True, timeout=COMMAND_TIMEOUT)

    def reset(self) -> None:
        """No servers, no rules, no remembered connections. Links, addresses and sysctls stay as they are."""
        self._servers.stop_all()
        for machine in self.machines:
            machine.flush()

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wire(self) -> None:
        host, client, neighbour = (machine.namespace for machine in self.machines)
        for machine in self.machines:
            for name, value in (SYSCTLS | (FORWARDING if machine is self.host else {})).items():
                machine.sysctl(name, value)
            namespaces.link_up(machine.namespace, "lo")
        namespaces.connect(host, "eth0", client, "eth0")
        namespaces.connect(host, "veth-b", neighbour, "eth0")
        for namespace, name, pairs in (
            (host, "eth0", (HOST, HOST_SECONDARY)),
            (host, "veth-b", (HOST_B,)),
            (client, "eth0", (CLIENT, CLIENT_OTHER)),
            (neighbour, "eth0", (NEIGHBOUR,)),
        ):
            # The main address, which the kernel takes unless told otherwise, is the first IPv4 and the last IPv6 one.
            for v4, _ in pairs:
                namespaces.address(namespace, name, f"{v4}/24")
            for _, v6 in reversed(pairs):
                namespaces.address(namespace, name, f"{v6}/64")
        for namespace, routers in ((client, HOST), (neighbour, HOST_B)):
            for router in routers:
                namespaces.route(namespace, "default", router)


def _forget_connections() -> None:
    """Empty the conntrack table of the calling thread's namespace."""
    from pyroute2 import NFCTSocket

    with NFCTSocket() as conntrack:
        conntrack.flush()
