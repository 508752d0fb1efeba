"""What is refused unless a flag says so, and what is warned about: tables of rulesets and facts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.guards import (
    ALLOW_EMPTY,
    ALLOW_OWNER,
    ALLOW_SSH,
    Finding,
    captured_ports,
    empty,
    findings,
    static_findings,
)
from redirector.host.facts import Facts
from redirector.host.listeners import Listener
from redirector.host.processes import Process
from redirector.host.ssh import SshUse
from redirector.model import Mapping, Ruleset
from tests.strategies import mapping, quick, rulesets


def listener(port: int, address: str = "0.0.0.0", protocol: str = "tcp", uid: int = 33, inode: int = 1) -> Listener:
    family = "ipv6" if ":" in address else "ipv4"
    return Listener(protocol, family, address, port, uid, inode, 0, False if family == "ipv6" else None)


def found(*mappings: Mapping, **facts: Any) -> list[Finding]:
    if "listeners" in facts:
        facts["listeners"] = tuple(facts["listeners"])
    return list(findings(Ruleset(mappings), Facts(**facts)))


def messages(*mappings: Mapping, **facts: Any) -> list[str]:
    """The warnings; there must be no refusal."""
    told = found(*mappings, **facts)
    assert {finding.flag for finding in told} <= {""}
    return [finding.message for finding in told]


EVERYWHERE = listener(8080, "::")  # not IPv6 only: it serves both families


def test_all_is_well_where_the_target_is_listened_on() -> None:
    assert found(mapping("web"), listeners=[EVERYWHERE]) == []
    assert found(mapping("web"), listeners=[listener(8080), listener(8080, "::")]) == []
    assert found(mapping("web", family="ipv4"), listeners=[listener(8080)]) == []


SSH = SshUse(22, "", "sshd listens on it")
CONNECTED = SshUse(22, "192.0.2.1", "the connection in use")


@pytest.mark.parametrize(
    ("wanted", "use", "words"),
    [
        (mapping("a", "22", "8080"), SSH, "it would take port 22 away from ssh: sshd listens on it"),
        (mapping("a", "1-100", "8080"), SSH, "away from ssh"),
        (mapping("a", "1-100", "101-200"), CONNECTED, "away from ssh: the connection in use"),
        (mapping("a", "22", "8080", source=("10.0.0.0/8",)), SSH, "away from ssh"),
        (mapping("a", "22", "8080", address=("192.0.2.1",)), CONNECTED, "away from ssh"),
        (mapping("a", "80", "22", exclusive=True), SSH, "exclusive would refuse direct connections to port 22"),
        (mapping("a", "80-90", "20-30", exclusive=True), CONNECTED, "exclusive would refuse"),
        (mapping("a", "2222", "8080"), SshUse(2222, "", "x"), "away from ssh"),
        (mapping("a", "22", "8080", protocol=("udp", "tcp")), SSH, "away from ssh"),
        # Nothing is taken away:
        (mapping("a", "22", "22"), SSH, ""),
        (mapping("a", "20-25", "20-25"), SSH, ""),
        (mapping("a", "20-25", "22"), SSH, ""),
        (mapping("a", "80", "22"), SSH, ""),
        (mapping("a", "22", "8080", protocol=("udp",)), SSH, ""),
        (mapping("a", "22", "8080", enabled=False), SSH, ""),
        (mapping("a", "22", "8080", address=("192.0.2.2",)), CONNECTED, ""),
        (mapping("a", "22", "8080", family="ipv6"), CONNECTED, ""),
        (mapping("a", "23", "8080"), SSH, ""),
        # A target that is mapped to itself is never guarded.
        (mapping("a", "22", "22", exclusive=True), SSH, ""),
    ],
)
def test_the_port_of_ssh_is_not_taken_away_unasked(wanted: Mapping, use: SshUse, words: str) -> None:
    refused = [finding for finding in found(wanted, ssh=(use,)) if finding.flag]
    if not words:
        assert refused == []
        return
    ((flag, name, message),) = refused
    assert (flag, name) == (ALLOW_SSH, "a")
    assert words in message


def test_nothing_enabled_is_refused_unless_allowed() -> None:
    off = Ruleset((mapping("a", enabled=False),))
    for ruleset in (Ruleset(), off):
        for held, words in ((True, "would vanish"), (False, "nothing to apply")):
            (finding,) = empty(ruleset, held)
            assert finding.flag == ALLOW_EMPTY
            assert words in finding.message
    assert list(empty(Ruleset((mapping(),)), held=True)) == []


@pytest.mark.parametrize(
    ("wanted", "listeners", "words"),
    [
        (mapping(), [], "nothing listens on tcp 8080: connections would be refused"),
        (mapping(), [listener(8081, "::")], "nothing listens on tcp 8080"),
        (mapping(), [listener(8080, "::", "udp")], "nothing listens on tcp 8080"),
        (mapping(family="ipv4"), [listener(8080, "fd00::1")], "nothing listens on tcp 8080"),
        (mapping(address=("192.0.2.1",)), [listener(8080, "192.0.2.2")], "nothing listens on tcp 8080"),
        (mapping(protocol=("udp", "tcp")), [EVERYWHERE], "nothing listens on udp 8080"),
        (mapping("m", "1-3", "11-13"), [listener(10, "::"), listener(14, "::")], "nothing listens on tcp 11-13"),
        (mapping(), [listener(8080)], "nothing listens on tcp 8080 over ipv6"),
        (mapping(), [listener(8080, "127.0.0.1"), listener(8080, "::1")], "can never be reached from outside"),
        (mapping(family="ipv4"), [listener(8080, "127.0.0.53")], "listened on at 127.0.0.53 only"),
        (mapping(), [EVERYWHERE], ""),
        (mapping("m", "1-3", "11-13"), [listener(12, "::")], ""),
        (mapping(address=("192.0.2.1",)), [listener(8080, "192.0.2.1")], ""),
        (mapping(interface=("lo",), family="ipv4"), [listener(8080, "127.0.0.1")], ""),
        # The address becomes the interface's own, which nobody here knows.
        (mapping(address=("192.0.2.1",), rewrite="redirect"), [listener(8080, "192.0.2.2")], ""),
        # Most kernels cannot be asked for SCTP listeners.
        (mapping(protocol=("sctp",)), [EVERYWHERE], ""),
        (mapping(protocol=("sctp",)), [listener(1, "::", "sctp")], "nothing listens on sctp 8080"),
    ],
)
def test_targets_that_nobody_can_reach_are_warned_about(wanted: Mapping, listeners: list[Listener], words: str) -> None:
    told = messages(wanted, listeners=listeners)
    assert len(told) == bool(words)
    assert words in "".join(told)


@pytest.mark.parametrize(
    ("owner", "uid", "users", "words"),
    [
        ("www-data", 33, {"www-data": 33}, ""),
        (33, 33, {33: 33}, ""),
        (0, 0, {0: 0}, ""),
        ("www-data", 1000, {"www-data": 33}, "is listened on by user id 1000, not by www-data"),
        (33, 0, {33: 33}, "is listened on by user id 0, not by 33"),
        ("nobody-here", 33, {"nobody-here": None}, "owner nobody-here is no user of this host"),
        ("nobody-here", 33, {}, "owner nobody-here is no user of this host"),
        (None, 1000, {}, ""),
    ],
)
def test_another_owner_is_refused(
    owner: str | int | None, uid: int, users: dict[str | int, int | None], words: str
) -> None:
    told = found(mapping("web", owner=owner), listeners=[listener(8080, "::", uid=uid)], users=users)
    assert len(told) == bool(words)
    if words:
        assert (told[0].flag, told[0].mapping) == (ALLOW_OWNER, "web")
        assert words in told[0].message


def test_the_other_owner_is_named_where_it_is_known() -> None:
    facts = {"users": {"www-data": 33}, "processes": {7: [Process(4711, "intruder", 1000)]}}
    (told,) = found(mapping(owner="www-data"), listeners=[listener(8080, "::", uid=1000, inode=7)], **facts)
    assert "by user id 1000 (intruder, process 4711), not by www-data" in told.message


def test_nobody_at_all_is_no_other_owner() -> None:
    assert len(messages(mapping(owner="www-data"), users={"www-data": 33})) == 1


@pytest.mark.parametrize(
    ("wanted", "there", "shadowed"),
    [
        (mapping(), listener(80, "::", inode=2), True),
        (mapping("m", "1-100", "8080"), listener(80, "::", inode=2), True),
        (mapping(address=("192.0.2.1",), family="ipv4"), listener(80, "192.0.2.1", inode=2), True),
        (mapping(), listener(81, "::", inode=2), False),
        (mapping(), listener(80, "::", "udp", inode=2), False),
        (mapping("m", "8080", "8080"), EVERYWHERE, False),
        (mapping("m", "8000-8100", "8080"), EVERYWHERE, False),
        (mapping(address=("192.0.2.1",)), listener(80, "192.0.2.2", inode=2), False),
        (mapping(family="ipv4"), listener(80, "fd00::1", inode=2), False),
    ],
)
def test_who_listens_on_the_mapped_port_itself_is_told(wanted: Mapping, there: Listener, shadowed: bool) -> None:
    told = [m for m in messages(wanted, listeners=[EVERYWHERE, there]) if "will no longer be reached" in m]
    assert len(told) == shadowed


def test_one_program_on_both_ports_is_meant_so() -> None:
    nginx = {1: [Process(700, "nginx", 33)], 2: [Process(700, "nginx", 33)]}
    both = [EVERYWHERE, listener(80, "::", inode=2)]
    assert messages(mapping(), listeners=both, processes=nginx) == []
    other = nginx | {2: [Process(800, "apache2", 33)]}
    (told,) = messages(mapping(), listeners=both, processes=other)
    assert "somebody (apache2, process 800) listens on tcp 80 itself" in told
    (unknown,) = messages(mapping(), listeners=both)
    assert "somebody (user id 33) listens on tcp 80 itself" in unknown


def test_each_port_is_told_once() -> None:
    there = [EVERYWHERE, listener(80, inode=2), listener(80, "::", inode=3)]
    assert len(messages(mapping(), listeners=there)) == 1


@pytest.mark.parametrize(
    ("other", "chained"),
    [
        (mapping("other", "8080", "9090"), True),
        (mapping("other", "8000-8100", "9000-9100"), True),
        (mapping("other", "1 8080 9999", "7"), True),
        (mapping("other", "8080", "9090", source=("10.0.0.0/8",)), True),
        (mapping("other", "8080", "8080"), False),
        (mapping("other", "8000-8100", "8000-8100"), False),
        (mapping("other", "8080", "9090", protocol=("udp",)), False),
        (mapping("other", "8080", "9090", enabled=False), False),
        (mapping("other", "8079 8081", "9090"), False),
    ],
)
def test_a_target_that_is_mapped_on_is_warned_about(other: Mapping, chained: bool) -> None:
    told = [finding for finding in static_findings(Ruleset((mapping("web"), other))) if finding.mapping == "web"]
    assert len(told) == chained
    if chained:
        assert told[0].flag == ""
        assert 'its target 8080 is also what "other" listens on' in told[0].message


def test_mappings_of_different_families_do_not_chain() -> None:
    pair = mapping("four", "80", "8080", family="ipv4"), mapping("six", "8080", "9090", family="ipv6")
    assert list(static_findings(Ruleset(pair))) == []


def test_addresses_that_are_not_there_yet_are_warned_about() -> None:
    at = mapping(address=("192.0.2.1", "fd00::1"))
    serving = [EVERYWHERE]
    assert messages(at, listeners=serving, addresses=frozenset({"192.0.2.1", "fd00::1"})) == []
    (told,) = messages(at, listeners=serving, addresses=frozenset({"192.0.2.1"}))
    assert "fd00::1 is no address of this host (yet)" in told
    assert messages(at, listeners=serving) == []  # nobody asked


@quick
@given(rulesets())
def test_captured_ports_are_those_that_go_elsewhere_or_are_guarded(ruleset: Ruleset) -> None:
    expected = {
        port
        for m in ruleset.enabled
        for ports in m.listen
        for port in range(ports.first, ports.last + 1)
        if m.forwards or m.target(port) != port
    }
    expected |= {port for m in ruleset.enabled if m.exclusive for port in range(m.to.first, m.to.last + 1)}
    assert captured_ports(ruleset) == expected


@quick
@given(rulesets(), st.lists(st.builds(listener, st.integers(1, 12), st.sampled_from(("::", "0.0.0.0", "127.0.0.1")))))
def test_every_finding_names_a_mapping_that_is_enabled(ruleset: Ruleset, listeners: list[Listener]) -> None:
    told = list(findings(ruleset, Facts(tuple(listeners), (SSH,), frozenset())))
    assert {finding.mapping for finding in told} <= {m.name for m in ruleset.enabled}
    assert set(static_findings(ruleset)) <= set(told)
    assert all(finding.message.isprintable() for finding in told)
