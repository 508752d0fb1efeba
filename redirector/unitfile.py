"""What systemd's unit files have in common: their words, and the lines that confine a service."""

from __future__ import annotations

from redirector.errors import Refused, printable

# Each line narrows what a service could do (systemd.exec(5)), and none of them what a program needs that does not
# administer the host. /proc stays whole but for the processes of others (ProtectProc=): run-time systems read it.
CONFINEMENT = """\
DevicePolicy=closed
KeyringMode=private
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077
"""


def quoted(text: str) -> str:
    """One word of a unit file (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers").

    Raises Refused for characters that no terminal shows: a newline would begin the next line of the unit.
    """
    if not text.isprintable():
        raise Refused(f"{printable(text)}: a path with such characters cannot stand in a unit", "choose another path")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    plain = escaped == text and text.isascii() and not set(text) & set(" ';#")
    return text if plain else f'"{escaped}"'


def command_line(argv: list[str]) -> str:
    """The value of ExecStart=. Only a program's arguments know variables, and so $$; and only the program's place takes
    a prefix such as "@"."""
    return " ".join([quoted(argv[0]), *(quoted(word).replace("$", "$$") for word in argv[1:])])
