"""Every value of the file: what it takes, what it refuses, and with which words."""

from typing import Any

import pytest

from redirector.fields import FIELDS, SETTINGS
from redirector.model import Ports, Problem
from redirector.values import Report, kind, quoted, suggestion

HUGE = 1 << 20_000  # more digits than Python is willing to write (sys.set_int_max_str_digits)


def parsed(key: str, value: object) -> Any:
    """The model's value; the test fails if there was any problem."""
    problems: list[Problem] = []
    found = {**FIELDS, **SETTINGS}[key].parse(value, Report((), problems))
    assert problems == []
    return found


def faults(key: str, value: object) -> list[Problem]:
    """The problems; the test fails if a value came with them."""
    problems: list[Problem] = []
    assert {**FIELDS, **SETTINGS}[key].parse(value, Report((key,), problems)) is None
    assert problems
    return problems


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "web", "web"),
        ("name", "9.a-b_C", "9.a-b_C"),
        ("name", "a" * 63, "a" * 63),
        ("listen", 80, (Ports(80, 80),)),
        ("listen", 65535, (Ports(65535, 65535),)),
        ("listen", "80-80", (Ports(80, 80),)),
        ("listen", "00080-00081", (Ports(80, 81),)),
        ("listen", [443, "8000-8003", 1], (Ports(443, 443), Ports(8000, 8003), Ports(1, 1))),
        ("to", "1-65535", Ports(1, 65535)),
        ("protocol", "sctp", ("sctp",)),
        ("protocol", ["udp", "tcp"], ("udp", "tcp")),
        ("family", "ipv6", "ipv6"),
        ("address", "192.0.2.1", ("192.0.2.1",)),
        ("address", "FD00:0:0::0001", ("fd00::1",)),
        ("address", ["127.0.0.1", "::1"], ("127.0.0.1", "::1")),
        ("source", "10.0.0.0/8", ("10.0.0.0/8",)),
        ("source", "10.0.0.1", ("10.0.0.1/32",)),
        ("source", "FD00::/8", ("fd00::/8",)),
        ("source", "fd00::1", ("fd00::1/128",)),
        ("source", ["0.0.0.0/0", "::/0"], ("0.0.0.0/0", "::/0")),
        ("source", "224.0.0.0/4", ("224.0.0.0/4",)),  # silly, but nobody's business
        ("interface", "eth0", ("eth0",)),
        ("interface", "fifteen-letters", ("fifteen-letters",)),
        ("interface", ["veth*", "br-1.2@x"], ("veth*", "br-1.2@x")),
        ("local", True, True),
        ("exclusive", False, False),
        ("rewrite", "redirect", "redirect"),
        ("owner", "www-data", "www-data"),
        ("owner", 0, 0),
        ("owner", 2**32 - 2, 2**32 - 2),
        ("enabled", False, False),
        ("comment", "", ""),
        ("comment", '"quoted" \\ ünïcödé ☃', '"quoted" \\ ünïcödé ☃'),
        ("comment", "x" * 120, "x" * 120),
        ("backend", "iptables-nft", "iptables-nft"),
        ("priority", -199, -199),
        ("priority", 32767, 32767),
    ],
)
def test_what_is_taken(key: str, value: object, expected: object) -> None:
    assert parsed(key, value) == expected


@pytest.mark.parametrize(
    ("key", "value", "words", "hint"),
    [
        ("name", "", "is no name", ""),
        ("name", "a" * 64, "is no name", ""),
        ("name", "-a", "is no name", ""),
        ("name", "a b", "is no name", ""),
        ("name", "a\n", "is no name", ""),
        ("name", "ünï", "is no name", ""),
        ("name", 7, "a name is text, not the integer 7", 'write "7" in quotes'),
        ("to", 0, "port 0 is out of range", ""),
        ("to", 65536, "port 65536 is out of range", ""),
        ("to", -1, "port -1 is out of range", ""),
        ("to", "80", 'port "80" must be a number', "write 80 without quotes"),
        ("to", True, "not the boolean true", ""),
        ("to", 80.0, "not the float 80.0", ""),
        ("to", [80], "not the array [80]", ""),
        ("to", {}, "not the table {}", ""),
        ("to", "90-80", "ends before it starts", 'write "80-90"'),
        ("to", "0-80", "out of range", ""),
        ("to", "1-65536", "out of range", ""),
        ("to", "80..90", "is no port range", 'write "80-90"'),
        ("to", "80 - 90", "is no port range", 'write "80-90"'),
        ("to", "80:90", "is no port range", 'write "80-90"'),
        ("to", "80-", "is no port range", ""),
        ("to", "http", "is no port range", ""),
        ("to", "", "is no port range", ""),
        ("to", "80\n", "is no port range", ""),
        ("to", "²", "a port is a number", ""),
        ("to", "٨٠", "a port is a number", ""),
        ("to", "٨٠-٩٠", "is no port range", ""),
        ("listen", [], "this list is empty", "leave the key out instead"),
        ("listen", [80, "80-80"], "stands in this list already", ""),
        ("listen", [[80]], "not the array [80]", ""),
        ("listen", [80, True], "not the boolean true", ""),
        ("protocol", "TCP", 'must be one of "tcp", "udp", "sctp", not "TCP"', 'did you mean "tcp"?'),
        ("protocol", "upd", "must be one of", 'did you mean "udp"?'),
        ("protocol", "quic", "must be one of", ""),
        ("protocol", ["tcp", "tcp"], "stands in this list already", ""),
        ("protocol", 6, "not 6", ""),
        ("protocol", [["tcp"]], "must be one of", ""),
        ("family", "IPv6", "must be one of", 'did you mean "ipv6"?'),
        ("family", ["ipv4"], "must be one of", ""),
        ("address", "10.0.0.0/8", "is a network", "source takes networks"),
        ("address", "fe80::1%eth0", "has a zone", "leave the zone out and name the interface"),
        ("address", "::ffff:10.0.0.1", "IPv4 address in IPv6 form", 'write "10.0.0.1"'),
        ("address", "0.0.0.0", "stands for every address", "leave address out instead"),
        ("address", "::", "stands for every address", "leave address out instead"),
        ("address", "224.0.0.1", "multicast or broadcast", ""),
        ("address", "255.255.255.255", "multicast or broadcast", ""),
        ("address", "ff02::1", "multicast or broadcast", ""),
        ("address", "10.0.0", "is no IPv4 or IPv6 address", ""),
        ("address", "localhost", "is no IPv4 or IPv6 address", ""),
        ("address", "10.0.0.1\0", "is no IPv4 or IPv6 address", ""),
        ("address", "", "is no IPv4 or IPv6 address", ""),
        ("address", "\ud800", "is no IPv4 or IPv6 address", ""),
        ("address", 10, "an address is text", 'write "10" in quotes'),
        ("address", ["::1", "0::1"], "stands in this list already", ""),
        ("source", "10.0.0.1/8", "has bits beyond its prefix length", 'write "10.0.0.0/8", or "10.0.0.1/32"'),
        ("source", "fd00::1/8", "has bits beyond its prefix length", 'write "fd00::/8", or "fd00::1/128"'),
        ("source", "10.0.0.0/33", "no valid prefix length: 0 to 32", ""),
        ("source", "fd00::/129", "no valid prefix length: 0 to 128", ""),
        ("source", "10.0.0.0/", "no valid prefix length", ""),
        ("source", "10.0.0.0/-1", "no valid prefix length", ""),
        ("source", "10.0.0.0/²", "no valid prefix length", ""),
        ("source", "10.0.0.0/8/8", "no valid prefix length", ""),
        ("source", "10.0.0.0/255.0.0.0", "no valid prefix length", ""),
        ("source", "::ffff:10.0.0.0/104", "IPv4 address in IPv6 form", "write the IPv4 network"),
        ("source", "10/8", "is no network", ""),
        ("source", 10.5, "a source is text, not the float", 'write "10.5" in quotes'),
        ("interface", "eth+", "the wildcard here is a final *, not +", 'write "eth*"'),
        ("interface", "+", "the wildcard here is a final *, not +", ""),
        ("interface", "*", "would be every interface", "leave interface out instead"),
        ("interface", "eth*0", "cannot be the name", ""),
        ("interface", "eth**", "cannot be the name", ""),
        ("interface", "sixteen--letters", "longer than an interface name", ""),
        ("interface", "", "cannot be the name", ""),
        ("interface", ".", "cannot be the name", ""),
        ("interface", "a/b", "cannot be the name", ""),
        ("interface", "a:b", "cannot be the name", ""),
        ("interface", "a b", "cannot be the name", ""),
        ("interface", 'a"b', "cannot be the name", ""),
        ("interface", "a\\b", "cannot be the name", ""),
        ("interface", "eth0\n", "cannot be the name", ""),
        ("interface", "é", "cannot be the name", ""),
        ("interface", 0, "an interface is text", 'write "0" in quotes'),
        ("local", 1, "must be true or false, not 1", ""),
        ("local", "true", 'must be true or false, not "true"', "without quotes"),
        ("enabled", [], "must be true or false", ""),
        ("rewrite", "prot", "must be one of", 'did you mean "port"?'),
        ("owner", "33", "is no user name", "write 33 without quotes"),
        ("owner", -1, "is no user id", ""),
        ("owner", 2**32 - 1, "is no user id", ""),  # (uid_t) -1 means nobody at all to the kernel
        ("owner", True, "not the boolean true", ""),
        ("owner", "", "is no user name", ""),
        ("owner", "a b", "is no user name", ""),
        ("owner", "-x", "is no user name", ""),
        ("comment", "x" * 121, "has 121 characters", ""),
        ("comment", "a\nb", "printable characters only", ""),
        ("comment", "\x1b[31m", "printable characters only", ""),
        ("comment", "\u202e", "printable characters only", ""),
        ("comment", 1, "a comment is text", 'write "1" in quotes'),
        ("comment", [], "a comment is text, not the array []", ""),
        ("backend", "nftable", "must be one of", 'did you mean "nftables"?'),
        ("priority", -200, "out of range", ""),
        ("priority", 32768, "out of range", ""),
        ("priority", "-110", "priority is a number, not the string", ""),
        ("priority", True, "not the boolean true", ""),
    ],
)
def test_what_is_refused(key: str, value: object, words: str, hint: str) -> None:
    (problem,) = faults(key, value)
    assert words in problem.message
    assert problem.hint == hint


@pytest.mark.parametrize("key", [*FIELDS, *SETTINGS])
def test_no_key_is_upset_by_any_value(key: str) -> None:
    deep: object = []
    for _ in range(200):
        deep = [deep]
    for value in (HUGE, -HUGE, [HUGE], {"x": HUGE}, deep, 1.5, float("nan"), "\ud800\0", "x" * 10_000, {}, b"", None):
        for problem in faults(key, value):
            assert len(problem.message) < 300


def test_every_bad_item_of_a_list_is_told_where_it_stands() -> None:
    problems = faults("listen", [80, 0, "x", 80, 81])
    assert [problem.path for problem in problems] == [("listen", 1), ("listen", 2), ("listen", 3)]


def test_kinds_have_their_toml_names() -> None:
    values: tuple[object, ...] = (True, 1, 1.5, "", [], {}, None)
    assert [kind(v) for v in values] == ["boolean", "integer", "float", "string", "array", "table", "date or time"]


def test_quoted_values_have_a_readable_length() -> None:
    assert quoted("x" * 1000) == '"' + "x" * 56 + "..."
    assert len(quoted(["x"] * 1000)) == 60
    assert quoted(False) == "false"
    assert len(quoted(HUGE)) <= 60


def test_suggestions_only_where_something_is_near() -> None:
    assert suggestion("INTERFASE", FIELDS) == 'did you mean "interface"?'
    assert suggestion("zzzzz", FIELDS) == ""
    assert suggestion("x" * 100_000, FIELDS) == ""
