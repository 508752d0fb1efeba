"""Binds that take more than a namespace to try: the rest of what the kernel tests hold against real ones."""

import os
import pwd
from pathlib import Path

import pytest

from redirector.audit import asking
from redirector.audit.binding import Attempt, Step, User, verdict
from redirector.audit.capability import BIND, FileCaps
from redirector.audit.executables import Executable
from redirector.audit.facts import Facts, Where
from redirector.audit.mechanisms.authbind import Grant
from redirector.audit.mechanisms.sysctl import PortStart
from redirector.audit.mechanisms.units import SocketListen, Unit
from redirector.audit.nat import of_program
from redirector.audit.routing import Host, fate
from redirector.audit.ways import means, ways
from redirector.decide import Packet
from redirector.errors import Usage
from redirector.model import Ports, Ruleset
from redirector.program import PORTS, Map, Program, port_key
from tests.audit_trees import Files, facts, holder, socket, web

ALICE = User("alice", 1000, frozenset({1000}))
PROGRAM = Executable("/usr/bin/server", 0o755, 0, 0)
GRANT = Grant("byport", Ports(80, 80), Where("/etc/authbind/byport/80"), mode=0o500, uid=1000)


def step(mechanism: str, attempt: Attempt, known: Facts) -> Step:
    return next(one for one in verdict(attempt, known).steps if one.mechanism == mechanism)


@pytest.mark.parametrize(
    ("program", "works"),
    [
        (PROGRAM, "if"),
        (PROGRAM._replace(static=True), "no"),
        (PROGRAM._replace(go=True), "no"),
        (PROGRAM._replace(mode=0o4755, uid=7), "no"),  # secure-execution mode: ld.so(8)
    ],
)
def test_what_authbind_can_help(program: Executable, works: str) -> None:
    assert step("authbind", Attempt(80, ALICE, (program,)), facts(GRANT)).works == works


def test_authbind_has_to_be_there() -> None:
    found = verdict(Attempt(80, ALICE, (PROGRAM,), authbind=False), facts(GRANT))
    assert not found.through


def test_a_capability_of_another_user_namespace() -> None:
    program = PROGRAM._replace(caps=FileCaps(BIND, 0, True, 1000))
    found = verdict(Attempt(80, ALICE, (program,)), facts())
    assert not found.binds
    assert "user 1000" in step("capability", Attempt(80, ALICE, (program,)), facts()).why


@pytest.mark.parametrize(("user", "through"), [("alice", ("ambient",)), ("1000", ("ambient",)), ("bob", ())])
def test_a_unit_that_would_give_it(user: str, through: tuple[str, ...], tmp_path: Path) -> None:
    text = f"[Service]\nUser={user}\nExecStart=/usr/bin/server\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    known = Files(tmp_path).file("/etc/systemd/system/web.service", text).facts()
    attempt = Attempt(80, ALICE, (PROGRAM,), names=frozenset({"/usr/bin/server"}))
    assert verdict(attempt, known).through == through


def test_a_socket_unit_that_would_hand_it_on(tmp_path: Path) -> None:
    known = Files(tmp_path).file("/etc/systemd/system/web.socket", "[Socket]\nListenStream=80\n").facts()
    assert verdict(Attempt(80, ALICE), known).through == ("socket-unit",)
    assert verdict(Attempt(81, ALICE), known).through == ()


def test_a_port_is_taken_only_by_its_own_protocol() -> None:
    known = facts(socket(8080, holder(7)))
    assert "EADDRINUSE" in verdict(Attempt(8080, ALICE), known).reason
    assert verdict(Attempt(8080, ALICE, protocol="udp"), known).binds


def test_users_by_name_and_number() -> None:
    root = asking.user("root")
    assert (root.name, root.uid) == ("root", 0)
    assert asking.user("0") == root
    assert asking.user("4000000") == User("4000000", 4000000)
    assert asking.user("").uid == os.getuid()
    with pytest.raises(Usage):
        asking.user("no such user")


def test_groups_are_the_main_one_and_the_others() -> None:
    entry = pwd.getpwuid(os.getuid())
    assert entry.pw_gid in asking.user(entry.pw_name).groups


class TestMeans:
    """How a socket came to its port, where the answer is in the facts alone."""

    def test_systemds_own(self, tmp_path: Path) -> None:
        text = "[Socket]\nListenStream=80\n"
        known = Files(tmp_path).file("/etc/systemd/system/web.socket", text).facts()
        (unit,) = known.of(SocketListen)
        found = means(socket(80, holder(1, "systemd", 0), uid=0), facts(unit))
        assert (found.mechanism, str(found.where)) == ("socket-unit", "/etc/systemd/system/web.socket:2")

    def test_a_unit_by_its_template(self, tmp_path: Path) -> None:
        text = "[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
        known = Files(tmp_path).file("/etc/systemd/system/web@.service", text).facts()
        (unit,) = known.of(Unit)
        one = holder(5, ambient=BIND, permitted=BIND, unit="web@a.service")
        assert means(socket(80, one), facts(unit)).where == Where("/etc/systemd/system/web@.service", 2)

    def test_the_sysctl_and_its_file(self) -> None:
        row = PortStart(80, 80, Where("/etc/sysctl.d/a.conf", 1))
        assert means(socket(80, holder(5)), facts(row, port_start=80)).where == row.where
        assert means(socket(2000, holder(5)), facts(row, port_start=80)).mechanism == "unprivileged"

    def test_nobody_to_be_seen(self) -> None:
        assert means(socket(80), facts()).mechanism == "unseen"


def test_ways_are_told_once_each(tmp_path: Path) -> None:
    files = Files(tmp_path).file("/etc/nginx/nginx.conf", "http { server { listen 80; listen [::]:80; } }\n")
    rows = (*files.facts().items, web(), GRANT)
    found = ways(facts(*rows), "tcp", 80)
    assert [(way.mechanism, way.by) for way in found] == [
        ("redirect", "redirector"),
        ("proxy", "nginx"),
        ("authbind", "authbind"),
    ]
    assert "/etc/nginx/nginx.conf:1" in found[1].undo
    assert [way.mechanism for way in ways(facts(*rows, port_start=0), "tcp", 80)] == ["redirect", "proxy"]


def test_a_rule_of_ours_that_no_generation_knows_leaves_the_answer_open() -> None:
    packet = Packet("eth0", "192.0.2.100", "192.0.2.1", "tcp", 80)
    (rule,) = of_program(Program({}, {"ports": Map(PORTS, {port_key(6, 80): (8080, "web")})}), Ruleset(), -110, {})
    found = fate(packet, facts(rule, socket(80, holder(5)), ruleset=Ruleset()), Host())
    assert (found.outcome, found.sure, found.passed) == ("served", False, (rule,))
