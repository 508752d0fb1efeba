"""Through the kernel, or through a proxy in user space: what a client waits for, one mapping.

A proxy answers before it has reached the server, so what is measured is the time until the server's first byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import files
import peers
from measure import Case, Place, take_turns
from report import Section, ratio
from workshop import Workshop, sample

PORT = 1000  # that files.mappings(…, 1) maps; the proxies listen there, too
BATCH = 200
TO = f"127.0.0.1:{files.TARGET}"


def proxies(shop: Workshop) -> Section:
    """Every proxy that is here, next to redirector and to a connection straight to the server."""
    missing = []
    with contextlib.ExitStack() as stack:

        def place(name: str) -> Place:
            here = stack.enter_context(shop.place(f"proxies-{name}"))
            here.run(["ip", "link", "set", "lo", "up"])
            return here

        def child(here: Place, port: int, *proxy: str) -> Callable[[object], dict[str, float]]:
            return stack.enter_context(shop.talk(here, "connects.py", [str(files.TARGET), str(port), *proxy]))

        mapped = place("mapped")
        mapped.run(shop.apply(mapped, files.mappings(shop, 1)))
        children = {"no NAT": child(place("none"), files.TARGET), "redirector, nftables": child(mapped, PORT)}
        for name, argv in COMMANDS.items():
            here = place(name.partition(" ")[0])  # its folder stands in configuration files
            proxy = argv(shop, here)
            if proxy:
                stack.enter_context(here.daemon(proxy))
                children[name] = child(here, PORT, str(PORT))
            else:
                missing.append(name)

        def case(ask: Callable[[object], dict[str, float]], job: str) -> Case:
            return Case(lambda: sample(ask(f"{job} {BATCH}")))

        def cases(job: str) -> dict[str, Case]:
            return {name: case(ask, job) for name, ask in children.items()}

        first = take_turns(cases("first"), shop.rounds(9))
        rates = take_turns(cases("rate"), shop.rounds(5))
    series = {f"{name}: first byte": spent for name, spent in first.items()}
    series |= {f"{name}: each, 16 at once": spent for name, spent in rates.items()}
    section = Section(
        "proxies", "One mapping, in the kernel or through a proxy: until the first byte, loopback", series
    )
    ours = "redirector, nftables"
    section.comparisons.append(
        ratio("time until the first byte, through nftables to no NAT", first[ours], first["no NAT"])
    )
    for name in first:
        if name in COMMANDS:
            for what, found in (("until the first byte", first), ("per connection, 16 at once", rates)):
                judged = ratio(f"time {what}, through nftables to {name}", found[ours], found[name], peer=name)
                section.comparisons.append(replace(judged, cpu=None))  # which the proxy's is not in
    rows = (f"| {name} | {1 / spent.seconds.median:,.0f} |" for name, spent in rates.items())
    section.notes.append("| connections per second, 16 at once | median |\n|---|--:|\n" + "\n".join(rows))
    section.notes.append("CPU time is that of client and server; what a proxy itself takes is not in it.")
    section.notes += [f"Not here, so not measured: {', '.join(missing)}."] if missing else []
    return section


def _socat(shop: Workshop, _: Place) -> list[str] | None:
    found = peers.command(shop, "socat")
    return found and [*found, f"TCP-LISTEN:{PORT},fork,reuseaddr,backlog=512", f"TCP:{TO}"]


def _proxyd(shop: Workshop, _: Place) -> list[str] | None:
    """As its socket unit would start it; --connections-max is 256 unless told."""
    activate, proxy = (peers.command(shop, name) for name in ("systemd-socket-activate", "systemd-socket-proxyd"))
    return activate and proxy and [*activate, "-l", str(PORT), *proxy, TO]


def _nginx(shop: Workshop, here: Place) -> list[str] | None:
    found, modules = peers.command(shop, "nginx"), peers.nginx_modules()
    if not found or not modules:
        return None
    text = f"""load_module {modules}/ngx_stream_module.so;
user root; daemon off; worker_processes auto; pid {here.folder}/pid; error_log {here.folder}/log;
events {{}}
stream {{ server {{ listen {PORT} backlog=512; proxy_pass {TO}; }} }}
"""
    return [*found, "-p", here.folder, "-e", f"{here.folder}/log", "-c", _write(here, text)]


def _haproxy(shop: Workshop, here: Place) -> list[str] | None:
    found = peers.command(shop, "haproxy")
    text = f"""defaults
 mode tcp
 timeout connect 5s
 timeout client 30s
 timeout server 30s
listen all
 bind :{PORT} backlog 512
 server one {TO}
"""
    return found and [*found, "-db", "-f", _write(here, text)]


def _write(here: Place, text: str) -> str:
    path = f"{here.folder}/proxy.conf"
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


COMMANDS: dict[str, Callable[[Workshop, Place], list[str] | None]] = {
    "HAProxy": _haproxy,
    "nginx stream": _nginx,
    "systemd-socket-proxyd": _proxyd,
    "socat": _socat,
}
