"""Renderings as text. What nft makes of them is the business of kernel/test_second_opinion.py.

rules/NAME.nft is what rules/NAME.toml renders to. After a wanted change write them anew, and read the difference:

    .venv/bin/python tests/test_renderers.py && git diff rules
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given

from redirector import mappings, renderers
from redirector.backends.nftables.encode import MARK
from redirector.compile import compile_ruleset
from redirector.errors import Refused, Usage
from redirector.model import InvalidModel, Mapping, Ports, Ruleset
from redirector.program import (
    COUNTS,
    INTERFACES,
    PORTS,
    Chain,
    Foreign,
    Jump,
    Map,
    Masquerade,
    Program,
    Rule,
    Skip,
    Translate,
    port_key,
    references,
)
from tests import strategies

RULES = Path(__file__).parents[1] / "rules"
FILES = sorted(RULES.glob("*.toml"))


def rendered(kind: str, ruleset: Ruleset) -> str:
    return renderers.render(kind, ruleset, compile_ruleset(ruleset))


def regenerate() -> None:
    for path in FILES:
        ruleset = mappings.load(str(path))
        path.with_suffix(".nft").write_text(rendered("nft", ruleset), encoding="ascii")
        if path.stem != FOR_NFTABLES:
            path.with_suffix(".iptables").write_text(both(ruleset), encoding="ascii")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    assert rendered("nft", mappings.load(str(path))) == path.with_suffix(".nft").read_text(encoding="ascii")


FOR_NFTABLES = "every-key"  # which has a priority


def both(ruleset: Ruleset) -> str:
    """The rules of iptables, both families."""
    kinds = ("iptables-restore", "ip6tables-restore")
    return "\n".join(f"# redirector render --as {kind}\n{rendered(kind, ruleset)}" for kind in kinds)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_iptables(path: Path) -> None:
    ruleset = mappings.load(str(path))
    if path.stem == FOR_NFTABLES:
        with pytest.raises(InvalidModel, match="knows no priorities") as caught:
            both(ruleset)
        assert [problem.path for problem in caught.value.problems] == [("settings", "priority")]
    else:
        assert both(ruleset) == path.with_suffix(".iptables").read_text(encoding="ascii")


def test_each_golden_file_has_its_mapping_file() -> None:
    assert {path.stem for path in RULES.glob("*.iptables")} == {path.stem for path in FILES} - {FOR_NFTABLES}
    assert [path.with_suffix(".toml") for path in sorted(RULES.glob("*.nft"))] == FILES


def test_kinds_are_imported_when_asked_for() -> None:
    code = "import sys, redirector.renderers as r; print(*(m in sys.modules for m in r.KINDS.values()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"False"}


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(Usage) as caught:
        rendered("yaml", Ruleset())
    assert "nft" in caught.value.hint
    assert "nginx" in caught.value.hint


@given(strategies.rulesets())
def test_text_and_json_name_the_same_things(ruleset: Ruleset) -> None:
    assume(not any(mapping.forwards for mapping in ruleset.enabled))
    program = compile_ruleset(ruleset)
    text = renderers.render("nft", ruleset, program)
    objects = json.loads(renderers.render("json", ruleset, program))["nftables"]
    assert {"table": {"family": "inet", "name": "redirector", "comment": MARK}} in objects
    assert text.startswith(f'table inet redirector {{\n\tcomment "{MARK}"\n')
    lines = text.splitlines()
    for what in ("counter", "map", "set", "chain"):
        names = [found[what]["name"] for found in objects if what in found]
        assert [line.split()[1] for line in lines if line.startswith(f"\t{what} ")] == names
    assert {found["counter"]["name"] for found in objects if "counter" in found} == program.counters
    elements = [item for found in objects for value in found.values() for item in value.get("elem", ())]
    assert len(elements) == sum(len(found.entries) for found in program.maps.values())
    # Every element is on a line of its own: the first of a map behind "elements =", the others indented by spaces.
    assert sum(line.startswith(("\t\telements = ", "\t\t\t     ")) for line in lines) == len(elements)
    rules = sum(len(chain.rules) for chain in program.chains.values())
    assert sum("rule" in found for found in objects) == rules


@given(strategies.rules())
def test_every_rule_has_both_forms(rule: Rule) -> None:
    text = renderers.render("nft", Ruleset(), with_rule(rule))
    if isinstance(rule, Skip | Masquerade) or (isinstance(rule, Translate) and rule.rewrite == "forward"):
        return  # of targets with an address, which have no form in JSON
    objects = json.loads(renderers.render("json", Ruleset(), with_rule(rule)))["nftables"]
    rules = [found["rule"] for found in objects if "rule" in found]
    assert len(rules) == 1
    for name in filter(None, (references(rule), getattr(rule, "chain", None))):
        assert name in text
        assert f'"{name}"' in json.dumps(rules).replace('"@', '"')


def with_rule(rule: Rule) -> Program:
    return Program({"some": Chain(None, (rule,))}, {})


def with_entry(kind: str, key: object, entry: tuple[object, str], name: str = "some") -> Program:
    return Program({}, {name: Map(kind, {key: entry})})


WEB = port_key(6, 80)
TRAP = 'x"; flush ruleset; #'
UNWRITABLE = {
    "a rule of others": with_rule(Foreign("drop")),
    "a jump's target": with_rule(Jump("", "", TRAP)),
    "an interface in a rule": with_rule(Jump("", TRAP, "other")),
    "an interface as a key": with_entry(INTERFACES, TRAP, ("other", "")),
    "a chain in a verdict": with_entry(INTERFACES, "eth0", ("accept\ndrop", "")),
    "a mapping's name": with_entry(PORTS, WEB, (8080, TRAP)),
    "a mapping's name with a line end": with_entry(PORTS, WEB, (8080, "a\nb")),
    "a mapping's name past the kernel's length": with_entry(PORTS, WEB, (8080, "x" * 128)),
    "a counter's name": Program({}, {}, counters=frozenset({TRAP})),
    "a counter in an entry": with_entry(COUNTS, WEB, (TRAP, "")),
    "a map's name": with_entry(PORTS, WEB, (8080, "web"), "ports { }"),
    "an odd entry": Program({}, {"ports": Map(PORTS, {WEB: (8080, "web", "attribute 7")})}),  # type: ignore[dict-item]
    "a map of a foreign kind": Program({}, {"ports": Map("foreign: key type 0x7", {})}),
    "a dormant table": Program({}, {}, flags=1),
    "an object of others": Program({}, {}, strays=("object quota",)),
}


@pytest.mark.parametrize("kind", renderers.RULES)
@pytest.mark.parametrize("what", UNWRITABLE)
def test_nothing_foreign_is_pasted(kind: str, what: str) -> None:
    """A Program that was observed may hold anything. What could end a string or a block, or is not ours, is refused."""
    with pytest.raises(Refused):
        renderers.render(kind, Ruleset(), UNWRITABLE[what])


def test_the_number_of_a_protocol_without_a_name() -> None:
    assert "47 . 80 : 8080" in renderers.render("nft", Ruleset(), with_entry(PORTS, port_key(47, 80), (8080, "")))


def test_sizes_have_room_to_grow_or_are_the_kernels() -> None:
    listen = (Ports(1000, 1099),)
    ruleset = Ruleset((Mapping("many", listen, Ports(80, 80)),))
    assert "\t\tsize 128\n" in rendered("nft", ruleset)
    observed = Program({}, {"ports": Map(PORTS, {WEB: (8080, "web")}, capacity=4096)})
    assert "\t\tsize 4096\n" in renderers.render("nft", Ruleset(), observed)


if __name__ == "__main__":
    regenerate()
