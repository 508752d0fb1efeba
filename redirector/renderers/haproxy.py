"""As a whole haproxy.cfg: HTTP with the headers that tell the server who the client is, other TCP byte by byte.

A redirect passes everything on, for as long as it lasts. How long nobody may say anything is therefore set wide.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Mapping, Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import bindings, spoken, target_host
from redirector.renderers.http import about_clients, http_problems, speaks_http
from redirector.renderers.installing import head
from redirector.renderers.limits import Limits, about_own, interfaces, require

OPTIONS = ("http", "stream")
LIMITS = Limits("haproxy", ("tcp",), proxy=True, source=True, interface=True)

_MAIN = """\
global
    log /dev/log local0 notice
    user haproxy
    group haproxy
    chroot /var/lib/haproxy
    fd-hard-limit 65536

defaults
    log global
    timeout connect 5s
    timeout client 1d
    timeout server 1d
    timeout tunnel 1d
    timeout http-request 30s
    timeout http-keep-alive 60s
"""
# The headers are set, not added to: a client cannot claim to be another one. `Proxy` would be taken for the variable
# HTTP_PROXY by CGI programs (httpoxy).
_HEADERS = """\
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    http-request set-header X-Forwarded-Proto http
    http-request del-header Forwarded
    http-request del-header Proxy
"""


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what haproxy cannot do."""
    require(ruleset, LIMITS, http_problems(ruleset, options))
    notes = [
        "A whole haproxy.cfg; haproxy -c -f FILE checks it.",
        "",
        "The servers stay on their target ports, and need not listen anywhere but on the loopback:",
        *(f"  {m.name}: {spoken(m)} to {target_host(m)}:{m.to}" for m in ruleset.enabled),
        *about_clients(ruleset, options),
        *about_own(ruleset),
    ]
    sections = "".join("".join(_section(m, options)) for m in ruleset.enabled)
    return f"{head('haproxy', notes)}\n{_MAIN}{sections}"


def _section(mapping: Mapping, options: Options) -> Iterator[str]:
    http = speaks_http(mapping, options)
    yield f"\nlisten {mapping.name}\n    mode {'http' if http else 'tcp'}\n"
    for interface in interfaces(mapping):
        for binding in bindings(mapping):
            only = " v6only" if binding.family == "ipv6" else ""
            yield f"    bind {binding.host}:{binding.ports}{only}{f' interface {interface}' if interface else ''}\n"
    if mapping.source:
        yield f"    tcp-request connection reject unless {{ src {' '.join(mapping.source)} }}\n"
    yield _HEADERS if http else "    option clitcpka\n"
    # With a sign it is the distance from the port that the client used.
    port = f"{mapping.to.first - mapping.listen[0].first:+}" if mapping.shifted else str(mapping.to)
    yield f"    server {mapping.name} {target_host(mapping)}:{port}\n"
