"""The units on a real systemd: what is in the kernel after boot, and after what others do to it; with real packets."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from redirector import pending
from redirector.backends.memory import MemoryBackend
from redirector.history import History
from redirector.reconcile import Origin, Wish, change
from tests.kernel import systemd_box
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, ruleset
from tests.kernel.systemd_box import REDIRECTOR
from tests.waiting import leave_waiting

WEB = mapping("web", 80, 8080)
OTHER = mapping("web", 80, 8081)
LATER = mapping("later", 81, 8082, interface="nosuch0")  # an interface that is not there, and never will be
NFTABLES = "/lib/systemd/system/nftables.service"
ANOTHER_BOOT = "11111111-2222-3333-4444-555555555555"
FILE = "/etc/redirector/mappings.toml"
ODD = '/etc/redirector/it\'s 100%n "odd" ${HOME}; #é\\.toml'
ODD_STATE = '/srv/it\'s 100%n "odd" ${HOME}; #é\\/state'


def prepare(file: str, text: str, more: str = "", state: str = "") -> str:
    """A machine with a mapping file, nftables.service as Debian ships it (but for how often it may be started), and our
    unit. A unit right behind network-pre.target witnesses what is in the kernel before there is a network."""
    return f"""
mkdir -p etc/redirector
cat > .{shlex.quote(file)} <<'END'
version = 1
{text}
END
chmod 600 .{shlex.quote(file)}
printf 'flush ruleset\\ntable inet filter {{ }}\\n' > etc/nftables.conf
mkdir -p etc/systemd/system/sysinit.target.wants
ln -s {NFTABLES} etc/systemd/system/sysinit.target.wants/nftables.service
mkdir etc/systemd/system/nftables.service.d
printf '[Unit]\nStartLimitIntervalSec=0\n' > etc/systemd/system/nftables.service.d/often.conf
cat > etc/systemd/system/witness.service <<'END'
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=scenario.service
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft list ruleset
StandardOutput=file:/box/witness
END
ln -s ../witness.service etc/systemd/system/sysinit.target.wants/witness.service
{more}
chroot . {REDIRECTOR} service install {shlex.quote(file)} {state}
"""


# What `look` tells: a word, the unit's state, and what a client from outside is told at port 80, over IPv4 and IPv6.
LOOK = """
plug
look() { settle; echo "$1: $(state) $(for address in $ADDRESSES; do ask $address 80; done | tr '\\n' ' ')"; }
"""


def told(folder: Path, prepared: str, scenario: str) -> list[str]:
    return [line.strip() for line in systemd_box.run(folder, prepared, LOOK + scenario).splitlines()]


def written(folder: Path, name: str) -> str:
    """What the scenario, or the witness, wrote to /box/NAME."""
    return (folder / "shared" / name).read_text()


def history_for(folder: Path) -> History:
    """A history to come into the box with, at /box/state."""
    return History(str(folder / "shared" / "state"))


def applied(history: History, text: str) -> MemoryBackend:
    backend = MemoryBackend()
    with history.locked():
        change(backend, history, Wish(ruleset(text), Origin("apply", "a test", "tests")))
    return backend


def test_the_redirects_are_there_before_the_network_and_come_back_with_nftables(tmp_path: Path) -> None:
    """With a mapping file of the oddest name, and an interface that does not exist."""
    scenario = f"""
look boot
systemctl show -P CapabilityBoundingSet redirector.service
systemctl restart nftables.service; look restarted
before=$(systemctl show -P ActiveEnterTimestampMonotonic nftables.service)
test "$before" -le $(systemctl show -P ExecMainStartTimestampMonotonic redirector.service) && echo 'one after the other'
systemctl reload nftables.service; look reloaded
systemctl stop nftables.service; look stopped
systemctl start nftables.service; look started
systemctl stop nftables.service; systemctl start redirector.service; look 'ours alone'
systemctl start nftables.service; look 'started beside ours'
cp /etc/nftables.conf /box/conf; echo nonsense > /etc/nftables.conf
systemctl restart nftables.service || look 'not restarted'
cp /box/conf /etc/nftables.conf; systemctl restart nftables.service; look 'restarted again'
nft -sa list ruleset > /box/before
systemctl stop redirector.service; look 'ours stopped'
systemctl start redirector.service; look 'ours started'
nft -sa list ruleset | cmp - /box/before && echo 'the same'
{REDIRECTOR} history --json > /box/history
"""
    out = told(tmp_path, prepare(ODD, WEB + LATER), scenario)
    served = "8080 8080"
    assert out == [
        f"boot: active {served}",
        "cap_net_admin",
        f"restarted: active {served}",
        "one after the other",
        f"reloaded: active {served}",
        "stopped: inactive refused refused",
        f"started: active {served}",
        f"ours alone: active {served}",
        f"started beside ours: active {served}",
        f"not restarted: active {served}",
        f"restarted again: active {served}",
        f"ours stopped: inactive {served}",
        f"ours started: active {served}",
        "the same",
    ]
    assert 'comment "web"' in written(tmp_path, "witness")
    assert 'comment "later"' in written(tmp_path, "witness")
    (generation,) = json.loads(written(tmp_path, "history"))
    assert generation["confirmed"]


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_iptables_at_boot(tmp_path: Path, backend: str) -> None:
    """Within the sandbox of the unit; and back after nftables.service has flushed everything (legacy it cannot)."""
    scenario = """
look boot
systemctl restart nftables.service; look restarted
"""
    out = told(tmp_path, prepare(FILE, f'[settings]\nbackend = "{backend}"\n{WEB}'), scenario)
    assert out == ["boot: active 8080 8080", "restarted: active 8080 8080"]
    assert ("REDIRECTOR-IN" in written(tmp_path, "witness")) == (backend == "iptables-nft")


def test_a_broken_file_fails_loudly_and_the_last_confirmed_generation_is_in_force(tmp_path: Path) -> None:
    """Also after nftables.service was reloaded, which systemd tells nobody that has failed."""
    history = history_for(tmp_path)
    applied(history, OTHER)
    scenario = """
look boot
systemctl show -P ExecMainStatus redirector.service
journalctl --sync; journalctl -o cat SYSLOG_IDENTIFIER=redirector > /box/journal
systemctl restart nftables.service; look restarted
systemctl reload nftables.service; look reloaded
printf 'version = 1\n' > /etc/redirector/mappings.toml
systemctl restart redirector.service; look mended
systemctl reload nftables.service; look reloaded
"""
    prepared = prepare(FILE, "to = 80 80", "cp -a box/state var/lib/redirector")
    served = "8081 8081"
    assert told(tmp_path, prepared, scenario) == [
        f"boot: failed {served}",
        "78",
        f"restarted: failed {served}",
        f"reloaded: failed {served}",
        f"mended: active {served}",
        f"reloaded: active {served}",
    ]
    assert 'comment "web"' in written(tmp_path, "witness")
    journal = written(tmp_path, "journal")
    assert "generation 1 is in force, but" in journal
    assert f"{FILE}:2:" in journal


def test_a_change_that_nobody_confirmed_before_the_power_went_is_gone(tmp_path: Path) -> None:
    """With a state folder of the oddest name, where nothing can be written later on: a full or a broken disk."""
    history = history_for(tmp_path)
    backend = applied(history, OTHER)
    leave_waiting(backend, history, ruleset(mapping("web", 80, 8082)), 3600.0)
    waiting = pending.read(history)
    assert waiting is not None
    pending._write(history, waiting._replace(boot=ANOTHER_BOOT))
    state = shlex.quote(ODD_STATE)
    scenario = f"""
look boot
test -e {state}/pending.json || echo settled
{REDIRECTOR} --state-dir {state} history --json > /box/history
mount -o remount,ro {state}
systemctl restart nftables.service; look 'read only'
"""
    more = f"mkdir -p .{state}; mount -t tmpfs -o mode=700 tmpfs .{state}; cp -a box/state/. .{state}"
    served = "8081 8081"
    assert told(tmp_path, prepare(FILE, WEB, more, f"--state-dir {state}"), scenario) == [
        f"boot: active {served}",
        "settled",
        f"read only: active {served}",
    ]
    generations = json.loads(written(tmp_path, "history"))
    assert [(found["generation"], found["confirmed"]) for found in generations] == [(1, True), (2, False), (3, True)]


INSTALL = f"{REDIRECTOR} service install"
UNINSTALL = f"{REDIRECTOR} service uninstall"
PACKAGES = "/opt/redirector/lib/python3.*/site-packages"
INSTALLED = [
    "nftables.service.wants/redirector-nftables.service lrwxrwxrwx /etc/systemd/system/redirector-nftables.service",
    "nftables.service.wants/redirector.service lrwxrwxrwx /etc/systemd/system/redirector.service",
    "redirector-nftables.service -rw-r--r--",
    "redirector-reload.service -rw-r--r--",
    "redirector.service -rw-r--r--",
    "sysinit.target.wants/redirector.service lrwxrwxrwx /etc/systemd/system/redirector.service",
]


def test_units_come_and_go(tmp_path: Path) -> None:
    """On a system that runs, and in an image."""
    scenario = f"""
ours() {{ find "$1/etc/systemd/system" -name 'redirector*' -printf '%P %M %l\n' | sort; }}
ours ""; {UNINSTALL}; look uninstalled; ours ""
ls -d /etc/systemd/system/*.wants
{INSTALL} > /box/installed; ours ""
systemctl is-enabled redirector.service; systemctl restart nftables.service; look installed
{INSTALL}
mkdir /image; mount --bind / /image
{INSTALL} --root /image; ours /image
{REDIRECTOR} service show --root /image > /box/image
{REDIRECTOR} service show | cmp - /box/image && echo 'the same'
{UNINSTALL} --root /image; ours /image; {UNINSTALL} --root /image
"""
    where = "/etc/systemd/system/redirector.service"
    later = "it loads the redirects from the next boot on"
    assert told(tmp_path, prepare(FILE, WEB), scenario) == [
        *INSTALLED,
        f"{where} is removed",
        "uninstalled: inactive 8080 8080",
        "/etc/systemd/system/sysinit.target.wants",  # what is wanted there but us
        *INSTALLED,
        "enabled",
        "installed: active 8080 8080",
        f"{where} is installed already; {later}; to begin now: systemctl start redirector",
        f"/image{where} is installed; {later}",
        *INSTALLED,
        "the same",
        f"/image{where} is removed",
        f"/image{where} was not there",
    ]


EMPTIED = ": /tmp is emptied"
BROKEN_UNIT = "echo '[Unit]' > /etc/systemd/system/redirector.service"
# What is done before, what is called, its exit code, and what it finds.
UNRELIABLE = [
    (":", f"{INSTALL} /tmp/mappings.toml", 78, EMPTIED),
    ("ln -s /tmp /srv/mappings", f"{INSTALL} /srv/mappings/a.toml", 78, EMPTIED),
    (":", f"{INSTALL} --state-dir /run/redirector", 78, "/run is emptied"),
    ("cp -r /opt/redirector /tmp/", INSTALL.replace("/opt", "/tmp"), 78, EMPTIED),
    (
        f"mv {PACKAGES}/redirector /srv; echo /srv > $(echo {PACKAGES})/a.pth; cp -r /opt/redirector /tmp/",
        INSTALL.replace("/opt", "/tmp"),
        78,
        EMPTIED,
    ),
    ("chmod o+w /opt/redirector/lib", INSTALL, 78, "/opt/redirector/lib: unsafe: everybody may write it"),
    ("chown -h 1000 /opt/redirector/bin/python", INSTALL, 78, "bin/python: unsafe: it belongs to user id 1000"),
    (f"chown 1000 {PACKAGES}/redirector/output.py", INSTALL, 78, "output.py: unsafe: it belongs to user id 1000"),
    (f"chmod g+w {PACKAGES}/click; chgrp 50 {PACKAGES}/click", INSTALL, 78, "click: unsafe: group id 50 may write it"),
    (
        f"ln -s /srv/nothing $(echo {PACKAGES})/a.pth; chmod 1777 /srv",
        INSTALL,
        78,
        "/srv: unsafe: everybody may write it",
    ),
    (
        f"mv {PACKAGES}/redirector /srv",
        f"PYTHONPATH=/srv {INSTALL.replace('-I ', '')}",
        1,
        "No module named 'redirector'",
    ),
    (":", f"{INSTALL} --root /box", 1, "No such file"),
    (BROKEN_UNIT, INSTALL, 1, "is not ours"),
    (BROKEN_UNIT, UNINSTALL, 1, "is not ours"),
    (":", f"{INSTALL} -", 64, "no standard input"),
    (":", f"{INSTALL} --netns box", 64, "no --netns"),
    (":", f"{INSTALL} '/etc/a\nb'", 1, "cannot stand in a unit"),
]


def test_what_cannot_be_relied_on_at_boot_is_refused(tmp_path: Path) -> None:
    cases = "".join(
        f"""
rm -rf /opt/redirector /tmp/redirector /srv /etc/systemd/system/redirector*; mkdir /srv; cp -a /pristine /opt/redirector
{before}; ls -l /etc/systemd/system > /box/before
{command} > /box/{number} 2>&1 || echo $?
ls -l /etc/systemd/system | cmp - /box/before
"""
        for number, (before, command, _, _) in enumerate(UNRELIABLE)
    )
    codes = systemd_box.run(tmp_path, "", f"cp -a /opt/redirector /pristine\n{cases}").split()
    found = [written(tmp_path, str(number)) for number in range(len(UNRELIABLE))]
    assert codes == [str(code) for _, _, code, _ in UNRELIABLE], found
    for (_, command, _, words), told_of_it in zip(UNRELIABLE, found, strict=True):
        assert words in told_of_it, command


def test_nobody_else_is_asked_for_anything(lab: Lab, tmp_path: Path) -> None:
    """No D-Bus, no DNS, no user database behind a socket: the kernel's tables are all that boot talks to."""
    with Product(lab) as product:
        log = str(tmp_path / "log")
        owner = mapping("owned", 82, 8082, owner="nobody-of-this-name", interface="nosuch0")
        command = lab.command("boot", product.file(WEB + owner))
        trace = ["strace", "-f", "-o", log, "-e", "trace=socket,connect"]
        lab.host.run(*trace, *command, env=lab.environment())
        with open(log, encoding="utf-8") as file:
            calls = re.findall(r"(socket|connect)\(([^)]*)", file.read())
        assert calls
        assert all(name == "socket" and arguments.startswith("AF_NETLINK") for name, arguments in calls), calls
        assert product.status().state == "in-sync"
        assert os.listdir(os.path.join(lab.state_dir, "generations")) == ["000001.json"]
