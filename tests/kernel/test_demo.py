"""`redirector demo` as a child process: what it shows, what it leaves behind (nothing), and that it can fail.

A machine of the lab stands for the machine that the demo runs on: whatever happens to its network is the demo's doing.
"""

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

import redirector
from redirector import demo
from redirector.backends.nftables.backend import NftablesBackend
from redirector.host.addresses import interfaces
from tests.kernel.lab import Lab

CHECKOUT = Path(redirector.__file__).parent.parent
PATIENCE = 60.0  # seconds before a demo that hangs fails the test
F_SETPIPE_SZ = 1031  # linux/fcntl.h
PAGE = 4096
RUN_WITH = "import sys; from redirector import demo; sys.exit(demo.run(sys.argv[1]))"
# What comes of the namespaces' names goes to standard error, which has to stay empty.
THEN_LIST_NAMES = '"$@"; code=$?; ls -A /run/netns >&2; exit $code'


class Visit:
    """How a demo is run on the lab's host, and what is left of it. Its processes are known by their environment: the
    demo's has the folder for temporary files, and that of its children its state folder, which is in there."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.temporary = folder / "tmp"
        self.temporary.mkdir(mode=0o700)
        self.environment = lab.environment({"TMPDIR": str(self.temporary)})

    def start(self, argv: Sequence[str] = (), **streams: Any) -> subprocess.Popen[Any]:
        return self.lab.host.namespace.popen(argv or self.lab.command("demo"), env=self.environment, **streams)

    def run(self, argv: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        command = argv or self.lab.command("demo")
        return self.lab.host.namespace.run(command, env=self.environment, text=True, timeout=PATIENCE)

    def processes(self) -> list[int]:
        """Who is still there."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = Path("/proc", name, "environ").read_bytes()
            except OSError:  # ended meanwhile, or none of ours
                continue
            if os.fsencode(self.temporary) in environment:  # as TMPDIR, or in REDIRECTOR_STATE_DIR
                found.append(int(name))
        return found

    def leftovers(self) -> list[object]:
        """Processes, temporary files, and the user's own generations."""
        state = Path(self.lab.state_dir)
        return [*self.processes(), *self.temporary.iterdir(), *([state] if state.exists() else [])]


@pytest.fixture
def visit(lab: Lab, tmp_path: Path) -> Visit:
    return Visit(lab, tmp_path)


def read_until(start: str, stream: IO[str]) -> str:
    """What the demo prints, up to the first line that begins so."""
    read = ""
    for line in stream:
        read += line
        if line.startswith(start):
            return read
    pytest.fail(f"the demo never came to {start!r}: {read}")


def start_slowly(visit: Visit) -> tuple[subprocess.Popen[Any], IO[str]]:
    """A demo that cannot run far ahead of whoever reads what it prints: the pipe holds a page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, PAGE)
    try:
        child = visit.start(stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    return child, os.fdopen(reading, encoding="utf-8")


def test_everything_is_shown_and_nothing_is_left(visit: Visit) -> None:
    machine = visit.lab.host.namespace
    with contextlib.closing(machine.call(NftablesBackend)) as backend:
        before = backend.genid(), machine.call(interfaces)
        argv = ["sh", "-c", THEN_LIST_NAMES, "sh", *visit.lab.command("demo")]
        done = visit.run(visit.lab.with_names({}, argv))
        after = backend.genid(), machine.call(interfaces)
    assert (done.returncode, done.stderr) == (0, "")
    assert after == before
    assert visit.leftovers() == []
    assert "\x1b" not in done.stdout
    if os.stat("/").st_uid == 0:  # it seems to be somebody else's where the tests run in a user namespace
        assert "--allow-unsafe-file" not in done.stdout

    steps = re.split(r"^\d\. .*\n", done.stdout, flags=re.MULTILINE)
    assert [re.findall(r"\$ redirector (\w+)", step) for step in steps] == [
        [],
        [],
        ["apply"],
        ["plan", "apply", "status"],
        ["status", "apply"],
        ["rollback", "history"],
        ["remove", "status"],
    ]
    answers = [[(asked.rstrip(), seen) for asked, seen in re.findall("✓ (.{30}) (.*)", step)] for step in steps]
    pages = [
        ("client  http://192.0.2.1/", "200 OK: hello 192.0.2.100, from port 8080"),
        ("client  http://[2001:db8::1]/", "200 OK: hello 2001:db8::100, from port 8080"),
        ("host    http://127.0.0.1/", "200 OK: hello 127.0.0.1, from port 8080"),
        ("host    http://[::1]/", "200 OK: hello ::1, from port 8080"),
    ]
    refusals = [(asked, "Connection refused") for asked, _ in pages]
    echoes = [
        ("client  udp 192.0.2.1:53", "hello 192.0.2.100, from port 5353: ping"),
        ("client  udp [2001:db8::1]:53", "hello 2001:db8::100, from port 5353: ping"),
        ("host    udp 127.0.0.1:53", "hello 127.0.0.1, from port 5353: ping"),
        ("host    udp [::1]:53", "hello ::1, from port 5353: ping"),
    ]
    silence = (echoes[0][0], "Connection refused")
    direct = ("client  http://192.0.2.1:8080/", pages[0][1])
    assert answers[1] == [("listen on port 80", "Permission denied"), direct, *refusals[:2], silence]
    assert answers[2] == echoes
    tls = ("client  http://192.0.2.1:443/", "200 OK: hello 192.0.2.100, from port 8443")
    assert answers[3] == [("exit status (2: changes)", "2"), *pages, tls]
    assert answers[4] == [refusals[0], ("exit status (2: drift)", "2"), *pages]
    assert answers[5] == [*refusals, echoes[0]]
    assert answers[6][:2] == [("exit status (3: none applied)", "3"), silence]


def test_a_plain_user(visit: Visit) -> None:
    """User 1000 of a user namespace, which gives it no privileges, is as plain as they come."""
    done = visit.run(["unshare", "--user", "--map-user=1000", "--map-group=1000", *visit.lab.command("demo")])
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"✓ listen on port 80 +Permission denied\n", done.stdout)
    assert re.search(r"✓ client  http://192\.0\.2\.1/ +200 OK: hello 192\.0\.2\.100, from port 8080\n", done.stdout)
    assert visit.leftovers() == []


def test_colours_on_a_terminal(visit: Visit) -> None:
    visit.environment |= {"TERM": "xterm"}
    visit.environment.pop("NO_COLOR", None)
    reading, writing = os.openpty()
    try:
        child = visit.start(stdout=writing, stderr=writing, stdin=subprocess.DEVNULL)
    finally:
        os.close(writing)
    printed = b""
    with child, os.fdopen(reading, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(65536):
                printed += data
        except OSError:
            pass  # EIO: nobody writes to it any more
    assert child.returncode == 0, printed.decode()
    assert "\x1b[32m✓\x1b[0m client".encode() in printed  # the demo's own
    assert b"\x1b[32m+\x1b[0m web " in printed  # the commands'
    assert visit.leftovers() == []


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("to = 8080", "to = 8081", r"✗ client  http://192\.0\.2\.1/ +Connection refused\n"),
        ("to = 8080", "to = 8443", r"✗ client  http://192\.0\.2\.1/ +200 OK: .*, from port 8443\n"),
        ("version = 1", "version = ", r"✗ exit status .* 78\n"),
        ("listen = 443", "listen = 80", r"✗ exit status .* 78\n"),
    ],
)
def test_a_broken_promise_is_told(visit: Visit, tmp_path: Path, old: str, new: str, broken: str) -> None:
    text = (CHECKOUT / "rules" / "web.toml").read_text()
    assert old in text
    other = tmp_path / "other.toml"
    other.write_text(text.replace(old, new))
    done = visit.run([sys.executable, "-c", RUN_WITH, str(other)])
    assert done.returncode == 1
    assert "did not come out as promised" in done.stderr
    assert len(re.findall("✗", done.stdout)) == 1
    assert re.search(broken, done.stdout), done.stdout
    assert "meddles" not in done.stdout  # the step after it
    assert visit.leftovers() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_nothing_behind(visit: Visit, number: signal.Signals, code: int) -> None:
    child, output = start_slowly(visit)
    with child, output:
        read_until("1. ", output)
        child.send_signal(number)
        rest = output.read()
        complaints = child.stderr.read() if child.stderr else ""
    assert child.returncode == code, rest + complaints
    assert "All as promised" not in rest
    assert "Traceback" not in complaints
    assert visit.leftovers() == []


def test_servers_end_when_the_demo_is_killed(visit: Visit) -> None:
    child, output = start_slowly(visit)
    with child, output:
        told = re.search(r"process (\d+) of user", read_until("2. ", output))
        assert told
        server = int(told[1])
        assert server in visit.processes()
        watched = os.pidfd_open(server)
        try:
            child.kill()
            output.read()
            assert select.select([watched], [], [], PATIENCE)[0] == [watched]
        finally:
            os.close(watched)


def test_forbidden_namespaces_are_told(visit: Visit) -> None:
    none = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'  # of this user namespace, not of the machine
    command = ["unshare", "--user", "--map-root-user", "sh", "-euc", none, "sh", *visit.lab.command("demo")]
    done = visit.run(command)
    assert done.returncode == 69
    assert done.stdout == ""
    assert "namespaces cannot be made here" in done.stderr
    assert "Traceback" not in done.stderr
    assert visit.leftovers() == []


def test_rules_are_found_in_a_checkout() -> None:
    assert Path(demo.shipped_rules()) == CHECKOUT / "rules"


def test_rules_are_found_in_an_installed_package(tmp_path: Path) -> None:
    """As pyproject.toml lays the wheel out: rules inside of the package."""
    package = tmp_path / "redirector"
    shutil.copytree(CHECKOUT / "redirector", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "rules", package / "rules", ignore=shutil.ignore_patterns("*.nft"))
    script = "from redirector.demo import shipped_rules; print(shipped_rules())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=tmp_path, text=True)
    assert found == f"{package / 'rules'}\n"
