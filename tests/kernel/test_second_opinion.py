"""Our encoding against the official nftables library: the same Program loaded both ways lists the same.

One namespace holds what NftablesBackend has committed by our own codec; in the other, libnftables has loaded the
rendered text or JSON. libnftables lists both, and our own `observe` reads both.
"""

import json
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from redirector import mappings, naming, renderers
from redirector.backends.nftables.backend import NftablesBackend
from redirector.backends.nftables.encode import MARK
from redirector.compile import compile_ruleset
from redirector.errors import Refused
from redirector.host.namespaces import Namespace
from redirector.model import Mapping, Ports, Ruleset, Scope
from redirector.plan import make_plan
from redirector.program import Program
from redirector.renderers.nft_json import CONSTANTS
from redirector.values import Report, interface
from tests import strategies
from tests.kernel.libnftables import Library, Refusal

RULES = sorted((Path(__file__).parents[2] / "rules").glob("*.toml"))
WEB = Mapping("web", (Ports(80, 80),), Ports(8080, 8080))

# Addresses with every bit set behind the usual networks, so that each prefix length cuts something off.
ENDS = (("203.0.113.255", 32), ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 128))

# libnftables 1.0.6 does not read the table's comment from JSON: see redirector/renderers/nft_json.py.
MARKED_TABLE = f'add table inet redirector {{ comment "{MARK}"; }}'

# Whatever the kernel takes as the name of an interface and a mapping file may say.
letters = st.sampled_from([chr(c) for c in range(33, 127) if interface(chr(c) + "0", Report((), [])) is not None])
stems = st.text(letters, min_size=1, max_size=14).filter(lambda name: name not in (".", ".."))
words = st.sampled_from(("ip", "ether", "reset", "dnat", "map", "jump", "elements", "7", "0x7", "10.0.0.1", "{}$;#"))
interfaces = st.one_of(stems, stems.map("{}*".format), words)

# The namespaces serve one example after another: each starts by emptying them.
examples = settings(max_examples=60)


class Place:
    """A namespace with both readers and writers of it."""

    def __init__(self, label: str) -> None:
        self.namespace = Namespace.create(label)
        self.library = Library(self.namespace)
        self.backend = self.namespace.call(NftablesBackend)

    def commit(self, program: Program) -> None:
        """Our own way in, from nothing."""
        self.library.flush()
        self.backend.commit(make_plan(program, None).steps, self.backend.genid())

    def holds(self, program: Program) -> bool:
        """Whether what we observe is the Program, with no step left to do."""
        snapshot = self.backend.observe()
        assert snapshot.foreign == ""
        return snapshot.program == program and not make_plan(program, snapshot.program)

    def close(self) -> None:
        self.backend.close()
        self.library.close()
        self.namespace.close()


@pytest.fixture(scope="module")
def ours() -> Iterator[Place]:
    place = Place("ours")
    yield place
    place.close()


@pytest.fixture(scope="module")
def theirs() -> Iterator[Place]:
    place = Place("theirs")
    yield place
    place.close()


def hold_against(ruleset: Ruleset, ours: Place, theirs: Place) -> None:
    """Our commit of a ruleset against libnftables' loading of each rendering, and of its own listing of our commit."""
    program = compile_ruleset(ruleset)
    ours.commit(program)
    assert ours.holds(program)
    wanted = ours.library.listing()

    theirs.library.flush()
    theirs.library.load(renderers.render("nft", ruleset, program))
    assert theirs.holds(program)
    assert theirs.library.listing() == wanted

    theirs.library.flush()
    theirs.library.load(ours.library.text())
    assert theirs.holds(program)
    assert theirs.library.listing() == wanted

    theirs.library.flush()
    theirs.library.load(MARKED_TABLE)
    if any(m.forwards or any(map(beyond_json, m.interface)) for m in ruleset.enabled):
        with pytest.raises(Refused):
            renderers.render("json", ruleset, program)
        return
    theirs.library.load_json(renderers.render("json", ruleset, program))
    assert theirs.holds(program)
    assert theirs.library.listing() == wanted


def beyond_json(interface: str) -> bool:
    return interface.startswith("@") or interface in CONSTANTS


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_ready_mapping_files(path: Path, ours: Place, theirs: Place) -> None:
    hold_against(mappings.load(str(path)), ours, theirs)


@given(strategies.rulesets())
@example(Ruleset())
@examples
def test_any_ruleset(ours: Place, theirs: Place, ruleset: Ruleset) -> None:
    hold_against(ruleset, ours, theirs)


def test_every_prefix_length(ours: Place, theirs: Place) -> None:
    networks = [str(ip_network(f"{a}/{n}", strict=False)) for a, bits in ENDS for n in range(bits + 1)]
    mapping = Mapping("web", (Ports(80, 80),), Ports(8080, 8080), source=tuple(networks), local=False)
    hold_against(Ruleset((mapping,)), ours, theirs)


def on(*names: str) -> Ruleset:
    return Ruleset((Mapping("web", (Ports(80, 80),), Ports(8080, 8080), interface=names, local=False),))


@given(st.lists(interfaces, min_size=1, max_size=4, unique=True))
@examples
def test_any_interface(ours: Place, theirs: Place, names: list[str]) -> None:
    # Names that clash with nft's language, quotes and wildcards: as a key of a map, and in a rule.
    hold_against(on(*names), ours, theirs)


@pytest.mark.parametrize("name", ["@eth0", "@eth*", *sorted(CONSTANTS)])
def test_what_json_cannot_name(name: str, ours: Place, theirs: Place) -> None:
    """Text can. And each refusal of the JSON renderer has its reason: libnftables takes the name for something else."""
    hold_against(on(name), ours, theirs)
    model = "eth9*" if name.endswith("*") else "eth9"
    text = renderers.render("json", on(model), compile_ruleset(on(model)))

    def accepted(instead: str) -> bool:
        theirs.library.flush()
        theirs.library.load(MARKED_TABLE)
        wanted = compile_ruleset(on(instead))
        change = {f'"{model}"': f'"{instead}"', chain_of(model): chain_of(instead)}
        found = text
        for before, after in change.items():
            found = found.replace(before, after)
        try:
            theirs.library.load_json(found)
        except Refusal:
            return False
        return theirs.holds(wanted)

    assert accepted(model.replace("9", "8"))
    assert not accepted(name)


def test_what_json_cannot_lead_to(theirs: Place) -> None:
    """Why the JSON renderer refuses targets with an address: the data of such a map cannot be declared."""
    kind = {"family": "inet", "table": "redirector", "name": "m", "type": ["inet_proto", "inet_service"]}
    theirs.library.load(MARKED_TABLE)
    with pytest.raises(Refusal, match="Invalid map type"):
        theirs.library.load_json(json.dumps({"nftables": [{"map": kind | {"map": "ipv4_addr . inet_service"}}]}))


def chain_of(interface: str) -> str:
    return naming.chain("arriving", Scope("", "", interface))


def test_the_comparison_can_fail(ours: Place, theirs: Place) -> None:
    """A listing tells one port, one priority, one rule and one name apart."""
    program = compile_ruleset(Ruleset((WEB,)))
    ours.commit(program)
    text = renderers.render("nft", Ruleset((WEB,)), program)
    for before, after in (
        (": 8080", ": 8081"),
        ("priority -110", "priority -111"),
        ("dnat to", "redirect to"),
        ('"web"', '"wed"'),
        ("udp, sctp }", "udp }"),
    ):
        theirs.library.flush()
        theirs.library.load(text.replace(before, after))
        assert not theirs.holds(program)
        assert theirs.library.listing() != ours.library.listing()
