"""Parsers of single values of a mapping file, from what TOML gives to what the model holds.

Each takes a value and a `Report`, to which it tells what is wrong and what to do; it then returns None. It never
raises, whatever the value.
"""

from __future__ import annotations

import _socket as socket  # see netlink
import re
from collections.abc import Callable, Iterable
from typing import Any

from redirector.model import Ports, Problem, Target, family_of

Path = tuple[str | int, ...]

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NAME = re.compile(NAME).fullmatch
RANGE = "([0-9]{1,5})-([0-9]{1,5})"
# What the kernel accepts as an interface name (dev_valid_name: no "/", ":", white space), less what rule languages
# give a meaning: quotes, backslash, "*" and iptables' "+".
INTERFACE = r"[!#-)\-.0-9;-Z^-~]+"
IFNAMSIZ = 16  # linux/if.h, with the final NUL
# Priorities at or below NF_IP_PRI_CONNTRACK (-200, linux/netfilter_ipv4.h) are refused for NAT by the kernel.
PRIORITIES = (-199, 32767)


class Report:
    """Collects problems under one path."""

    __slots__ = ("path", "problems")

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = problems

    def at(self, *more: str | int) -> Report:
        return Report(self.path + more, self.problems)

    def __call__(self, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """None, so that a parser can end with `return report(…)`."""
        self.problems.append(Problem(self.path, message, hint, at_key))


def kind(value: object) -> str:
    """What TOML calls the type of `value`."""
    names = ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (list, "array"), (dict, "table"))
    return next((name for type_, name in names if isinstance(value, type_)), "date or time")


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that a misspelt word was meant to be, "" where none is near."""
    import difflib  # only after an error

    return next(iter(difflib.get_close_matches(word.lower()[:80], list(words), n=1, cutoff=0.55)), "")


def suggestion(word: str, words: Iterable[str]) -> str:
    """A "did you mean" for a misspelt word, "" where nothing is near."""
    near = nearest(word, words)
    return f'did you mean "{near}"?' if near else ""


def quoted(value: object) -> str:
    """A value as the file has it, cut to a readable length."""
    try:
        text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # more digits than Python writes (sys.set_int_max_str_digits); TOML's 0x… may have them
        return "with a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _not_text(value: object, report: Report, what: str) -> None:
    hint = f'write "{quoted(value)}" in quotes' if isinstance(value, int | float) else ""
    return report(f"{what} is text, not the {kind(value)} {quoted(value)}", hint)


def port(value: object, report: Report) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return report(f"port {quoted(value)} must be a number", f"write {value[:8]} without quotes")
    if isinstance(value, bool) or not isinstance(value, int):
        return report(f"a port is a number from 1 to 65535, not the {kind(value)} {quoted(value)}")
    if not 1 <= value <= 65535:
        return report(f"port {quoted(value)} is out of range: ports go from 1 to 65535")
    return value


def ports(value: object, report: Report) -> Ports | None:
    """A port, or "first-last"."""
    if type(value) is int and 1 <= value <= 65535:
        return Ports(value, value)
    if isinstance(value, str) and not value.isdigit():
        match = re.fullmatch(RANGE, value)
        if not match:
            likely = re.fullmatch(r"([0-9]{1,5})\D{1,3}([0-9]{1,5})", value)
            hint = f'write "{likely[1]}-{likely[2]}"' if likely else ""
            return report(f'{quoted(value)} is no port range: write "first-last", such as "8000-8099"', hint)
        first, last = int(match[1]), int(match[2])
        if not (1 <= first <= 65535 and 1 <= last <= 65535):
            return report(f"range {quoted(value)} is out of range: ports go from 1 to 65535")
        if first > last:
            return report(f"range {quoted(value)} ends before it starts", f'write "{last}-{first}"')
        return Ports(first, last)
    single = port(value, report)
    return None if single is None else Ports(single, single)


def choice(words: tuple[str, ...], what: str) -> Callable[[object, Report], str | None]:
    def parse(value: object, report: Report) -> str | None:
        if isinstance(value, str) and value in words:
            return value
        expected = ", ".join(f'"{w}"' for w in words)
        hint = suggestion(value, words) if isinstance(value, str) else ""
        return report(f"{what} must be one of {expected}, not {quoted(value)}", hint)

    return parse


def boolean(value: object, report: Report) -> bool | None:
    if isinstance(value, bool):
        return value
    return report(f"must be true or false, not {quoted(value)}", "without quotes" if isinstance(value, str) else "")


def is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME(value) is not None


def name(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "a name")
    if _NAME(value):
        return value
    return report(
        f"{quoted(value)} is no name: letters, digits, '.', '_' and '-', starting with a letter or digit, at most 63"
    )


def several(parse: Callable[[Any, Report], Any]) -> Callable[[object, Report], tuple[Any, ...] | None]:
    """One value or a list of them, none twice."""

    def parse_all(value: object, report: Report) -> tuple[Any, ...] | None:
        if not isinstance(value, list):
            one = parse(value, report)
            return None if one is None else (one,)
        if not value:
            return report("this list is empty", "leave the key out instead")
        found: dict[Any, int] = {}
        bad = False
        for i, item in enumerate(value):
            one = parse(item, report.at(i))
            if one is None:
                bad = True
            elif one in found:
                bad = True
                report.at(i)(f"{quoted(item)} stands in this list already")
            else:
                found[one] = i
        return None if bad else tuple(found)

    return parse_all


def _packed(text: str) -> tuple[int, bytes] | None:
    """(address family, packed bytes) of an address without prefix or zone."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a NUL inside
        return None


def _mapped(packed: bytes) -> bool:
    return len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff"


def address(value: object, report: Report) -> str | None:
    """One unicast address, canonical (RFC 5952)."""
    if not isinstance(value, str):
        return _not_text(value, report, "an address")
    if "/" in value:
        return report(f"{quoted(value)} is a network; address takes single addresses", "source takes networks")
    if "%" in value:
        return report(f"{quoted(value)} has a zone", "leave the zone out and name the interface")
    found = _packed(value)
    if not found:
        return report(f"{quoted(value)} is no IPv4 or IPv6 address")
    family, packed = found
    if _mapped(packed):
        plain = socket.inet_ntop(socket.AF_INET, packed[12:])
        return report(f"{quoted(value)} is an IPv4 address in IPv6 form", f'write "{plain}"')
    if not any(packed):
        return report(f"{quoted(value)} stands for every address", "leave address out instead")
    if (packed[0] >= 224 and family == socket.AF_INET) or packed[0] == 0xFF:
        return report(f"{quoted(value)} is a multicast or broadcast address: it is no single host's")
    return socket.inet_ntop(family, packed)


# What tells an address and port from a port or range, misspelt ("80:90") or not.
_ADDRESSED = r"^(?!\d+\D{1,3}\d+$).*[.:\[]"


def target(value: object, report: Report) -> Ports | Target | None:
    """A port, "first-last", or "ADDRESS:PORT" or "[ADDRESS]:PORT", or a list of the latter, one of each family."""
    if type(value) is int:
        return ports(value, report)
    written = value if isinstance(value, list) else [value]
    if not any(isinstance(item, str) and re.search(_ADDRESSED, item, re.DOTALL) for item in written):
        return ports(value, report)
    found = _endpoints(written, report)
    if not found:
        return None
    for i, (_, other) in enumerate(found):
        if other != found[0][1]:
            message = f"{quoted(written[i])} has other ports than {quoted(written[0])}"
            return report.at(i)(message, "split the mapping in two, by family")
    first, last = found[0][1]
    return Target(first, last, tuple(sorted((address for address, _ in found), key=family_of)))


def _endpoint(value: object, report: Report) -> tuple[str, Ports] | None:
    """An address and the ports behind it."""
    if not isinstance(value, str):
        hint = f'write {quoted(value)} without the brackets, or say where: "10.88.0.5:{quoted(value)}"'
        return report(f"a list in to is of targets with an address, not of {kind(value)}s", hint)
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9-]+)", value)
    if not match:
        parts = value.rpartition(":")
        hint = 'write "10.88.0.5:8080", or "[fd00::5]:8080"'
        if _packed(value):
            hint = f'write "[{value}]:8080"' if ":" in value else f'write "{value}:8080"'
        elif ":" in parts[0] and _packed(parts[0]):
            hint = f'write "[{parts[0]}]:{parts[2]}"'
        return report(f"{quoted(value)} is no target: a port, a range, or an address and a port", hint)
    where = match[1] if match[1] is not None else match[2]
    if _packed(where) is None:
        return report(f"{quoted(where)} is no address: targets are named by their address", "names are not resolved")
    if (match[1] is not None) != (":" in where):
        return report(f"{quoted(value)} has brackets around an IPv4 address", f'write "{where}:{match[3]}"')
    found = address(where, report)
    behind = ports(int(match[3]) if match[3].isdigit() and len(match[3]) < 6 else match[3], report)
    if found is None or behind is None:
        return None
    if found.startswith(("fe8", "fe9", "fea", "feb")) and ":" in found:
        return report(f"{quoted(value)} is link-local: it means another machine on each link", "use another address")
    return found, behind


_endpoints = several(_endpoint)


def network(value: object, report: Report) -> str | None:
    """A network in CIDR form, canonical; a single address is its /32 or /128."""
    if not isinstance(value, str):
        return _not_text(value, report, "a source")
    text, slash, length = value.partition("/")
    found = _packed(text)
    if not found:
        return report(f'{quoted(value)} is no network: write it like "10.0.0.0/8", "192.0.2.7" or "fd00::/8"')
    family, packed = found
    bits = len(packed) * 8
    if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits):
        return report(f"{quoted(value)} has no valid prefix length: 0 to {bits}")
    if _mapped(packed):
        return report(f"{quoted(value)} is an IPv4 address in IPv6 form", "write the IPv4 network")
    prefix = int(length) if slash else bits
    number = int.from_bytes(packed, "big")
    base = number >> (bits - prefix) << (bits - prefix)
    canonical = socket.inet_ntop(family, base.to_bytes(len(packed), "big")) + f"/{prefix}"
    if base != number:
        return report(f"{quoted(value)} has bits beyond its prefix length", f'write "{canonical}", or "{text}/{bits}"')
    return canonical


def interface(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "an interface")
    if "+" in value:
        hint = f'write "{value[:-1]}*"' if value.endswith("+") and len(value) > 1 else ""
        return report(f"{quoted(value)}: the wildcard here is a final *, not +", hint)
    if value == "*":
        return report('"*" alone would be every interface', "leave interface out instead")
    if len(value) >= IFNAMSIZ:
        return report(f"{quoted(value)} is longer than an interface name can be ({IFNAMSIZ - 1})")
    stem = value.removesuffix("*")
    if not re.fullmatch(INTERFACE, stem) or value in (".", ".."):
        return report(f"{quoted(value)} cannot be the name of an interface")
    return value


def owner(value: object, report: Report) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return report(f"an owner is a user name or id, not the {kind(value)} {quoted(value)}")
    if isinstance(value, int):
        return value if 0 <= value < 2**32 - 1 else report(f"{quoted(value)} is no user id")
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}\$?", value, re.ASCII) and not value.isdigit():
        return value
    return report(f"{quoted(value)} is no user name", f"write {value} without quotes" if value.isdigit() else "")


def comment(value: object, report: Report) -> str | None:
    if not isinstance(value, str):
        return _not_text(value, report, "a comment")
    if len(value) > 120:
        return report(f"this comment has {len(value)} characters; it may have 120")
    if not value.isprintable():
        return report("a comment may hold printable characters only")
    return value


def priority(value: object, report: Report) -> int | None:
    low, high = PRIORITIES
    if isinstance(value, bool) or not isinstance(value, int):
        return report(f"priority is a number, not the {kind(value)} {quoted(value)}")
    if low <= value <= high:
        return value
    return report(f"priority {quoted(value)} is out of range: NAT chains may have {low} to {high}")
