"""File capabilities: what `security.capability` says, by name. Pure.

The attribute is struct vfs_cap_data (linux/capability.h), little endian: a word with the revision in its highest byte
and the effective flag in the lowest bit; then permitted and inheritable, once (revision 1) or for capabilities 0-31 and
32-63 (revisions 2, 3); with revision 3 the user that is root in the user namespace where it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from redirector.records import NamedTuple

# linux/capability.h, in order from 0 on; Linux 5.9 was the last to add one.
_IN_ORDER = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""
NAMES = tuple(_IN_ORDER.split())
BIND = 1 << NAMES.index("net_bind_service")
ALL = (1 << len(NAMES)) - 1
ATTRIBUTE = "security.capability"
_REVISIONS = {0x01000000: 12, 0x02000000: 20, 0x03000000: 24}  # VFS_CAP_REVISION_n: size in bytes


class FileCaps(NamedTuple):
    """`permitted` and `inheritable` as masks; `effective`: raised when the program starts; `rootid` as above, or 0."""

    permitted: int
    inheritable: int = 0
    effective: bool = False
    rootid: int = 0

    @property
    def text(self) -> str:
        """As getcap(8) writes it."""
        flag = "e" if self.effective else ""
        parts = []
        for mask, letters in (
            (self.permitted & self.inheritable, f"{flag}ip"),
            (self.permitted & ~self.inheritable, f"{flag}p"),
            (self.inheritable & ~self.permitted, f"{flag}i"),
        ):
            if mask:
                parts.append(f"{','.join(names(mask))}={letters}")
        return " ".join(parts) or "="


def decode(value: bytes) -> FileCaps | None:
    """What the attribute says; None for what the kernel would not take either."""
    if len(value) < 4:
        return None
    (magic,) = struct.unpack_from("<I", value)
    if _REVISIONS.get(magic & 0xFF000000) != len(value):
        return None
    words = struct.unpack_from(f"<{len(value) // 4 - 1}I", value, 4)
    if len(words) == 2:
        return FileCaps(words[0], words[1], bool(magic & 1))
    rootid = words[4] if len(words) == 5 else 0
    return FileCaps(words[0] | words[2] << 32, words[1] | words[3] << 32, bool(magic & 1), rootid)


def names(mask: int) -> list[str]:
    """cap_… of each bit, in order."""
    return [f"cap_{name}" for bit, name in enumerate(NAMES) if mask & 1 << bit]


def told(mask: int, most: int = ALL) -> str:
    """A process's set as text: "all" that there are, or exactly `most` (what can be had on a host); else names
    joined by commas, "" for none."""
    return "all" if mask & ALL == ALL or mask == most != 0 else ",".join(names(mask))


def mask(words: Iterable[str]) -> tuple[int, list[str]]:
    """The mask of names in either case, and the words that are no capability of Linux."""
    found, unknown = 0, []
    for word in words:
        name = word.lower().removeprefix("cap_")
        if word.lower().startswith("cap_") and name in NAMES:
            found |= 1 << NAMES.index(name)
        else:
            unknown.append(word)
    return found, unknown
