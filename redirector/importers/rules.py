"""One rule of iptables, from its words to what a mapping can say of it. Pure.

Understood are the spellings of iptables-save and the longer ones that people type. A condition that is not understood
raises Beyond, so that nothing is taken to match more than it does.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from redirector.errors import printable
from redirector.importers.found import EVERY_PORT, Beyond, Target
from redirector.model import PROTOCOLS, Ports, Problem, Scope, family_of, loopback
from redirector.records import NamedTuple
from redirector.values import Report, address, interface

ALIASES = {
    **dict.fromkeys(("--source", "--src"), "-s"),
    **dict.fromkeys(("--destination", "--dst"), "-d"),
    **dict.fromkeys(("--protocol", "--proto"), "-p"),
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--match": "-m",
    "--jump": "-j",
    "--goto": "-g",
    "--destination-port": "--dport",
    "--destination-ports": "--dports",
    "--to-port": "--to-ports",  # getopt_long takes the beginning of a name
    "--to": "--to-destination",
    "--state": "--ctstate",
}
OPTIONS = {*ALIASES.values(), "--dst-type", "--comment", "-c"}
FLAGS = ("-4", "-6", "--ipv4", "--ipv6", "--persistent")  # of which a mapping has nothing to say
NUMBERS = {str(number): name for name, number in PROTOCOLS.items()}
MATCHES = (*PROTOCOLS, "multiport", "addrtype", "comment", "conntrack", "state")
NOT = "a mapping cannot say “not”"
BEYOND = "beyond loopback"  # the one “not” that a mapping says, of targets with an address
LOOPBACK = ("127.0.0.0/8", "127.0.0.0/255.0.0.0", "::1/128", "::1")


class Condition(NamedTuple):
    """What a packet must be like. `protocol` "" and `ports` () stand for any; `outgoing` is -o; `local`: its
    destination is this host; `beyond`: and not one of its loopback addresses."""

    protocol: str = ""
    ports: tuple[Ports, ...] = ()
    scope: Scope = Scope()
    outgoing: str = ""
    local: bool = False
    beyond: bool = False


class Rule(NamedTuple):
    """`verdict` is the name of a target or a chain, "" without; `to` what stands behind --to-…, "" without."""

    condition: Condition
    verdict: str
    goto: bool
    to: str
    comment: str


def parse(words: Sequence[str], family: str) -> Rule:
    """Raises Beyond for what a mapping cannot say."""
    found: dict[str, str] = {}
    for option, value in _options(words):
        match option:
            case "-m" if value not in MATCHES:
                raise Beyond(f"a mapping knows no match {printable(value)}")
            case "-m" | "-c":
                continue
            case "--ctstate" if "NEW" not in value.split(","):
                raise Beyond("NAT sees new connections only")
            case "--ctstate":
                continue  # so it says nothing
        if option in found:
            raise Beyond(f"{option} stands twice")
        found[option] = value
    protocol = found.get("-p", "").lower()
    protocol = NUMBERS.get(protocol, protocol)
    if protocol in ("all", "0"):
        protocol = ""
    if protocol and protocol not in PROTOCOLS:
        raise Beyond(f"a mapping knows no protocol {printable(protocol)}")
    if "--dst-type" in found and found["--dst-type"] != "LOCAL":
        raise Beyond("a mapping takes connections to this host only")
    scope = Scope(
        network(found.get("-s", ""), family), single(found.get("-d", ""), family), _interface(found.get("-i", ""))
    )
    ports = _ports(found.get("--dport") or found.get("--dports") or "", protocol)
    condition = Condition(protocol, ports, scope, found.get("-o", ""), "--dst-type" in found, BEYOND in found)
    verdict = found.get("-j") or found.get("-g") or ""
    to = found.get("--to-ports") or found.get("--to-destination") or ""
    return Rule(condition, verdict, "-g" in found, to, found.get("--comment", ""))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) by its short name. Raises Beyond for what is not known, and for negations."""
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word == "!":
            if len(left) < 2 or ALIASES.get(left[-1], left[-1]) != "-d" or left[-2] not in LOOPBACK:
                raise Beyond(NOT)
            del left[-2:]
            yield BEYOND, ""
            continue
        if word in FLAGS:
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        name = ALIASES.get(name, name)
        if name not in OPTIONS:
            raise Beyond(f"a mapping cannot say {printable(word[:40])}")
        if not equals:
            if not left:
                raise Beyond(f"{name} has no value")
            value = left.pop()
        if value == "!":
            raise Beyond(NOT)
        if name == "-c" and left:
            left.pop()  # packets, and then bytes
        yield name, value


def network(text: str, family: str) -> str:
    """A source as a mapping has it; "0.0.0.0/0" and "::/0" stay."""
    if not text:
        return ""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Beyond(f"{printable(text[:60])} is no network") from None
    if ("ipv6" if found.version == 6 else "ipv4") != family:
        raise Beyond(f"{printable(text[:60])} is not of {family}")
    if found.version == 6 and int(found.network_address) >> 32 == 0xFFFF:
        raise Beyond("an IPv4 address in IPv6 form")
    return _canonical(str(found.network_address)) + f"/{found.prefixlen}"


def _canonical(text: str) -> str:
    """As the model has it: ipaddress and inet_ntop differ (::1.2.3.4)."""
    kind = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_ntop(kind, socket.inet_pton(kind, text))


def single(text: str, family: str) -> str:
    if not text:
        return ""
    host, _, prefix = network(text, family).partition("/")
    if prefix == "0":
        return ""
    if int(prefix) != (128 if family == "ipv6" else 32):
        raise Beyond("a mapping takes single local addresses, not networks of them")
    return valid(address, host)


def valid(parse_value: Callable[[object, Report], str | None], text: str) -> str:
    """What a parser of `values` makes of a text. Raises Beyond with its complaint."""
    problems: list[Problem] = []
    found = parse_value(text, Report((), problems))
    if found is None:
        raise Beyond(printable(problems[0].message))
    return found


def exact(value: object, report: Report) -> str | None:
    """An interface whose name may not end in what is a wildcard here."""
    return interface(f"{value}".replace("*", "/"), report)


def _interface(text: str) -> str:
    if text in ("", "+"):
        return ""
    return valid(interface, text[:-1] + "*") if text.endswith("+") else valid(exact, text)


def number(text: str, protocol: str = "") -> int:
    """A port, or the name of a service. Raises Beyond."""
    if text.isascii() and text.isdigit():
        found = int(text[:6])
    else:
        try:
            found = socket.getservbyname(text, protocol) if protocol and "\0" not in text else 0
        except (OSError, ValueError):
            found = 0
    if not 1 <= found <= 65535:
        raise Beyond(f"{printable(text[:40])} is no port from 1 to 65535")
    return found


def span(text: str, mark: str, protocol: str = "") -> Ports:
    """Ports from "80" or "80:89", whatever the mark. Raises Beyond."""
    first, several, last = text.partition(mark)
    if several and mark == ":":
        # No mapping has port 0; our own trees of ranges begin there.
        first, last = first.lstrip("0") or "1", last or "65535"
    found = Ports(number(first, protocol), number(last if several else first, protocol))
    if found.first > found.last:
        raise Beyond(f"{printable(text[:40])} ends before it starts")
    return found


def _ports(text: str, protocol: str) -> tuple[Ports, ...]:
    if not text:
        return ()
    if not protocol:
        raise Beyond("ports without a protocol")
    return joined(span(part, ":", protocol) for part in text.split(","))


def joined(ports: Iterable[Ports]) -> tuple[Ports, ...]:
    """Ranges in order, those that overlap or touch made one."""
    found: list[Ports] = []
    for one in sorted(ports):
        if found and one.first <= found[-1].last + 1:
            found[-1] = Ports(found[-1].first, max(found[-1].last, one.last))
        else:
            found.append(one)
    return tuple(found)


def common(one: tuple[Ports, ...], other: tuple[Ports, ...]) -> tuple[Ports, ...]:
    """The ports that are in both; both in order."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        first, last = max(one[i].first, other[j].first), min(one[i].last, other[j].last)
        if first <= last:
            found.append(Ports(first, last))
        if one[i].last < other[j].last:
            i += 1
        else:
            j += 1
    return tuple(found)


def target(rule: Rule, family: str) -> Target:
    """Where a REDIRECT or DNAT leads. Raises Beyond."""
    ports = rule.condition.ports or EVERY_PORT
    if rule.verdict == "REDIRECT":
        return _within(span(rule.to, "-"), ports, "redirect") if rule.to else Target("redirect", 0, True)
    where, colon, rest = ("", "", "") if rule.to.endswith("]") else rule.to.rpartition(":")
    if not colon or (where.count(":") and not where.startswith("[")):  # an address alone: ports stay as they are
        return Target("port", 0, True, _another(rule.to, family))
    to, shifted, base = rest.partition("/")
    targets, there = span(to, "-"), _another(where, family) if where else ""
    if not shifted or targets.size == 1:
        return _within(targets, ports, "port")._replace(address=there)
    # The kernel counts from the base, and starts again where the targets end (nf_nat_l4proto_unique_tuple).
    start = number(base)
    if ports[0].first < start or ports[-1].last - start >= targets.size:
        raise Beyond("there are fewer targets than ports")
    return Target("port", targets.first - start, True, there)


def _another(text: str, family: str) -> str:
    """The address of a target, in brackets or not. Raises Beyond."""
    found = valid(address, text.removeprefix("[").removesuffix("]"))
    if loopback(found) or family_of(found) != family:
        raise Beyond(f"{printable(text[:60])} cannot be the target of a mapping for {family}")
    return found


def _within(targets: Ports, ports: tuple[Ports, ...], rewrite: str) -> Target:
    if targets.size == 1:
        return Target(rewrite, targets.first)
    if targets.first <= ports[0].first and ports[-1].last <= targets.last:
        return Target(rewrite, 0, True)  # the kernel leaves a port that is in the range alone
    raise Beyond("of such a range the kernel takes the first port that is free; a mapping goes one to one")
