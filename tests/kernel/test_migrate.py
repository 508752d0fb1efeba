"""Moving the mappings from one backend to another: no gap, nothing left behind, and no way to hold them twice.

Each test has all three; it starts from nftables.
"""

import contextlib
import json
import subprocess
from typing import Any

from redirector.backends.opening import NAMES
from tests.kernel.echo import PATIENCE, Answered
from tests.kernel.lab import CLIENT, HOST, LOOPBACK, Lab
from tests.kernel.product import Product, mapping, on_nftables, opened
from tests.kernel.traffic_watch import Watch

pytestmark = on_nftables

BOTH = ["tcp", "udp"]
WEB = mapping("web", 80, 8080, protocol=BOTH) + mapping("shut", 81, 8081, exclusive=True)
PACE = 0.005  # seconds from one question of each client to the next, at least: a move takes some hundred times as long
ROUND_TRIP = ("iptables-nft", "iptables-legacy", "nftables", "iptables-legacy", "iptables-nft", "nftables")


def holders(lab: Lab) -> list[str]:
    """The backends in which there is anything of ours."""
    found = []
    for name in NAMES:
        with contextlib.closing(opened(lab.host.namespace, name)) as backend:
            if backend.observe().program is not None:
                found.append(name)
    return found


def moved_under_watch(lab: Lab, watch: Watch, target: str) -> Any:
    """What the command tells; from its start to its end clients ask."""
    argv = lab.command("migrate-backend", target, "--json")
    pipe = subprocess.PIPE
    with lab.host.namespace.popen(argv, env=lab.environment(), stdout=pipe, stderr=pipe, text=True) as child:
        told, complaints = "", ""
        while child.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                told, complaints = child.communicate(timeout=PACE)
            watch.go_on(len(HOST))
    assert child.returncode == 0, complaints
    return json.loads(told)


def test_there_and_back_with_no_gap(lab: Lab, product: Product) -> None:
    for address in ("0.0.0.0", "::"):
        for protocol in ("tcp", "udp"):
            lab.host.serve(protocol, address, 8080, 8081)
    file = product.file(WEB)
    product.run("apply", file)
    with contextlib.ExitStack() as stack:
        lasting = [stack.enter_context(lab.client.talk("tcp", address, 80)) for address in HOST]
        with Watch(lab.client, list(HOST), 80, lasting, PATIENCE) as watch:
            for target in ROUND_TRIP:
                told = moved_under_watch(lab, watch, target)
                assert told["backend"] == target
                assert len(told["left"]) == 1
                assert holders(lab) == [target]
                assert product.json("status")["backend"] == target
                assert not product.json("apply", file)["changed"]  # `auto` stays where it is
        assert watch.failures == {}
        assert set(watch.answers) == {Answered(8080, CLIENT[v], HOST[v]) for v in (0, 1)}
        assert watch.asked > 20 * len(ROUND_TRIP)


def test_another_backend_is_refused_while_ours_are_in_force(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    before = lab.host.nft_list()
    for name in NAMES[1:]:
        file = product.file(f'[settings]\nbackend = "{name}"\n{WEB}', "other.toml")
        for args in (("apply", file), ("plan", file), ("apply", product.file(WEB), "--backend", name)):
            told = product.run(*args, code=1)
            assert f"our mappings are in force in nftables, and {name} is asked for" in told
            assert f"redirector migrate-backend {name}" in told
    assert lab.host.nft_list() == before
    assert holders(lab) == ["nftables"]


def test_after_remove_any_backend_will_do(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    product.run("remove")
    product.run("apply", product.file(WEB), "--backend", "iptables-nft")
    assert product.json("status")["backend"] == "iptables-nft"


def test_one_that_was_stopped_in_between_is_finished(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(WEB))
    with Product(lab, "iptables-nft") as other:  # as far as it came: loaded into the new one, and recorded
        other.apply(WEB)
    assert holders(lab) == ["nftables", "iptables-nft"]
    told = product.json("migrate-backend", "iptables-nft")
    assert not told["changed"]
    assert told["left"] == ["nftables"]
    assert holders(lab) == ["iptables-nft"]


def test_a_file_that_names_its_backend(lab: Lab, product: Product) -> None:
    file = product.file(f'[settings]\nbackend = "nftables"\n{WEB}')
    product.run("apply", file)
    told = product.run("migrate-backend", "iptables-legacy")
    assert 'the file still says backend = "nftables"' in told
    # Boot goes to where the mappings are now, whatever the file says.
    lab.host.run("iptables-legacy", "-t", "nat", "-F")
    product.run("boot", file)
    assert holders(lab) == ["iptables-legacy"]
    lab.host.serve("tcp", "0.0.0.0", 8080)
    assert lab.host.ask_tcp(LOOPBACK[0], 80) == Answered(8080, LOOPBACK[0], LOOPBACK[0])


def test_what_the_new_one_cannot_do_changes_nothing(lab: Lab, product: Product) -> None:
    product.run("apply", product.file(f"[settings]\npriority = -105\n{WEB}"))
    assert "knows no priorities" in product.run("migrate-backend", "iptables-nft", code=1)
    assert holders(lab) == ["nftables"]
    assert product.json("status")["state"] == "in-sync"


def test_nothing_to_move_and_something_that_waits(lab: Lab, product: Product) -> None:
    product.run("migrate-backend", "iptables-nft", code=7)
    product.run("apply", product.file(WEB), "--confirm=60")
    product.run("migrate-backend", "iptables-nft", code=75)
    assert holders(lab) == ["nftables"]
    product.run("cancel")
