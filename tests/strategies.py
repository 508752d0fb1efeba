"""Hypothesis strategies for what Redirector works on: mappings, rulesets, packets, programs, and damage to programs.

Everything is drawn from small pools, so that things meet: ports that are listened on and targets at once, networks that
nest, wildcards that cover exact interfaces, addresses that are local, clients or both. A wider choice would be a
weaker test, for two random ports never collide.
"""

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from redirector import naming
from redirector.compile import compile_ruleset
from redirector.decide import Packet, within
from redirector.model import (
    BACKENDS,
    DEFAULT_PRIORITY,
    FAMILIES,
    PROTOCOLS,
    REWRITES,
    Mapping,
    Ports,
    Ruleset,
    Settings,
    Target,
    family_of,
    loopback,
    ruleset_problems,
)
from redirector.neighbours import resolved
from redirector.program import (
    ADDRESSES,
    COUNTS,
    FORWARDS,
    GUARDS,
    GUARDS_AT,
    INTERFACES,
    PORTS,
    TRANSLATIONS,
    VERDICTS,
    Chain,
    Count,
    Dispatch,
    Foreign,
    Guard,
    Hook,
    Jump,
    Keep,
    LocalJump,
    Map,
    Masquerade,
    Program,
    Refuse,
    Rule,
    Skip,
    Translate,
    endpoint,
    port_key,
    references,
)

# The machine that runs the tests has other work: no example is too slow. A failure prints how to see it again.
settings.register_profile("redirector", deadline=None, print_blob=True)
settings.load_profile("redirector")
# For the many properties of which any one ruleset in three is a witness against a mistake.
quick = settings(settings.get_profile("redirector"), max_examples=40)

PORT_POOL = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 53, 80, 443, 8080, 65534, 65535)
LOCAL_V4 = ("10.0.0.1", "10.0.1.1", "192.0.2.7", "127.0.0.1")
LOCAL_V6 = ("fd00::1", "2001:db8::7", "::1", "::1.2.3.4")  # the last is how inet_ntop writes ::/96
# Targets on other addresses: here on addresses of the host, so that a test may hear what they get.
TARGETS = ("10.0.1.1", "192.0.2.7", "fd00::1", "2001:db8::7")
CLIENTS_V4 = ("10.0.0.1", "10.0.0.200", "10.0.1.5", "10.9.9.9", "192.0.2.7", "203.0.113.9")
CLIENTS_V6 = ("fd00::1", "fd00::8001", "fd00:0:0:1::1", "fd01::1", "2001:db8::7", "2001:db9::1")
# Nested, each in the one before; some lengths are no multiple of 8.
NETWORKS_V4 = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/15", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.128/25", "10.0.0.1/32"),
    *("192.0.2.0/24", "192.0.2.7/32"),
)
NETWORKS_V6 = (
    *("::/0", "fd00::/8", "fd00::/15", "fd00::/48", "fd00::/64", "fd00::8000/113", "fd00::1/128"),
    *("2001:db8::/32", "2001:db8::7/128"),
)
INTERFACE_POOL = ("eth0", "eth*", "veth*", "veth-b", "veth-b*", "v*", "vlan_7.1", "lo")
ARRIVING_ON = ("eth0", "eth1", "veth-a", "veth-b", "veth-b1", "vlan_7.1", "wg0")

comments = st.one_of(
    st.just(""),
    st.sampled_from(('"quoted" \\ back', "'; flush ruleset; '", "# = [] {} $HOME `id`", "ünïcödé ☃ 漢字 🛰", "x" * 120)),
    st.text("a\"'\\#;ü漢🛰 ", max_size=10),
)
names = st.one_of(
    st.sampled_from(("web", "a", "9", "A.b-c_d", "x" * 63)),
    st.from_regex("[A-Za-z0-9][A-Za-z0-9._-]{0,5}", fullmatch=True),
)


def _some(pool: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """Nothing as often as not, else up to three of the pool, none twice."""
    return st.one_of(st.just(()), st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True).map(tuple))


port_ranges = st.builds(
    lambda first, size: Ports(first, min(65535, first + size - 1)), st.sampled_from(PORT_POOL), st.integers(1, 5)
)


def _built(name: str, listen: list[Ports], to: int, shifted: bool, forward: tuple[str, ...], **fields: Any) -> Mapping:
    """A valid mapping of these parts: what does not fit what came before it is left out."""
    kept: list[Ports] = []
    for found in listen[:1] if shifted else listen:
        if all(found.last < other.first or other.last < found.first for other in kept):
            kept.append(found)
    first = min(to, 65536 - kept[0].size) if shifted else to
    families: tuple[str, ...] = ("ipv4", "ipv6") if fields["family"] == "both" else (fields["family"],)
    addresses: tuple[str, ...] = tuple(x for x in fields.pop("address") if family_of(x) in families)
    sources: tuple[str, ...] = tuple(x for x in fields.pop("source") if family_of(x) in families)
    if addresses and sources:
        shared = {family_of(x) for x in addresses} & {family_of(x) for x in sources}
        addresses, sources = (tuple(x for x in found if family_of(x) in shared) for found in (addresses, sources))
    last = first + kept[0].size - 1 if shifted else first
    families = tuple(f for f in families if not (addresses + sources) or f in map(family_of, addresses + sources))
    targets: dict[str, str] = {family_of(x): x for x in forward if family_of(x) in families}
    if not targets:
        return Mapping(name, tuple(kept), Ports(first, last), address=addresses, source=sources, **fields)
    addresses = tuple(x for x in addresses if family_of(x) in targets and not loopback(x))
    sources = tuple(x for x in sources if family_of(x) in targets)
    if addresses and sources:  # as above: what was left out may have been all of a family
        shared = {family_of(x) for x in addresses} & {family_of(x) for x in sources}
        addresses, sources = (tuple(x for x in found if family_of(x) in shared) for found in (addresses, sources))
    named = {family_of(x) for x in addresses or sources} & {family_of(x) for x in sources or addresses}
    reached = tuple(targets[f] for f in sorted(targets) if f in named or not named)
    fields |= {"rewrite": "port", "exclusive": False, "owner": None}
    fields["interface"] = tuple(x for x in fields["interface"] if x != "lo")
    return Mapping(name, tuple(kept), Target(first, last, reached), address=addresses, source=sources, **fields)


# One strategy, built once: made anew for each mapping, it would take longer than what is tested with it.
_MAPPINGS = st.builds(
    _built,
    name=names,
    listen=st.lists(port_ranges, min_size=1, max_size=4),
    to=st.sampled_from(PORT_POOL),
    shifted=st.booleans(),
    forward=st.one_of(st.just(()), st.just(()), st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3).map(tuple)),
    protocol=st.one_of(
        st.just(("tcp",)),
        st.lists(st.sampled_from(tuple(PROTOCOLS)), min_size=1, max_size=3, unique=True).map(tuple),
    ),
    family=st.sampled_from(("both", "both", "ipv4", "ipv6")),
    address=_some(LOCAL_V4 + LOCAL_V6),
    interface=_some(INTERFACE_POOL),
    source=_some(NETWORKS_V4 + NETWORKS_V6),
    local=st.booleans(),
    exclusive=st.booleans(),
    rewrite=st.sampled_from(REWRITES),
    owner=st.sampled_from((None, 0, 33, 4294967294, "www-data", "_svc", "host$")),
    enabled=st.sampled_from((True, True, True, False)),
    comment=comments,
)


def mappings_() -> st.SearchStrategy[Mapping]:
    """Any one valid mapping."""
    return _MAPPINGS


settings_ = st.one_of(
    st.builds(Settings, st.sampled_from(BACKENDS), st.just(DEFAULT_PRIORITY)),
    st.builds(Settings, st.sampled_from(("auto", "nftables")), st.sampled_from((-110, -105, -199, 0, 32767))),
)


def _ruleset(found: list[Mapping], wanted: Settings, connected: tuple[str, ...]) -> Ruleset:
    """A mapping that conflicts with one before it stays, disabled: it then overlaps with nothing."""
    kept: list[Mapping] = []
    for index, mapping in enumerate(found):
        named = rebuilt(mapping, name=f"{mapping.name[:60]}-{index}")
        kept.append(rebuilt(named, enabled=False) if ruleset_problems([*kept, named]) else named)
    return resolved(Ruleset(tuple(kept), wanted), connected)


def ports(text: str) -> Ports:
    """Ports from "80" or "80-89"."""
    first, _, last = text.partition("-")
    return Ports(int(first), int(last or first))


def mapping(name: str = "m", listen: str = "80", to: str = "8080", **more: Any) -> Mapping:
    """A mapping as a test would write it in a file: ranges as text ("1-5 7"), and the file's default for `local`."""
    more.setdefault("local", not (more.get("interface") or more.get("source")))
    return Mapping(name=name, listen=tuple(map(ports, listen.split())), to=ports(to), **more)


def rebuilt(mapping: Mapping, **changed: Any) -> Mapping:
    """The mapping with other values in some fields."""
    return Mapping(**(mapping._asdict() | changed))


@functools.cache
def rulesets(most: int = 6) -> st.SearchStrategy[Ruleset]:
    """Valid rulesets of up to `most` mappings that overlap in ports and nest in scopes; some are disabled.

    Of every size alike: hypothesis' own choice of a length would be 0 or 1 more often than not. (The first is what it
    makes an example smaller towards.)
    """
    sizes = (*range(1, most + 1), 0)
    return st.builds(
        _ruleset,
        st.one_of(*(st.lists(_MAPPINGS, min_size=n, max_size=n) for n in sizes)),
        settings_,
        _some(NETWORKS_V4 + NETWORKS_V6),
    )


def _matching(pattern: str) -> tuple[str, ...]:
    """The interfaces of the pool that a mapping's interface takes in; "" for "lo", the host itself."""
    if pattern == "lo":
        return ("",)
    if pattern.endswith("*"):
        return tuple(name for name in ARRIVING_ON if name.startswith(pattern[:-1]))
    return (pattern,)


@st.composite
def packets(draw: st.DrawFn, ruleset: Ruleset) -> Packet:
    """A connection's first packet: aimed at one mapping of the ruleset, with any of its parts then drawn at random.

    Those are the ones that a rule can get wrong: all parts but one fit.
    """
    family, interface = draw(st.sampled_from(("ipv4", "ipv6"))), draw(st.sampled_from(("", *ARRIVING_ON)))
    protocol, port = draw(st.sampled_from(tuple(PROTOCOLS))), draw(st.sampled_from(PORT_POOL))
    address = source = ""
    if ruleset.mappings and draw(st.sampled_from((True,) * 9 + (False,))):
        aim = draw(st.sampled_from(ruleset.enabled or ruleset.mappings))
        off = draw(st.sampled_from((*[""] * 6, "family", "interface", "protocol", "address", "source", "port")))
        if off != "family":
            family = draw(st.sampled_from(sorted({family_of(x) for x in aim.address + aim.source} or {*aim.families})))
        if off != "interface" and aim.interface and not (aim.local and draw(st.booleans())):
            interface = draw(st.sampled_from([name for x in aim.interface for name in _matching(x)]))
        if off != "protocol":
            protocol = draw(st.sampled_from(aim.protocol))
        if off != "address":
            address = draw(st.sampled_from([a for a in aim.address if family_of(a) == family] or [""]))
        if off != "source" and interface:
            clients = CLIENTS_V4 if family == "ipv4" else CLIENTS_V6
            inside = [c for c in clients if any(within(c, network) for network in aim.source)]
            source = draw(st.sampled_from(inside or [""]))
        if off != "port":
            wanted = draw(st.sampled_from((*aim.listen, *aim.listen, Ports(aim.to.first, aim.to.last))))
            edges = (wanted.first, wanted.last, (wanted.first + wanted.last) // 2, wanted.first - 1, wanted.last + 1)
            port = min(65535, max(1, draw(st.sampled_from(edges))))
    local, clients = (LOCAL_V4, CLIENTS_V4) if family == "ipv4" else (LOCAL_V6, CLIENTS_V6)
    address = address or draw(st.sampled_from(local))
    source = source or draw(st.sampled_from(clients if interface else local))
    return Packet(interface, source, address, protocol, port)


def programs() -> st.SearchStrategy[Program]:
    """Compiled programs, the drained one among them."""
    return rulesets().map(compile_ruleset)


map_names = st.sampled_from(("ports", "counts", "arriving_addresses_ipv4", "guards_ipv6_at"))
chain_names = st.sampled_from(("arriving", "own_at_fd00--1", "refuse", "prerouting"))
families = st.sampled_from(("", "ipv4", "ipv6"))


@st.composite
def _dispatches(draw: st.DrawFn) -> Dispatch:
    field = draw(st.sampled_from(("source", "address", "interface")))
    if field == "interface":
        return Dispatch(field, "", 0, draw(map_names))
    family = draw(st.sampled_from(("ipv4", "ipv6")))
    prefix = draw(st.integers(1, 32 if family == "ipv4" else 128)) if field == "source" else 0
    return Dispatch(field, family, prefix, draw(map_names))


@st.composite
def _guards(draw: st.DrawFn) -> Guard:
    at = draw(st.booleans())
    family = draw(st.sampled_from(("ipv4", "ipv6"))) if at else draw(families)
    return Guard(family, at, draw(map_names), draw(chain_names))


def rules() -> st.SearchStrategy[Rule]:
    """Every form of rule that we write, in all its variants."""
    interfaces = st.sampled_from(("", *INTERFACE_POOL, "fifteen-letters", "fourteen-letter*"))
    return st.one_of(
        st.builds(LocalJump, chain_names),
        _dispatches(),
        st.builds(Jump, families, interfaces, chain_names),
        st.builds(Count, families, map_names),
        st.builds(Translate, st.sampled_from(REWRITES), families, map_names),
        st.builds(Translate, st.just("forward"), st.sampled_from(FAMILIES), map_names),
        st.builds(Skip, st.sampled_from(FAMILIES)),
        st.builds(Masquerade, map_names, st.sampled_from(FAMILIES)),
        _guards(),
        st.builds(Refuse, st.sampled_from(("reset", "unreachable"))),
        st.just(Keep()),
    )


_port_keys = st.builds(port_key, st.sampled_from((*PROTOCOLS.values(), 0, 255)), st.integers(0, 65535))
_local = {"ipv4": st.sampled_from(LOCAL_V4), "ipv6": st.sampled_from(LOCAL_V6)}
# Keys as the codec meets them, by kind of map.
KEYS: dict[str, st.SearchStrategy[object]] = {
    PORTS: _port_keys,
    **dict.fromkeys(FORWARDS.values(), _port_keys),
    COUNTS: _port_keys,
    GUARDS: _port_keys,
    GUARDS_AT["ipv4"]: st.tuples(_local["ipv4"], _port_keys),
    GUARDS_AT["ipv6"]: st.tuples(_local["ipv6"], _port_keys),
    ADDRESSES["ipv4"]: st.ip_addresses(v=4).map(str),
    ADDRESSES["ipv6"]: _local["ipv6"],
    INTERFACES: st.sampled_from(("lo", "eth0", "fifteen-letters")),
}

Blow = Callable[[st.DrawFn, dict[str, Chain], dict[str, Map], set[str]], None]


def _hit_rules(draw: st.DrawFn, chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]) -> None:
    """Rules of one chain removed, added, doubled or in another order."""
    name = draw(st.sampled_from(sorted(chains)))
    found = list(chains[name].rules)
    at = draw(st.integers(0, len(found)))
    match draw(st.sampled_from(("remove", "foreign", "own", "double", "reverse", "empty"))):
        case "remove" if found:
            del found[at % len(found)]
        case "foreign":
            found.insert(at, Foreign("counter drop"))
        case "own":
            ours: tuple[Rule, ...] = (Keep(), Refuse("reset"), Jump("ipv4", "eth0", "arriving"))
            found.insert(at, draw(st.sampled_from(ours)))
        case "double" if found:
            found.insert(at, found[at % len(found)])
        case "reverse":
            found.reverse()
        case _:
            found = []
    chains[name] = chains[name]._replace(rules=tuple(found))


def _hit_chain(draw: st.DrawFn, chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]) -> None:
    """A chain deleted, added, or attached elsewhere."""
    name = draw(st.sampled_from(sorted(chains)))
    hook = chains[name].hook
    match draw(st.sampled_from(("delete", "add", "attach", "detach", "priority", "policy", "type"))):
        case "delete":
            del chains[name]
        case "add":
            hook = draw(st.sampled_from((None, Hook("filter", "forward", 0, "drop"))))
            chains[draw(st.sampled_from(("mine", "arriving_on_zzz")))] = Chain(hook, (Foreign("masquerade"),))
        case "detach":
            chains[name] = chains[name]._replace(hook=None)
        case "priority" if hook:
            chains[name] = chains[name]._replace(hook=hook._replace(priority=hook.priority + 1))
        case "policy" if hook:
            chains[name] = chains[name]._replace(hook=hook._replace(policy="drop"))
        case "type" if hook:
            chains[name] = chains[name]._replace(hook=hook._replace(type="filter"))
        case _:
            chains[name] = chains[name]._replace(hook=Hook("nat", "prerouting", -50))


def _hit_map(draw: st.DrawFn, chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]) -> None:
    """A map deleted, added, of another kind or too small."""
    what = draw(st.sampled_from(("delete", "add", "kind", "foreign kind", "small")))
    if what == "add" or not maps:
        kind = draw(st.sampled_from((PORTS, COUNTS, GUARDS, INTERFACES, "foreign: key type 0x7")))
        entries = {port_key(6, 99): (98, "stranger")} if kind == PORTS else {}
        name = draw(
            st.sampled_from(
                (
                    *("mine", "arriving_on_zzz_ports", "counts", "own_counts", "guards_ipv4", "own_interfaces"),
                    *("forwards_ipv4", "own_forward-counts_ipv6", "targets_10.0.0.0/8", "targets_x/1", "forwards"),
                )
            )
        )
        maps[name] = Map(kind, entries)
        return
    name = draw(st.sampled_from(sorted(maps)))
    if what == "delete":
        del maps[name]
    elif what == "small":
        maps[name] = Map(maps[name].kind, maps[name].entries, len(maps[name].entries) + draw(st.integers(0, 3)))
    else:
        maps[name] = Map(draw(st.sampled_from(sorted(TRANSLATIONS))) if what == "kind" else "foreign: key type 0x7", {})


def _hit_entries(draw: st.DrawFn, chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]) -> None:
    """One entry removed, added or changed."""
    if not maps:
        return
    name = draw(st.sampled_from(sorted(maps)))
    kind, entries = maps[name].kind, dict(maps[name].entries)
    if kind not in KEYS:
        return
    key = draw(st.sampled_from(list(entries))) if entries else None
    verdicts, nameless = kind in VERDICTS, kind in VERDICTS or kind == COUNTS
    # What an entry leads to: a chain, a counter, or a number.
    targets: list[Any] = sorted(chains if verdicts else counters) if nameless else [0, 8080, 65535]
    if kind in FORWARDS.values():
        targets += [endpoint(address, 8080) for address in TARGETS if kind == FORWARDS[family_of(address)]]
    match draw(st.sampled_from(("remove", "add", "value", "mapping", "odd", "odd key"))):
        case "remove" if key is not None:
            del entries[key]
        case "value" if key is not None and verdicts and draw(st.booleans()):
            entries[key] = (None, "", "no jump")  # type: ignore[assignment]  # a verdict such as drop
        case "value" if key is not None and targets:
            entries[key] = (draw(st.sampled_from(targets)), entries[key][1])
        case "mapping" if key is not None and not nameless:
            entries[key] = (entries[key][0], draw(st.sampled_from(("", "stranger", "web-1"))))
        case "odd key":
            entries["0600"] = (None, "", "an odd key")  # type: ignore[assignment]
        case "odd" if key is not None:
            entries[key] = (*entries[key][:2], "attribute 4")  # type: ignore[assignment]  # as decode tells it
        case _ if targets:
            entries[draw(KEYS[kind])] = (draw(st.sampled_from(targets)), "" if nameless else "stranger")
    capacity = maps[name].capacity
    maps[name] = Map(kind, entries, capacity and max(capacity, len(entries)))


def _hit_counters(draw: st.DrawFn, chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]) -> None:
    """A counter deleted, with the entries that lead to it; or one added."""
    if draw(st.booleans()) and counters:
        counters.remove(draw(st.sampled_from(sorted(counters))))
    else:
        counters.add(draw(st.sampled_from(("mine", "\udcff\n", naming.counter("stranger"), naming.counter("web-0")))))


def _consistent(
    chains: dict[str, Chain], maps: dict[str, Map], counters: set[str]
) -> tuple[dict[str, Chain], dict[str, Map]]:
    """Without what leads nowhere, or to a base chain: the kernel holds no such thing."""
    plain = {name for name, chain in chains.items() if chain.hook is None}

    def stands(rule: Rule) -> bool:
        target, looked_up = getattr(rule, "chain", None), references(rule)
        return (target is None or target in plain) and (looked_up is None or looked_up in maps)

    for name, found in maps.items():
        if found.kind in VERDICTS or found.kind == COUNTS:
            there = plain if found.kind in VERDICTS else counters
            kept = {key: value for key, value in found.entries.items() if value[0] is None or value[0] in there}
            maps[name] = Map(found.kind, kept, found.capacity)
    return {n: Chain(c.hook, tuple(r for r in c.rules if stands(r))) for n, c in chains.items()}, maps


@st.composite
def damaged(draw: st.DrawFn, program: Program) -> Program:
    """`program` after somebody worked on it with `nft`: something that the kernel could hold. Not always different."""
    chains, maps, counters = dict(program.chains), dict(program.maps), set(program.counters)
    blows: tuple[Blow, ...] = (_hit_rules, _hit_chain, _hit_map, _hit_entries, _hit_counters)
    for blow in draw(st.lists(st.sampled_from(blows), max_size=4)):
        if chains:
            blow(draw, chains, maps, counters)
    flags = draw(st.sampled_from((0, 0, 0, 1)))
    strays = draw(st.sampled_from(((), (), (), ("object quota",))))
    return Program(*_consistent(chains, maps, counters), flags, strays, frozenset(counters))
