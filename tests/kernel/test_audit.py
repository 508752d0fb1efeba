"""An audit of a real host: the whole chain of a port, for each mechanism that lets a server have it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_nftables
from tests.kernel.systemd_box import SYSTEM_PYTHON

NOBODY = "65534"
WEB = mapping("web", 80, 8080)
DROP = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--")
LISTEN = """
import os, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
one = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family, dualstack_ipv6=family == socket.AF_INET6)
for _ in range(int(sys.argv[3])):  # workers without privileges
    if not os.fork():
        os.setresuid(65534, 65534, 65534)
        break
if sys.argv[3] == "-1":  # gives its right up, as a server does that has read its configuration
    import ctypes
    ctypes.CDLL(None).prctl(47, 4, 0, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def product(lab: Lab) -> Iterator[Product]:
    with Product(lab) as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="redirector-audit-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def server(
    lab: Lab, *before: str, address: str = "::", port: int = 80, workers: int = 0, program: str = SYSTEM_PYTHON
) -> Iterator[int]:
    """A server that stands; the number of its process."""
    argv = [*before, program, "-I", "-c", LISTEN, address, str(port), str(workers)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with lab.host.namespace.popen(argv, cwd="/", text=True, **pipes) as running:
        assert running.stdin
        assert running.stdout
        assert [running.stdout.readline() for _ in range(max(workers, 0) + 1)] == ["up\n"] * (max(workers, 0) + 1)
        yield running.pid
        running.stdin.close()


def audit(product: Product, *ports: int, code: int | None = None) -> Any:
    """What `audit` says as JSON; the text says the same."""
    words = ["audit", *map(str, ports)]
    done = product.lab.redirector(*words, "--json")
    found = json.loads(done.stdout)
    told = product.lab.redirector(*words)
    assert done.returncode == told.returncode == (2 if alarming(found) else 0)
    assert code in (None, done.returncode)
    for one in found["findings"]:
        assert one["message"] in told.stdout
        assert all(step in told.stdout for step in one["fix"])
    for chain in found["ports"]:
        assert f"{chain['protocol']} {chain['ports']}\n" in told.stdout
        assert all(one["why"] in told.stdout for one in chain["sockets"])
    return found


def alarming(found: Any) -> bool:
    return any(one["severity"] != "note" for one in found["findings"])


def chain(found: Any, port: int) -> Any:
    (one,) = [one for one in found["ports"] if one["port"] == port]
    return one


def ids(found: Any, port: int) -> set[str]:
    return {one["id"] for one in found["findings"] if one["port"] == port}


class TestTheChain:
    def test_redirect_socket_process_mechanism_file(self, lab: Lab, product: Product) -> None:
        file = product.file("\n" + WEB)
        product.run("apply", file)
        with server(lab, *DROP, port=8080) as pid:
            found = chain(audit(product, 80), 80)
        assert [(r["owner"], r["mapping"], r["to"], r["file"], r["line"]) for r in found["rules"]] == [
            ("redirector", "web", 8080, file, 4)
        ]
        (served,) = found["sockets"]
        assert (served["address"], served["port"], served["user"], served["mechanism"]) == (
            "::",
            8080,
            "nobody",
            "unprivileged",
        )
        assert [(p["pid"], p["user"], p["executable"]) for p in served["processes"]] == [
            (pid, "nobody", os.path.realpath(SYSTEM_PYTHON))
        ]

    def test_the_rules_of_others_in_the_order_in_which_they_run(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        lab.host.run(
            *("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80"),
            *("-j", "REDIRECT", "--to-ports", "9090"),
        )
        found = chain(audit(product, 80), 80)
        assert [(r["priority"], r["to"], r["sides"]) for r in found["rules"]] == [
            (-110, 8080, ["arriving", "own"]),
            (-100, 9090, ["arriving"]),
        ]
        assert found["leads_to"] == 8080

    def test_what_was_taken_out_of_the_kernel_is_no_rule(self, lab: Lab, product: Product) -> None:
        product.apply(WEB + mapping("other", 81, 8081))
        lab.host.run("nft", "delete", "element", "inet", "redirector", "ports", "{ tcp . 80 }")
        found = audit(product, 80)
        assert chain(found, 80)["rules"] == []
        (drifted,) = [one for one in found["findings"] if one["id"] == "R-drifted"]
        assert "web" in drifted["message"]
        assert chain(audit(product, 81), 81)["rules"] != []
        product.apply(WEB + mapping("other", 81, 8081))
        assert "R-drifted" not in {one["id"] for one in audit(product, 80)["findings"]}

    def test_a_shadowed_server_and_a_target_of_the_wrong_owner(self, lab: Lab, product: Product) -> None:
        product.apply(mapping("web", 80, 8080, owner="daemon", exclusive=True))
        with server(lab, *DROP, port=8080), server(lab, port=80):
            found = audit(product, 80, code=2)
        assert ids(found, 80) >= {"R-shadowed", "R-owner"}
        assert "R-direct" not in ids(found, 80)
        assert [one["mechanism"] for one in chain(found, 80)["shadowed"]] == ["root"]

    def test_a_range_is_one_chain(self, product: Product) -> None:
        product.apply(mapping("many", "20000-29999", 8080))
        found = [one["ports"] for one in audit(product)["ports"]]
        assert found.count("20000-29999") == 1


@on_nftables  # what let a server bind is no matter of the rules
class TestMechanisms:
    """Each on port 80 of a namespace without rules, by a real process."""

    def mechanism(self, product: Product, port: int = 80) -> tuple[str, str | None, list[str]]:
        (served,) = chain(audit(product, port), port)["sockets"]
        return served["mechanism"], served["file"], [one["user"] for one in served["processes"]]

    def test_root(self, lab: Lab, product: Product) -> None:
        with server(lab):
            assert self.mechanism(product) == ("root", None, ["root"])

    def test_a_parent_that_hands_its_socket_on(self, lab: Lab, product: Product) -> None:
        with server(lab, workers=2):
            assert self.mechanism(product) == ("parent", None, ["root", "nobody", "nobody"])
            (note,) = [one for one in audit(product, 80)["findings"] if one["id"] == "P-shared"]
        assert note["severity"] == "note"
        assert "2 workers" in note["message"]

    def test_a_file_capability(self, lab: Lab, product: Product, folder: Path) -> None:
        program = shutil.copy(os.path.realpath(SYSTEM_PYTHON), folder / "server")
        lab.host.run("setcap", "cap_net_bind_service=ep", str(program))
        with server(lab, *DROP, "env", "--", program=str(program)):
            assert self.mechanism(product) == ("capability", str(program), ["nobody"])

    def test_an_ambient_capability(self, lab: Lab, product: Product) -> None:
        words = ("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service")
        with server(lab, *DROP[:-1], *words, "--"):
            assert self.mechanism(product) == ("ambient", None, ["nobody"])

    def test_the_sysctl(self, lab: Lab, product: Product) -> None:
        lab.host.sysctl("net/ipv4/ip_unprivileged_port_start", "80")
        with server(lab, *DROP):
            assert self.mechanism(product) == ("sysctl", None, ["nobody"])
            found = audit(product, 80, code=2)
        assert {one["id"] for one in found["findings"]} >= {"Y-lowered", "Y-differs"}

    def test_authbind(self, lab: Lab, product: Product, folder: Path) -> None:
        for name in ("byport", "byaddr", "byuid"):
            (folder / name).mkdir()
        grant = folder / "byport" / "80"
        grant.touch()
        grant.chmod(0o500)
        os.chown(grant, int(NOBODY), int(NOBODY))
        bound = f'mount --bind {folder} /etc/authbind; exec "$@"'
        private = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", bound, "sh")
        with server(lab, *private, *DROP, "authbind", "--deep"):
            assert self.mechanism(product)[0] == "authbind"

    def test_a_right_that_was_given_up(self, lab: Lab, product: Product) -> None:
        words = ("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service")
        with server(lab, *DROP[:-1], *words, "--", workers=-1):
            assert self.mechanism(product) == ("unknown", None, ["nobody"])


@on_nftables
def test_without_capabilities_it_tells_what_it_cannot_see(lab: Lab, product: Product) -> None:
    powerless = ["setpriv", "--bounding-set=-all", "--"]
    done = lab.host.namespace.run([*powerless, *lab.command("audit", "80", "--json")], env=lab.environment(), text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 2
    assert [one["id"] for one in found["findings"] if "cannot be read" in one["message"]]


@on_nftables
def test_the_root_has_to_be_a_folder(product: Product) -> None:
    product.run("audit", "--root", "/nonexistent", code=1)
    product.run("audit", "0", code=64)
    product.run("audit", "--root", "/", "--netns", "x", code=64)


@on_nftables
def test_a_tree(product: Product, tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "etc" / "redirector"
    folder.mkdir(parents=True)
    (folder / "mappings.toml").write_text(f"version = 1\n{mapping('web', 80, 8080, exclusive=True)}")
    found = product.json("audit", "--root", str(tmp_path / "tree"), code=0)
    (rule,) = chain(found, 80)["rules"]
    assert (rule["mapping"], rule["file"], rule["line"]) == ("web", "/etc/redirector/mappings.toml", 3)
    assert found["root"] == str(tmp_path / "tree")


@on_nftables
class TestCompare:
    """Two audits, of hosts or of trees; told from generations and mapping files by what they are."""

    def saved(self, lab: Lab, path: Path) -> str:
        path.write_text(lab.redirector("audit", "80", "--json").stdout)
        return str(path)

    def test_the_same_host_by_another_mechanism(self, lab: Lab, product: Product, tmp_path: Path) -> None:
        ambient = (*DROP[:-1], "--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service", "--")
        with server(lab):
            before, again = (self.saved(lab, tmp_path / name) for name in ("a.json", "b.json"))
        with server(lab):
            restarted = self.saved(lab, tmp_path / "c.json")
        with server(lab, *ambient):
            after = self.saved(lab, tmp_path / "d.json")
        for other in (before, again, restarted):
            assert product.json("compare", before, other) == {"equal": True, "differences": []}
        found = product.json("compare", before, after, code=2)
        assert not found["equal"]
        rows = {(one["kind"], one["about"], one["key"]): (one["a"], one["b"]) for one in found["differences"]}
        assert rows[("port", "tcp 80", "[::]:80 mechanism")] == ("root", "ambient")
        assert rows[("port", "tcp 80", "[::]:80 user")] == ("root", "nobody")
        (command,) = [key.split()[1] for _, _, key in rows if key.endswith(" ambient") and key.startswith("[")]
        assert rows[("port", "tcp 80", f"[::]:80 {command} ambient")] == (None, "cap_net_bind_service")
        assert {kind for kind, _, _ in rows} == {"port"}
        text = product.run("compare", before, after, code=2)
        assert "tcp 80\n" in text
        assert "  - [::]:80 mechanism = root\n  + [::]:80 mechanism = ambient\n" in text

    def test_what_is_in_force(self, lab: Lab, product: Product, tmp_path: Path) -> None:
        before = self.saved(lab, tmp_path / "a.json")
        product.run("apply", product.file(WEB))
        found = product.json("compare", before, self.saved(lab, tmp_path / "b.json"), code=2)["differences"]
        assert [(d["kind"], d["about"], d["key"]) for d in found] == [
            ("port", "tcp 80", "rule of redirector"),
            ("port", "tcp 80", "file of redirector"),
            ("port", "tcp 80", "leads to"),
            ("finding", "R-unserved port 80", "warning"),
        ]

    def test_counters_of_others_are_no_difference(self, lab: Lab, product: Product, tmp_path: Path) -> None:
        lab.host.nft("add table ip nat; add chain ip nat in { type nat hook output priority -100; }")
        lab.host.nft("add rule ip nat in tcp dport 80 counter redirect to :8080")
        before = self.saved(lab, tmp_path / "a.json")
        with server(lab, port=8080):
            lab.host.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80")
        after = self.saved(lab, tmp_path / "b.json")
        assert Path(before).read_text() != Path(after).read_text()
        product.run("compare", before, after)

    def test_two_trees(self, product: Product, tmp_path: Path) -> None:
        for name, value in (("a", 80), ("b", 443), ("c", 80)):
            folder = tmp_path / name / "etc" / "sysctl.d"
            folder.mkdir(parents=True)
            (folder / "x.conf").write_text(f"net.ipv4.ip_unprivileged_port_start = {value}\n")
        one, other, same = (str(tmp_path / name) for name in "abc")
        assert product.json("compare", "--root", one, same) == {"equal": True, "differences": []}
        (found,) = product.json("compare", "--root", one, other, code=2)["differences"]
        assert (found["kind"], found["key"], found["a"], found["b"]) == ("sysctl", "configured", "80", "443")
        assert product.json("compare", one, "--root", other, code=2) == product.json(
            "compare", "--root", one, "--root", other, code=2
        )

    def test_what_cannot_be_compared(self, lab: Lab, product: Product, tmp_path: Path) -> None:
        file, audited = product.file(WEB), self.saved(lab, tmp_path / "a.json")
        for words in (
            [audited, file],
            [file, audited],
            ["--root", "/", "/"],
            ["--root", str(tmp_path), str(tmp_path), "x"],
        ):
            product.run("compare", *words, code=64)
        product.run("compare", audited, "1", code=7)
        product.run("compare", "--root", str(tmp_path), "/nonexistent", code=1)
        product.run("compare", audited, "/nonexistent", code=78)
        other = json.loads(Path(audited).read_text())
        (tmp_path / "b.json").write_text(json.dumps(other | {"asked": []}))
        assert "asked about other ports" in product.run("compare", audited, str(tmp_path / "b.json"), code=64)
        (tmp_path / "b.json").write_text(json.dumps(other | {"asked": None, "settings": 1}))
        told = product.json("compare", audited, str(tmp_path / "b.json"), code=78)
        assert [(p["file"], p["message"].split(":")[0]) for p in told["problems"]] == [
            (str(tmp_path / "b.json"), "asked"),
            (str(tmp_path / "b.json"), "settings"),
        ]

    def test_a_folder_is_one_of_mapping_files(self, product: Product, tmp_path: Path) -> None:
        folder, file = tmp_path / "folder", tmp_path / "web.toml"
        folder.mkdir()
        (folder / "web.toml").write_text(f"version = 1\n{WEB}")
        file.write_text(f"version = 1\n{mapping('web', 80, 8081)}")
        found = product.json("compare", str(folder), str(file), code=2)
        assert found["differences"] == [{"mapping": "web", "key": "to", "a": "8080", "b": "8081"}]
