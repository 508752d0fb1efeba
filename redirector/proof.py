"""What the kernel was last known to hold, so that it need not be read again: the proof that lies in the state folder.

Theory of operation. Every nftables commit of anyone in a network namespace moves its generation number, the genid
(linux nf_tables_api.c, nf_tables_commit: base_seq, which skips 0). Whoever has just committed, or compared everything,
knows what our table holds at one genid, and writes that down here: at this genid, in this namespace of this boot, the
kernel holds that generation of the history. It stays true for ever; what may end is only that the genid is still this
one. While it is, nobody has changed anything, and `status` need not look, however large the table. `apply` plans
against it, too, and sends the genid along: if it has moved in between, the kernel refuses, and everything is read.

It is no proof where
- the boot or the namespace is another (boot_id, and SO_NETNS_COOKIE: inode numbers come again);
- the file of that generation is not the one that it was made of, or there is a later one;
- it is older than LIFETIME: a genid has 32 bits, and comes again when it has been all round. 2^32 commits in an hour
  would be a million a second, and the kernel needs more than 10 µs for each;
- the backend has no genid: iptables-legacy. (iptables-nft has that of nf_tables. Its tools cannot commit against it,
  and so `apply` reads everything; but what was read at it stays so while it stays.)
- the table has the owner flag: such a one vanishes with its process, and moves no genid. Ours never has it, one that
  has is not ours, and what is not ours is never written down.

The file is a cache: written without fsync (a boot later it is worth nothing), read without trust in its form, and
whatever is wrong with it only means that everything is compared. It is lines of text, so that `status` needs no JSON
(and not the history, which may be large); what `apply` alone needs comes last and is not read before.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from types import MappingProxyType

from redirector import layout
from redirector.records import NamedTuple

FORMAT = "redirector proof 1"
LIFETIME = 3600.0  # seconds of CLOCK_BOOTTIME
HEAD_BYTES = 16384  # in which all but the capacities are

_NOTHING: Mapping[str, int] = MappingProxyType({})


class Head(NamedTuple):
    """What `status` tells of a generation: as in history.Record; `mappings` is how many it has, `enabled` of these."""

    generation: int
    action: str
    applied_at: str
    author: str
    origin: str
    mappings: int
    enabled: int


class Proof(NamedTuple):
    """That the kernel held a generation at one genid.

    `identity` is the namespace and boot (see `backends.place`), `backend` its name, `made` the time in seconds of
    CLOCK_BOOTTIME, `record` the key of the generation's file, `stamp` that of the mapping file that it came from (see
    `source.stamp`; "" is unknown). `capacities` is how many entries each map can take, by name.
    """

    head: Head
    backend: str
    identity: str
    genid: int
    made: float
    record: layout.Key
    stamp: str = ""
    capacities: Mapping[str, int] = _NOTHING

    @property
    def expired(self) -> bool:
        return not 0 <= now() - self.made < LIFETIME

    def holds(self, identity: str, genid: int) -> bool:
        """Whether the kernel, at this genid, still holds what it did; `identity` as above."""
        return genid == self.genid and identity == self.identity and not self.expired


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def load(folder: str, *, whole: bool = False) -> Proof | None:
    """The proof in a state folder, None where there is none of its latest generation; `whole`: with the capacities."""
    try:
        with open(os.path.join(folder, layout.PROOF), "rb") as file:
            data = file.read() if whole else file.read(HEAD_BYTES)
        found = _decode(data, whole=whole)
        numbers = layout.numbers(folder)
        if numbers and found.record == layout.record_key(folder, numbers[-1]):  # which has the number, too
            return found
    except (OSError, ValueError):  # for one: whoever may not read the state is told so by what reads it next
        pass
    return None


def save(folder: str, found: Proof) -> None:
    """Write it down, or leave it: without it everything is compared, which is all that it spares."""
    from redirector.store import replace  # `status` seldom has anything to write

    with contextlib.suppress(OSError):
        replace(os.path.join(folder, layout.PROOF), _encode(found), 0o600)


def forget(folder: str) -> None:
    """Take it away."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, layout.PROOF))


_FIELDS = (*Head._fields, *Proof._fields[1:-1])


def _encode(found: Proof) -> bytes:
    flat = found._replace(record=" ".join(map(str, found.record)))  # type: ignore[arg-type]  # as text
    pairs = zip(_FIELDS, (*found.head, *flat[1:-1]), strict=True)
    # A line each, whatever the names; none is empty but the one before the capacities.
    lines = [FORMAT.encode(), *(_line(f"{key} {value}") for key, value in pairs), b""]
    return b"\n".join([*lines, *(f"{name} {size}".encode() for name, size in found.capacities.items()), b""])


def _line(text: str) -> bytes:
    return text.replace("%", "%25").replace("\n", "%0A").encode("utf-8", "surrogatepass")


def _unline(line: bytes) -> str:
    return line.decode("utf-8", "surrogatepass").replace("%0A", "\n").replace("%25", "%")


def _decode(data: bytes, *, whole: bool = True) -> Proof:
    """Inverts `_encode`. Raises ValueError for what it could not have written."""
    top, end, bottom = data.partition(b"\n\n")
    first, *lines = [_unline(line) for line in top.split(b"\n")]
    found = dict([line.partition(" ")[::2] for line in lines])
    if not end or first != FORMAT or tuple(found) != _FIELDS:
        raise ValueError("no proof")
    texts = found["action"], found["applied_at"], found["author"], found["origin"]
    head = Head(int(found["generation"]), *texts, int(found["mappings"]), int(found["enabled"]))
    record = tuple([int(part) for part in found["record"].split()])
    capacities = dict([line.rpartition(" ")[::2] for line in bottom.decode().splitlines() if whole])
    sizes = {name: int(size) for name, size in capacities.items()}
    where = found["backend"], found["identity"], int(found["genid"]), float(found["made"])
    return Proof(head, *where, record, found["stamp"], sizes)
