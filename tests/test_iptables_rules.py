"""A Program as rules of iptables, and back. Real kernels come in tests/kernel."""

import re

from hypothesis import given
from hypothesis import strategies as st

from redirector.backends.iptables import reading, rules
from redirector.backends.iptables import tree as trees
from redirector.backends.iptables.save import Saved, SavedRule, SavedTable
from redirector.backends.iptables.script import script
from redirector.compile import compile_ruleset
from redirector.model import FAMILIES, Ruleset, Settings
from redirector.plan import make_plan, perform
from redirector.program import Program
from tests.strategies import mapping, rulesets


def saved(program: Program | None) -> Saved:
    """What iptables-save would tell of a program."""
    found: Saved = {}
    for family in FAMILIES:
        tables = rules.encode(program, family)
        found[family] = {
            name: SavedTable(dict.fromkeys(chains, "-"), {c: [SavedRule(t, 0) for t in ts] for c, ts in chains.items()})
            for name, chains in tables.items()
        }
    return found


def compiled(ruleset: Ruleset) -> Program:
    """iptables knows no priorities: the program as it is at the default one."""
    return compile_ruleset(ruleset._replace(settings=Settings()))


@given(rulesets())
def test_reading_inverts_writing(ruleset: Ruleset) -> None:
    program = compiled(ruleset)
    assert reading.decode(saved(program)) == program


def many(count: int, **more: object) -> Ruleset:
    return Ruleset(tuple(mapping(f"m{i}", str(1000 + 3 * i), str(40000 + i), **more) for i in range(count)))


def test_many_ports_are_a_tree_and_come_back() -> None:
    program = compiled(many(5000, protocol=("tcp", "udp")))
    tables = rules.encode(program, "ipv4")
    assert max(len(texts) for texts in tables["nat"].values()) <= trees.FLAT + trees.FAN
    assert sum(len(texts) for texts in tables["nat"].values()) < 2 * 10000 * 1.2 + 10
    assert reading.decode(saved(program)) == program


def test_a_range_is_one_rule() -> None:
    program = compiled(Ruleset((mapping("m", "1-10000", "20001-30000"), mapping("n", "10001-20000", "5"))))
    texts = rules.encode(program, "ipv6")["nat"][rules.ALL]
    assert len(texts) == 2
    assert texts[0].endswith("--to-destination :20001-30000/1")
    assert reading.decode(saved(program)) == program


@given(rulesets(), st.data())
def test_any_difference_is_damage(ruleset: Ruleset, data: st.DataObject) -> None:
    program = compiled(ruleset)
    found = saved(program)
    spots = [(f, t, c) for f in found for t in found[f] for c, kept in found[f][t].rules.items() if kept]
    family, table, chain = data.draw(st.sampled_from(spots))
    kept = found[family][table].rules[chain]
    at = data.draw(st.integers(0, len(kept) - 1))
    match data.draw(st.sampled_from(("delete", "add", "double", "edit", "chain"))):
        case "delete":
            del kept[at]
        case "add":
            kept.insert(at, SavedRule("-s 10.1.2.3/32 -j ACCEPT", 0))
        case "double":
            kept.append(kept[at])
        case "edit":
            kept[at] = kept[at]._replace(text=kept[at].text + "1")
        case _:
            found[family][table].rules["REDIRECTOR-mine"] = []
    changed = saved(program) != found
    if chain not in ("PREROUTING", "OUTPUT", "INPUT") or "REDIRECTOR" in str(kept):
        assert (reading.decode(found) != program) is changed


@given(rulesets(), rulesets())
def test_what_updates_lead_to_is_written_as_what_is_new(before: Ruleset, after: Ruleset) -> None:
    # Updates leave entries in another order than compiling: it must not be seen in the rules.
    old, new = compiled(before), compiled(after)
    reached = perform(old, make_plan(new, old).steps)
    for family in FAMILIES:
        assert rules.encode(reached, family) == rules.encode(new, family)


def restored(tables: dict[str, SavedTable], text: str) -> rules.Tables:
    """What iptables-restore --noflush makes of the tables."""
    found = {name: {c: [rule.text for rule in kept] for c, kept in t.rules.items()} for name, t in tables.items()}
    chains: trees.Chains = {}
    for line in text.splitlines():
        words = re.sub(r"^\[\d+:\d+\] ", "", line).split(" ", 3)
        match words:
            case [mark, *_] if mark.startswith("*"):
                chains = found[mark[1:]]
            case [name, "-", "[0:0]"]:
                chains[name[1:]] = []
            case ["-A", name, *_]:
                chains[name].append(line.partition(f"-A {name} ")[2])
            case ["-I", name, at, rest]:
                chains.setdefault(name, []).insert(int(at) - 1, rest)
            case ["-D", name, at] if at.isdigit():
                del chains[name][int(at) - 1]
            case ["-D", name, *_]:
                chains[name].remove(line.partition(f"-D {name} ")[2])
            case ["-X", name]:
                assert chains.pop(name) == []
            case _:
                assert words == ["COMMIT"]
    return {name: {c: texts for c, texts in chains.items() if texts} for name, chains in found.items()}


@given(rulesets(), rulesets())
def test_the_script_leads_from_one_to_the_other(before: Ruleset, after: Ruleset) -> None:
    found = saved(compiled(before))
    for family in FAMILIES:
        wanted = rules.encode(compiled(after), family)
        text = script(found[family], reading.held(found)[family], wanted)
        told = {name: {c: texts for c, texts in chains.items() if texts} for name, chains in wanted.items()}
        assert restored(found[family], text) == told


def test_a_chain_that_differs_a_little_is_not_written_anew() -> None:
    ports = [mapping(f"m{i}", str(1000 + 3 * i), "9") for i in range(40)]
    found = saved(compiled(Ruleset(tuple(ports))))
    changed = Ruleset((*ports[:7], ports[7]._replace(to=ports[8].to, name="new"), *ports[8:-1]))
    wanted = rules.encode(compiled(changed), "ipv4")
    text = script(found["ipv4"], reading.held(found)["ipv4"], wanted)
    assert [line[:22] for line in text.splitlines() if "-ALL" in line] == [
        "-D REDIRECTOR-ALL 40", "-D REDIRECTOR-ALL 8", "-I REDIRECTOR-ALL 8 -p",
    ]  # fmt: skip
