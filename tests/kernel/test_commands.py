"""The commands as people and scripts meet them: every exit code of the table, and the JSON that others rely on.

What tells of the kernel runs on each backend; what words, files and generations mean is no matter of the backend.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redirector import mappings
from redirector.history import KEEP, Record
from tests.kernel.admin import Admin, admin
from tests.kernel.echo import Answered, Refused
from tests.kernel.lab import CLIENT, COMMAND_TIMEOUT, HOST, HOST_SECONDARY, Lab
from tests.kernel.product import Product, insist, mapping, on_each, on_iptables, on_nftables, ruleset

pytestmark = on_nftables

WEB = mapping("web", 80, 8080)
DNS = mapping("dns", 53, 5300, protocol=["tcp", "udp"], address=list(HOST_SECONDARY))


@pytest.fixture(scope="module")
def shut_out() -> Iterator[tuple[Lab, "subprocess.Popen[str]"]]:
    """An apply that waits for a lock that somebody else holds. It starts early: it has a long time to give up in."""
    with tempfile.TemporaryDirectory() as folder, Lab(f"{folder}/state") as lab, Product(lab) as product:
        argv, file = lab.command("apply", product.file(WEB), *insist()), product.history
        with file.locked():
            pipe = subprocess.PIPE
            waiting = lab.host.namespace.popen(argv, env=lab.environment(), text=True, stdout=pipe, stderr=pipe)
            with waiting:
                yield lab, waiting
                waiting.kill()


@pytest.fixture(autouse=True)
def early(shut_out: object) -> None:
    """Whichever test is the first."""


def with_mishap(lab: Lab, how: str, *args: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "tests.kernel.mishap", how, *args, *insist()]
    return lab.host.namespace.run(argv, env=lab.environment(), text=True, timeout=COMMAND_TIMEOUT)


class TestExitCodes:
    """One test for each row of the table that is not a whole subject elsewhere."""

    @on_each
    def test_0_done(self, product: Product) -> None:
        file = product.file(WEB)
        for command in (["check", file], ["apply", file], ["plan", file], ["status"], ["history"], ["show"]):
            product.run(*command)
        for command in (["render", file], ["schema"], ["rollback", "1"], ["remove"]):
            product.run(*command)

    @on_each
    def test_1_refused_and_nothing_changed(self, product: Product) -> None:
        product.apply(WEB)
        before = product.admin.sees()
        told = product.run("apply", product.file(""), code=1)
        assert "--allow-empty" in told
        assert product.admin.sees() == before

    @on_each
    def test_2_changes_drift_and_differences(self, product: Product) -> None:
        file = product.file(WEB)
        product.run("plan", file, code=2)
        product.run("apply", file)
        product.run("apply", product.file(WEB + DNS, "more.toml"))
        product.run("compare", "1", "2", code=2)
        product.run("compare", file, "2", code=2)
        product.admin.deletes(80)
        product.run("status", code=2)

    @on_each
    def test_3_nothing_applied(self, product: Product) -> None:
        assert product.json("status", code=3)["state"] == "absent"
        product.apply(WEB)
        product.run("remove")
        assert product.json("status", code=3)["state"] == "drained"
        product.run("remove", "--purge")
        assert product.json("status", code=3)["state"] == "absent"

    @on_each
    def test_4_unknown(self, product: Product) -> None:
        """A table of ours without a history; and the next apply is not stopped by that."""
        product.apply(WEB)
        shutil.rmtree(product.history.folder)
        self.is_unknown_until_applied_again(product)

    def is_unknown_until_applied_again(self, product: Product) -> None:
        found = product.json("status", code=4)
        assert (found["state"], found["generation"]) == ("unknown", None)
        before = product.admin.sees()
        assert product.json("apply", product.file(WEB))["recorded"]
        assert product.admin.sees() == before  # the kernel is the truth, and it is as it should be
        assert product.status().state == "in-sync"

    @pytest.mark.parametrize("damage", ["empty", "truncated", "another", "folder", "junk"])
    def test_4_unreadable(self, product: Product, damage: str) -> None:
        product.apply(WEB)
        record = Path(product.history.folder, "generations", "000001.json")
        data = record.read_bytes()
        if damage == "folder":
            record.unlink()
            record.mkdir()
        else:
            changed = {"empty": b"", "truncated": data[:-30], "another": data.replace(b"8080", b"8081"), "junk": b"\0["}
            record.write_bytes(changed[damage])
        if damage == "truncated":
            assert "unreadable" in product.run("history")
            assert "damaged" in product.run("show", "1", code=7)
            assert "damaged" in product.run("rollback", "1", code=7)
        self.is_unknown_until_applied_again(product)

    @on_each
    def test_5_changed_and_rolled_back(self, lab: Lab, product: Product) -> None:
        file = product.file(WEB + DNS)
        for before in ("", WEB):
            if before:
                product.apply(before)
            program, genid = product.backend.observe().program, product.genid()
            done = with_mishap(lab, "record", "apply", file)
            assert done.returncode == 5, done.stderr
            assert "put back" in done.stderr
            if product.backend.name == "nftables":
                assert product.genid() == genid + 2  # it was changed, and it was undone
            assert product.backend.observe().program == program
            assert product.history.numbers() == ([1] if before else [])
        assert product.json("status")["state"] == "in-sync"

    @on_each
    def test_6_undoing_failed_too(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        file = product.file(WEB + DNS)
        done = with_mishap(lab, "undo", "apply", file, "--json")
        assert done.returncode == 6, done.stderr
        assert json.loads(done.stdout)["error"]["code"] == 6
        # Told as it is: the kernel holds what is not recorded.
        assert product.history.numbers() == [1]
        assert product.json("status", code=2)["state"] == "drifted"
        product.run("apply", file)
        assert product.json("status")["generation"] == 2

    def test_7_no_such_generation(self, lab: Lab, product: Product) -> None:
        for command in (["rollback"], ["rollback", "1"], ["show"], ["show", "1"], ["compare", "1", "2"]):
            product.run(*command, code=7)
        product.apply(WEB)
        for command in (["rollback"], ["rollback", "2"], ["show", "0"], ["compare", "1", "9"]):
            product.run(*command, code=7)
        for command in (["confirm"], ["cancel"]):
            product.run(*command, code=7)  # nothing pending

    @pytest.mark.parametrize(
        "command",
        [
            "aply",
            "apply --nonsense",
            "apply a b",
            "rollback one",
            "compare 1",
            "render --as pdf",
            "completion tcsh",
            "--netns",
        ],
    )
    def test_64_usage(self, product: Product, command: str) -> None:
        words = command.split()
        product.run(*(words if words[0] != "render" else ["render", product.file(WEB), *words[1:]]), code=64)

    def test_64_as_json_and_with_what_people_stumble_over(self, lab: Lab) -> None:
        done = lab.redirector("apply", "mappings.toml", "--confirm", "5m", "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (64, 64)
        assert "--confirm=60s" in error["hint"]
        assert "--confirm=60s" in done.stderr

    @on_iptables
    def test_69_backend_unavailable(self, lab: Lab, product: Product) -> None:
        file = product.file(WEB)
        product.run("check", file)
        bare = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh"]
        for command in ("plan", "apply"):
            argv = [*bare, *lab.command(command, file, *(insist() if command == "apply" else ()))]
            with lab.host.namespace.popen(argv, env=lab.environment(), stderr=subprocess.PIPE, text=True) as child:
                _, told = child.communicate()
            assert child.returncode == 69
            assert f"there is no {product.backend.name}-save on this host" in told
            assert "install the package iptables" in told
        assert not product.admin.sees_ours()

    @on_each
    def test_75_overtaken(self, product: Product) -> None:
        plan = f"{product.history.folder}.plan"
        product.run("plan", product.file(WEB), "--out", plan, code=2)
        product.apply(DNS)
        before = product.admin.sees()
        assert "plan again" in product.run("apply", plan, code=75)
        assert product.admin.sees() == before

    @on_each
    def test_77_not_permitted(self, lab: Lab, product: Product) -> None:
        """As a user without CAP_NET_ADMIN; whose files they are does not come into it."""
        product.apply(WEB)
        product.apply(WEB + DNS)
        before, text = product.admin.sees(), f"version = 1\n{WEB}"
        for command in ("plan -", "apply -", "apply - --dry-run", "status", "remove", "rollback"):
            argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *lab.command(*command.split())]
            done = lab.host.namespace.run(argv, env=lab.environment(), input=text, text=True, timeout=COMMAND_TIMEOUT)
            assert done.returncode == 77, (command, done.stderr)
            assert "CAP_NET_ADMIN" in done.stderr
        assert product.admin.sees() == before
        assert product.history.numbers() == [1, 2]

    def test_77_state_of_somebody_else(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        genid = product.genid()
        os.chmod(product.history.folder, 0)
        argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *lab.command("history")]
        done = lab.host.namespace.run(argv, env=lab.environment(), text=True, timeout=COMMAND_TIMEOUT)
        assert done.returncode == 77, done.stderr
        assert "state" in done.stderr
        os.chmod(product.history.folder, 0o700)
        assert product.genid() == genid

    def test_78_bad_configuration(self, lab: Lab, product: Product) -> None:
        file = product.file('[[mapping]]\nname = "web"\nlisten = 70000\nto = true\n')
        for command in ("check", "plan", "apply", "render"):
            told = product.run(command, file, code=78)
            assert f"{file}:4:10:" in told
            assert f"{file}:5:6:" in told
        assert len(product.json("check", file, code=78)["problems"]) == 2
        product.run("apply", f"{file}.missing", code=78)
        assert lab.host.nft_list() == ""

    @pytest.mark.parametrize("mode", [0o602, 0o777])
    def test_78_unsafe_file(self, lab: Lab, product: Product, mode: int) -> None:
        file = product.file(WEB)
        os.chmod(file, mode)
        told = product.run("apply", file, code=78, insists=False)
        assert "everybody may write it" in told
        assert "--allow-unsafe-file" in told
        product.run("check", file)
        product.run("plan", file, code=2)
        assert lab.host.nft_list() == ""
        product.run("apply", file, "--allow-unsafe-file")

    def test_78_unsafe_folder(self, lab: Lab, product: Product) -> None:
        folder = Path(f"{product.history.folder}.d")
        folder.mkdir()
        file = folder / "web.toml"
        file.write_text(f"version = 1\n{WEB}")
        folder.chmod(0o777)
        for path in (str(file), str(folder)):
            assert "unsafe" in product.run("apply", path, code=78, insists=False)
        folder.chmod(0o755)
        product.run("apply", str(folder))


class TestJson:
    """The fields that others rely on, with the types that they have; more may come."""

    def has(self, found: dict[str, Any], **fields: type | tuple[type, ...]) -> None:
        assert fields.keys() <= found.keys()
        for name, kind in fields.items():
            assert isinstance(found[name], kind), name

    @on_each
    def test_plan(self, product: Product) -> None:
        product.apply(WEB + DNS + mapping("gone", 90, 9090))
        product.admin.adds_a_chain()
        file = product.file(mapping("web", 80, 8081) + DNS + mapping("new", "1000-1009", "2000-2009"))
        found = product.json("plan", file, code=2)
        self.has(found, in_sync=bool, changes=list)
        assert found["in_sync"] is False
        told = [(change["action"], change["mapping"]) for change in found["changes"]]
        assert set(told) == {("add", "new"), ("change", "web"), ("remove", "gone"), ("remove", None)}
        assert len([name for _, name in told if name]) == 3  # a chain more is told for each family where it has two
        product.run("apply", file)
        assert product.json("plan", file) == {"in_sync": True, "changes": [], "findings": []}

    @on_each
    def test_status(self, product: Product) -> None:
        file = product.file(WEB)
        nothing = (str, type(None))
        for step, code in (([], 3), (["apply", file], 0), (["remove"], 3)):
            if step:
                product.run(*step)
            found = product.json("status", code=code)
            self.has(found, state=str, backend=str, generation=(int, type(None)), drift=list)
            assert found["backend"] == (product.backend.name if step else "nftables")  # of `auto`, to begin with
        product.apply(WEB)
        product.admin.deletes(80)
        found = product.json("status", code=2)
        assert (found["state"], found["generation"]) == ("drifted", 3)
        for drift in found["drift"]:
            self.has(drift, kind=str, mapping=nothing, detail=str)
        assert [(drift["kind"], drift["mapping"]) for drift in found["drift"]] == [("missing", "web")]

    def test_history(self, lab: Lab, product: Product) -> None:
        assert product.json("history") == []
        for text in (WEB, WEB + DNS):
            product.apply(text)
        found = product.json("history")
        for record in found:
            self.has(record, generation=int, applied_at=str, digest=str, confirmed=bool, mappings=int)
        assert [(record["generation"], record["mappings"]) for record in found] == [(1, 1), (2, 2)]
        assert [record["digest"] for record in found] == [mappings.digest(ruleset(x)) for x in (WEB, WEB + DNS)]

    def test_errors(self, lab: Lab, product: Product) -> None:
        for code, command in ((7, ["rollback"]), (78, ["apply", "/nowhere.toml"]), (1, ["apply", product.file("")])):
            found = product.json(*command, code=code)
            assert found["ok"] is False
            assert found["error"]["code"] == code

    @on_each
    def test_outcome_of_apply(self, product: Product) -> None:
        file = product.file(WEB)
        for changed, recorded in ((True, True), (False, False)):
            found = product.json("apply", file)
            assert (found["changed"], found["recorded"], found["generation"]) == (changed, recorded, 1)
        findings = product.json("plan", product.file(DNS), code=2)["findings"]
        assert {(found["mapping"], found["override"]) for found in findings} == {("dns", None)}


class TestSavedPlans:
    def plan(self, product: Product, text: str) -> str:
        path = f"{product.history.folder}.plan"
        product.run("plan", product.file(text), "--out", path, code=2)
        assert os.stat(path).st_mode & 0o777 == 0o600
        return path

    @on_each
    def test_is_applied(self, product: Product) -> None:
        product.apply(WEB)
        plan = self.plan(product, WEB + DNS)
        wanted = mappings.load(product.file(WEB + DNS))
        file = product.file("broken [")  # the file itself plays no part any more
        product.run("apply", plan)
        found = product.json("status", code=0)
        assert (found["state"], found["generation"]) == ("in-sync", 2)
        current = product.history.current()
        assert isinstance(current, Record)
        assert (current.ruleset, current.origin) == (wanted, file)

    @on_each
    def test_is_not_refused_for_what_others_do_elsewhere(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        plan = self.plan(product, WEB + DNS)
        product.admin.works_elsewhere()
        lab.host.serve("tcp", HOST[0], 8080)
        assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)  # nor for counters of ours
        product.run("apply", plan)
        assert product.status().state == "in-sync"

    @on_each
    def test_is_refused_after_a_change_of_what_is_ours(self, product: Product) -> None:
        changes: tuple[Callable[[Admin], None], ...] = (
            lambda other: other.deletes(80),
            lambda other: other.turns(80),
            lambda other: other.adds_a_chain(),
            lambda other: other.flushes(),
        )
        for change in changes:
            product.apply(WEB)
            plan = self.plan(product, WEB + DNS)
            change(product.admin)
            before = product.admin.sees()
            product.run("apply", plan, code=75)
            assert product.admin.sees() == before
            assert product.history.numbers() == [1]

    @on_each
    def test_is_refused_in_another_namespace(self, lab: Lab, product: Product) -> None:
        plan = self.plan(product, WEB)
        product.run("apply", plan, code=75, machine=lab.client)
        assert not admin(lab.client, product.backend.name).sees_ours()
        product.run("apply", plan)

    def test_damaged_one(self, product: Product) -> None:
        plan = Path(self.plan(product, WEB))
        for text in ("{}", plan.read_text()[:-20], plan.read_text().replace("80", "80000")):
            plan.write_text(text)
            product.run("apply", str(plan), code=78)


class TestGenerations:
    @on_each
    def test_rollback_and_back_again(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        product.apply(mapping("web", 80, 8081))
        lab.host.serve("tcp", HOST[0], 8080, 8081)

        def target() -> int:
            answer = lab.client.ask_tcp(HOST[0], 80)
            assert isinstance(answer, Answered)
            return answer.port

        assert target() == 8081
        for generation, port in ((3, 8080), (4, 8081)):
            assert product.json("rollback")["generation"] == generation
            assert target() == port
        product.run("rollback", "1")
        assert target() == 8080
        product.run("remove")
        assert lab.client.ask_tcp(HOST[0], 80) == Refused()
        product.run("rollback")
        assert target() == 8080
        assert [found["generation"] for found in product.json("history")] == list(range(1, 8))
        assert product.json("status")["generation"] == 7

    @on_each
    def test_rollback_of_a_purge_and_to_one(self, product: Product) -> None:
        product.run("apply", product.file(WEB))
        product.run("remove", "--purge")
        assert not product.admin.sees_ours()
        product.run("rollback")
        assert product.status().state == "in-sync"
        product.run("rollback", "2")
        assert not product.admin.sees_ours()

    def test_show_prints_a_file_that_can_be_applied(self, lab: Lab, product: Product) -> None:
        text = WEB + DNS + mapping("u", 90, 9090) + 'comment = "with \\"quotes\\" and ünïcode"\n'
        product.apply(f"[settings]\npriority = -120\n{text}")
        shown = product.run("show", "1")
        assert mappings.load(product.file(shown.replace("version = 1\n", "", 1))) == ruleset(
            f"[settings]\npriority = -120\n{text}"
        )
        found = product.json("show")
        assert found["generation"] == 1
        assert [one["name"] for one in found["ruleset"]["mapping"]] == ["web", "dns", "u"]

    def test_compare(self, lab: Lab, product: Product) -> None:
        product.apply(WEB)
        product.apply(mapping("web", 80, 8081) + DNS)
        product.apply(WEB)
        assert product.json("compare", "1", "3") == {"equal": True, "differences": []}
        found = product.json("compare", "1", "2", code=2)
        assert {"mapping": "web", "key": "to", "a": "8080", "b": "8081"} in found["differences"]
        assert {one["mapping"] for one in found["differences"]} == {"web", "dns"}
        product.run("compare", "3", product.file(WEB))

    def test_the_last_ones_are_kept(self, lab: Lab, product: Product) -> None:
        for number in range(KEEP + 3):
            product.apply(mapping("web", 80, 8000 + number))
        product.run("apply", product.file(WEB))
        assert product.history.numbers() == list(range(5, KEEP + 5))
        product.run("rollback", "1", code=7)
        product.run("rollback", "5")

    def test_state_is_private(self, lab: Lab, product: Product) -> None:
        product.run("apply", product.file(WEB))
        for folder, _folders, files in os.walk(product.history.folder):
            assert os.stat(folder).st_mode & 0o777 == 0o700
            for file in files:
                assert os.stat(os.path.join(folder, file)).st_mode & 0o777 == 0o600

    def test_state_dir_before_and_after_the_command(self, lab: Lab, product: Product) -> None:
        other = f"{product.history.folder}.other"
        product.run("--state-dir", other, "apply", product.file(WEB))
        assert [found["generation"] for found in product.json("history", "--state-dir", other)] == [1]
        assert product.json("history") == []
        assert product.json("status", code=4)["state"] == "unknown"
        assert product.json("status", "--state-dir", other)["state"] == "in-sync"


class TestNetns:
    @on_each
    def test_works_there_and_nowhere_else(self, lab: Lab, product: Product) -> None:
        """The command runs on the client, and acts on the host by its name."""
        names = {"redirector-test": lab.host, "redirector-other": lab.neighbour}
        file, there = product.file(WEB), ["--netns", "redirector-test"]
        product.run("apply", file, *there, machine=lab.client, names=names)
        assert not admin(lab.client, product.backend.name).sees_ours()
        lab.host.serve("tcp", HOST[0], 8080)
        assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])
        # Each has a state of its own.
        assert product.json(*there, "status", machine=lab.client, names=names)["generation"] == 1
        assert product.json("status", code=3, machine=lab.client)["state"] == "absent"
        assert product.json("status", "--netns", "redirector-other", code=3, machine=lab.client, names=names)
        assert product.json("history", machine=lab.client) == []
        product.admin.deletes(80)
        product.run("status", *there, code=2, machine=lab.client, names=names)
        product.run("remove", "--purge", *there, machine=lab.client, names=names)
        assert not product.admin.sees_ours()

    @pytest.mark.parametrize("name", ["missing", "..", "a/b", "."])
    def test_names_that_are_none(self, lab: Lab, product: Product, name: str) -> None:
        told = product.run("apply", product.file(WEB), "--netns", name, code=1, names={"there": lab.host})
        assert "network namespace" in told
        assert lab.host.nft_list() == ""


class TestStreams:
    def test_standard_input(self, lab: Lab, product: Product) -> None:
        product.run("apply", "-", input=f"version = 1\n{WEB}")
        assert product.json("status")["state"] == "in-sync"
        assert "<stdin>:1:1:" in product.run("check", "-", code=78, input="versoin = 1")

    def test_no_colour_where_nobody_looks(self, lab: Lab, product: Product) -> None:
        for command, code in ((["plan", product.file(WEB)], 2), (["status"], 3), (["rollback"], 7)):
            assert "\x1b" not in product.run(*command, code=code)

    def test_a_reader_that_goes_away_changes_nothing(self, lab: Lab, product: Product) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with contextlib.closing(os.fdopen(writer, "wb")) as nobody:
            argv = lab.command("apply", product.file(WEB), *insist())
            streams = {"stdin": subprocess.DEVNULL, "stdout": nobody, "stderr": nobody}
            child = lab.host.namespace.popen(argv, env=lab.environment(), **streams)
            with child:
                assert child.wait(COMMAND_TIMEOUT) == 0
        assert product.status().state == "in-sync"


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_scripts(self, product: Product, shell: str) -> None:
        script = product.run("completion", shell)
        assert "_REDIRECTOR_COMPLETE" in script
        if shell == "bash":
            done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")

    def test_completes_commands_and_options(self, product: Product) -> None:
        for words, wanted in (("redirector ro", "rollback"), ("redirector apply --allow-e", "--allow-empty")):
            env = {
                "_REDIRECTOR_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            }
            assert f"plain,{wanted}" in product.run(env=env).splitlines()


BOTH_COMMANDS = """
"$PYTHON" -m redirector apply "$@" 2>&1; echo "= $?"
"$PYTHON" -m redirector status; echo "= $?"
"""


def test_a_transaction_too_large_for_a_user_namespace(lab: Lab, product: Product) -> None:
    """Only there is the send buffer bounded: what does not fit is refused before anything is changed."""
    file = product.file(mapping("x" * 63, "1-65535", 8080, protocol=["tcp", "udp"]))
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", BOTH_COMMANDS, "sh", file, *insist()]
    environment = lab.environment({"PYTHON": sys.executable, "REDIRECTOR_STATE_DIR": f"{product.history.folder}.user"})
    done = subprocess.run(argv, env=environment, text=True, capture_output=True, timeout=COMMAND_TIMEOUT, check=True)
    with open("/proc/sys/net/core/wmem_max", encoding="ascii") as limit:
        fits = 2 * int(limit.read()) > 2 * 65535 * 110  # the kernel doubles the limit; an element takes about 110 bytes
    assert ("larger than this user namespace may send" in done.stdout) is not fits
    codes = [line for line in done.stdout.splitlines() if line.startswith("= ")]
    assert codes == (["= 0", "= 0"] if fits else ["= 1", "= 3"])


def test_75_locked_by_somebody_else(shut_out: tuple[Lab, "subprocess.Popen[str]"]) -> None:
    lab, waiting = shut_out
    told, complaint = waiting.communicate(timeout=COMMAND_TIMEOUT)
    assert waiting.returncode == 75, told + complaint
    assert f"process {os.getpid()}" in complaint
    assert lab.host.nft_list() == ""
