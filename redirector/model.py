"""What people write: ports, mappings, scopes, rulesets; frozen, validated at construction, with no I/O.

A `Ruleset` is canonical: two files that mean the same give equal rulesets and the same digest. A *claim* is what a
mapping asks of the kernel: connections that arrive (or that the host makes itself) within a `Scope`. Two claims of the
same traffic in equal scopes are a conflict; in unequal scopes the narrower one wins, by `Scope.specificity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

from redirector.records import NamedTuple

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IANA protocol numbers (linux/in.h)
FAMILIES = ("ipv4", "ipv6")
BACKENDS = ("auto", "nftables", "iptables-nft", "iptables-legacy")
REWRITES = ("port", "redirect")
MAX_ELEMENTS = 262_144  # of one mapping
MAX_TOTAL = 4 * MAX_ELEMENTS  # of all that are enabled
DEFAULT_PRIORITY = -110

ARRIVING = "arriving"  # connections from outside, seen at the prerouting hook
OWN = "own"  # connections that the host makes to itself, seen at the output hook
SIDES = (ARRIVING, OWN)


class Problem(NamedTuple):
    """Something wrong in a mapping file: `path` leads to it from the root of the document, as tomli nests it.

    `at_key` tells that the key is at fault and not its value. `hint` says what to do ("" where the message does).
    `related` leads to another place that has to do with it: the other one of two that conflict.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    at_key: bool = False
    related: tuple[str | int, ...] = ()


class InvalidModel(ValueError):
    """A mapping or ruleset that breaks its own rules; `problems` says which (paths relative to the object)."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(p.message for p in problems))
        self.problems = problems


class Ports(NamedTuple):
    """The ports first..last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def size(self) -> int:
        return self.last - self.first + 1


class Target(NamedTuple):
    """The ports first..last of another machine, of a container, say: `addresses` are canonical, one of each family at
    most, IPv4 first."""

    first: int
    last: int
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        ports = Ports(self.first, self.last)
        return ", ".join(f"[{a}]:{ports}" if ipv6(a) else f"{a}:{ports}" for a in self.addresses)

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(map(family_of, self.addresses))

    def address(self, family: str) -> str:
        """The address of a family that it has."""
        return next(address for address in self.addresses if family_of(address) == family)


class Scope(NamedTuple):
    """Which packets: `source` a network ("10.0.0.0/8"), `address` the one that the client used, `interface` the
    arriving one ("veth*" is a wildcard). Each is canonical text, "" where any will do."""

    source: str = ""
    address: str = ""
    interface: str = ""

    @property
    def family(self) -> str:
        """The family that the addresses imply, "" where there are none."""
        text = self.source or self.address
        return family_of(text) if text else ""

    @property
    def specificity(self) -> tuple[int, int, int]:
        """Greater wins: source prefix length (-1: none), address or not, interface (exact, wildcard length, none)."""
        prefix = int(self.source.rpartition("/")[2]) if self.source else -1
        if not self.interface:
            width = -1
        elif self.interface.endswith("*"):
            width = len(self.interface) - 1
        else:
            width = 1000
        return prefix, int(bool(self.address)), width

    def __str__(self) -> str:
        parts = (("from", self.source), ("at", self.address), ("on", self.interface))
        return " ".join(f"{word} {value}" for word, value in parts if value)


class Claim(NamedTuple):
    """`side` of the host (ARRIVING, OWN) and `scope` in which a mapping wants its ports."""

    side: str
    scope: Scope


class _MappingFields(NamedTuple):
    name: str
    listen: tuple[Ports, ...]
    to: Ports | Target
    protocol: tuple[str, ...] = ("tcp",)
    family: str = "both"
    address: tuple[str, ...] = ()
    interface: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    local: bool = True
    exclusive: bool = False
    rewrite: str = "port"
    owner: str | int | None = None
    enabled: bool = True
    comment: str = ""


class Mapping(_MappingFields):
    """One `[[mapping]]`: the fields are the file's keys, lists as tuples, addresses canonical. See `fields.FIELDS`.

    Raises InvalidModel where the fields contradict each other. (A named tuple and no dataclass, as everywhere on the
    path of `apply`: making a class of 14 fields into a dataclass takes as long as the kernel takes for the commit.)
    """

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        mapping = super().__new__(cls, *args, **fields)
        problems = mapping_problems(mapping)
        if problems:
            raise InvalidModel(problems)
        return mapping

    @classmethod
    def checked(cls, fields: dict[str, Any]) -> Mapping:
        """The mapping of fields in which nothing is wrong: checking twice takes twice as long."""
        return super().__new__(cls, **fields)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Mapping:  # type: ignore[override]  # generic there, ours here
        return cls(*iterable)  # by which _replace validates as well

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What the mapping asks for, in a fixed order, none twice."""
        if not self.narrowed and self.local:
            return _EVERYBODY  # as most do; one object for all
        return tuple(_claims(self))

    @property
    def narrowed(self) -> bool:
        """Whether it is for some packets only: by source, address or interface."""
        return bool(self.source or self.address or self.interface)

    @property
    def families(self) -> tuple[str, ...]:
        """The families that it is for: where the target has addresses, those of them."""
        if isinstance(self.to, Target):
            return self.to.families
        return FAMILIES if self.family == "both" else (self.family,)

    @property
    def served(self) -> tuple[str, ...]:
        """The families of which it takes any packets: its sources and addresses may leave one of `families` out."""
        found = {scope.family for _, scope in self.claims}
        return self.families if "" in found else tuple(family for family in FAMILIES if family in found)

    @property
    def forwards(self) -> bool:
        """Whether it leads to another address than the one that the client used."""
        return isinstance(self.to, Target)

    def exempts(self, port: int) -> bool:
        """Whether a connection to one of the listened ports goes on to where it would have gone without us."""
        return not self.forwards and self.target(port) == port

    def target(self, port: int) -> int:
        """The port that one of the listened ports goes to."""
        return self.to.first + (port - self.listen[0].first if self.shifted else 0)

    @property
    def shifted(self) -> bool:
        """Whether a range goes one to one to a range of the same length."""
        return self.to.size > 1

    def pairs(self) -> Iterator[tuple[Ports, int]]:
        """(listened range, first target port) of each range; the target stays the same unless `shifted`."""
        for ports in self.listen:
            yield ports, self.to.first

    @property
    def elements(self) -> int:
        """How many map elements the kernel would hold for this mapping; counted, not made: they may be too many."""
        scopes = self._scopes if self.narrowed or self.forwards else 1
        redirects = len(self.protocol) * scopes * sum([last - first + 1 for first, last in self.listen])
        guards = len(self.protocol) * max(1, len(self.address)) * self.to.size if self.exclusive else 0
        if isinstance(self.to, Target):
            guards = len(self.protocol) * len(self.to.addresses) * self.to.size  # those for hairpins
        return redirects + guards

    @property
    def _scopes(self) -> int:
        """How many maps its ports are in: of its scopes, or of families in each where the target has addresses."""
        pairs = max(1, len(self.source)) * max(1, len(self.address))
        if self.source and self.address:
            sixes = sum(map(ipv6, self.source)), sum(map(ipv6, self.address))
            pairs = sixes[0] * sixes[1] + (len(self.source) - sixes[0]) * (len(self.address) - sixes[1])
        # The host's own connections have scopes of their own only where what arrives is narrowed.
        own = max(1, len(self.address)) if self.local and (self.source or self.interface) else 0
        if isinstance(self.to, Target):
            pairs *= 1 if self.source or self.address else len(self.to.addresses)
            own *= 1 if self.address else len(self.to.addresses)
        return pairs * max(1, len(self.interface)) + own


class Settings(NamedTuple):
    """The optional `[settings]` table; `priority` is the nftables priority of our NAT base chains."""

    backend: str = "auto"
    priority: int = DEFAULT_PRIORITY


_NO_SETTINGS = Settings()


class _RulesetFields(NamedTuple):
    mappings: tuple[Mapping, ...] = ()
    settings: Settings = _NO_SETTINGS
    networks: tuple[str, ...] = ()


class Ruleset(_RulesetFields):
    """Mappings in file order, and settings. Raises InvalidModel for names used twice and for conflicts.

    `networks` is no part of a file: the host's connected networks that targets are in, as they were when it was applied
    (see `neighbours`).
    """

    def __new__(
        cls,
        mappings: tuple[Mapping, ...] = (),
        settings: Settings = _NO_SETTINGS,
        networks: tuple[str, ...] = (),
    ) -> Self:
        problems = ruleset_problems(mappings)
        if problems:
            raise InvalidModel(problems)
        return super().__new__(cls, mappings, settings, networks)

    @classmethod
    def checked(cls, mappings: tuple[Mapping, ...], settings: Settings, networks: tuple[str, ...] = ()) -> Ruleset:
        """The ruleset of mappings in which `ruleset_problems` has found nothing: checking twice takes twice as long."""
        return super().__new__(cls, mappings, settings, networks)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Ruleset:  # type: ignore[override]  # as in Mapping
        return cls(*iterable)

    @property
    def written(self) -> Ruleset:
        """What a file says of it: without the facts of the host."""
        return Ruleset.checked(self.mappings, self.settings) if self.networks else self

    @cached_property
    def enabled(self) -> tuple[Mapping, ...]:
        return tuple(m for m in self.mappings if m.enabled)


def backend_problems(settings: Settings, backend: str) -> Iterator[Problem]:
    """What a backend cannot do of what the settings ask for; paths start with "settings"."""
    if backend.startswith("iptables") and settings.priority != DEFAULT_PRIORITY:
        message = f"{backend} knows no priorities: its NAT rules all act at -100, and ours are the first of them"
        yield Problem(("settings", "priority"), message, 'leave priority out, or say backend = "nftables"')


def ipv6(text: str) -> bool:
    """Whether a canonical address or network is an IPv6 one."""
    return ":" in text


def family_of(text: str) -> str:
    """The family of a canonical address or network."""
    return "ipv6" if ipv6(text) else "ipv4"


def loopback(address: str) -> bool:
    """Whether a canonical address is one of those that never leave the host (RFC 1122 3.2.1.3, RFC 4291 2.5.3)."""
    return address == "::1" or address.startswith("127.")


def _claims(mapping: Mapping) -> Iterator[Claim]:
    """What the mapping asks for: every source meets every address of its family, on every interface."""
    seen: set[Claim] = set()
    for source in mapping.source or ("",):
        for address in mapping.address or ("",):
            if source and address and ipv6(source) != ipv6(address):
                continue
            for interface in mapping.interface or ("",):
                # The host's own packets never arrive: to them "lo" is a narrower scope of their own.
                side = OWN if interface == "lo" else ARRIVING
                seen.add(Claim(side, Scope(source, address, interface)))
    if mapping.local:
        seen.update(Claim(OWN, Scope("", address, "")) for address in mapping.address or ("",))
    yield from sorted(seen)


_EVERYBODY = Claim(ARRIVING, Scope()), Claim(OWN, Scope())


def mapping_problems(mapping: Mapping) -> list[Problem]:
    """What is wrong between the fields of one mapping (each alone is the business of `values`)."""
    found = listen_problems(mapping.listen, mapping.to)
    if isinstance(mapping.to, Target):
        found += forward_problems(mapping.to, mapping._asdict())
    addresses = mapping.to.addresses if isinstance(mapping.to, Target) else ()
    return found + list(family_problems(mapping.family, mapping.address, mapping.source, addresses))


def forward_problems(to: Target, fields: dict[str, Any]) -> list[Problem]:
    """What cannot go together with a target that has addresses; `fields` are those of a mapping, None if wrong."""
    found = []
    for i, address in enumerate(to.addresses):
        if loopback(address):
            message = f"{address} is not reached from outside: packets to it never leave the host they are on"
            found.append(Problem(("to", i), message, f"say to = {Ports(to.first, to.last)}, without an address"))
    if len({*to.families}) < len(to.addresses):
        message = f"to has two {to.families[-1]} targets: a mapping leads to one address of each family"
        found.append(Problem(("to", 1), message, "one mapping leads to one target"))
    if fields.get("rewrite") == "redirect":
        message = 'rewrite = "redirect" leads to this host itself, and to names another address'
        found.append(Problem(("rewrite",), message, "leave rewrite out"))
    if fields.get("exclusive"):
        message = "exclusive guards a port of this host, and the target is on another address"
        found.append(Problem(("exclusive",), message, "leave exclusive out"))
    if fields.get("owner") is not None:
        message = "owner is about who listens on this host, and the target is on another address"
        found.append(Problem(("owner",), message, "leave owner out"))
    reason = "a packet from a loopback address cannot leave the host"
    for i, name in enumerate(fields.get("interface") or ()):
        if name == "lo":
            message = f'interface = "lo" cannot go with a target on another address: {reason}'
            hint = "leave interface out: this host's own connections to its other addresses are forwarded"
            found.append(Problem(("interface", i), message, hint))
    for i, address in enumerate(fields.get("address") or ()):
        if loopback(address):
            message = f"connections to {address} cannot be forwarded to another address: {reason}"
            found.append(Problem(("address", i), message, "name an address that others can reach, or none"))
    return found


def listen_problems(listen: tuple[Ports, ...], to: Ports | Target) -> list[Problem]:
    """Listened ranges against each other, and against the target."""
    if len(listen) == 1 and to.first == to.last:
        return []
    problems: list[Problem] = []
    if not listen:
        problems.append(Problem(("listen",), "listen is empty: name at least one port"))
    # Two ranges that are neighbours in order are the only ones that need comparing.
    order = sorted(range(len(listen)), key=lambda i: listen[i])
    for before, after in pairwise(order):
        if listen[after].first <= listen[before].last:
            where, other = (after, before) if after > before else (before, after)
            message = f"{listen[where]} overlaps {listen[other]}: a port may stand only once in listen"
            problems.append(Problem(("listen", where), message))
    if to.size > 1 and len(listen) > 1:
        message = f'to = "{to}" is a range: listen must then be exactly one range, not {len(listen)}'
        problems.append(Problem(("to",), message, "split the mapping, one for each range"))
    elif to.size > 1 and listen and listen[0].size != to.size:
        fitting = to.first + listen[0].size - 1
        hint = f'to = "{to._replace(last=fitting)}" has the length of listen' if fitting <= 65535 else ""
        message = (
            f'to = "{to}" has {to.size} ports, but listen = "{listen[0]}" has {listen[0].size}: '
            "a range goes to a range of the same length, or to one port"
        )
        problems.append(Problem(("to",), message, hint))
    return problems


def family_problems(
    family: str, addresses: tuple[str, ...], sources: tuple[str, ...], targets: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """Addresses and networks that the family, or each other, leaves without any packet."""
    families = FAMILIES if family == "both" else (family,)
    given = {"address": addresses, "source": sources, "to": targets}
    known = {key: set(map(family_of, values)) for key, values in given.items()}
    for key, values in given.items():
        for i, value in enumerate(values):
            own = family_of(value)
            if own not in families:
                message = f'{value} is {own}, but family = "{family}"'
                yield Problem((key, i), message, f'leave family out, or say family = "{own}"')
                continue
            for other, others in known.items():
                if others and own not in others:
                    what = "target" if other == "to" else other
                    yield Problem((key, i), f"{value} is {own}, but no {what} of this mapping is")
                    break


def ruleset_problems(mappings: Iterable[Mapping]) -> list[Problem]:
    """Names used twice, conflicts and sheer size; paths start with ("mapping", index).

    Conflicts are found by sorting the ranges of each (side, scope, protocol, family), so n ranges cost n log n.
    """
    problems: list[Problem] = []
    names: dict[str, int] = {}
    groups: _Groups = {}
    known: dict[tuple[Any, ...], list[list[_Range]]] = {}
    mappings = list(mappings)
    total, hint = 0, "name fewer sources, addresses or ports"
    for index, mapping in enumerate(mappings):
        first = names.setdefault(mapping.name, index)
        if first != index:
            path, related = ("mapping", index, "name"), ("mapping", first, "name")
            problems.append(Problem(path, f'the name "{mapping.name}" is already taken', related=related))
        elements = mapping.elements
        if elements > MAX_ELEMENTS:
            message = (
                f'"{mapping.name}" needs {elements:,} map elements, and one mapping may have {MAX_ELEMENTS:,} '
                "(ports × protocols × scopes)"
            )
            problems.append(Problem(("mapping", index, "listen"), message, hint))
            continue
        if not mapping.enabled:
            continue
        before, total = total, total + elements
        if total > MAX_TOTAL:
            # Told once, and counted no further: what follows is not even looked at.
            if before <= MAX_TOTAL:
                message = f'with "{mapping.name}" all mappings need {total:,} map elements; they may have {MAX_TOTAL:,}'
                problems.append(Problem(("mapping", index, "listen"), message, hint))
            continue
        for group in _groups_of(mapping, groups, known):
            for first_port, last_port in mapping.listen:
                group.append((first_port, last_port, index))
    reported: set[tuple[int, int]] = set()
    for (side, scope, protocol, _family), ranges in groups.items():
        for one, other, ports in _overlaps(ranges):
            pair = (min(one, other), max(one, other))
            if pair not in reported:
                reported.add(pair)
                problems.append(_conflict(mappings, pair, Claim(side, scope), f"{protocol} {ports}"))
    return sorted(problems, key=lambda p: p.path[1])


_Range = tuple[int, int, int]  # first and last port, and the index of the mapping
_Groups = dict[tuple[str, Scope, str, str], list[_Range]]  # by side, scope, protocol, family


def _groups_of(
    mapping: Mapping, groups: _Groups, known: dict[tuple[Any, ...], list[list[_Range]]]
) -> list[list[_Range]]:
    """The groups in which a mapping's ranges may meet others; `known` remembers them for those that are alike."""
    key = mapping.claims, mapping.protocol, mapping.families
    found = known.get(key)
    if found is None:
        found = known[key] = [
            groups.setdefault((side, scope, protocol, family), [])
            for side, scope in mapping.claims
            for family in ((scope.family,) if scope.family else mapping.families)
            for protocol in mapping.protocol
        ]
    return found


def _overlaps(ranges: list[_Range]) -> Iterator[tuple[int, int, Ports]]:
    """(index, other index, shared ports) for ranges (first, last, index) that share ports."""
    ranges.sort()
    if all(later[0] > earlier[1] for earlier, later in pairwise(ranges)):
        return  # as in every good file
    active: list[tuple[int, int]] = []  # (last, index) of ranges that are still open; at most one in a good file
    for first, last, index in ranges:
        active = [(end, other) for end, other in active if end >= first][:8]
        for end, other in active:
            if other != index:
                yield other, index, Ports(first, min(last, end))
        active.append((last, index))


def _conflict(mappings: list[Mapping], pair: tuple[int, int], claim: Claim, ports: str) -> Problem:
    earlier, later = mappings[pair[0]], mappings[pair[1]]
    who = "everybody" if claim.side == ARRIVING else "this host's own connections"
    if str(claim.scope):
        who = f"{'clients' if claim.side == ARRIVING else who} {claim.scope}"
    hint = "narrow one by source, address or interface, or disable it"
    if claim.side == OWN and any(m.source or m.interface for m in (earlier, later)):
        hint = "say local = false in one of them"
    message = f'"{later.name}" and "{earlier.name}" both claim {ports} of {who}, and neither is more specific'
    return Problem(("mapping", pair[1], "listen"), message, hint, related=("mapping", pair[0], "listen"))
