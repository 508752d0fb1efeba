"""Fuzz target: what comes in by netlink. Whatever a kernel says, or others have put into it, is read as something.

A case is a scene of the corpus with damage: to bytes, to attributes (their types, lengths, contents, order), to
messages and datagrams. It is heard by the real code above the socket, from `NetlinkSocket` on, and what comes of it
goes all the way that it would go: it is compared, told to people, planned against, and encoded.
"""

import json
import random
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from redirector import output, reconcile
from redirector import status as against
from redirector.backends.base import OutcomeDoubtful, Overtaken, Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.backends.nftables import wire
from redirector.backends.nftables.backend import NftablesBackend
from redirector.backends.nftables.encode import MARK, Batch
from redirector.compile import compile_ruleset
from redirector.errors import RedirectorError, Refused
from redirector.flows import Flow, contradicted
from redirector.history import History, Record
from redirector.host import conntrack, listeners
from redirector.host.addresses import local_addresses
from redirector.model import Ruleset
from redirector.netlink import DumpInterrupted, attr, messages
from redirector.plan import make_plan, perform, program_digest
from redirector.terminal import Paint
from tests.fuzz.engine import Case
from tests.fuzz.mutation import damaged
from tests.fuzz.record import Scene, read
from tests.fuzz.scripted import speaking
from tests.kernel.lab import HOST
from tests.kernel.product import ruleset

SCENE = "scene"  # the label of the part that names it
STEPS = 4  # of a transaction: as many messages as it has
PLAIN = Paint(enabled=False)
Tree = list[tuple[int, "Tree | bytes"]]  # attributes: type with its flags, and what is inside

# Contents that mean something, or that somebody may have chosen to do harm.
PLAIN_NAMES = ("redirector", "ports", "a" * 255, "")
ODD_NAMES = ("x;y", "a\nb", "\x1b[2J\x1b]0;title\x07", "\u202eab", "{ }", '"; flush', "\x7f", *PLAIN_NAMES)
WORDS = (
    *(wire.text(name) for name in ODD_NAMES),
    *(wire.comment(name[:200]) for name in (*ODD_NAMES, MARK, "web")),
    *(wire.comment("web")[:-1], b"\0\xff", b"\0\xffweb", b"\0\0", b"\x07\x03abc\0\x04web\0"),
    *(b"\xff" * 300, bytes(4096)),
    *(wire.be32(n) for n in (0, 1, 2, 3, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, wire.NFT_JUMP)),
    *(bytes(size) for size in (1, 2, 4, 8, 16, 24)),
    b"\xff\xfe\xc3\x28\0", b"counter\0", b"quota\0", b"immediate\0", b"lookup\0", b"cmp\0",
    wire.verdict(wire.NFT_JUMP, "arriving"), wire.verdict(0), wire.data_value(b"\0\x50"),
)  # fmt: skip


class Decoder:
    """See above."""

    name = "netlink-decoder"

    def __init__(self) -> None:
        self.scenes = {scene.name: scene for scene in read()}
        # The small scenes are as good as the large ones, and quicker.
        self._wanted = [*sorted(self.scenes), "web", "dns", "flows", "sockets", "meddled", "refused"]
        self.rulesets = {scene.name: ruleset(scene.rules) for scene in self.scenes.values()}
        self._asks: dict[str, Callable[[Case, Ruleset], None]] = {
            "observe": observe,
            "commit": commit,
            "conntrack": flows,
            "listeners": sockets,
            "addresses": addresses,
        }

    def make(self, dice: random.Random) -> Case:
        scene = self.scenes[dice.choice(self._wanted)]
        case = list(scene.heard)
        for _ in range(dice.choice((1, 1, 2, 4, 8))):
            _strike(dice, case, self.scenes)
        return [(SCENE, scene.name.encode()), *case]

    def run(self, case: Case) -> None:
        (_, name), *heard = case
        scene = self.scenes[name.decode()]
        self._asks[scene.asks](heard, self.rulesets[scene.name])


# -- damage ------------------------------------------------------------------------------------------------------


def _strike(dice: random.Random, case: Case, scenes: dict[str, Scene]) -> None:
    """One blow to one part."""
    if not case:
        return
    # Of each kind of answer alike: there are far more elements than chains, and chains have more that can be wrong.
    kind = dice.choice(sorted({label.partition(".")[0] for label, _ in case}))
    at = dice.choice([i for i, (label, _) in enumerate(case) if label.partition(".")[0] == kind])
    label, datagram = case[at]
    chance = dice.random()
    if chance < 0.6:
        case[at] = label, _attributes_struck(dice, datagram)
    elif chance < 0.8:
        case[at] = label, damaged(dice, datagram, WORDS)
    elif chance < 0.9:
        case[at] = label, _header_struck(dice, datagram)
    elif chance < 0.93:
        del case[at]
    elif chance < 0.96:
        case.insert(at, dice.choice(case))
    else:
        other = dice.choice(dice.choice(sorted(scenes.values())).heard)
        case[at] = label, dice.choice((other[1], datagram + other[1], b"", datagram * 20))


def _header_struck(dice: random.Random, datagram: bytes) -> bytes:
    """Another type, length, flag or sequence number in one of the messages."""
    found = bytearray(datagram)
    starts, offset = [], 0
    while offset + 16 <= len(found):
        starts.append(offset)
        offset += max(16, (struct.unpack_from("=I", found, offset)[0] + 3) & ~3)
    if not starts:
        return datagram
    start = dice.choice(starts)
    place, size = dice.choice(((0, 4), (4, 2), (6, 2), (8, 4), (16, 4)))
    small = (0, 1, 2, 3, 4, 15, 16, 17, 20, 0x10, 0x302)
    value = dice.choice((*small, 0xFFFF, 0x80000000, 0xFFFFFFFF, dice.getrandbits(32))) & ((1 << 8 * size) - 1)
    found[start + place : start + place + size] = value.to_bytes(size, "little")
    return bytes(found)


def _attributes_struck(dice: random.Random, datagram: bytes) -> bytes:
    """One attribute of one message deleted, doubled, moved, or with another type or content; lengths mostly right."""
    found = list(messages(datagram))
    if not found:
        return damaged(dice, datagram, WORDS)
    at = dice.randrange(len(found))
    payload = found[at].payload
    tree = _tree(payload[4:])
    if tree is None:
        found[at] = found[at]._replace(payload=damaged(dice, payload, WORDS))
    else:
        _prune(dice, tree)
        found[at] = found[at]._replace(payload=payload[:4] + _flat(tree))
    parts = []
    for one in found:
        length = 16 + len(one.payload)
        parts.append(struct.pack("=IHHII", length, one.kind, one.flags, one.seq, 0) + one.payload + bytes(-length & 3))
    return b"".join(parts)


def _prune(dice: random.Random, tree: Tree) -> None:
    """Go down to some level, and change one attribute there."""
    while tree:
        at = dice.randrange(len(tree))
        kind, inside = tree[at]
        if isinstance(inside, list) and inside and dice.random() < 0.75:
            tree = inside
            continue
        blow = dice.randrange(7)
        if blow == 0:
            del tree[at]
        elif blow == 1:
            tree[at:at] = [tree[at]] * dice.choice((1, 1, 2, 200))
        elif blow == 2:
            dice.shuffle(tree)
        elif blow == 3:
            tree[at] = dice.choice((kind ^ 0x8000, dice.randrange(20), dice.randrange(65536))), inside
        elif blow == 4:
            tree.insert(at, (dice.randrange(20), _contents(dice)))
        elif isinstance(inside, bytes) and blow == 5:
            tree[at] = kind, damaged(dice, inside, WORDS)[:4096]
        else:
            tree[at] = kind, _contents(dice)
        return


def _contents(dice: random.Random) -> bytes:
    if dice.random() < 0.6:
        return dice.choice(WORDS)
    return wire.text(dice.choice(ODD_NAMES) + dice.choice(("", "\x1b[2J")))


def _tree(data: bytes, depth: int = 0) -> Tree | None:
    """`data` as attributes, those inside them too; None if it is none."""
    found: Tree = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            return None
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data) or kind & 0x3FFF > 64:
            return None
        value = data[offset + 4 : offset + length]
        inside = _tree(value, depth + 1) if len(value) >= 4 and depth < 12 else None
        found.append((kind, value if inside is None else inside))
        offset += (length + 3) & ~3
    return found


def _flat(tree: Tree) -> bytes:
    values = ((kind, _flat(inside) if isinstance(inside, list) else inside) for kind, inside in tree)
    return b"".join(attr(kind, value[:65_000]) for kind, value in values)


# -- what is asked, and what must be so whatever the answer ------------------------------------------------------


class Remembered(History):
    """A history of one generation."""

    def __init__(self, record: Record) -> None:
        super().__init__("/nonexistent")
        self._record = record

    def current(self) -> Record:
        return self._record


class Seen(MemoryBackend):
    """A backend where only one thing can be seen."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot.program)
        self._snapshot = snapshot

    def observe(self) -> Snapshot:
        return self._snapshot


def backend_for(case: Case) -> NftablesBackend:
    """The real backend, on a scripted socket."""
    found = NftablesBackend.__new__(NftablesBackend)
    found._netlink = speaking(case)
    return found


def observe(case: Case, wanted: Ruleset) -> None:
    """Our table is observed, told as a status, planned against, and the plan is encoded."""
    try:
        snapshot = backend_for(case).observe()
    except (RedirectorError, OSError) as error:
        check_told(str(error))
        return
    if snapshot.program is not None and not snapshot.foreign:
        assert any(MARK.encode() in datagram for _, datagram in case), "a table without our mark is taken for ours"
    check_told(snapshot.foreign)
    program_digest(snapshot.program)
    record = Record(1, "apply", "2026-01-01T00:00:00Z", "/m.toml", "root", "boot/1", "nftables", wanted)
    status = against.status(Seen(snapshot), Remembered(record))
    check_told(output.status_text(status, "", PLAIN))
    json.dumps(output.status_json(status, "/m.toml", changed=False, file_error=""))
    for ruleset_ in (wanted, Ruleset()):
        try:
            plan = reconcile.plan_for(ruleset_, snapshot, replace_foreign=True)
        except Refused as error:
            assert "owner flag" in snapshot.foreign
            check_told(str(error))
            continue
        check_told(output.plan_text(plan, PLAIN))
        json.dumps(output.plan_json(plan))
        Batch(plan.steps, snapshot.genid, 1).committed()
        if not snapshot.foreign:
            after = perform(snapshot.program, plan.steps)
            assert not make_plan(plan.desired, after)


def commit(case: Case, wanted: Ruleset) -> None:
    """Transactions are sent and checked, and the answers understood."""
    backend = backend_for(case)
    steps = make_plan(compile_ruleset(wanted), None).steps[:STEPS]
    send: Callable[[], object] = partial(backend.commit, steps, 1)
    for ask in (send, send, send, partial(backend.check, steps), backend.genid):
        try:
            ask()
        except (RedirectorError, OSError, Overtaken, OutcomeDoubtful) as error:
            check_told(str(error))


def flows(case: Case, wanted: Ruleset) -> None:
    """UDP flows are read, and those that contradict other rules are deleted."""

    def choose(found: Iterable[Flow]) -> list[Flow]:
        return contradicted(Ruleset(), found, {80, 8001, 7000}, set(HOST))

    with suppress(OSError, DumpInterrupted):
        conntrack.forget(speaking(case), choose)


def sockets(case: Case, wanted: Ruleset) -> None:
    """Listeners and connections are read."""
    diag = speaking(case)
    for protocol in ("tcp", "udp"):
        for family in listeners.FAMILIES:
            with suppress(OSError):
                for row in listeners._dump(diag, listeners.request(family, protocol, listeners.WAITING[protocol])):
                    for found in listeners.listener_rows(protocol, row.payload):
                        check_told(found.address)
                        assert 0 < found.port < 65536
                        _ = found.wildcard, found.loopback, found.accepts("ipv4")
    for family in listeners.FAMILIES:
        with suppress(OSError):
            for row in listeners._dump(diag, listeners.request(family, "tcp", listeners.TCP_ESTABLISHED)):
                listeners.connection_row(row.payload, range(1 << 32))  # type: ignore[arg-type]  # every inode


def addresses(case: Case, wanted: Ruleset) -> None:
    """The host's own addresses are read."""
    with suppress(OSError):
        check_told(" ".join(local_addresses(speaking(case))))


def check_told(text: str) -> None:
    """What is told to people is text, and nothing that a terminal would take for a command."""
    assert all(c.isprintable() or c == "\n" for c in text), text
    text.encode("utf-8", "backslashreplace")
