"""Our own rules, rendered for iptables-restore and imported again, are the same mappings.

What cannot come back: comments of mappings, owners, settings and disabled mappings, which are in no rule; the order of
mappings and of what is in lists; and which of two spellings of one meaning the file had.
"""

from pathlib import Path

import pytest
from hypothesis import given

from redirector import importers, mappings, renderers
from redirector.compile import compile_ruleset
from redirector.importers import Imported, Text
from redirector.importers.rules import joined
from redirector.model import Mapping, Ruleset
from tests.strategies import mapping, rebuilt, rulesets

RULES = Path(__file__).parents[1] / "rules"


def there_and_back(ruleset: Ruleset) -> Imported:
    program = compile_ruleset(ruleset)
    return importers.read(
        [
            ("iptables-save", Text("v4", renderers.render("iptables-restore", ruleset, program), "ipv4")),
            ("iptables-save", Text("v6", renderers.render("ip6tables-restore", ruleset, program), "ipv6")),
        ]
    )


def plain(ruleset: Ruleset) -> Ruleset:
    """What can come back of a ruleset."""
    kept = (rebuilt(m, comment="", owner=None) for m in ruleset.mappings if m.enabled)
    return Ruleset(tuple(sorted(map(canonical, kept))))


def canonical(m: Mapping) -> Mapping:
    """One spelling for each meaning."""
    order = ("tcp", "udp", "sctp")
    found = rebuilt(
        m,
        listen=m.listen if m.shifted else joined(m.listen),
        protocol=tuple(sorted(m.protocol, key=order.index)),
        address=tuple(sorted(m.address)),
        interface=tuple(sorted(m.interface)),
        source=tuple(sorted(m.source)),
    )
    if found.family != "both" and covered(found) == covered(rebuilt(found, family="both")):
        return rebuilt(found, family="both")
    return found


def covered(m: Mapping) -> set[tuple[object, ...]]:
    """Sides, scopes and families of a mapping."""
    return {(c, f) for c in m.claims for f in ((c.scope.family,) if c.scope.family else m.families)}


def check(ruleset: Ruleset) -> None:
    found = there_and_back(ruleset)
    assert not found.left
    wanted = plain(ruleset)
    # A guard on a port that others guard as well, or map to itself, may be in no rule of this mapping's name.
    guards = {m.name for m in found.ruleset.mappings if m.exclusive}
    assert guards <= {m.name for m in wanted.mappings if m.exclusive}
    wanted = Ruleset(tuple(rebuilt(m, exclusive=m.name in guards) for m in wanted.mappings))
    assert plain(found.ruleset) == wanted
    # A guard spares what is mapped to itself in a family; with sources of one family only, which that is can be either.
    open_ = Ruleset(tuple(m if m.exclusive else canonical(m) for m in ruleset.mappings))
    assert guarded(found.ruleset) == guarded(open_)


def test_a_guard_beside_a_port_that_is_mapped_to_itself_for_one_family_only() -> None:
    """By its source alone: with it the other family is not spared."""
    web = mapping("web", "1", "3", exclusive=True, local=False)
    itself = mapping("itself", "1-3", "3", exclusive=True, local=False, family="ipv4", source=("0.0.0.0/0",))
    check(Ruleset((web, itself)))


def guarded(ruleset: Ruleset) -> dict[str, set[object]]:
    """The keys of all sets of guards."""
    maps = compile_ruleset(ruleset).maps
    return {name: set(found.entries) for name, found in maps.items() if found.kind.startswith("guards")}


@given(rulesets())
def test_our_own_rules_come_back(ruleset: Ruleset) -> None:
    check(Ruleset(ruleset.mappings))


@pytest.mark.parametrize("path", sorted(RULES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_ready_files_come_back(path: Path) -> None:
    check(Ruleset(mappings.load(str(path)).mappings))


def test_a_tree_of_port_ranges_comes_back() -> None:
    odd = mapping("odd", " ".join(map(str, range(1, 4000, 2))), "8080", protocol=("tcp", "udp"))
    even = mapping("even", " ".join(map(str, range(2, 4000, 2))), "8081", source=("10.0.0.0/8", "::/0"))
    wide = mapping("wide", "5000-50000", "5001", exclusive=True, rewrite="redirect")
    check(Ruleset((odd, even, wide)))


def test_a_shifted_range_comes_back_from_a_rule_for_each_port() -> None:
    check(Ruleset((mapping("shifted", "1000-1100", "2000-2100", rewrite="redirect"),)))
