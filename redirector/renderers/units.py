"""Units for the servers that mappings lead to: names, groups, sockets, and a service that can do little else.

Theory of operation. Mappings with the same program and owner have one server, hence one service, which is named after
the first of them; sockets are one unit for each mapping (and for each interface that it names). Units are called
`mapping-NAME`, so that a mapping named `nginx` takes nobody's unit away; the socket of a second interface is
`mapping2-NAME`, which no mapping's name can lead to.

A socket on "::" serves IPv4 as well (BindIPv6Only=both), so a server that knows one descriptor, the usual case, serves
both families; it then sees IPv4 clients as ::ffff:192.0.2.100.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redirector.errors import Usage
from redirector.model import Mapping, Ruleset
from redirector.renderers import Options
from redirector.renderers.binding import ANY, bindings, families
from redirector.renderers.installing import File, script
from redirector.renderers.limits import interfaces
from redirector.unitfile import CONFINEMENT, command_line

FOLDER = "/etc/systemd/system"


@dataclass(frozen=True, slots=True)
class Server:
    """One program, as one user, for several mappings."""

    argv: tuple[str, ...]
    owner: str | int | None
    mappings: tuple[Mapping, ...]

    @property
    def name(self) -> str:
        return f"mapping-{self.mappings[0].name}"

    @property
    def ports(self) -> str:
        return ", ".join(f"{'/'.join(m.protocol)} {', '.join(map(str, m.listen))}" for m in self.mappings)

    @property
    def names(self) -> str:
        return ", ".join(m.name for m in self.mappings)


def program_of(mapping: Mapping, options: Options) -> tuple[str, ...]:
    """Program and arguments of a mapping's server, () where the options do not tell."""
    return tuple(options.programs.get(mapping.name, options.programs.get("", ())))


def servers(ruleset: Ruleset, options: Options) -> list[Server]:
    """The servers of the enabled mappings. Raises errors.Usage for a mapping of which no program is known."""
    found: dict[tuple[tuple[str, ...], str | int | None], list[Mapping]] = {}
    for mapping in ruleset.enabled:
        argv = program_of(mapping, options)
        if not argv:
            hint = f"say --program '{mapping.name}=/path/to/server and its arguments', or --program for all mappings"
            raise Usage(f'this mechanism starts the server of "{mapping.name}", and a mapping names no program', hint)
        found.setdefault((argv, mapping.owner), []).append(mapping)
    return [Server(argv, owner, tuple(mappings)) for (argv, owner), mappings in found.items()]


def socket_names(mapping: Mapping) -> list[str]:
    count = len(interfaces(mapping))
    return [f"mapping{i + 1 if i else ''}-{mapping.name}.socket" for i in range(count)]


def sockets(mapping: Mapping, service: str, *, shared: bool) -> Iterator[File]:
    """The socket units of a mapping, which start `service`. `shared`: another mapping has one of its ports, too."""
    for name, interface in zip(socket_names(mapping), interfaces(mapping), strict=True):
        lines = [*_listens(mapping), f"FileDescriptorName={mapping.name}", f"Service={service}.service"]
        if interface:
            lines.append(f"BindToDevice={interface}")
        if mapping.address:
            lines.append("FreeBind=yes")  # the address need not be there yet
        if shared:
            lines.append("ReusePort=yes")  # the other socket is another mapping's, on the same port
        if mapping.source:
            lines += ["IPAddressDeny=any", f"IPAddressAllow={' '.join(mapping.source)}"]
        where = f", from {interface}" if interface else ""
        unit = [f"Description=Ports of the mapping {mapping.name}{where}"]
        yield unit_file(name, {"Unit": unit, "Socket": lines, "Install": ["WantedBy=sockets.target"]})


def _listens(mapping: Mapping) -> Iterator[str]:
    both = not mapping.address and len(families(mapping)) == 2
    for binding in bindings(mapping):
        if both and binding.address == ANY["ipv4"]:
            continue
        key = "ListenDatagram" if binding.protocol == "udp" else "ListenStream"
        for port in range(binding.ports.first, binding.ports.last + 1):
            yield f"{key}={binding.host}:{port}"
    yield f"BindIPv6Only={'both' if both else 'ipv6-only'}"


def service(server: Server, lines: Sequence[str], *, wanted: bool, type_: str = "exec", state: bool = True) -> File:
    """The service of a server. `lines` are its own; `wanted`: it starts with the machine; `state`: it has a folder that
    it may write to, /var/lib/mapping-NAME."""
    home = any(word.startswith(("/home/", "/root/")) for word in server.argv)
    own = [
        f"Type={type_}",
        f"ExecStart={command_line([*server.argv])}",
        "Restart=on-failure",
        "RestartSec=1s",
        "DynamicUser=yes" if server.owner is None else f"User={server.owner}",
        *([f"StateDirectory={server.name}"] if state else []),
        *lines,
        "PrivateTmp=yes",
        f"ProtectHome={'read-only' if home else 'yes'}",
        "RemoveIPC=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        *CONFINEMENT.splitlines(),
    ]
    about = [
        f"Description=Server of {server.names} ({server.ports})",
        # However often it fails: at the limit systemd would give up its sockets, too, and clients be refused for good.
        "StartLimitIntervalSec=0",
    ]
    sections = {"Unit": about, "Service": own}
    if wanted:
        sections["Install"] = ["WantedBy=multi-user.target"]
    return unit_file(f"{server.name}.service", sections)


def unit_file(name: str, sections: dict[str, list[str]]) -> File:
    return File(
        f"{FOLDER}/{name}", "".join("\n".join(["", f"[{title}]", *lines, ""]) for title, lines in sections.items())
    )


def about_sources(ruleset: Ruleset) -> list[str]:
    if not any(mapping.source for mapping in ruleset.enabled):
        return []
    return [
        "Clients that IPAddressAllow= does not name get no answer. That takes BPF for cgroups in the kernel;",
        "without it everybody gets in, so try it from an address that should not.",
    ]


def names(files: Sequence[File], suffix: str) -> str:
    return " ".join(file.path.rpartition("/")[2] for file in files if file.path.endswith(suffix))


def installed(kind: str, lines: Sequence[str], files: Sequence[File], suffix: str) -> str:
    """The script that installs units, and enables those with `suffix`."""
    enabled = names(files, suffix)
    stopped = f"systemctl disable --now {enabled}"
    if suffix == ".socket":
        stopped += f" && systemctl stop {names(files, '.service')}"
    undo = f"To undo: {stopped} && rm {' '.join(file.path for file in files)} && systemctl daemon-reload"
    here = [
        "systemctl daemon-reload",
        f"systemctl enable {enabled}",
        # Restarted, so that a second run brings a changed unit into force.
        f"systemctl stop {names(files, '.service')}",
        f"systemctl restart {enabled}",
    ]
    there = [f'systemctl --root="$root" enable {enabled}']
    return script(kind, [*lines, "", undo], files, here, there)
