"""What `render` writes for other mechanisms, installed and run: a server without root behind each, reached by a client.

Under a real systemd, in a box (see systemd_box): nothing of this machine's own is touched.
"""

import contextlib
import errno
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from redirector import mappings, renderers
from redirector.compile import compile_ruleset
from redirector.model import InvalidModel
from redirector.renderers import Options
from redirector.renderers.installing import MARK
from redirector.source import SourceFile
from tests.kernel import systemd_box
from tests.kernel.product import mapping

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "rules"
PEER = "/box/plain_peer.py"
PYTHON = systemd_box.system_python()[0]
ERRORS = [(number, os.strerror(number)) for number in (errno.EACCES, errno.EPERM)]

# What the scenarios share. `asks LABEL QUESTION…` is the client's view, `own …` that of the host itself; `as USER …`
# runs something without any privilege, `end` ends what still serves. `install` runs one of our scripts, and `undo` what
# that says takes it back.
FUNCTIONS = f"""
asks() {{ nsenter --net=/run/netns/client $PYTHON -I {PEER} ask "$@"; }}
own() {{ $PYTHON -I {PEER} ask "$@"; }}
as() {{ user=$1; shift; setpriv --reuid="$user" --regid="$user" --clear-groups "$@"; }}
install() {{ sh "/box/$1.sh" 2> /box/said || {{ cat /box/said; exit 1; }}; }}
undo() {{ sed -n 's/^# To undo: //p' "/box/$1.sh" > /run/undo; sh -e /run/undo 2> /box/said; }}
end() {{
    for pid in $(pgrep -f 'plain_peer.py serve-apart'); do
        kill "$pid"
        while [ -e "/proc/$pid" ]; do :; done
    done
}}
wire
"""


def rendered(kind: str, text: str, options: Options | None = None) -> str:
    ruleset = mappings.parse([SourceFile("m.toml", f"version = 1\n{text}".encode())])
    return renderers.render(kind, ruleset, compile_ruleset(ruleset), options)


def words(found: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, found))


def run(folder: Path, prepare: str, scenario: str, files: dict[str, str]) -> dict[str, list[str]]:
    """What was printed, by the first word of each line."""
    shared = folder / "shared"
    shared.mkdir()
    shutil.copy(HERE / "plain_peer.py", shared)
    for name, text in files.items():
        (shared / name).write_text(text)
    found: dict[str, list[str]] = {}
    for line in systemd_box.run(folder, prepare, FUNCTIONS + scenario).splitlines():
        label, _, rest = line.partition(" ")
        found.setdefault(label, []).append(rest)
    return found


CLIENT = {"ipv4": "192.0.2.100", "ipv6": "2001:db8:1::100"}
SOURCES = list(CLIENT.values())
OTHER_CLIENT = ("!tcp:192.0.2.1:81@192.0.2.101", "!tcp:[2001:db8:1::1]:81@2001:db8:1::101")


def told(questions: dict[str, str]) -> list[str]:
    return [f"{question} {answer}" for question, answer in questions.items()]


def test_socket_units(tmp_path: Path) -> None:
    """systemd binds; a server without any capability has the sockets, by name, and only clients that may get there."""
    owner = "daemon"
    text = (
        mapping("web", [80, 443], 8080, owner=owner)
        + mapping("dns", 53, 5353, owner=owner, protocol=["tcp", "udp"])
        + mapping("lan", 81, 8081, owner=owner, source=SOURCES)
        + mapping("there", 82, 8082, owner=owner, interface="uplink")
        + mapping("here", 83, 8083, owner=owner, interface="uplink", local=True)
        + mapping("one", 80, 8084, owner=owner, address="192.0.2.1")
        + mapping("many", "20000-20499", 8085, owner="bin")
        + mapping("late", 84, 8086, owner="daemon")
    )
    serve = (PYTHON, "-I", PEER, "serve", "inherited")
    # Seven starts fail, which is more than systemd puts up with unless it is told to.
    fails = f"echo >> starts; test $(wc -l < starts) -gt 7 && exec {shlex.join(serve)}"
    late = ("/bin/sh", "-c", f"cd /var/lib/mapping-late; {fails}")
    mapped = "uid=1 caps=0 name="
    from_outside = {
        "tcp:192.0.2.1:80": f"80 {CLIENT['ipv4']} {mapped}one",
        "tcp:[2001:db8:1::1]:80": f"80 {CLIENT['ipv6']} {mapped}web",
        "tcp:192.0.2.1:443": f"443 ::ffff:{CLIENT['ipv4']} {mapped}web",
        "udp:192.0.2.1:53": f"53 ::ffff:{CLIENT['ipv4']} {mapped}dns",
        "tcp:[2001:db8:1::1]:53": f"53 {CLIENT['ipv6']} {mapped}dns",
        "tcp:192.0.2.1:81": f"81 ::ffff:{CLIENT['ipv4']} {mapped}lan",
        "tcp:[2001:db8:1::1]:81": f"81 {CLIENT['ipv6']} {mapped}lan",
        **dict.fromkeys(OTHER_CLIENT, "silence"),
        "tcp:192.0.2.1:82": f"82 ::ffff:{CLIENT['ipv4']} {mapped}there",
        "tcp:[2001:db8:1::1]:83": f"83 {CLIENT['ipv6']} {mapped}here",
        "tcp:192.0.2.1:84": f"84 ::ffff:{CLIENT['ipv4']} {mapped}late",
        "tcp:192.0.2.1:20499": f"20499 ::ffff:{CLIENT['ipv4']} uid=2 caps=0 name=many",
    }
    of_the_host = {
        "tcp:127.0.0.1:80": f"80 ::ffff:127.0.0.1 {mapped}web",
        "!tcp:127.0.0.1:81": "silence",
        "tcp:127.0.0.1:82": "refused",
        "tcp:192.0.2.1:82": f"82 ::ffff:192.0.2.1 {mapped}there",
        "tcp:[2001:db8:1::1]:82": f"82 2001:db8:1::1 {mapped}there",
        "tcp:127.0.0.1:83": f"83 ::ffff:127.0.0.1 {mapped}here",
        "tcp:192.0.2.1:83": f"83 ::ffff:192.0.2.1 {mapped}here",
    }
    scenario = f"""
install socket; asks outside {words(from_outside)}; own host {words(of_the_host)}
install socket; asks again tcp:192.0.2.1:443
sed -i 1d /etc/systemd/system/mapping-lan.socket; : > /etc/systemd/system/mapping-web.service
sh /box/socket.sh 2> /box/said || echo "foreign $(cat /box/said)"
stat -c 'foreign %n %s' /etc/systemd/system/mapping-web.service
echo '{MARK}' | tee /etc/systemd/system/mapping-lan.socket > /etc/systemd/system/mapping-web.service
undo socket; asks undone tcp:192.0.2.1:80; echo "left $(find /etc/systemd/system -name 'mapping*')"
"""
    rendering = rendered("systemd-socket", text, Options({"": serve, "late": late}))
    files = {"socket.sh": rendering.replace("RestartSec=1s\n", "RestartSec=10ms\n")}
    assert run(tmp_path, "", scenario, files) == {
        "outside": told(from_outside),
        "host": told(of_the_host),
        "again": [f"tcp:192.0.2.1:443 {from_outside['tcp:192.0.2.1:443']}"],
        "foreign": [
            "/etc/systemd/system/mapping-lan.socket is there and not ours: nothing was changed",
            "/etc/systemd/system/mapping-web.service 0",
        ],
        "undone": ["tcp:192.0.2.1:80 refused"],
        "left": [""],
    }


# A server that binds these by itself, and what it then tells: with the capability 1 << 10, or without any.
BOUND = (
    mapping("web", [80, 443], 8080, owner="daemon")
    + mapping("submission", 587, 2587, owner="daemon")
    + mapping("dns", 53, 5353, owner="daemon", protocol="udp")
    + mapping("smtp", 25, 2525, owner="daemon", address=["192.0.2.1", "2001:db8:1::1"])
    + mapping("sip", 5060, 15060, owner="daemon")
)
PLACES = (
    *("tcp:0.0.0.0:80", "tcp::::80", "tcp:0.0.0.0:443", "tcp:0.0.0.0:587", "udp:0.0.0.0:53", "tcp:192.0.2.1:25"),
    *("tcp:2001:db8:1::1:25", "tcp:0.0.0.0:5060"),
)
QUESTIONS = {
    "tcp:192.0.2.1:80": f"80 {CLIENT['ipv4']} uid=1",
    "tcp:[2001:db8:1::1]:80": f"80 {CLIENT['ipv6']} uid=1",
    "tcp:192.0.2.1:443": f"443 {CLIENT['ipv4']} uid=1",
    "tcp:192.0.2.1:587": f"587 {CLIENT['ipv4']} uid=1",
    "udp:192.0.2.1:53": f"53 {CLIENT['ipv4']} uid=1",
    "tcp:192.0.2.1:25": f"25 {CLIENT['ipv4']} uid=1",
    "tcp:[2001:db8:1::1]:25": f"25 {CLIENT['ipv6']} uid=1",
    "tcp:192.0.2.1:5060": f"5060 {CLIENT['ipv4']} uid=1",
}
NOSUID = "on a file system that is mounted nosuid, where capabilities do not count"
BIND = "caps=400"
PLAIN = "caps=0"


def answered(caps: str) -> list[str]:
    return [f"{question} {answer} {caps}" for question, answer in QUESTIONS.items()]


def test_what_lets_a_server_bind(tmp_path: Path) -> None:
    """An ambient capability, authbind, a file capability, a sysctl: each to the very ports, and taken back again."""
    serve = f"$PYTHON -I {PEER} serve-apart"
    places = " ".join(PLACES)
    scenario = f"""
denied() {{ echo "denied $("$@" 2>&1 | tail -1)"; }}
install ambient
$PYTHON -I {PEER} await tcp:127.0.0.1:5060
asks ambient {words(QUESTIONS)}
undo ambient; asks undone tcp:192.0.2.1:80
DESTDIR=/run/image sh /box/ambient.sh 2> /box/said
(cd /run/image; find . -type f -o -type l) | while read -r line; do echo "image $line"; done

install authbind
stat -c 'files %U %G %a %n' /etc/authbind/by*/*
as daemon authbind --deep {serve} {places}
asks authbind {words(QUESTIONS)}; end
denied as bin authbind --deep {serve} tcp:0.0.0.0:80
denied as daemon authbind --deep {serve} tcp:0.0.0.0:25
denied as daemon {serve} tcp:0.0.0.0:80
chown root /etc/authbind/byport/80
denied as daemon authbind --deep {serve} tcp:0.0.0.0:80
: > /etc/authbind/byport/443
sh /box/authbind.sh 2> /box/said || echo "foreign $(cat /box/said)"
undo authbind; echo "left $(find /etc/authbind -type f)"

install setcap
as daemon /usr/bin/web -I {PEER} serve-apart {places}
asks setcap {words(QUESTIONS)}; end
as bin /usr/bin/web -I {PEER} serve-apart tcp:0.0.0.0:80
asks anybody tcp:192.0.2.1:80; end
mkdir /opt/try; cd /opt/try
cp /usr/bin/web copy
denied as daemon ./copy -I {PEER} serve-apart tcp:0.0.0.0:80
undo setcap
denied as daemon /usr/bin/web -I {PEER} serve-apart tcp:0.0.0.0:80
ln -s copy link; echo '#!/bin/sh' > script; cp copy writable; chmod g+w writable; cp copy theirs; chown bin theirs
mkdir nosuid; mount -t tmpfs -o nosuid tmpfs nosuid; cp copy nosuid/
for name in link script writable theirs nosuid/copy; do
    sed "s,/usr/bin/web,/opt/try/$name," /box/setcap.sh | sh 2>&1 | sed 's/^/refused /'
    getcap "$name"
done

mount -o remount,bind,rw /proc/sys
sysctl -q -p /box/sysctl.sh
mount -o remount,bind,ro /proc/sys
as daemon {serve} {places}
asks sysctl {words(QUESTIONS)}; end
denied as daemon {serve} tcp:0.0.0.0:24
"""
    files = {
        "ambient.sh": rendered("systemd-ambient", BOUND, Options({"": (PYTHON, "-I", PEER, "serve", *PLACES)})),
        "authbind.sh": rendered("authbind", BOUND),
        "setcap.sh": rendered("setcap", BOUND, Options({"": ("/usr/bin/web",)})),
        "sysctl.sh": rendered("sysctl", BOUND),
    }
    eacces, eperm = (f"PermissionError: [Errno {number}] {words}" for number, words in ERRORS)
    assert run(tmp_path, f"cp {PYTHON} usr/bin/web\n", scenario, files) == {
        "ambient": answered(BIND),
        "undone": ["tcp:192.0.2.1:80 refused"],
        "image": [
            "./etc/systemd/system/multi-user.target.wants/mapping-web.service",
            "./etc/systemd/system/mapping-web.service",
        ],
        "files": [
            "daemon root 500 /etc/authbind/byaddr/192.0.2.1,25",
            "daemon root 500 /etc/authbind/byaddr/2001:db8:1::1,25",
            "daemon root 500 /etc/authbind/byport/!587",
            "daemon root 500 /etc/authbind/byport/443",
            "daemon root 500 /etc/authbind/byport/53",
            "daemon root 500 /etc/authbind/byport/80",
        ],
        "authbind": answered(PLAIN),
        "denied": [
            eacces,  # another user
            eperm,  # another address
            eacces,  # not behind authbind
            eacces,  # root's file
            eacces,  # a copy of the file with the capability
            eacces,  # the capability is gone
            eacces,  # below the lowest port
        ],
        "foreign": ["/etc/authbind/byport/443 is there and not ours: nothing was changed"],
        "left": [""],
        "setcap": answered(BIND),
        "anybody": [f"tcp:192.0.2.1:80 80 {CLIENT['ipv4']} uid=2 {BIND}"],
        "refused": [
            "/opt/try/link: no file, or a link: name the file itself: nothing was changed",
            "/opt/try/script: a script, for which the kernel ignores capabilities: nothing was changed",
            "/opt/try/writable: others may write it: nothing was changed",
            "/opt/try/theirs: not root's: its owner could put anything into it: nothing was changed",
            f"/opt/try/nosuid/copy: {NOSUID}: nothing was changed",
        ],
        "sysctl": answered(PLAIN),
    }


# Mappings for proxies; the servers are on the loopback alone.
HTTP = (
    mapping("web", 80, 8080)
    + mapping("one", 80, 8081, address=["192.0.2.1", "2001:db8:1::1"])
    + mapping("staff", 8008, 8082, source=SOURCES)
    + mapping("several", ["8010-8012", 8020], 8080)
    + mapping("shifted", "9000-9002", "19000-19002")
)
TCP = (
    mapping("tls", 443, 8443)
    + mapping("lan", 81, 8083, source=SOURCES)
    + mapping("moved", "9100-9102", "19100-19102")
    + mapping("six", 82, 8084, family="ipv6")
)
UDP = mapping("dns", 53, 5353, protocol=["udp", "tcp"]) + mapping("rtp", "9200-9202", "19200-19202", protocol="udp")
INTERFACES = mapping("there", 83, 8085, interface="uplink") + mapping("here", 84, 8085, interface="uplink", local=True)
SERVED = (
    *(f"tcp:127.0.0.1:{port}" for port in (8080, 8081, 8082, 8083, 8085, 8443, 5353, 19002, 19102)),
    *("tcp:::1:8084", "udp:127.0.0.1:5353", "udp:127.0.0.1:19200", "udp:127.0.0.1:19202"),
)
LOOPBACK = f"127.0.0.1 uid=1 {PLAIN}"
ASKED_HTTP = {  # the server's port, and the client's address
    "http:192.0.2.1:80": (8081, CLIENT["ipv4"]),
    "http:[2001:db8:1::1]:80": (8081, CLIENT["ipv6"]),
    "http:192.0.2.1:8008": (8082, CLIENT["ipv4"]),
    "http:[2001:db8:1::1]:8008": (8082, CLIENT["ipv6"]),
    "http:192.0.2.1:8011": (8080, CLIENT["ipv4"]),
    "http:192.0.2.1:8020": (8080, CLIENT["ipv4"]),
    "http:192.0.2.1:9002": (19002, CLIENT["ipv4"]),
}
STRANGERS_HTTP = ("http:192.0.2.1:8008@192.0.2.101", "http:[2001:db8:1::1]:8008@2001:db8:1::101")
ASKED_TCP = {
    "tcp:192.0.2.1:443": f"8443 {LOOPBACK}",
    "tcp:[2001:db8:1::1]:443": f"8443 {LOOPBACK}",
    "tcp:192.0.2.1:81": f"8083 {LOOPBACK}",
    "tcp:[2001:db8:1::1]:81": f"8083 {LOOPBACK}",
    "tcp:192.0.2.1:9102": f"19102 {LOOPBACK}",
    "tcp:192.0.2.1:82": "refused",
    "tcp:[2001:db8:1::1]:82": f"8084 ::1 uid=1 {PLAIN}",
}
STRANGERS_TCP = tuple(question.strip("!") for question in OTHER_CLIENT)
ASKED_UDP = {
    "udp:192.0.2.1:53": f"5353 {LOOPBACK}",
    "udp:[2001:db8:1::1]:53": f"5353 {LOOPBACK}",
    "tcp:192.0.2.1:53": f"5353 {LOOPBACK}",
    "udp:192.0.2.1:9200": f"19200 {LOOPBACK}",
    "udp:192.0.2.1:9202": f"19202 {LOOPBACK}",
}


def http_answer(question: str) -> str:
    """What a server behind a proxy is told: by the proxy, whatever the client claims (see plain_peer.CLAIMS)."""
    (port, client), asked = ASKED_HTTP[question], question.rpartition(":")[2]
    headers = {
        "host": "example.net",
        "x-forwarded-for": client,
        "x-forwarded-host": "example.net",
        "x-forwarded-port": asked,
        "x-forwarded-proto": "http",
        "x-real-ip": client,
    }
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return " | ".join([f"{question} {port} {LOOPBACK}", "GET /a%2Fb?c HTTP/1.1", *lines])


def ordered(answer: str) -> str:
    """An HTTP answer with its headers in order, and their names in lower case."""
    who, *lines = answer.split(" | ")
    request, headers = lines[:1], [line.partition(":") for line in lines[1:]]
    return " | ".join([who, *request, *sorted(f"{name.lower()}:{value}" for name, _, value in headers)])


def test_proxies(tmp_path: Path) -> None:
    """nginx, haproxy, Caddy and systemd-socket-proxyd, with whole configurations of ours, under Debian's units."""
    options = Options(http=frozenset({"several", "shifted"}))
    proxied = mapping("web", [80, "8001-8003"], 8080) + mapping("lan", 81, 8083, source=SOURCES)
    files = {
        "nginx.conf": rendered("nginx", HTTP + TCP + UDP, options),
        "haproxy.cfg": rendered("haproxy", HTTP + TCP + INTERFACES, options),
        "Caddyfile": rendered("caddy", HTTP, options),
        "proxyd.sh": rendered("systemd-proxyd", proxied + mapping("six", 82, 8084, family="ipv6")),
    }
    examples = configurations()
    files |= {name: text for name, (_, text) in examples.items()}
    checks = {
        "nginx": "nginx -t -q -c",
        "haproxy": "haproxy -c -q -f",
        "caddy": "caddy validate --adapter caddyfile --config",
    }
    checked = "".join(
        f'{checks[kind]} /box/{name} >&2 && echo "valid {name}"\n' for name, (kind, _) in examples.items()
    )
    http = words([*ASKED_HTTP, *STRANGERS_HTTP, "upgrade:192.0.2.1:80"])
    tcp = words([*ASKED_TCP, *STRANGERS_TCP])
    scenario = f"""
as daemon $PYTHON -I {PEER} serve-apart {words(SERVED)}
cp /box/nginx.conf /etc/nginx/nginx.conf; systemctl start nginx
asks nginx {http} {tcp} {words(ASKED_UDP)}; own host-nginx tcp:127.0.0.1:443
ps -C nginx -o user= | sort | uniq | while read -r user; do echo "users nginx $user"; done
systemctl stop nginx

cp /box/haproxy.cfg /etc/haproxy/haproxy.cfg; systemctl start haproxy
asks haproxy {http} {tcp} tcp:192.0.2.1:83 tcp:192.0.2.1:84
own host-haproxy tcp:127.0.0.1:83 tcp:192.0.2.1:83 tcp:127.0.0.1:84
ps -C haproxy -o user= | sort | uniq | while read -r user; do echo "users haproxy $user"; done
systemctl stop haproxy

cp /box/Caddyfile /etc/caddy/Caddyfile; systemctl start caddy
asks caddy {http}; ps -C caddy -o user= | while read -r user; do echo "users caddy $user"; done
own host-caddy tcp:127.0.0.1:2019 # its admin endpoint
systemctl stop caddy

install proxyd
asks proxyd tcp:192.0.2.1:80 tcp:[2001:db8:1::1]:8002 tcp:192.0.2.1:81 {words(OTHER_CLIENT)} tcp:[2001:db8:1::1]:82 \\
    tcp:192.0.2.1:82
status=/proc/$(systemctl show -P MainPID mapping-web.service)/status
grep -E '^Cap(Eff|Bnd):|^NoNewPrivs' "$status" | tr '\\t' ' ' | while read -r line; do echo "confined $line"; done
undo proxyd; asks undone tcp:192.0.2.1:80

for last in 10 20; do # as virtual-hosts.toml has them
    ip addr add "192.0.2.$last/24" dev uplink
    ip addr add "2001:db8::$last/64" dev uplink nodad
done
{checked}
"""
    found = run(tmp_path, "", scenario, files)
    refused = {"nginx": ("403", "closed"), "haproxy": ("closed", "closed"), "caddy": ("closed", "")}
    of_tcp = {
        "nginx": told(ASKED_UDP),
        "haproxy": told(dict.fromkeys(("tcp:192.0.2.1:83", "tcp:192.0.2.1:84"), f"8085 {LOOPBACK}")),
    }
    for kind, (by_http, by_tcp) in refused.items():
        answers = list(map(ordered, found.pop(kind)))
        strangers = told(dict.fromkeys(STRANGERS_HTTP, by_http))
        expected = [*map(http_answer, ASKED_HTTP), *strangers, "upgrade:192.0.2.1:80 echo hello"]
        if kind != "caddy":
            expected += [*told(ASKED_TCP), *told(dict.fromkeys(STRANGERS_TCP, by_tcp)), *of_tcp[kind]]
        assert answers == expected, kind
    assert found == {
        "host-nginx": [f"tcp:127.0.0.1:443 8443 {LOOPBACK}"],
        "host-haproxy": [
            "tcp:127.0.0.1:83 refused",
            f"tcp:192.0.2.1:83 8085 {LOOPBACK}",
            f"tcp:127.0.0.1:84 8085 {LOOPBACK}",
        ],
        "host-caddy": ["tcp:127.0.0.1:2019 refused"],
        "users": ["nginx root", "nginx www-data", "haproxy haproxy", "haproxy root", "caddy caddy"],
        "proxyd": [
            f"tcp:192.0.2.1:80 8080 {LOOPBACK}",
            f"tcp:[2001:db8:1::1]:8002 8080 {LOOPBACK}",
            f"tcp:192.0.2.1:81 8083 {LOOPBACK}",
            *told(dict.fromkeys(OTHER_CLIENT, "silence")),
            f"tcp:[2001:db8:1::1]:82 8084 ::1 uid=1 {PLAIN}",
            "tcp:192.0.2.1:82 refused",
        ],
        "confined": ["CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1"],
        "undone": ["tcp:192.0.2.1:80 refused"],
        "valid": list(examples),
    }


def configurations() -> dict[str, tuple[str, str]]:
    """Of the ready mapping files, what these proxies can do: (kind, text) by a name."""
    found = {}
    for path in sorted(RULES.glob("*.toml")):
        ruleset = mappings.load(str(path))
        for kind in ("nginx", "haproxy", "caddy"):
            with contextlib.suppress(InvalidModel):
                found[f"{path.stem}.{kind}"] = kind, renderers.render(kind, ruleset, compile_ruleset(ruleset))
    return found
