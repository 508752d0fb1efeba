"""What `explain` says of a client's packet is what becomes of a real client, case by case."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.kernel.echo import PATIENCE, SILENCE, Answer, Answered, Refused, Silent
from tests.kernel.lab import CLIENT, CLIENT_OTHER, HOST, HOST_SECONDARY, LOOPBACK, NEIGHBOUR, Lab
from tests.kernel.product import Product, mapping

Do = Callable[[Lab], None]
EVERYWHERE = ("0.0.0.0", "::")
WEB = mapping("web", 80, 8080)


class Case(NamedTuple):
    """`mappings` are applied, `serving` are (address, port) of servers, `others` other people's rules; a client at
    `client` asks for `port`. `outcome` is what is expected of prediction and packet, at `reached`."""

    outcome: str
    client: str
    mappings: str = ""
    serving: tuple[tuple[str, int], ...] = ()
    others: Do = lambda _: None
    port: int = 80
    reached: int = 0
    protocol: str = "tcp"
    sure: bool = True


def nft(hook: str, rule: str, priority: int = -100, kind: str = "nat") -> Do:
    text = f"table ip others {{ chain c {{ type {kind} hook {hook} priority {priority}; {rule}; }}; }}"
    return lambda lab: lab.host.nft(text)


def iptables(*arguments: str, tool: str = "iptables-nft") -> Do:
    return lambda lab: (lab.host.run(tool, *arguments), None)[1]


def on(*ports: int, addresses: tuple[str, ...] = EVERYWHERE) -> tuple[tuple[str, int], ...]:
    return tuple((address, port) for port in ports for address in addresses)


CASES = {
    # without a rule
    "no rule, no server": Case("refused", CLIENT[0]),
    "no rule, a server": Case("served", CLIENT[0], serving=on(80), reached=80),
    "no rule, a server on loopback": Case("refused", CLIENT[0], serving=on(80, addresses=LOOPBACK)),
    "no rule, a server on loopback, from here": Case(
        "served", LOOPBACK[0], serving=on(80, addresses=LOOPBACK), reached=80
    ),
    "no rule, a server on another address": Case("refused", CLIENT[0], serving=((HOST_SECONDARY[0], 80),)),
    # ours
    "redirected": Case("served", CLIENT[0], WEB, on(8080), reached=8080),
    "redirected, IPv6": Case("served", CLIENT[1], WEB, on(8080), reached=8080),
    "redirected, from here": Case("served", LOOPBACK[0], WEB, on(8080), reached=8080),
    "redirected, from here, IPv6": Case("served", LOOPBACK[1], WEB, on(8080), reached=8080),
    "redirected, from here, by another address": Case("served", HOST[0], WEB, on(8080), reached=8080),
    "redirected, nobody there": Case("refused", CLIENT[0], WEB),
    "redirected, shadowing a server": Case("served", CLIENT[0], WEB, on(80, 8080), reached=8080),
    "redirected to loopback": Case("refused", CLIENT[0], WEB, on(8080, addresses=LOOPBACK)),
    "redirected to loopback, from here": Case("served", LOOPBACK[1], WEB, on(8080, addresses=LOOPBACK), reached=8080),
    "IPv4 only, over IPv6": Case("refused", CLIENT[1], mapping("web", 80, 8080, family="ipv4"), on(8080)),
    "not for this host": Case("refused", LOOPBACK[0], mapping("web", 80, 8080, local=False), on(8080)),
    "from the source": Case(
        "served", CLIENT[0], mapping("web", 80, 8080, source=f"{CLIENT[0]}/32"), on(8080), reached=8080
    ),
    "from another source": Case(
        "refused", CLIENT_OTHER[0], mapping("web", 80, 8080, source=f"{CLIENT[0]}/32"), on(8080)
    ),
    "on the interface": Case("served", CLIENT[0], mapping("web", 80, 8080, interface="eth0"), on(8080), reached=8080),
    "on another interface": Case("refused", NEIGHBOUR[0], mapping("web", 80, 8080, interface="eth0"), on(8080)),
    "at another address": Case("refused", CLIENT[0], mapping("web", 80, 8080, address=HOST_SECONDARY[0]), on(8080)),
    "a shifted range": Case("served", CLIENT[0], mapping("web", "80-89", "8080-8089"), on(8085), port=85, reached=8085),
    "the narrower mapping": Case(
        "served", CLIENT[0], WEB + mapping("staff", 80, 8090, source="192.0.2.0/24"), on(8080, 8090), reached=8090
    ),
    "the wider mapping": Case(
        "served", NEIGHBOUR[0], WEB + mapping("staff", 80, 8090, source="192.0.2.0/24"), on(8080, 8090), reached=8080
    ),
    "an exclusive target, directly": Case(
        "refused", CLIENT[0], mapping("web", 80, 8080, exclusive=True), on(8080), port=8080
    ),
    "an exclusive target, through the mapping": Case(
        "served", CLIENT[0], mapping("web", 80, 8080, exclusive=True), on(8080), reached=8080
    ),
    "an exclusive target, directly, from here": Case(
        "served", LOOPBACK[0], mapping("web", 80, 8080, exclusive=True), on(8080), port=8080, reached=8080
    ),
    "the address rewritten": Case(
        "served", CLIENT[0], mapping("web", 80, 8080, rewrite="redirect"), ((HOST[0], 8080),), reached=8080
    ),
    "the address rewritten, to one that nobody serves": Case(
        "refused", CLIENT[0], mapping("web", 80, 8080, rewrite="redirect"), ((HOST_SECONDARY[0], 8080),)
    ),
    "UDP": Case(
        "served", CLIENT[0], mapping("dns", 53, 5353, protocol="udp"), on(5353), port=53, reached=5353, protocol="udp"
    ),
    # others'
    "another's rule": Case(
        "served", CLIENT[0], "", on(9090), nft("prerouting", "tcp dport 80 redirect to :9090"), reached=9090
    ),
    "another's rule, of the output hook": Case(
        "served", LOOPBACK[0], "", on(9090), nft("output", "tcp dport 80 redirect to :9090"), reached=9090
    ),
    "another's rule, not for this host": Case(
        "refused", LOOPBACK[0], "", on(9090), nft("prerouting", "tcp dport 80 redirect to :9090")
    ),
    "another's rule, after ours": Case(
        "served", CLIENT[0], WEB, on(8080, 9090), nft("prerouting", "tcp dport 80 redirect to :9090"), reached=8080
    ),
    "another's rule, before ours": Case(
        "served",
        CLIENT[0],
        WEB,
        on(8080, 9090),
        nft("prerouting", "tcp dport 80 redirect to :9090", -120),
        reached=9090,
    ),
    "iptables": Case(
        "served",
        CLIENT[0],
        "",
        on(9090),
        iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "9090"),
        reached=9090,
    ),
    "iptables, by DNAT": Case(
        "served",
        CLIENT[0],
        "",
        on(9090),
        iptables(
            "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", ":9090"
        ),
        reached=9090,
    ),
    "iptables-legacy, after ours": Case(
        "served",
        CLIENT[0],
        WEB,
        on(8080, 9090),
        iptables(
            *("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "9090"),
            tool="iptables-legacy",
        ),
        reached=8080,
    ),
    "another's exemption, then nothing of his": Case(
        "served", CLIENT[0], WEB, on(8080), nft("prerouting", "tcp dport 80 accept"), reached=8080
    ),
    "a filter that drops the target": Case(
        "dropped", CLIENT[0], WEB, on(8080), nft("input", "tcp dport 8080 drop", 0, "filter")
    ),
    "a filter that drops the port that is not reached": Case(
        "served", CLIENT[0], WEB, on(8080), nft("input", "tcp dport 80 drop", 0, "filter"), reached=8080
    ),
    "a rule for somebody else": Case(
        "served",
        CLIENT[0],
        "",
        on(80, 9090),
        nft("prerouting", f"ip saddr {NEIGHBOUR[0]} tcp dport 80 redirect to :9090"),
        reached=80,
        sure=False,
    ),
}


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    with Product(lab) as made:
        yield made


def ask(lab: Lab, case: Case, address: str) -> Answer:
    source = None if case.client in (*LOOPBACK, *HOST) else case.client
    machine = lab.host if source is None else lab.neighbour if source in NEIGHBOUR else lab.client
    question = machine.ask_udp if case.protocol == "udp" else machine.ask_tcp
    return question(address, case.port, source, SILENCE if case.outcome == "dropped" else PATIENCE)


@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_what_happens(name: str, lab: Lab, product: Product) -> None:
    case = CASES[name]
    if case.mappings:
        product.apply(case.mappings)
    case.others(lab)
    for address, port in case.serving:
        lab.host.serve("udp" if case.protocol == "udp" else "tcp", address, port)
    found = product.json("explain", str(case.port), "--from", case.client, "--protocol", case.protocol)
    (told,) = found["clients"]
    answer = ask(lab, case, told["to"])
    real = {Answered: "served", Refused: "refused", Silent: "dropped"}.get(type(answer), "")
    assert (real, answer.port if isinstance(answer, Answered) else 0) == (case.outcome, case.reached)
    assert (told["outcome"], told["sure"]) == (case.outcome, case.sure), told
    if case.reached:
        assert (told["port"], told["pid"]) == (case.reached, os.getpid())


@pytest.mark.parametrize(("priority", "reached"), [(-105, 9090), (-95, 8080)])
def test_rules_of_ours_in_iptables_have_its_priority(priority: int, reached: int, lab: Lab) -> None:
    with Product(lab, "iptables-nft") as product:
        product.apply(WEB)
        nft("prerouting", "tcp dport 80 redirect to :9090", priority)(lab)
        for port in (8080, 9090):
            lab.host.serve("tcp", "0.0.0.0", port)
        answer = lab.client.ask_tcp(HOST[0], 80)
        assert isinstance(answer, Answered)
        (told,) = product.json("explain", "80", "--from", CLIENT[0])["clients"]
        assert (answer.port, told["port"], told["sure"]) == (reached, reached, True)


def test_a_mapping_that_the_kernel_no_longer_has_decides_nothing(lab: Lab, product: Product) -> None:
    product.apply(WEB + mapping("staff", 80, 8090, source="192.0.2.0/24"))
    for port in (8080, 8090):
        lab.host.serve("tcp", "0.0.0.0", port)
    product.lab.host.run("nft", "flush", "map", "inet", "redirector", "arriving_from_192.0.2.0/24_ports")
    answer = lab.client.ask_tcp(HOST[0], 80)
    assert isinstance(answer, Answered)
    (told,) = product.json("explain", "80", "--from", CLIENT[0])["clients"]
    assert (told["port"], told["sure"]) == (answer.port, False)
    assert answer.port == 8080


def test_without_a_client_there_is_one_here_and_one_outside_for_each_family(lab: Lab, product: Product) -> None:
    product.apply(mapping("web", 80, 8080, local=False))
    lab.host.serve("tcp", "0.0.0.0", 8080)
    lab.host.serve("tcp", "::", 8080)
    told = product.json("explain", "80")["clients"]
    assert [(one["interface"], one["outcome"]) for one in told] == [
        (None, "refused"),
        (None, "refused"),
        ("eth0", "served"),
        ("eth0", "served"),
    ]
    assert {one["to"] for one in told} == {*LOOPBACK, *HOST}
