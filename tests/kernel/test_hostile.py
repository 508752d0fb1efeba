"""Foreign objects with odd names and junk in their userdata: never a crash, never adopted, nothing of them obeyed by a
terminal; and what others have stays as it is, byte for byte.

Everything is made by netlink messages of this file's own: nft(8) can neither write such names nor read such userdata
(some of it makes nft 1.0.6 crash). What others can write with iptables is in test_foreign and test_iptables_others.
"""

import json
import random
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from redirector.backends.nftables import wire
from redirector.backends.nftables.encode import MARK
from redirector.backends.nftables.message import header
from redirector.naming import TABLE
from redirector.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attr,
    error_number,
    message,
    messages,
    nest,
)
from tests.kernel.echo import Answered
from tests.kernel.lab import CLIENT, HOST, Lab
from tests.kernel.product import Product, mapping, on_nftables
from tests.kernel.running import Commands

pytestmark = on_nftables

WEB = mapping("web", 80, 8080, protocol=["tcp", "udp"], exclusive=True)
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*
CHAIN_USERDATA, OBJ_TYPE, OBJ_DATA, OBJ_USERDATA, OBJ_COUNTER = 12, 3, 4, 8, 1  # linux/netfilter/nf_tables.h

NAMES = (
    b"\x1b]0;owned\x07\x1b[31m",
    b"\xc2\x9b31mC1",  # CSI as one character, in UTF-8
    b"a\nredirector: error\r\x08",
    b"\"quo'te`$(id)\\",
    b"x; flush ruleset",
    b"\xff\xfe\x80 no UTF-8",
    "\u202egnp.exe".encode(),  # right to left from here on
    b"n" * 255,
    b"\x1b" * 255,
    b"redirector\n",
    b"redirector ",
    b"REDIRECTOR",
    b"ports",
)
COMMENT = wire.comment(MARK)
Part = tuple[int, int, bytes]  # message type, family, attributes
# Userdata as nobody's tools write it: cut off in the middle, of lengths that are not there, without end, of noise.
JUNK = (
    b"\0",
    b"\0\xff",
    b"\xff" * 256,
    b"\0\0" * 128,
    b"\0\x05\x1b[31m",
    b"\0\x04\xff\xfe\x9b\0",
    wire.comment("\x1b]0;owned\x07\x9b31m"),
    wire.comment("x" * 250),
    *(random.Random(seed).randbytes(seed) for seed in range(1, 257, 51)),
)
# On a table of our name: nearly our mark.
NO_MARKS = (
    *JUNK,
    b"",
    COMMENT[:-2] + b"\0",
    COMMENT.replace(b"made", b"Made"),
    wire.comment(MARK + " "),
    wire.comment(" " + MARK),
    b"\1" + COMMENT[1:],  # of another type
    bytes((0, len(COMMENT) - 1)) + COMMENT[2:],  # longer than what is there
    b"\0\xff" + MARK.encode(),
    b"\0\x12" + MARK.encode(),  # without its NUL
    MARK.encode() + b"\0",
    b"\0\0" + COMMENT,  # an empty comment goes first
)


class Kernel:
    """A netlink socket on the lab's host that sends what it is told."""

    def __init__(self, lab: Lab) -> None:
        self.socket = lab.host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.bind((0, 0))
        self.socket.settimeout(5)

    def commit(self, *parts: Part) -> None:
        """One batch. Raises OSError with the kernel's errno."""
        ends = (message(kind, NLM_F_REQUEST, 1, struct.pack(">BBH", 0, 0, 10)) for kind in (16, 17))
        flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK
        middle = (message(header(kind), flags, 1, bytes((family, 0, 0, 0)) + data) for kind, family, data in parts)
        begin, end = ends
        self.socket.send(begin + b"".join(middle) + end)
        left = len(parts)
        while left:
            for reply in messages(self.socket.recv(1 << 16)):
                assert reply.kind == NLMSG_ERROR
                if error_number(reply):
                    raise OSError(error_number(reply), "")
                left -= 1

    def dump(self, kind: int) -> list[bytes]:
        """Every row of one kind, of all families, as the kernel gives it."""
        self.socket.send(message(header(kind), NLM_F_REQUEST | NLM_F_DUMP, 1, bytes(4)))
        rows: list[bytes] = []
        while True:
            for reply in messages(self.socket.recv(1 << 17)):
                if reply.kind == NLMSG_DONE:
                    return rows
                rows.append(reply.payload[:2] + reply.payload[4:])  # without the genid

    def held(self) -> list[list[bytes]]:
        """All tables, chains, rules, sets and objects."""
        return [self.dump(kind) for kind in (wire.GETTABLE, wire.GETCHAIN, wire.GETRULE, wire.GETSET, wire.GETOBJ)]


def objects(family: int, table: bytes, name: bytes, junk: bytes, *, marked: bytes | None = None) -> list[Part]:
    """A table with a chain, a rule, a map with an element, and a counter; all called `name`, all with `junk`."""
    here, called = table + b"\0", name + b"\0"
    data = junk if marked is None else marked
    userdata = attr(wire.TABLE_USERDATA, data) if data else b""
    shape = wire.SET_TYPES["ports"]
    new_set = (
        attr(wire.SET_TABLE, here)
        + attr(wire.SET_NAME, called)
        + attr(wire.SET_FLAGS, wire.be32(wire.SET_MAP))
        + attr(wire.SET_KEY_TYPE, wire.be32(shape.key_type))
        + attr(wire.SET_KEY_LEN, wire.be32(8))
        + attr(wire.SET_DATA_TYPE, wire.be32(13))
        + attr(wire.SET_DATA_LEN, wire.be32(2))
        + attr(wire.SET_ID, wire.be32(1))
        + attr(wire.SET_USERDATA, junk)
    )
    element = (
        nest(wire.ELEM_KEY, wire.data_value(wire.PORT_KEY.pack(6, 9)))
        + nest(wire.ELEM_DATA, wire.data_value(b"\0\x16"))
        + attr(wire.ELEM_USERDATA, junk)
    )
    counter = nest(OBJ_DATA, attr(wire.COUNTER_BYTES, bytes(8)), attr(wire.COUNTER_PACKETS, bytes(8)))
    return [
        (wire.NEWTABLE, family, attr(wire.TABLE_NAME, here) + attr(wire.TABLE_FLAGS, bytes(4)) + userdata),
        (
            wire.NEWCHAIN,
            family,
            attr(wire.CHAIN_TABLE, here) + attr(wire.CHAIN_NAME, called) + attr(CHAIN_USERDATA, junk),
        ),
        (
            wire.NEWRULE,
            family,
            attr(wire.RULE_TABLE, here) + attr(wire.RULE_CHAIN, called) + attr(wire.RULE_USERDATA, junk),
        ),
        (wire.NEWSET, family, new_set),
        (
            wire.NEWSETELEM,
            family,
            attr(wire.ELEMENTS_TABLE, here)
            + attr(wire.ELEMENTS_SET, called)
            + nest(wire.ELEMENTS_LIST, nest(wire.LIST_ELEM, element)),
        ),
        (
            18,  # NFT_MSG_NEWOBJ
            family,
            attr(wire.OBJ_TABLE, here)
            + attr(wire.OBJ_NAME, called)
            + attr(OBJ_TYPE, wire.be32(OBJ_COUNTER))
            + counter
            + attr(OBJ_USERDATA, junk),
        ),
    ]


@pytest.fixture
def kernel(lab: Lab) -> Iterator[Kernel]:
    made = Kernel(lab)
    with made.socket:
        yield made


class Watched:
    """The commands, each as text and as JSON; nothing that they print may be obeyed by a terminal."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands

    def __call__(self, *words: str, code: int, told: str = "") -> str:
        text = self.commands(*words)
        self.harmless(text.output + text.complaints)
        assert text.code == code, (words, text)
        assert told in text.output + text.complaints, (words, text)
        return text.output + text.complaints

    def json(self, *words: str, code: int) -> object:
        found = self.commands(*words, "--json")
        self.harmless(found.output + found.complaints)
        assert found.code == code, (words, found)
        return json.loads(found.output)

    def harmless(self, told: str) -> None:
        assert all(c in "\n\t" or c.isprintable() for c in told), ascii(told)


@pytest.fixture
def redirector(lab: Lab) -> Iterator[Watched]:
    with Commands(lab) as made:
        yield Watched(made)


def life(redirector: Watched, file: str, more: str) -> None:
    """Every command that looks at the kernel, in both forms, through the life of a few generations."""
    redirector("plan", file, code=2)
    redirector.json("plan", file, code=2)
    redirector.json("apply", file, "--dry-run", code=0)
    redirector("apply", file, "--verify", code=0)
    redirector.json("apply", more, code=0)
    redirector("status", code=0)
    redirector.json("status", code=0)
    redirector("rollback", code=0)
    redirector.json("apply", more, "--confirm", code=0)
    redirector("status", code=0, told="confirm")
    redirector("cancel", code=0)
    redirector("boot", file, code=0)
    redirector.json("history", code=0)
    redirector("remove", code=0)
    redirector.json("status", code=3)
    redirector.json("remove", "--purge", code=0)


def test_tables_of_others(lab: Lab, product: Product, kernel: Kernel, redirector: Watched) -> None:
    """Odd names and junk in every family: to us they are not there."""
    made = 0
    for family in FAMILIES.values():
        for number, name in enumerate(NAMES):
            junk = JUNK[(number + family) % len(JUNK)]
            kernel.commit(*objects(family, name, name, junk, marked=COMMENT if number % 2 else None))
            made += 1
    for family in set(FAMILIES.values()) - {FAMILIES["inet"]}:  # our own name, in the families that are not ours
        kernel.commit(*objects(family, TABLE.encode(), b"ports", JUNK[family], marked=COMMENT))
        made += 1
    before = kernel.held()
    assert [len(rows) for rows in before] == [made] * 5
    life(redirector, product.file(WEB), product.file(WEB + mapping("dns", 53, 5300), "more.toml"))
    assert kernel.held() == before
    redirector("apply", product.file(WEB), code=0)
    lab.host.serve("tcp", HOST[0], 8080)
    assert lab.client.ask_tcp(HOST[0], 80) == Answered(8080, CLIENT[0], HOST[0])


def test_a_table_of_our_name_is_never_adopted(lab: Lab, product: Product, kernel: Kernel, redirector: Watched) -> None:
    file, family = product.file(WEB), FAMILIES["inet"]
    for number, userdata in enumerate(NO_MARKS):
        name = NAMES[number % len(NAMES)]
        kernel.commit(*objects(family, TABLE.encode(), name, JUNK[number % len(JUNK)], marked=userdata))
        before = kernel.held()
        for words in (["plan", file], ["apply", file], ["remove"], ["remove", "--purge"], ["boot", file]):
            redirector(*words, code=1, told="not ours")
            redirector.json(*words, code=1)
        redirector("status", code=3, told="not ours")
        redirector.json("status", code=3)
        assert kernel.held() == before, userdata
        assert product.history.numbers() == []
        redirector.json("plan", file, "--replace-foreign", code=2)
        kernel.commit((wire.DELTABLE, family, attr(wire.TABLE_NAME, wire.text(TABLE))))


@pytest.mark.parametrize("number", range(0, len(NAMES), 2))
def test_what_others_put_into_our_table(product: Product, kernel: Kernel, redirector: Watched, number: int) -> None:
    """With our mark it is our table, and all that is not as we made it is told, harmlessly, and taken away."""
    file, family = product.file(WEB), FAMILIES["inet"]
    redirector("apply", file, code=0)
    kept = product.backend.observe().program
    for name in NAMES[number : number + 2]:
        for junk in (JUNK[number % len(JUNK)], wire.comment("\x1b[31m\x9b31m"), wire.comment("odd\nname")):
            parts = objects(family, TABLE.encode(), name, junk, marked=COMMENT)
            ours = name == b"ports"  # the map of that name is there already: its element is all that is new
            kernel.commit(*(part for part in parts if not ours or part[0] != wire.NEWSET))
            told = redirector.json("status", code=2)
            assert isinstance(told, dict)
            assert told["drift"]
            redirector("status", code=2)
            redirector("plan", file, code=2)
            redirector.json("plan", file, code=2)
            if junk is JUNK[0]:
                redirector("apply", file, code=0)
            else:
                redirector.json("apply", file, code=0)
            assert product.backend.observe().program == kept
            redirector("status", code=0)


def test_generations_that_came_from_odd_names(lab: Lab, product: Product, redirector: Watched) -> None:
    """Files and authors are other people's text, too, in what people read and in what scripts read."""
    odd = "\x1b]0;owned\x07\x9b31m\u202e\n\udcff.toml"
    file = product.file(WEB, odd)
    redirector("check", file, code=0)
    redirector.json("check", file, code=0)
    redirector("apply", file, code=0)
    for words in (["history"], ["show"], ["status"], ["plan", file], ["compare", "1", file], ["render", file]):
        redirector(*words, code=0)
        redirector.json(*words, code=0)
    history = redirector.json("history", code=0)
    assert isinstance(history, list)
    assert history[0]["origin"] == file  # escaped, not changed
    lab.host.nft("delete element inet redirector ports { tcp . 80 }")
    assert re.search(r"redirector apply .*\\x1b\]0;owned", redirector("status", code=2))
    for words in (["apply", f"{file}.gone"], ["show", odd], ["--netns", odd, "status"], ["--state-dir", file, "apply"]):
        assert redirector.commands(*words).code in (1, 64, 78)
        redirector.harmless("".join(redirector.commands(*words)[1:]))
        redirector.harmless("".join(redirector.commands(*words, "--json")[1:]))
