"""The guards against real sockets and processes: what they refuse, how one insists, and what they warn of.

They judge a Ruleset and a Plan by what they see of the host, before a backend has a say: so one is enough, but for the
way through a whole command.
"""

import os
from typing import Any

import pytest

from tests.kernel.acting import actor
from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, COMMAND_TIMEOUT, HOST, HOST_SECONDARY, LOOPBACK, Lab
from tests.kernel.product import Product, insist, mapping, on_each, on_nftables

pytestmark = on_nftables

ANY = ("0.0.0.0", "::")
SSH = mapping("ssh", 22, 8080)


def refused(product: Product, text: str, flag: str, *words: str, **options: Any) -> None:
    """The command refuses, names what to insist with, and changes nothing; then it does what it was asked to do."""
    file = product.file(text)
    before, numbers = product.admin.sees(), product.history.numbers()
    for command in (["apply", file], ["apply", file, "--dry-run"]):
        told = product.run(*command, code=1, **options)
        for word in (flag, *words):
            assert word in told
    found = product.json("plan", file, code=2, **options)["findings"]
    assert flag in {one["override"] for one in found}
    assert (product.admin.sees(), product.history.numbers()) == (before, numbers)
    product.run("apply", file, flag, **options)
    assert product.status().head is not None


def warnings(product: Product, text: str) -> list[tuple[str, str]]:
    """(mapping, message) of what `plan` warns of; all of it is told by `apply`, too, and stops nothing."""
    file = product.file(text)
    found = product.json("plan", file, code=2)["findings"]
    assert not any(one["override"] for one in found)
    told = product.run("apply", file)
    for one in found:
        assert f"warning: {one['mapping']}: {one['message']}" in told
    assert product.status().state == "in-sync"
    return [(one["mapping"], one["message"]) for one in found]


class TestSsh:
    @on_each
    def test_port_of_a_listening_server(self, lab: Lab, product: Product) -> None:
        self.is_kept(lab, product, "sshd", "0.0.0.0")

    @pytest.mark.parametrize(
        ("name", "address"),
        [("sshd", "::"), ("sshd", HOST[0]), ("dropbear", "0.0.0.0"), ("dropbear", "::"), ("dropbear", HOST[0])],
    )
    def test_port_of_others(self, lab: Lab, product: Product, name: str, address: str) -> None:
        self.is_kept(lab, product, name, address)

    def is_kept(self, lab: Lab, product: Product, name: str, address: str) -> None:
        with actor(lab, name, address, 22) as child:
            refused(product, SSH, "--allow-ssh", "port 22", f"{name} (pid {child.pid}) listens on it")
            assert lab.client.ask_tcp(HOST[0], 22) == Refused()  # it was true: ssh is out of reach now

    def test_port_in_a_range_and_guarded_port(self, lab: Lab, product: Product) -> None:
        with actor(lab, "sshd", "0.0.0.0", 2222):
            for text in (
                mapping("range", "2000-3000", 8080),
                mapping("shift", "2000-3000", "12000-13000"),
                mapping("guard", 80, 2222, exclusive=True),
                mapping("guards", "80-89", "2220-2229", exclusive=True),
                mapping("some", 2222, 8080, source="192.0.2.0/24"),
            ):
                assert "--allow-ssh" in product.run("apply", product.file(text), code=1)
            for text in (
                mapping("exempt", 2222, 2222, source="192.0.2.0/24"),
                mapping("onto", 80, 2222),
                mapping("udp", 2222, 8080, protocol="udp"),
                mapping("beside", [2221, 2223], 8080),
            ):
                product.run("apply", product.file(text))

    def test_server_on_another_address(self, lab: Lab, product: Product) -> None:
        with actor(lab, "sshd", HOST[0], 22):
            product.run("apply", product.file(mapping("other", 22, 8080, address=HOST_SECONDARY[0])))
            product.run("apply", product.file(mapping("v6", 22, 8080, family="ipv6")))
            refused(product, mapping("same", 22, 8080, address=list(HOST)), "--allow-ssh", "port 22")

    def test_another_server_is_no_ssh(self, lab: Lab, product: Product) -> None:
        with actor(lab, "httpd", "0.0.0.0", 22):
            product.run("apply", product.file(SSH))

    def test_connection_in_use(self, lab: Lab, product: Product) -> None:
        connection = {"SSH_CONNECTION": f"{CLIENT[0]} 50000 {HOST[0]} 2022"}
        text = mapping("m", "2000-2100", 8080)
        refused(product, text, "--allow-ssh", "port 2022", "your ssh connection", CLIENT[0], env=connection)
        # At another address, or over another protocol, it is not the same.
        for free in (
            mapping("at", 2022, 8080, address=HOST_SECONDARY[0]),
            mapping("udp", 2022, 8080, protocol="udp"),
            mapping("m", 80, 8080),
        ):
            product.run("apply", product.file(free), env=connection)
        for junk in ("", "nonsense", f"{CLIENT[0]} 1 {HOST[0]} 70000", "a b c d"):
            product.run("apply", product.file(text), env={"SSH_CONNECTION": junk})

    @pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
    def test_connection_of_an_ancestor(self, lab: Lab, product: Product, v: int) -> None:
        """As after sudo: no SSH_CONNECTION and nobody listens any more, but an ancestor holds the connection."""
        command = lab.command("apply", product.file(mapping("m", 2022, 8080)), *insist())
        with actor(lab, "sshd-session", ANY[v], 2022, *command) as child:
            with lab.client.talk("tcp", HOST[v], 2022):
                told, complaint = child.communicate(timeout=COMMAND_TIMEOUT)
            assert child.returncode == 1, told + complaint
        assert "an ancestor of this process, is connected on it" in complaint
        assert f"sshd-session (pid {child.pid})" in complaint
        assert "--allow-ssh" in complaint
        assert lab.host.nft_list() == ""

    @on_each
    def test_nothing_to_do_is_not_refused(self, lab: Lab, product: Product) -> None:
        product.apply(SSH)
        with actor(lab, "sshd", "0.0.0.0", 22):
            product.run("apply", product.file(SSH))
            product.run("remove")
            assert "--allow-ssh" in product.run("rollback", code=1)
            product.run("rollback", "--allow-ssh")


class TestEmpty:
    @on_each
    def test_vanishing_mappings(self, lab: Lab, product: Product) -> None:
        for text in ("", mapping("off", 80, 8080, enabled=False)):
            product.apply(mapping("web", 80, 8080))
            refused(product, text, "--allow-empty", "would vanish")
            assert product.status().state == "drained"

    def test_nothing_there_yet(self, lab: Lab, product: Product) -> None:
        assert "--allow-empty" in product.run("apply", product.file(""), code=1)
        assert lab.host.nft_list() == ""


class TestOwner:
    def test_somebody_elses_server(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080)
        mine, other = os.geteuid(), 1
        text = mapping("web", 80, 8080, owner=other, family="ipv4")
        refused(product, text, "--allow-owner", f"by user id {mine}", f"process {os.getpid()}", f"not by {other}")
        product.run("apply", product.file(mapping("web", 80, 8080, owner=mine, family="ipv4")))
        product.run("apply", product.file(mapping("web", 80, 8081, owner=other)))  # nobody listens: no other

    def test_user_that_does_not_exist(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080)
        text = mapping("web", 80, 8080, owner="no-such-user")
        refused(product, text, "--allow-owner", "no-such-user", "no user of this host")

    def test_server_at_another_address(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", HOST[0], 8080)
        product.run("apply", product.file(mapping("web", 80, 8080, owner=1, address=HOST_SECONDARY[0])))


class TestWarnings:
    def test_nothing_listens(self, lab: Lab, product: Product) -> None:
        lab.host.serve("udp", ANY[0], 8080)
        found = warnings(product, mapping("web", 80, 8080))
        assert [(name, "nothing listens on tcp 8080" in text) for name, text in found] == [("web", True)]
        assert lab.client.ask_tcp(HOST[0], 80) == Refused()

    def test_nothing_listens_over_one_family(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080)
        assert warnings(product, mapping("web", 80, 8080)) == [("web", "nothing listens on tcp 8080 over ipv6")]
        assert lab.client.ask_tcp(HOST[1], 80) == Refused()
        assert warnings(product, mapping("web", 80, 8080, family="ipv4")) == []

    @pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
    def test_only_the_loopback_address(self, lab: Lab, product: Product, v: int) -> None:
        lab.host.serve("tcp", LOOPBACK[v], 8080)
        family = ("ipv4", "ipv6")[v]
        ((name, message),) = warnings(product, mapping("web", 80, 8080, family=family))
        assert name == "web"
        assert f"listened on at {LOOPBACK[v]} only" in message
        assert lab.client.ask_tcp(HOST[v], 80) == Refused()
        # For the host itself it will do.
        assert warnings(product, mapping("web", 80, 8080, family=family, interface="lo")) == []
        assert lab.host.ask_tcp(LOOPBACK[v], 80) == Answered(8080, LOOPBACK[v], LOOPBACK[v])

    def test_somebody_on_the_mapped_port(self, lab: Lab, product: Product) -> None:
        for address in ANY:
            lab.host.serve("tcp", address, 8080)
        with actor(lab, "httpd", "0.0.0.0", 80) as child:
            ((name, message),) = warnings(product, mapping("web", 80, 8080))
            assert name == "web"
            assert f"httpd, process {child.pid}" in message
            assert "tcp 80 itself" in message
            assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])  # shadowed, as told
            assert warnings(product, mapping("web", 81, 8080)) == []

    def test_one_program_on_both_ports_is_meant_so(self, lab: Lab, product: Product) -> None:
        for address in ANY:
            lab.host.serve("tcp", address, 80, 8080)
        assert warnings(product, mapping("web", 80, 8080)) == []

    def test_address_that_is_not_there_yet(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080)
        found = warnings(product, mapping("web", 80, 8080, address=["192.0.2.7", HOST[0]]))
        assert [(name, text.split()[0]) for name, text in found] == [("web", "192.0.2.7")]

    def test_mapping_that_is_not_followed(self, lab: Lab, product: Product) -> None:
        lab.host.serve("tcp", ANY[0], 8080, 9090)
        text = mapping("a", 80, 8080, family="ipv4") + mapping("b", 8080, 9090, family="ipv4")
        found = warnings(product, text)
        assert any(name == "a" and "NAT acts once" in message for name, message in found)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
        assert "NAT acts once" in product.run("check", product.file(text))

    def test_all_is_well(self, lab: Lab, product: Product) -> None:
        for address in ANY:
            for protocol in ("tcp", "udp"):
                lab.host.serve(protocol, address, 8080, *range(2000, 2010))
        text = mapping("web", 80, 8080, protocol=["tcp", "udp"]) + mapping("range", "1000-1009", "2000-2009")
        assert warnings(product, text) == []


def test_what_others_call_themselves_harms_no_terminal(lab: Lab, product: Product) -> None:
    lab.host.serve("tcp", ANY[0], 8080)
    with actor(lab, "\x1b[31mroot\n", "0.0.0.0", 80):
        told = product.run("apply", product.file(mapping("web", 80, 8080, family="ipv4")))
    assert "\x1b" not in told
    assert "\\x1b[31mroot" in told
