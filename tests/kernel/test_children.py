"""Processes that the product starts: named absolutely, with an environment of ours, whatever the caller's is.

Seen by strace: each execve(2) with its arguments and its environment. A search along PATH would show as several.
What the iptables backends start, and what it is told, is in test_iptables_programs.
"""

import ast
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import redirector
from tests.kernel.lab import Lab
from tests.kernel.product import Product, insist, mapping, on_nftables

pytestmark = on_nftables

FIXED = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("chroot", "systemctl", "python3", "python", os.path.basename(sys.executable), "sh")
_CALL = re.compile(r'^(?:\d+ +)?execve\("([^"]*)", \[(.*)\], \[(.*)\]\) = (.*)$')


class Started(NamedTuple):
    program: str
    arguments: list[str]
    environment: set[str]


def started(lab: Lab, folder: Path, *argv: str) -> list[Started]:
    """What `argv` starts, with an environment that leads astray: a PATH with programs of the same names, and modules of
    the same names. They would leave a file behind."""
    evil = folder / "evil"
    evil.mkdir()
    for name in PROGRAMS:
        (evil / name).write_text(f"#!/bin/sh\n: > {folder}/obeyed\n")
        (evil / name).chmod(0o755)
    own = lab.environment()
    env = own | {
        "PATH": f"{evil}:{own['PATH']}",
        "PYTHONSTARTUP": f"{evil}/sh",
        "PYTHONWARNINGS": "error",
        "IFS": "/",
        "SYSTEMD_PAGER": f"{evil}/sh",
        "LD_LIBRARY_PATH": str(evil),
    }
    log = folder / "strace.log"
    options = ["-f", "-qq", "-v", "-s", "100000", "-e", "trace=execve,chdir", "-e", "signal=none", "-o", str(log)]
    lab.host.namespace.run([shutil.which("strace") or "strace", *options, *argv], env=env, timeout=60)
    calls = []
    for line in log.read_text().splitlines():
        if "chdir(" in line:
            continue
        found = _CALL.match(line)
        assert found, line
        arguments, environment = (re.findall(r'"((?:[^"\\]|\\.)*)"', part) for part in found.groups()[1:3])
        calls.append(Started(found[1], arguments, set(environment)))
    assert not (folder / "obeyed").exists()
    first, *rest = calls
    assert first.program == argv[0]
    return rest


def test_the_watchdog(lab: Lab, product: Product, tmp_path: Path) -> None:
    command = lab.command("apply", product.file(mapping("web", 80, 8080)), "--confirm=1", *insist())
    (child,) = started(lab, tmp_path, *command)
    assert child.program == sys.executable
    assert child.arguments[:2] == [sys.executable, "-I"]
    assert child.environment == {FIXED, "REDIRECTOR_JOURNAL="}
    assert 'chdir("/")' in (tmp_path / "strace.log").read_text()


def test_what_looks_at_the_units_python(lab: Lab, product: Product, tmp_path: Path) -> None:
    command = lab.command("service", "install", product.file(mapping("web", 80, 8080)), "--root", str(tmp_path))
    child, inside = started(lab, tmp_path, *command)
    assert inside.program == sys.executable  # which is not in there
    assert inside.environment == child.environment
    assert child.program == "/usr/sbin/chroot"
    assert child.arguments[:4] == ["/usr/sbin/chroot", str(tmp_path), sys.executable, "-I"]
    assert child.environment == {FIXED, "LANG=C.UTF-8"}


def test_and_that_of_this_system(lab: Lab, product: Product, tmp_path: Path) -> None:
    # What is in /tmp is refused wherever the tests run: so nothing is installed.
    (child,) = started(lab, tmp_path, *lab.command("service", "install", "/tmp/redirector-nothing.toml"))
    assert child.program == sys.executable
    assert child.arguments[:2] == [sys.executable, "-I"]
    assert child.environment == {FIXED, "LANG=C.UTF-8"}


def test_systemctl(lab: Lab, tmp_path: Path) -> None:
    code = "from redirector.service import _systemctl; _systemctl('--version')"
    (child,) = started(lab, tmp_path, sys.executable, "-c", code)
    assert child.program == "/usr/bin/systemctl"
    assert child.environment == {FIXED, "LC_ALL=C"}


def test_what_the_doctor_asks(lab: Lab, product: Product, tmp_path: Path) -> None:
    lab.host.run("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
    lab.host.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
    lab.host.nft("table inet x { chain y { type filter hook input priority 0; }\n}")
    children = started(lab, tmp_path, *lab.command("doctor", product.file(mapping("web", 80, 8080))))
    assert [child.arguments for child in children] == [
        ["/usr/sbin/iptables-legacy-save", "-t", "nat"],
        ["/usr/sbin/iptables-nft-save", "-t", "nat"],
        ["/usr/sbin/nft", "-a", "list", "table", "inet", "x"],
        ["/usr/sbin/nft", "-j", "list", "table", "inet", "x"],
    ]
    for child in children:
        assert child.program == child.arguments[0]
        assert child.environment == {FIXED, "LC_ALL=C"}


def test_nobody_else_starts_processes() -> None:
    """Of the other modules that can, one runs the caller's own `--probe`, with the caller's own environment; the rest
    is the demo's, in namespaces of its own. Whoever comes new belongs into this file."""
    home = Path(redirector.__file__).parent
    found = set()
    for path in home.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            attribute = node.attr if isinstance(node, ast.Attribute) else ""
            if "subprocess" in names or re.fullmatch("system|popen|fork|exec[lv].*|spawn.*|posix_spawn.*", attribute):
                found.add(str(path.relative_to(home)))
    assert found == {
        "watchdog.py", "trusted.py", "host/children.py", "cli/applying.py", "host/namespaces.py", "demo/stage.py",
    }  # fmt: skip
