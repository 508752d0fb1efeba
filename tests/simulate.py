"""A kernel for one table, made of plain Python: a packet's way through a Program, and a transaction with its checks.

Both are written from what nf_tables does, not from how Redirector compiles or plans, so that they can contradict it.
`walk` follows linux/net/netfilter/nf_tables_core.c (nft_do_chain): rules in order, a verdict map's jump returns on a
miss, NAT is decided by the first rule that gives a verdict. `transact` refuses what nf_tables_api.c refuses: what
another object still refers to cannot be deleted (EBUSY), what is not there cannot be referred to (ENOENT), and what is
there already cannot be added (EEXIST).
"""

import ipaddress
from collections.abc import Iterable

from redirector.decide import Decision, Packet
from redirector.model import PROTOCOLS
from redirector.plan import (
    AddChain,
    AddCounters,
    AddEntries,
    AddMap,
    AddRules,
    AddTable,
    DeleteChain,
    DeleteCounters,
    DeleteEntries,
    DeleteMap,
    DeleteTable,
    FlushChain,
    Step,
)
from redirector.program import (
    ADDRESSES,
    COUNTS,
    FORWARDS,
    GUARDS,
    GUARDS_AT,
    INTERFACES,
    PORTS,
    SETS,
    TRANSLATIONS,
    VERDICTS,
    Chain,
    Count,
    Dispatch,
    Guard,
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
    endpoint_parts,
    references,
)

DEPTH = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
PASS = ""
MASQUERADED = Decision("masquerade", 0)


def walk(program: Program, packet: Packet) -> Decision:
    """What becomes of the first packet of a connection to a local address, from its NAT hook to the input hook."""
    return travel(program, packet)[0]


def travel(program: Program, packet: Packet) -> tuple[Decision, list[str]]:
    """As `walk`, and the counters that counted the packet, each time that they did."""
    assert program.flags == 0
    counted: list[str] = []
    hook = "prerouting" if packet.interface else "output"
    decision = _hook(program, "nat", hook, packet, counted)
    if decision is None:
        decision = Decision("pass", packet.port)
    # IPS_DST_NAT is set where the destination is another one afterwards. A "redirect" to the same port may change the
    # address or not: not is the case that is harder to get right.
    moved = decision.port != packet.port or decision.address not in ("", packet.address)
    arrived = packet._replace(port=decision.port, address=decision.address or packet.address)
    return _hook(program, "filter", "input", arrived, counted, moved=moved) or decision, counted


def masqueraded(program: Program, packet: Packet) -> bool:
    """Whether a packet from another machine is given an address of the host when it leaves for where it was led."""
    decision = walk(program, packet)
    moved = decision.port != packet.port or decision.address not in ("", packet.address)
    leaving = packet._replace(port=decision.port, address=decision.address or packet.address)
    return _hook(program, "nat", "postrouting", leaving, [], moved=moved) == MASQUERADED


def _hook(
    program: Program, kind: str, hook: str, packet: Packet, counted: list[str], *, moved: bool = False
) -> Decision | None:
    """The verdict of the base chains at a hook, by priority; None: as it came."""
    bases = [chain for chain in program.chains.values() if chain.hook and (chain.hook[:2] == (kind, hook))]
    for chain in sorted(bases, key=lambda c: c.hook.priority if c.hook else 0):
        assert chain.hook is not None
        assert chain.hook.policy == "accept"
        found = _chain(program, chain, packet, counted, moved, 1)
        if found:
            return found
    return None


def _chain(
    program: Program, chain: Chain, packet: Packet, counted: list[str], moved: bool, depth: int
) -> Decision | None:
    assert depth <= DEPTH, "the kernel allows no deeper jumps"
    for rule in chain.rules:
        match rule:
            case LocalJump(target):
                jump = target  # every packet here is to a local address
            case Dispatch(field, family, prefix, name):
                jump = _dispatch(program.maps[name], field, family, prefix, packet)
            case Jump(family, interface, target):
                jump = target if family in ("", packet.family) and _arrived_on(interface, packet) else PASS
            case Count(family, name):
                assert program.maps[name].kind == COUNTS
                value = program.maps[name].entries.get(PROTOCOLS[packet.protocol] << 16 | packet.port)
                if value is not None and family in ("", packet.family):
                    assert value[0] in program.counters
                    counted.append(value[0])
                continue
            case Translate(rewrite, family, name):
                value = program.maps[name].entries.get(PROTOCOLS[packet.protocol] << 16 | packet.port)
                if value is not None and family in ("", packet.family):
                    kind = program.maps[name].kind
                    if rewrite == "forward":
                        assert kind == FORWARDS[packet.family]
                        address, port = endpoint_parts(kind, value[0])
                        return Decision("translate", port, value[1], rewrite, address)
                    assert kind == PORTS
                    return Decision("translate", value[0], value[1], rewrite)
                continue
            case Skip(family):
                if family == packet.family and ipaddress.ip_address(packet.address).is_loopback:
                    return None
                continue
            case Masquerade(name, family):
                assert program.maps[name].kind == GUARDS_AT[family]
                key = packet.address, PROTOCOLS[packet.protocol] << 16 | packet.port
                if moved and packet.interface and family == packet.family and key in program.maps[name].entries:
                    return MASQUERADED
                continue
            case Guard(family, at, name, target):
                jump = target if not moved and _guarded(program.maps[name], family, at, packet) else PASS
            case Refuse(how):
                # Only TCP can be reset; the other answer is for the protocols that know no reset.
                if (how == "reset") == (packet.protocol == "tcp"):
                    return Decision("refuse", packet.port)
                continue
            case Keep():
                continue
            case _:
                raise AssertionError(f"no compiled Program has a rule {rule!r}")
        if jump:
            assert program.chains[jump].hook is None, "the kernel allows no jump to a base chain"
            found = _chain(program, program.chains[jump], packet, counted, moved, depth + 1)
            if found:
                return found
    return None


def _dispatch(found: Map, field: str, family: str, prefix: int, packet: Packet) -> str:
    if field == "interface":
        assert found.kind == INTERFACES
        return str(found.entries.get(packet.interface, (PASS, ""))[0])
    assert found.kind == ADDRESSES[family]
    if family != packet.family:
        return PASS
    key = packet.address
    if field == "source":
        key = str(ipaddress.ip_network(f"{packet.source}/{prefix}", strict=False).network_address)
    by_number = {ipaddress.ip_address(text): str(value[0]) for text, value in found.entries.items()}
    return by_number.get(ipaddress.ip_address(key), PASS)


def _arrived_on(pattern: str, packet: Packet) -> bool:
    """`iifname`: at the output hook there is none, and any comparison with a name fails."""
    if not pattern:
        return True
    if pattern.endswith("*"):
        return bool(packet.interface) and packet.interface.startswith(pattern[:-1])
    return packet.interface == pattern


def _guarded(found: Map, family: str, at: bool, packet: Packet) -> bool:
    if not packet.interface or family not in ("", packet.family):
        return False  # what the host sends to itself arrives at the input hook on lo
    port = PROTOCOLS[packet.protocol] << 16 | packet.port
    assert found.kind == (GUARDS_AT[family] if at else GUARDS)
    return (packet.address, port) in found.entries if at else port in found.entries


class Busy(Exception):
    """EBUSY, EEXIST, ENOENT, ENFILE: the transaction is refused, and nothing was changed."""


class _State:
    """What a transaction works on."""

    def __init__(self, program: Program | None) -> None:
        self.load(program)

    def load(self, program: Program | None) -> None:
        self.exists = program is not None
        self.chains = dict(program.chains) if program else {}
        self.maps = {n: Map(m.kind, dict(m.entries), m.capacity) for n, m in program.maps.items()} if program else {}
        self.flags = program.flags if program else 0
        self.strays = program.strays if program else ()
        self.counters = set(program.counters) if program else set()

    def program(self) -> Program | None:
        if not self.exists:
            return None
        return Program(self.chains, self.maps, self.flags, self.strays, frozenset(self.counters))

    def jumps_to(self, name: str) -> list[str]:
        """Where a jump to the chain still stands."""
        users = [n for n, c in self.chains.items() if any(getattr(r, "chain", None) == name for r in c.rules)]
        return users + self.led_to_by(VERDICTS, name)

    def led_to_by(self, kinds: Iterable[str], name: str) -> list[str]:
        """The maps of these kinds with an entry that leads to a chain, or to a counter."""
        found = ((n, m.entries.values()) for n, m in self.maps.items() if m.kind in kinds)
        return [n for n, values in found if any(value[0] == name for value in values)]


def transact(program: Program | None, steps: Iterable[Step]) -> Program | None:
    """The Program after `steps`, one at a time with all the kernel's checks. Raises Busy where it would refuse."""
    state = _State(program)
    for step in steps:
        if not isinstance(step, AddTable | DeleteTable) and not state.exists:
            raise Busy(f"{step}: there is no table")
        _step(state, step)
    return state.program()


def _step(state: _State, step: Step) -> None:
    match step:
        case AddTable():
            state.exists, state.flags = True, 0
        case DeleteTable():
            if not state.exists:
                raise Busy("no table to delete")
            state.load(None)  # everything in it goes along
        case AddChain(name, hook):
            if name in state.chains:
                raise Busy(f"chain {name} exists")
            state.chains[name] = Chain(hook, ())
        case DeleteChain(name):
            if name not in state.chains or state.jumps_to(name):
                raise Busy(f"chain {name} is missing, or used by {state.jumps_to(name)}")
            del state.chains[name]
        case FlushChain(name):
            state.chains[name] = _chain_of(state, name)._replace(rules=())
        case AddRules(name, rules):
            for rule in rules:
                _check_rule(state, rule)
            state.chains[name] = Chain(_chain_of(state, name).hook, state.chains[name].rules + tuple(rules))
        case AddMap(name, kind, capacity):
            if name in state.maps:
                raise Busy(f"map {name} exists")
            state.maps[name] = Map(kind, {}, capacity)
        case DeleteMap(name):
            users = [n for n, c in state.chains.items() if any(references(r) == name for r in c.rules)]
            if name not in state.maps or users:
                raise Busy(f"map {name} is missing, or used by {users}")
            del state.maps[name]
        case AddEntries() | DeleteEntries():
            _entries(state, step)
        case AddCounters(names):
            if state.counters & set(names) or len(set(names)) != len(names):
                raise Busy(f"some of the counters {names} exist")
            state.counters |= set(names)
        case DeleteCounters(names):
            for name in names:
                if name not in state.counters or state.led_to_by((COUNTS,), name):
                    raise Busy(f"counter {name} is missing, or used by {state.led_to_by((COUNTS,), name)}")
                state.counters.remove(name)


def _chain_of(state: _State, name: str) -> Chain:
    if name not in state.chains:
        raise Busy(f"no chain {name}")
    return state.chains[name]


def _check_rule(state: _State, rule: Rule) -> None:
    target, looked_up = getattr(rule, "chain", None), references(rule)
    if target is not None and _chain_of(state, target).hook is not None:
        raise Busy(f"a jump to the base chain {target}")
    if looked_up is None:
        return
    if looked_up not in state.maps:
        raise Busy(f"no map {looked_up}")
    kind = state.maps[looked_up].kind
    fits = {
        Count: kind == COUNTS,
        Translate: kind in TRANSLATIONS,
        Masquerade: kind in SETS,
        Guard: kind in SETS,
        Dispatch: kind in VERDICTS,
    }
    if not fits[type(rule)]:
        raise Busy(f"{rule} does not fit a map of {kind}")


def _entries(state: _State, step: AddEntries | DeleteEntries) -> None:
    found = state.maps.get(step.map)
    if found is None or found.kind != step.kind:
        raise Busy(f"no map {step.map} of {step.kind}")
    if isinstance(step, DeleteEntries):
        for key in step.keys:
            if key not in found.entries or found.entries[key][0] is None:
                raise Busy(f"{step.map} has no {key}, or none that can be named")
            del found.entries[key]
        return
    for key, value in step.entries.items():
        if key in found.entries:
            raise Busy(f"{step.map} has {key} already")
        if found.capacity and len(found.entries) >= found.capacity:
            raise Busy(f"{step.map} is full")
        if found.kind == COUNTS and value[0] not in state.counters:
            raise Busy(f"no counter {value[0]}")
        if found.kind in VERDICTS and _chain_of(state, value[0]).hook is not None:
            raise Busy(f"an entry that jumps to the base chain {value[0]}")
        found.entries[key] = value
