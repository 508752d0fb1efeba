"""The unit on a real systemd: what is in the kernel after boot, and after what others do to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel import systemd_box

FILE = "/etc/redirector/mappings.toml"
NFTABLES = "/lib/systemd/system/nftables.service"
REDIRECTOR = f"{sys.executable} -I -m redirector"


def toml(port: int) -> str:
    return f'version = 1\\n[[mapping]]\\nname = "web"\\nlisten = {port}\\nto = 8080\\n'


# nftables.service is as Debian ships it. What is there at network-pre.target is told by a unit right behind it.
PREPARE = f"""
mkdir -p etc/redirector
printf '{toml(80)}' > .{FILE}
chmod 600 .{FILE}
printf 'flush ruleset\\ntable inet filter {{ }}\\n' > etc/nftables.conf
rm -rf var/lib/redirector
mkdir -p etc/systemd/system/sysinit.target.wants
ln -s {NFTABLES} etc/systemd/system/sysinit.target.wants/nftables.service
cat > etc/systemd/system/witness.service <<'END'
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft list ruleset
StandardOutput=file:/box/witness
END
ln -s ../witness.service etc/systemd/system/sysinit.target.wants/witness.service
chroot . {REDIRECTOR} service install {FILE} --root / > box/installed
"""
ACTIVE = "systemctl show -P ActiveState redirector.service\n"
LIST = "nft list table inet redirector 2>&1 | grep -c 'comment \"web\"' || true\n"
PORT = "nft list table inet redirector 2>&1 | grep -o 'tcp . [0-9]*' | sort -u\n"


def generation(number: int, port: int, extra: str = "") -> str:
    """Shell: apply a file of one mapping in a network namespace of its own, as an earlier boot did."""
    return f"""
printf '{toml(port)}' > .{FILE}
unshare --net chroot . {REDIRECTOR} apply {FILE} {extra}
test -e var/lib/redirector/generations/{number:06d}.json
"""


def test_the_redirects_are_there_before_the_network_and_come_back_with_nftables(tmp_path: Path) -> None:
    scenario = f"""
{ACTIVE}{LIST}
systemctl show -P ActiveEnterTimestampMonotonic redirector.service
systemctl show -P ActiveEnterTimestampMonotonic network-pre.target
systemctl restart nftables.service; {ACTIVE}{LIST}
systemctl reload nftables.service; {ACTIVE}{LIST}
systemctl stop nftables.service; systemctl start nftables.service; {ACTIVE}{LIST}
nft add table inet other; systemctl stop redirector.service; nft list table inet other | wc -l; {LIST}
"""
    out = systemd_box.run(tmp_path, PREPARE, scenario).split()
    assert out[:2] == ["active", "1"], out
    assert 0 < int(out[2]) <= int(out[3])
    assert out[4:] == ["active", "1"] * 3 + ["2", "1"]
    assert 'comment "web"' in (tmp_path / "shared" / "witness").read_text()


def test_a_broken_file_fails_loudly_and_the_last_confirmed_generation_is_in_force(tmp_path: Path) -> None:
    prepare = f"{PREPARE}{generation(1, 81)}echo 'version = ' > .{FILE}\n"
    scenario = f"""
{ACTIVE}
systemctl show -P ExecMainStatus redirector.service
{PORT}
systemctl restart nftables.service
{ACTIVE}{PORT}
"""
    out = systemd_box.run(tmp_path, prepare, scenario).split("\n")
    assert out == ["failed", "78", "tcp . 81", "failed", "tcp . 81", ""]


def test_a_change_that_nobody_confirmed_before_the_power_went_is_gone(tmp_path: Path) -> None:
    # The note of another boot: this machine's boot id is the same inside, so the note is given another.
    prepare = f"""{PREPARE}{generation(1, 81)}{generation(2, 82, "--confirm=3600")}
sed -i 's/"boot": "[^"]*"/"boot": "an earlier one"/' var/lib/redirector/pending.json
grep -q 'an earlier one' var/lib/redirector/pending.json
"""
    scenario = f"""
{ACTIVE}{PORT}
test -e /var/lib/redirector/pending.json || echo settled
{REDIRECTOR} history --json
"""
    active, port, settled, history = systemd_box.run(tmp_path, prepare, scenario).split("\n", 3)
    assert (active, port, settled) == ("active", "tcp . 81", "settled")
    assert [(found["generation"], found["confirmed"]) for found in json.loads(history)][-1] == (3, True)


@pytest.mark.parametrize("unit", [pytest.param("redirector.service", id="exposure")])
def test_the_unit_is_hardened(tmp_path: Path, unit: str) -> None:
    argv = [sys.executable, "-m", "redirector", "service", "install", FILE, "--root", str(tmp_path)]
    subprocess.run(argv, check=True, capture_output=True)
    path = tmp_path / "etc/systemd/system" / unit
    analyze = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    done = subprocess.run(analyze, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    verify = ["systemd-analyze", "verify", "--recursive-errors=yes", str(path)]
    assert subprocess.run(verify, check=False, capture_output=True, text=True).stderr == ""
