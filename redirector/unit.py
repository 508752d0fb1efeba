"""The systemd units that load the redirects when the machine starts, as text.

Theory of operation. The unit stands before network-pre.target, so that no packet meets a host without its redirects.
Whatever nftables.service does ends in an empty kernel (its ExecStop flushes everything, and the stock
/etc/nftables.conf starts with a flush), so we come after it, and follow: PartOf= takes us along when it is stopped or
restarted, ReloadPropagatedFrom= when it is reloaded, and as its Wants= we are started again with it, even if the last
time had failed, and however often (StartLimitIntervalSec=). Stopping the unit does nothing to the kernel: only
`redirector remove` takes redirects away.

A broken mapping file makes the unit fail, with the last confirmed generation in force. systemd reloads only what is
active, so a reload of nftables.service would then flush the redirects for good. Against that there is a second unit: it
is started where the first one fails (OnFailure=), does nothing then, loads the redirects when nftables.service is
reloaded, and is stopped with the first one.

And where ours is active and nftables.service is not, starting that flushes too, while what is active is not started
again. Against that there is a third one, wanted by nftables.service and never active for longer than it takes: each
start of nftables.service starts it anew. That the file is broken is for the first one to tell, and no failure of this.

The unit of `redirector watch` is apart from all that, and for hosts that want it: it begins once the redirects should
be loaded, and goes on whatever becomes of the others.
"""

from __future__ import annotations

import os

from redirector.errors import BadConfiguration, NotPermitted, Unavailable, Usage
from redirector.unitfile import CONFINEMENT, command_line, quoted

NAME = "redirector.service"
STAND_IN = "redirector-reload.service"
AFTERWARDS = "redirector-nftables.service"
WATCH = "redirector-watch.service"
METRICS = "/run/redirector/watch.prom"
MARK = "# Written by `redirector service install`, and removed by `redirector service uninstall`.\n"
# What each is enabled for.
WANTED_BY = {
    NAME: ("sysinit.target", "nftables.service"),
    AFTERWARDS: ("nftables.service",),
    WATCH: ("multi-user.target",),
}

_UNIT = f"""\
{MARK}
[Unit]
Description=Port redirects, the last confirmed generation
DefaultDependencies=no
After=local-fs.target nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
OnFailure={STAND_IN}
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={{command}}
ExecReload={{command}}
{{sandbox}}
[Install]
WantedBy={" ".join(WANTED_BY[NAME])}
"""

_STAND_IN = f"""\
{MARK}
[Unit]
Description=Port redirects, when nftables.service is reloaded while {NAME} has failed
DefaultDependencies=no
After=nftables.service {NAME}
Before=shutdown.target
Conflicts=shutdown.target
PartOf={NAME}
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecReload={{command}}
{{sandbox}}"""

_AFTERWARDS = f"""\
{MARK}
[Unit]
Description=Port redirects, when nftables.service is started while {NAME} is active
DefaultDependencies=no
After=nftables.service {NAME}
Before=shutdown.target
Conflicts=shutdown.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
SuccessExitStatus={BadConfiguration.exit_code}
ExecStart={{command}}
{{sandbox}}
[Install]
WantedBy={" ".join(WANTED_BY[AFTERWARDS])}
"""

# To restart helps neither where the kernel lacks something nor where we lack rights.
_WATCH = f"""\
{MARK}
[Unit]
Description=Port redirects, healed when others change them
DefaultDependencies=no
After=local-fs.target nftables.service {NAME}
Before=shutdown.target
Conflicts=shutdown.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={{command}}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1s
RestartPreventExitStatus={Usage.exit_code} {Unavailable.exit_code} {NotPermitted.exit_code}
WatchdogSec=60s
RuntimeDirectory={os.path.basename(os.path.dirname(METRICS))}
RuntimeDirectoryMode=0755
{{sandbox}}
[Install]
WantedBy={" ".join(WANTED_BY[WATCH])}
"""

# ProtectHome= is read-only, not "yes": the mapping file or Python may be in root's home. /proc stays whole: the boot's
# id is read there. InaccessiblePaths= and not PrivateTmp=, which would make us wait for /tmp to be mounted and cleaned.
_SANDBOX = f"""\
TimeoutSec=90s
StandardInput=null
SyslogIdentifier=redirector
WorkingDirectory=/
{{state}}
CapabilityBoundingSet={{capabilities}}
IPAddressDeny=any
InaccessiblePaths=-/tmp -/var/tmp
MemoryDenyWriteExecute=yes
ProtectHome=read-only
RestrictAddressFamilies={{families}}
{CONFINEMENT}"""


# iptables-legacy talks to the kernel through a raw socket, and takes a lock in /run; its tables are in modules that
# only a privileged process may load.
_LEGACY = "\nReadWritePaths=/run"
_MODULES = "modprobe@ip_tables.service modprobe@ip6_tables.service"


def unit_texts(
    python: str, file: str, state_dir: str = "", backend: str = "nftables", *, watch: bool = False
) -> dict[str, str]:
    """The units by their names, that of `watch` among them if wanted; all three paths absolute, `state_dir` empty for
    /var/lib/redirector; they are for one backend, because each needs other permissions.

    Raises Refused for a path that no unit can name.
    """
    argv = [python, "-I", "-m", "redirector"]
    state = "StateDirectory=redirector\nStateDirectoryMode=0700"
    if state_dir:
        argv += ["--state-dir", state_dir]
        state = f"ReadWritePaths={quoted(f'-{state_dir}')}"  # "-": where it is missing, we are the ones to tell
    command = command_line([*argv, "boot", file])
    legacy = backend == "iptables-legacy"
    sandbox = _SANDBOX.format(
        state=state + _LEGACY * legacy,
        capabilities="CAP_NET_ADMIN" + " CAP_NET_RAW" * legacy,
        families="AF_NETLINK AF_UNIX" + " AF_INET AF_INET6" * legacy,
    )
    unit = _UNIT
    if legacy:
        unit = unit.replace("nftables.service\nWants=", f"nftables.service {_MODULES}\nWants={_MODULES} ", 1)
    texts = {
        NAME: unit.format(command=command, sandbox=sandbox),
        STAND_IN: _STAND_IN.format(command=command, sandbox=sandbox),
        AFTERWARDS: _AFTERWARDS.format(command=command, sandbox=sandbox),
    }
    watching = command_line([*argv, "watch", "--metrics", METRICS])
    return texts | ({WATCH: _WATCH.format(command=watching, sandbox=sandbox)} if watch else {})
