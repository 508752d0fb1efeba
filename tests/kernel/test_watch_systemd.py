"""The unit of `redirector watch` on a real systemd, within its sandbox; with real packets."""

import shlex
from pathlib import Path

import pytest

from tests.kernel import systemd_box
from tests.kernel.systemd_box import REDIRECTOR
from tests.kernel.test_boot import FILE, LOOK, ODD_STATE, WEB, prepare, written

# `healed N` returns when so many healings were told, `watched` tells of a word and of the watch's state.
WATCH = """
watch=redirector-watch.service
healed() { until [ $(grep -c '^redirector_watch_heals_total [1-9]' $prom) = 1 ] &&
    [ $(sed -n 's/^redirector_watch_heals_total //p' $prom) -ge $1 ]; do :; done; }
watched() { look "$1"; echo "$1: $(state $watch) $(systemctl show -P StatusText $watch)"; }
prom=/run/redirector/watch.prom
"""
LATER = (
    "it loads the redirects from the next boot on; to begin now: systemctl start redirector redirector-watch.service"
)
IN_SYNC = "active in sync (nftables); generation 1"


@pytest.mark.parametrize("state", ["", f"--state-dir {shlex.quote(ODD_STATE)}"])
def test_the_unit(tmp_path: Path, state: str) -> None:
    scenario = f"""
watched boot
for time in 1 2 3; do nft flush ruleset; healed $time; done; look flushed
systemctl restart nftables.service; healed 4; watched restarted
systemctl stop redirector.service; nft delete table inet redirector; healed 5; watched 'ours stopped'
systemctl reload $watch; watched reloaded
systemctl kill --signal=KILL --kill-whom=main $watch 2>/dev/null || systemctl kill --signal=KILL $watch
until [ $(systemctl show -P NRestarts $watch) = 1 ]; do :; done
until [ "$(state $watch)" = active ]; do :; done; watched killed
stat -c '%a %U' $prom
systemctl show -P WatchdogUSec $watch
systemctl show -P CapabilityBoundingSet $watch
systemctl stop $watch; nft flush ruleset; look stopped
systemctl start $watch; watched started
{REDIRECTOR} {state} service install {FILE}; ls /etc/systemd/system | grep watch
systemctl is-enabled $watch
journalctl -o cat -t redirector > /box/journal
{REDIRECTOR} service uninstall; ls /etc/systemd/system | grep -c redirector || true
state $watch; look uninstalled
"""
    prepared = prepare(FILE, WEB, "", f"{state} --watch")
    # multi-user.target is not what the box boots to.
    prepared += "mkdir -p etc/systemd/system/sysinit.target.wants\n"
    prepared += "ln -s ../redirector-watch.service etc/systemd/system/sysinit.target.wants/\n"
    out = [line.strip() for line in systemd_box.run(tmp_path, prepared, LOOK + WATCH + scenario).splitlines()]
    served = "8080 8080"
    assert out == [
        f"boot: active {served}",
        f"boot: {IN_SYNC}",
        f"flushed: active {served}",
        f"restarted: active {served}",
        f"restarted: {IN_SYNC}",
        f"ours stopped: inactive {served}",
        f"ours stopped: {IN_SYNC}",
        f"reloaded: inactive {served}",
        f"reloaded: {IN_SYNC}",
        f"killed: inactive {served}",
        f"killed: {IN_SYNC}",
        "644 root",
        "1min",
        "cap_net_admin",
        "stopped: inactive refused refused",
        f"started: inactive {served}",
        f"started: {IN_SYNC}",
        f"/etc/systemd/system/redirector.service is installed already; {LATER}",
        "redirector-watch.service",
        "enabled",
        "/etc/systemd/system/redirector.service is removed",
        "0",
        "inactive",
        f"uninstalled: inactive {served}",
    ]
    journal = written(tmp_path, "journal")
    assert "; by nft (pid " in journal
    assert "while nobody watched; generation 1" in journal
    told = [line for line in journal.splitlines() if "healed in" in line]
    assert len(told) == len(set(told)), "told twice"
