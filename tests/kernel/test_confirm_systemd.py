"""A change that waits for `confirm`, on a real systemd: it is taken back whatever becomes of the unit that made it."""

import json
import shlex
from pathlib import Path

from tests.kernel import systemd_box
from tests.kernel.product import mapping
from tests.kernel.systemd_box import REDIRECTOR
from tests.kernel.test_confirm import PROMPT_SECONDS

NEW = "/etc/redirector/new.toml"
ODD_STATE = '/srv/it\'s 100%n "odd" ${HOME}; #é\\'
ODD_NETNS = "100%n ${HOME} é"

# Both files, and a unit that applies one before there is a basic.target, as others do that set up the network.
PREPARE = f"""
mkdir -p etc/redirector etc/systemd/system/sysinit.target.wants
printf 'version = 1\\n%s' '{mapping("web", 80, 8080)}' > etc/redirector/old.toml
printf 'version = 1\\n%s' '{mapping("web", 80, 8081)}' > .{NEW}
chmod 600 etc/redirector/*
cat > etc/systemd/system/early.service <<'END'
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={REDIRECTOR} apply --confirm=1h {NEW}
END
ln -s ../early.service etc/systemd/system/sysinit.target.wants
"""

# `call NAME PROPERTIES… <<END` runs a script in a unit of its own, which goes on afterwards, and prints its exit code.
# `watchdogs` counts the services that look after what waits, `processes` whatever does. `taken_back NAME STATE` returns
# when that is done: after the second commit that was heard.
FUNCTIONS = f"""
mkfifo /run/ended
await() {{ until "$@"; do :; done; }}
gone() {{ ! systemctl is-active --quiet "$1.service"; }}
kill_all() {{ systemctl kill --signal=KILL "$1.service"; await gone "$1"; }}
call() {{
    name=$1; shift
    {{ cat; echo 'echo $? > /run/ended; exec sleep 1000'; }} > "/run/$name"
    for property; do set -- "$@" "--property=$property"; shift; done
    systemd-run --quiet --collect --unit="$name" "$@" sh "/run/$name"
    echo "exit $(cat /run/ended)"
}}
watchdogs() {{ systemctl list-units --all --no-legend --plain 'redirector-confirm-*' | wc -l; }}
processes() {{ grep -als 'redirector[.]watchdog' /proc/[0-9]*/cmdline | wc -l; }}
none() {{ test "$(watchdogs)" = 0; }}
two() {{ test "$(wc -l < "$1")" -ge 2; }}
taken_back() {{ await two "/box/$1.commits"; await test ! -e "$2/pending.json"; }}
port() {{ "$@" nft list map inet redirector ports | grep -o 'comment.*[0-9]'; }}
redirector() {{ {REDIRECTOR} "$@"; }}
"""
OLD_PORT, NEW_PORT = 'comment "web" : 8080', 'comment "web" : 8081'


def overdue(folder: Path, name: str) -> float:
    """How long after its deadline the change was taken back, in seconds."""
    note = json.loads((folder / "shared" / f"{name}.note").read_text())
    _, commit, *_ = (folder / "shared" / f"{name}.commits").read_text().split()
    return float(commit) - float(note["deadline"])


def test_it_is_taken_back_by_a_service_of_its_own(tmp_path: Path) -> None:
    """When the cgroup that made it is killed, stopped, or isolated away, and when the service itself is killed."""
    state, netns = shlex.quote(ODD_STATE), shlex.quote(ODD_NETNS)
    network = shlex.quote(f"--net=/run/netns/{ODD_NETNS}")
    scenario = f"""{FUNCTIONS}
systemctl show -P ActiveState early.service; watchdogs; processes
redirector cancel > /box/said; await none
redirector apply /etc/redirector/old.toml > /box/said

hear /box/killed.commits
call killed <<'END'
{REDIRECTOR} apply --confirm=2 {NEW}
END
cp /var/lib/redirector/pending.json /box/killed.note
systemctl kill --signal=KILL 'redirector-confirm-*'
kill_all killed; port

ip netns add {netns}; nsenter {network} $PYTHON -I /box/peer.py hear /box/isolated.commits
call isolated <<'END'
{REDIRECTOR} --netns {netns} apply --confirm=2 {NEW}
END
cp /var/lib/redirector/netns/{netns}/pending.json /box/isolated.note
watchdogs
systemctl isolate box.target; await gone isolated; port nsenter {network}

taken_back killed /var/lib/redirector; port
taken_back isolated /var/lib/redirector/netns/{netns}
await none

hear /box/stopped.commits
call stopped <<'END'
{REDIRECTOR} --state-dir {state} apply --confirm=2 {NEW}
END
cp {state}/pending.json /box/stopped.note
watchdogs
systemctl stop stopped.service
taken_back stopped {state}; await none

redirector apply --confirm=1h {NEW} > /box/said; watchdogs
redirector confirm > /box/said; await none; port
redirector apply --confirm=1h /etc/redirector/old.toml > /box/said
systemctl stop 'redirector-confirm-*'; watchdogs
"""
    out = systemd_box.run(tmp_path, PREPARE, scenario).splitlines()
    assert out == [
        *("active", "1", "1"),
        *("exit 0", NEW_PORT),
        *("exit 0", "2", NEW_PORT),  # two wait at once
        OLD_PORT,
        *("exit 0", "1"),
        *("1", NEW_PORT, "0"),
    ]
    for name in ("killed", "isolated", "stopped"):
        assert 0 <= overdue(tmp_path, name) < PROMPT_SECONDS, name


def test_where_no_service_can_do_it_a_process_does(tmp_path: Path) -> None:
    """In a network namespace without a name, where there is no systemd-run, and where systemd sees another folder or
    another namespace under the name that the caller gave."""
    scenario = f"""{FUNCTIONS}
redirector cancel > /box/said; await none
end() {{ watchdogs; processes; kill_all "$1"; }}
ip netns add one; ip netns add other

call unnamed <<'END'
unshare --net {REDIRECTOR} apply --confirm=1h {NEW}
END
end unnamed; redirector cancel > /box/said

call without InaccessiblePaths=/usr/bin/systemd-run <<'END'
{REDIRECTOR} apply --confirm=1h {NEW}
END
end without; redirector cancel > /box/said

call elsewhere PrivateTmp=yes <<'END'
{REDIRECTOR} --state-dir /tmp/state apply --confirm=1h {NEW}
END
end elsewhere

call another BindPaths=/run/netns/one:/run/netns/other <<'END'
{REDIRECTOR} --netns other apply --confirm=1h {NEW}
END
end another
"""
    out = systemd_box.run(tmp_path, PREPARE, scenario).splitlines()
    assert out == ["exit 0", "0", "1"] * 4
