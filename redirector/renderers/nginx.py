"""As a whole nginx.conf: HTTP with the headers that tell the server who the client is, everything else by `stream`.

A redirect passes everything on, at any size and for as long as it lasts. What nginx limits by itself is therefore set
wide: the size of a body, the buffers (none), and how long nobody may say anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Mapping, Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import Binding, bindings, spoken, target_host
from redirector.renderers.http import about_clients, http_problems, speaks_http
from redirector.renderers.installing import head
from redirector.renderers.limits import Limits, about_own, require

OPTIONS = ("http", "stream")
LIMITS = Limits("nginx", ("tcp", "udp"), proxy=True, source=True)
IDLE = {"tcp": "1d", "udp": "3m"}  # until a session without a word is forgotten

_MAIN = """\
user www-data;
worker_processes auto;
worker_rlimit_nofile 65536;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
include /etc/nginx/modules-enabled/*.conf;

events {
    worker_connections 16384;
}
"""
# The headers are set, not added to: a client cannot claim to be another one. `Proxy` would be taken for the variable
# HTTP_PROXY by CGI programs (httpoxy).
_HTTP = """\

http {
    access_log /var/log/nginx/access.log;
    server_tokens off;
    client_max_body_size 0;
    client_header_timeout 30s;
    client_body_timeout 1h;
    send_timeout 1h;

    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_connect_timeout 5s;
    proxy_read_timeout 1h;
    proxy_send_timeout 1h;
    proxy_set_header Host $http_host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Forwarded "";
    proxy_set_header Proxy "";
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    map $http_upgrade $connection_upgrade {
        default upgrade;
        "" "";
    }
"""
_STREAM = """\

stream {
    access_log off;
    proxy_connect_timeout 5s;
"""


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what nginx cannot do."""
    require(ruleset, LIMITS, http_problems(ruleset, options))
    numbered = list(enumerate(ruleset.enabled, 1))
    http = [_site(m, _target(m, number)) for number, m in numbered if speaks_http(m, options)]
    stream = [_passed(m, _target(m, number)) for number, m in numbered if not speaks_http(m, options)]
    notes = [
        "A whole nginx.conf; nginx -t -c FILE checks it. It needs nginx, and libnginx-mod-stream for what is not HTTP.",
        "",
        "The servers stay on their target ports, and need not listen anywhere but on the loopback:",
        *(f"  {m.name}: {spoken(m)} to {target_host(m)}:{m.to}" for m in ruleset.enabled),
        *about_clients(ruleset, options),
        *about_own(ruleset),
    ]
    text = head("nginx", notes) + "\n" + _MAIN
    if http:
        text += _HTTP + _block(http) + "}\n"
    if stream:
        text += _STREAM + _block(stream) + "}\n"
    return text


def _block(parts: list[Iterator[str]]) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for part in parts for line in part)


def _site(mapping: Mapping, target: str) -> Iterator[str]:
    yield from _head(mapping, target)
    yield "server {"
    for binding in bindings(mapping):
        yield f"    {_listen(binding)};"
    yield from _filter(mapping)
    yield from ("    location / {", f"        proxy_pass http://{target};", "    }", "}")


def _passed(mapping: Mapping, target: str) -> Iterator[str]:
    yield from _head(mapping, target)
    for protocol in mapping.protocol:
        yield "server {"
        for binding in bindings(mapping):
            if binding.protocol == protocol:
                # All datagrams of a client have to reach the same worker, which is what reuseport sees to.
                yield f"    {_listen(binding)}{' udp reuseport' if protocol == 'udp' else ''};"
        yield from _filter(mapping)
        yield from (f"    proxy_timeout {IDLE[protocol]};", f"    proxy_pass {target};", "}")


def _listen(binding: Binding) -> str:
    # No option that nginx would want a socket of its own for, such as ipv6only= (which is on anyway): of an address and
    # of all addresses, both on one port, the second could not be bound.
    return f"listen {binding.host}:{binding.ports}"


def _filter(mapping: Mapping) -> Iterator[str]:
    yield from (f"    allow {source};" for source in mapping.source)
    if mapping.source:
        yield "    deny all;"


def _target(mapping: Mapping, number: int) -> str:
    """The target, or a variable with it: nginx cannot add, so it looks up what belongs to a port that is shifted."""
    return f"$target_{number}" if mapping.shifted else f"{target_host(mapping)}:{mapping.to}"


def _head(mapping: Mapping, target: str) -> Iterator[str]:
    yield from ("", f"# {mapping.name}")
    if mapping.shifted:
        yield f"map $server_port {target} {{"
        for port in range(mapping.listen[0].first, mapping.listen[0].last + 1):
            yield f"    {port} {target_host(mapping)}:{mapping.target(port)};"
        yield "}"
