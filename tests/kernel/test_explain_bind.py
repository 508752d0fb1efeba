"""What `explain` says of a bind is what a real bind does, case by case.

Theory of operation. Each case is a shell script that prepares things in a mount and a network namespace of its own;
then the real command predicts, and the real program, a copy of the system's Python under a name of its own, tries to
bind every address of both families as the user in question. Nothing of the machine is changed: capabilities are set on
the copies, authbind's folder is bind-mounted, the sysctl is that of the private network namespace.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kernel.lab import Lab
from tests.kernel.systemd_box import SYSTEM_PYTHON

USER, GROUP = 65534, 65534  # nobody and nogroup, who are everywhere
MORE = 12346  # a group that the user is not in
START = "net/ipv4/ip_unprivileged_port_start"

BIND = """
import _socket as s, sys
kind = s.SOCK_DGRAM if sys.argv[2] == "udp" else s.SOCK_STREAM
for family, address in ((s.AF_INET, "0.0.0.0"), (s.AF_INET6, "::")):
    one = s.socket(family, kind)
    if family == s.AF_INET6:
        one.setsockopt(s.IPPROTO_IPV6, s.IPV6_V6ONLY, 1)
    one.bind((address, int(sys.argv[1])))
    if kind == s.SOCK_STREAM:
        one.listen(1)
"""
LISTEN = """
import _socket as s, signal, sys
family = s.AF_INET6 if ":" in sys.argv[1] else s.AF_INET
one = s.socket(family, s.SOCK_DGRAM if sys.argv[3] == "udp" else s.SOCK_STREAM)
one.bind((sys.argv[1], int(sys.argv[2])))
if sys.argv[3] == "tcp":
    one.listen(1)
open("up", "w").close()
signal.pause()
"""
# Run by sh in $1, the folder of the copies: prepare, predict, try. What fails in there is no answer. The program is not
# started by setpriv itself, which has root's rights until then.
SCRIPT = """
cd "$1"
{prepare}
{bounded} {explain} > predicted.json
set +e
{bounded} setpriv --reuid {user} --regid {user} --clear-groups -- \\
    env -- {wrapper} "$1/{program}" {arguments} > tried.log 2>&1
echo $? > tried.exit
"""


class Case(NamedTuple):
    """`prepare` is run by sh in a folder that holds `server`, a program; `bounded` before both; `wrapper` before the
    program that binds. `binds` is what is expected of the two, so that they cannot both be wrong alike."""

    binds: bool
    prepare: str = ""
    port: int = 80
    program: str = "server"
    user: int = USER
    wrapper: str = ""
    protocol: str = "tcp"
    bounded: str = ""


def setcap(caps: str, then: str = "") -> str:
    return f"setcap '{caps}' server\n{then}"


def granting(*commands: str) -> str:
    """authbind's folder, ours, in the place of the machine's."""
    made = "mkdir -p grants/byport grants/byaddr grants/byuid; chmod -R 755 grants"
    return "\n".join([made, "mount --bind grants /etc/authbind", "cd grants", *commands, "cd .."])


def listening(address: str, port: int, kind: str = "tcp") -> str:
    """A server of somebody else's that lives as long as the script."""
    start = f"{SYSTEM_PYTHON} -I -S listen.py {address} {port} {kind}"
    return f"mkfifo up\n{start} & server=$!\ntrap 'kill $server' EXIT\ncat up"


EP = "cap_net_bind_service=ep"
SCRIPTED = """{ echo "#!$1/server -IS"; cat bind.py; } > script; chmod 755 script"""
NOSUID = "mkdir m; mount -t tmpfs -o nosuid,mode=755 tmpfs m; cp server m/"
AUTHBIND = "authbind --deep"
GRANT = f"touch byport/80; chown {USER} byport/80; chmod 500 byport/80"

CASES = {
    # what everybody may, and root
    "a plain user below 1024": Case(False),
    "the last privileged port": Case(False, port=1023),
    "the first free port": Case(True, port=1024),
    "root": Case(True, user=0),
    "root without the capability in the bounding set": Case(
        False, user=0, bounded="setpriv --bounding-set=-net_bind_service --"
    ),
    # file capabilities
    "permitted and effective": Case(True, setcap(EP)),
    "permitted, effective and inheritable": Case(True, setcap("cap_net_bind_service=eip")),
    "not effective": Case(False, setcap("cap_net_bind_service=p")),
    "inheritable only": Case(False, setcap("cap_net_bind_service=ei")),
    "another capability": Case(False, setcap("cap_net_raw=ep")),
    "several capabilities": Case(True, setcap("cap_net_bind_service,cap_net_raw=ep")),
    "the capability is not in the bounding set": Case(
        False, setcap(EP), bounded="setpriv --bounding-set=-net_bind_service --"
    ),
    "another one is not in the bounding set": Case(
        False, setcap("cap_net_bind_service,cap_net_raw=ep"), bounded="setpriv --bounding-set=-net_raw --"
    ),
    "another one is not in the bounding set, but nothing is effective": Case(
        False, setcap("cap_net_bind_service,cap_net_raw=p"), bounded="setpriv --bounding-set=-net_raw --"
    ),
    "a link to a capable program": Case(True, setcap(EP, "ln -s server link"), program="link"),
    "a capable program, copied": Case(False, setcap(EP, "cp server copy"), program="copy"),
    "a capable program, written to since": Case(False, setcap(EP, "printf x >> server")),
    "a capable script": Case(False, f"{SCRIPTED}; setcap {EP} script", program="script"),
    "a script of a capable interpreter": Case(True, setcap(EP, SCRIPTED), program="script"),
    "capable, on a nosuid mount": Case(False, f"{NOSUID}; setcap {EP} m/server", program="m/server"),
    # setuid
    "setuid root": Case(True, "chmod 4755 server"),
    "setuid to somebody else": Case(False, f"chown {MORE} server; chmod 4755 server"),
    "setuid root, on a nosuid mount": Case(False, f"{NOSUID}; chmod 4755 m/server", program="m/server"),
    "setuid root with another capability": Case(False, "chmod 4755 server; setcap cap_net_raw=ep server"),
    "setuid root with the capability": Case(True, f"chmod 4755 server; setcap {EP} server"),
    # whether it can be started
    "not executable": Case(False, "chmod 700 server", port=8080),
    "executable by its group": Case(True, f"chgrp {GROUP} server; chmod 710 server", port=8080),
    "executable by another group": Case(False, f"chgrp {MORE} server; chmod 710 server", port=8080),
    "executable by others, not by its group": Case(False, f"chgrp {GROUP} server; chmod 701 server", port=8080),
    "in a closed folder": Case(False, "mkdir d; cp server d/; chmod 700 d", port=8080, program="d/server"),
    "no such program": Case(False, port=8080, program="nothing"),
    # the sysctl
    "the sysctl lowered to it": Case(True, f"echo 80 > /proc/sys/{START}"),
    "the sysctl lowered, one below": Case(False, f"echo 80 > /proc/sys/{START}", port=79),
    "the sysctl at nought": Case(True, f"echo 0 > /proc/sys/{START}", port=1),
    "the sysctl raised": Case(False, f"echo 2000 > /proc/sys/{START}", port=1500),
    # ports that are taken
    "taken on every address": Case(False, listening("0.0.0.0", 8080), port=8080),
    "taken on one address": Case(False, listening("127.0.0.1", 8080), port=8080),
    "taken over IPv6": Case(False, listening("::1", 8080), port=8080),
    "taken, with the capability": Case(False, setcap(EP, listening("::", 80))),
    "taken by the other protocol": Case(True, listening("0.0.0.0", 8080, "udp"), port=8080),
    # UDP
    "UDP below 1024": Case(False, port=53, protocol="udp"),
    "UDP with the capability": Case(True, setcap(EP), port=53, protocol="udp"),
    "UDP, taken": Case(False, listening("0.0.0.0", 8053, "udp"), port=8053, protocol="udp"),
    # authbind
    "authbind without a grant": Case(False, granting(), wrapper=AUTHBIND),
    "authbind, granted to the user": Case(True, granting(GRANT), wrapper=AUTHBIND),
    "authbind, for UDP": Case(True, granting(GRANT), wrapper=AUTHBIND, protocol="udp"),
    "authbind, mode 500 of root's": Case(False, granting("touch byport/80; chmod 500 byport/80"), wrapper=AUTHBIND),
    "authbind, executable by everybody": Case(True, granting("touch byport/80; chmod 755 byport/80"), wrapper=AUTHBIND),
    "authbind, granted to the group": Case(
        True, granting(f"touch byport/80; chgrp {GROUP} byport/80; chmod 710 byport/80"), wrapper=AUTHBIND
    ),
    "authbind, 600 without its mark": Case(
        False, granting(f"touch byport/600; chown {USER} byport/600; chmod 500 byport/600"), 600, wrapper=AUTHBIND
    ),
    "authbind, 600 with its mark": Case(
        True,
        granting(f"touch 'byport/!600'; chown {USER} 'byport/!600'; chmod 500 'byport/!600'"),
        600,
        wrapper=AUTHBIND,
    ),
    "authbind, 511 needs no mark": Case(
        True, granting(f"touch byport/511; chown {USER} byport/511; chmod 500 byport/511"), 511, wrapper=AUTHBIND
    ),
    "authbind, by user": Case(True, granting(f"printf '0.0.0.0/0,80\\n::/0,1-90\\n' > byuid/{USER}"), wrapper=AUTHBIND),
    "authbind, by user, over one family": Case(
        False, granting(f"printf '0.0.0.0/0:1,90\\n' > byuid/{USER}"), wrapper=AUTHBIND
    ),
    "authbind, by user, another port": Case(
        False, granting(f"printf '0.0.0.0/0,81-90\\n::/0,81\\n' > byuid/{USER}"), wrapper=AUTHBIND
    ),
    "authbind, by address": Case(
        True,
        granting("touch byaddr/0.0.0.0,80 byaddr/::,80; chmod 755 byaddr/*"),
        wrapper=AUTHBIND,
    ),
    "authbind, the port's file goes before the user's": Case(
        False,
        granting("touch byport/80; chmod 500 byport/80", f"printf '0.0.0.0/0,80\\n::/0,80\\n' > byuid/{USER}"),
        wrapper=AUTHBIND,
    ),
    "authbind, a program with a capability of its own": Case(
        False, granting(GRANT, "cd ..", "setcap cap_net_raw=ep server", "cd grants"), wrapper=AUTHBIND
    ),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach (pytest's own are closed), with the program in it."""
    with tempfile.TemporaryDirectory(prefix="redirector-explain-", dir="/var/tmp") as made:
        path = Path(made)
        path.chmod(0o755)
        shutil.copy(os.path.realpath(SYSTEM_PYTHON), path / "server")
        (path / "server").chmod(0o755)
        yield path


def both(case: Case, lab: Lab, folder: Path) -> tuple[Any, int, str]:
    """(what `explain` predicts, the exit code of the program that tried, what it complained of)."""
    who = str(case.user)
    explain = lab.command("explain", str(case.port), "--user", who, "--binary", f"{folder}/{case.program}", "--json")
    explain += ["--protocol", case.protocol]
    (folder / "bind.py").write_text(BIND)
    (folder / "listen.py").write_text(LISTEN)
    words = [str(case.port), case.protocol]
    script = SCRIPT.format(
        prepare=case.prepare,
        bounded=case.bounded,
        explain=" ".join(explain),
        user=who,
        wrapper=case.wrapper,
        program=case.program,
        arguments=" ".join(words if case.program == "script" else ["-I", "-S", f"{folder}/bind.py", *words]),
    )
    lab.host.run(
        "unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", str(folder), env=lab.environment()
    )
    predicted = json.loads((folder / "predicted.json").read_text())
    return predicted, int((folder / "tried.exit").read_text()), (folder / "tried.log").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_what_happens(name: str, lab: Lab, folder: Path) -> None:
    case = CASES[name]
    predicted, code, complaint = both(case, lab, folder)
    said = predicted["binds"] or (bool(case.wrapper) and "authbind" in predicted["through"])
    assert (code == 0) == case.binds, complaint
    assert said == case.binds, predicted
    if code:  # and for the reason that was told
        assert any(word in complaint for word in ("Errno", "not permitted", "No such file", "denied")), complaint
        assert ("EADDRINUSE" in predicted["reason"]) == ("already in use" in complaint), (predicted, complaint)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 30
    assert {case.binds for case in CASES.values()} == {True, False}
