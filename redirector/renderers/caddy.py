"""As a whole Caddyfile: a reverse proxy for HTTP, which is all that Caddy does (layer 4 is a plug-in, not Debian's).

Caddy sets X-Forwarded-For, -Host and -Proto by itself, and drops what clients say there.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Mapping, Problem, Ruleset
from redirector.program import Program
from redirector.renderers import Options
from redirector.renderers.binding import bindings, spoken, target_host
from redirector.renderers.http import about_clients, http_problems, speaks_http
from redirector.renderers.installing import head
from redirector.renderers.limits import Limits, about_own, require

OPTIONS = ("http", "stream")
LIMITS = Limits("caddy", ("tcp",), proxy=True, source=True)

# Without `admin off` any user of the host could change the configuration, by port 2019.
_MAIN = """\
{
	admin off
	auto_https off
	servers {
		protocols h1
		timeouts {
			read_header 30s
		}
	}
}
"""
# No compression that the client did not ask for, and nothing held back. `Proxy` would be taken for the variable
# HTTP_PROXY by CGI programs (httpoxy).
_PROXY = """\
		flush_interval -1
		header_up X-Real-IP {{remote_host}}
		header_up X-Forwarded-Port {port}
		header_up -Forwarded
		header_up -Proxy
		transport http {{
			compression off
		}}
"""


def render(ruleset: Ruleset, _: Program, options: Options) -> str:
    """Raises InvalidModel for what Caddy cannot do."""
    require(ruleset, LIMITS, _problems(ruleset, options))
    notes = [
        "A whole Caddyfile; `caddy validate --adapter caddyfile --config FILE` checks it. There is no admin endpoint:",
        "it takes a restart to bring a change into force, and not `caddy reload`.",
        "",
        "The servers stay on their target ports, and need not listen anywhere but on the loopback:",
        *(f"  {m.name}: {spoken(m)} to {target_host(m)}:{m.to}" for m in ruleset.enabled),
        *about_clients(ruleset, options),
        *about_own(ruleset),
    ]
    sites = "".join("".join(_site(m)) for m in ruleset.enabled)
    return f"{head('caddy', notes)}\n{_MAIN}{sites}"


def _problems(ruleset: Ruleset, options: Options) -> Iterator[Problem]:
    yield from http_problems(ruleset, options)
    for index, mapping in enumerate(ruleset.mappings):
        if mapping.enabled and "tcp" in mapping.protocol and not speaks_http(mapping, options):
            ports = ", ".join(map(str, mapping.listen))
            message = f'caddy can do HTTP only, and what "{mapping.name}" has on {ports} is not known to be that'
            yield Problem(("mapping", index, "listen"), message, f"if it is: --http {mapping.name}")


def _site(mapping: Mapping) -> Iterator[str]:
    """A site for each port: Caddy knows the port that a client named (in Host), and not the one that it used."""
    hosts = " ".join(dict.fromkeys(f"tcp{binding.family[-1]}/{binding.host}" for binding in bindings(mapping)))
    for ports in mapping.listen:
        for port in range(ports.first, ports.last + 1):
            yield f"\n# {mapping.name}\nhttp://:{port} {{\n\tbind {hosts}\n"
            if mapping.source:
                yield f"\t@others not remote_ip {' '.join(mapping.source)}\n\tabort @others\n"
            target = f"{target_host(mapping)}:{mapping.target(port)}"
            yield f"\treverse_proxy {target} {{\n{_PROXY.format(port=port)}\t}}\n}}\n"
