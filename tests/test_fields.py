"""The table of keys: mappings from their tables and back, and which key is at fault."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.fields import FIELDS, SETTINGS, document, parse_mapping
from redirector.model import Mapping, Problem
from redirector.values import Report
from tests.strategies import mapping, mappings_, quick


def test_every_bad_key_of_a_mapping_is_told() -> None:
    problems: list[Problem] = []
    table = {"name": "web", "lisen": 80, "to": 0, "protocol": ["tcp", "upd"], "local": 1, "colour": "red"}
    assert parse_mapping(table, Report(("mapping", 3), problems)) is None
    where = {problem.path[2:]: problem for problem in problems}
    assert set(where) == {("lisen",), ("to",), ("protocol", 1), ("local",), ("colour",)}
    assert where["lisen",].hint == 'did you mean "listen"?'
    assert where["lisen",].at_key
    assert where["colour",].hint.startswith("the keys are: name, listen, to")


def test_a_key_that_must_be_there_is_missed() -> None:
    problems: list[Problem] = []
    parse_mapping({"name": "web", "to": 2}, Report((), problems))
    assert [p.message for p in problems] == ['mapping "web" has no listen']


def test_a_key_that_is_there_is_not_suggested() -> None:
    problems: list[Problem] = []
    parse_mapping({"name": "a", "listen": 1, "to": 2, "lisen": 80}, Report((), problems))
    assert "did you mean" not in problems[0].hint


def test_contradictions_between_keys_are_told_with_paths_into_the_mapping() -> None:
    problems: list[Problem] = []
    table = {"name": "a", "listen": "1-3", "to": "1-2", "family": "ipv4", "address": ["10.0.0.1", "::1"]}
    assert parse_mapping(table, Report(("mapping", 0), problems)) is None
    assert [problem.path for problem in problems] == [("mapping", 0, "to"), ("mapping", 0, "address", 1)]


V4, V6 = "10.88.0.5:80", "[fd00::5]:80"


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ({"to": V4, "rewrite": "redirect"}, ("rewrite",), "this host itself"),
        ({"to": V4, "exclusive": True}, ("exclusive",), "guards a port of this host"),
        ({"to": V4, "owner": "www"}, ("owner",), "listens on this host"),
        ({"to": V4, "interface": ["eth0", "lo"]}, ("interface", 1), "loopback address cannot leave"),
        ({"to": V4, "address": ["192.0.2.1", "127.0.0.1"]}, ("address", 1), "loopback address cannot leave"),
        ({"to": V6, "address": "::1"}, ("address", 0), "loopback address cannot leave"),
        ({"to": "127.0.0.1:80"}, ("to", 0), "never leave the host"),
        ({"to": [V4, "[::1]:80"]}, ("to", 1), "never leave the host"),
        ({"to": ["[::1]:80", V4]}, ("to", 0), "never leave the host"),
        ({"to": [V4, "10.88.0.6:80"]}, ("to", 1), "one address of each family"),
        ({"to": [V4, "[fd00::5]:81"]}, ("to", 1), "other ports"),
        ({"to": [V4, V4]}, ("to", 1), "in this list already"),
        ({"to": [V4, V6], "family": "ipv4"}, ("to", 1), 'family = "ipv4"'),
        ({"to": [V6, V4], "family": "ipv4"}, ("to", 0), 'family = "ipv4"'),
        ({"to": [V4, V6], "address": "192.0.2.1"}, ("to", 1), "no address of this mapping is"),
        ({"to": V4, "source": "fd00::/8"}, ("source", 0), "no target of this mapping is"),
        ({"to": "10.88.0.5:80-81"}, ("to",), "has 2 ports"),
        ({"to": []}, ("to",), "a port is a number"),
        ({"to": [80, V4]}, ("to", 0), "targets with an address"),
        ({"to": "10.88.0.5"}, ("to", 0), "is no target"),
        ({"to": "fd00::5"}, ("to", 0), "is no target"),
        ({"to": "web.example:80"}, ("to", 0), "is no address"),
        ({"to": "[10.88.0.5]:80"}, ("to", 0), "brackets around"),
        ({"to": "[fe80::1]:80"}, ("to", 0), "link-local"),
        ({"to": "224.0.0.1:80"}, ("to", 0), "multicast"),
        ({"to": "0.0.0.0:80"}, ("to", 0), "every address"),
        ({"to": "10.88.0.5:0"}, ("to", 0), "out of range"),
        ({"to": "10.88.0.5:90-80"}, ("to", 0), "ends before it starts"),
    ],
)
def test_what_cannot_go_with_a_target_on_another_address(
    more: dict[str, Any], path: tuple[str | int, ...], words: str
) -> None:
    problems: list[Problem] = []
    assert parse_mapping({"name": "a", "listen": 80} | more, Report((), problems)) is None
    assert [problem.path for problem in problems][:1] == [path]
    assert words in problems[0].message


def test_the_families_of_a_mapping_are_those_of_its_targets() -> None:
    for to, families in ((V4, ("ipv4",)), (V6, ("ipv6",)), ([V6, V4], ("ipv4", "ipv6")), ([V4], ("ipv4",))):
        found = parse_mapping({"name": "a", "listen": 80, "to": to}, Report((), []))
        assert found is not None
        assert found.families == families
        assert found.forwards
        assert not found.exempts(80)


@pytest.mark.parametrize("value", [None, 1, "text", [], [1]])
def test_a_mapping_is_a_table(value: object) -> None:
    problems: list[Problem] = []
    assert parse_mapping(value, Report((), problems)) is None
    assert "must be a table" in problems[0].message


@pytest.mark.parametrize(
    ("more", "local"),
    [
        ({}, True),
        ({"source": "10.0.0.0/8"}, False),
        ({"interface": ["eth0"]}, False),
        ({"address": "10.0.0.1"}, True),
        ({"source": "10.0.0.0/8", "local": True}, True),
        ({"local": False}, False),
    ],
)
def test_local_is_true_unless_source_or_interface_is_set(more: dict[str, Any], local: bool) -> None:
    found = parse_mapping({"name": "a", "listen": 1, "to": 2} | more, Report((), []))
    assert found is not None
    assert found.local is local


@quick
@given(mappings_())
def test_parsing_inverts_document(found: Mapping) -> None:
    problems: list[Problem] = []
    assert parse_mapping(document(found), Report((), problems)) == found
    assert problems == []


@quick
@given(mappings_())
def test_documents_are_as_short_as_can_be(found: Mapping) -> None:
    """No key can be left out: it would mean another mapping, or none."""
    table = document(found)
    for key in table:
        shorter = {name: value for name, value in table.items() if name != key}
        assert parse_mapping(shorter, Report((), [])) != found


def test_documents_of_plain_mappings() -> None:
    assert document(mapping("web", "80", "8080")) == {"name": "web", "listen": 80, "to": 8080}
    assert document(mapping("a", "1-3", "11-13", protocol=("tcp", "udp"), source=("10.0.0.0/8",))) == {
        "name": "a",
        "listen": "1-3",
        "to": "11-13",
        "protocol": ["tcp", "udp"],
        "source": "10.0.0.0/8",
    }


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just("80")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from((*FIELDS, "x")), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from((*FIELDS, "x")), json_like))
def test_any_table_is_a_mapping_or_has_problems(table: dict[str, Any]) -> None:
    problems: list[Problem] = []
    found = parse_mapping(table, Report((), problems))
    assert (found is None) == bool(problems)


def test_every_key_has_words_for_people() -> None:
    for spec in (*FIELDS.values(), *SETTINGS.values()):
        assert spec.doc
    assert [name for name, spec in FIELDS.items() if spec.required] == ["name", "listen", "to"]
