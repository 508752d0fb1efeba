"""Real servers, as Debian has them: how an audit says that they came to their port, and which line says so.

Each runs in PID, mount and network namespaces of its own, with our configuration in the place of the machine's; all
of it ends with the script.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kernel.lab import Lab

SCRIPT = """
mount --bind "$1/etc" "{folder}"
{start}
timeout 20 sh -c 'until ss -Hltn | grep -q :80; do :; done'
{audit} > "$1/audit.json" || [ $? = 2 ]
{explain} > "$1/explain.json"
"""
NGINX = """user nobody nogroup;
worker_processes 2;
pid /dev/shm/nginx.pid;
error_log /dev/null;
events {}
http {
    access_log off;
    include sites/*;
}
"""
HAPROXY = """global
    user nobody
    daemon
defaults
    mode http
    timeout client 1s
    timeout connect 1s
    timeout server 1s
frontend web
    bind *:80,[::]:80 v6only
    http-request return status 200
"""
CADDY = """{
    admin off
    auto_https off
}
http://:80 {
    respond hello
}
"""
AMBIENT = (
    "setpriv --reuid nobody --regid nogroup --clear-groups "
    "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service -- env HOME=/dev/shm"
)


class Case(NamedTuple):
    """`files` below `folder`; `users` of the processes that hold the socket."""

    folder: str
    files: dict[str, str]
    start: str
    mechanism: str
    place: tuple[str, int]
    users: tuple[str, ...]


CASES = {
    "nginx": Case(
        "/etc/nginx",
        {"nginx.conf": NGINX, "sites/web": "server {\n    listen 80;\n}\n"},
        "nginx",
        "parent",
        ("/etc/nginx/sites/web", 2),
        ("root", "nobody", "nobody"),
    ),
    "haproxy": Case(
        "/etc/haproxy",
        {"haproxy.cfg": HAPROXY},
        "haproxy -q -f /etc/haproxy/haproxy.cfg",
        "parent",
        ("/etc/haproxy/haproxy.cfg", 10),
        ("nobody",),
    ),
    "caddy": Case(
        "/etc/caddy",
        {"Caddyfile": CADDY},
        f"{AMBIENT} caddy run --config /etc/caddy/Caddyfile >/dev/null 2>&1 &",
        "ambient",
        ("/etc/caddy/Caddyfile", 5),
        ("nobody",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_who_listens_by_what_right_and_where_it_says_so(name: str, lab: Lab, tmp_path: Path) -> None:
    case = CASES[name]
    for path, text in case.files.items():
        (tmp_path / "etc" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc" / path).write_text(text)
    (tmp_path / "etc").chmod(0o755)
    command = {verb: " ".join(lab.command(verb, "80", "--json")) for verb in ("audit", "explain")}
    script = SCRIPT.format(folder=case.folder, start=case.start, **command)
    private = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
    lab.host.run(*private, "sh", "-euc", script, "sh", str(tmp_path), env=lab.environment())
    (chain,) = read(tmp_path / "audit.json")["ports"]
    served = next(one for one in chain["sockets"] if one["address"] in ("0.0.0.0", "::"))
    assert served["mechanism"] == case.mechanism
    assert {one["command"] for one in served["processes"]} == {name}
    assert tuple(one["user"] for one in served["processes"]) == case.users
    (way,) = [one for one in chain["ways"] if one["by"] == name]
    assert (way["mechanism"], way["file"], way["line"]) == ("proxy", *case.place)
    if case.mechanism == "parent":  # told of the socket, too; a capability has a place of its own
        assert (served["file"], served["line"]) == case.place
    clients = [one for one in read(tmp_path / "explain.json")["clients"] if one["to"] == "127.0.0.1"]
    assert [(one["outcome"], one["command"]) for one in clients] == [("served", name)]


def read(path: Path) -> Any:
    return json.loads(path.read_text())
