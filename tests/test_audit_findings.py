"""Findings of an audit: each has a fixture that triggers it, and one beside it that does not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from redirector import audit
from redirector.audit import FAMILIES
from redirector.audit.capability import BIND, FileCaps
from redirector.audit.executables import Executable
from redirector.audit.facts import Facts
from redirector.audit.mechanisms.capabilities import Capable
from redirector.audit.mechanisms.sysctl import PortStart
from redirector.audit.verdict import exit_code, findings
from redirector.findings import NOTE, Finding
from redirector.model import Ports
from tests.audit_trees import GO, STATIC, WWW, Files, facts, holder, ruleset, socket, web

Made = Callable[[Files], Facts]
LONGER = BIND | 1 << 12  # and CAP_NET_ADMIN
UNIT = "/etc/systemd/system/web.service"
BOUNDED = "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nNoNewPrivileges=yes\n"
AMBIENT = "AmbientCapabilities=CAP_NET_BIND_SERVICE\n"


def service(text: str, path: str = UNIT) -> Made:
    return lambda f: f.file(path, f"[Service]\nExecStart=/usr/bin/server\n{text}").facts()


def started(command: str, content: bytes) -> Made:
    unit = f"[Service]\nExecStart={command}\n"
    return lambda f: f.file("/usr/bin/server", content, 0o755).file(UNIT, unit).facts()


def byport(name: str, mode: int, owner: int = 0) -> Made:
    return lambda f: f.file(f"/etc/authbind/byport/{name}", "", mode, owner).facts()


def socket_unit(extra: str = "") -> str:
    return f"[Socket]\nListenStream=80\n{extra}"


def nginx(port: int) -> str:
    return f"events {{}}\nhttp {{\n  server {{\n    listen {port};\n  }}\n}}\n"


def port_start(runtime: int | None, configured: int | None = None) -> Made:
    return lambda _: facts(PortStart(runtime, configured))


ROOT, WORKER = holder(10, "nginx", 0), holder(11, "nginx", WWW)
SERVER = socket(8080, holder(5))
PROGRAM = Executable("/srv/server", 0o755, 0, 0, FileCaps(BIND, 0, True))

# Finding: (what triggers it, what is next to that and does not).
CASES: dict[str, tuple[Made, Made]] = {
    "R-shadowed": (
        lambda _: facts(web(), SERVER, socket(80, holder(9, "old"), uid=0)),
        lambda _: facts(web(), SERVER._replace(holders=(holder(9),)), socket(80, holder(9), uid=0)),  # one program
    ),
    "R-loopback-only": (
        lambda _: facts(web(), socket(8080, holder(5), address="127.0.0.1")),
        lambda _: facts(
            web(), socket(8080, holder(5), address="127.0.0.1"), socket(8080, holder(6), address="0.0.0.0")
        ),
    ),
    "R-not-local": (
        lambda _: facts(web(sides=("arriving",)), SERVER),
        lambda _: facts(web(sides=("arriving",)), web(sides=("own",), owner="nftables table ip nat"), SERVER),
    ),
    "R-no-ipv6": (
        lambda _: facts(web(families=("ipv4",)), SERVER),
        lambda _: facts(web(families=("ipv4",)), web(families=("ipv6",), owner="ip6tables"), SERVER),
    ),
    "R-direct": (
        lambda _: facts(web(), SERVER, ruleset=ruleset()),
        lambda _: facts(web(), SERVER, ruleset=ruleset(exclusive=True)),
    ),
    "R-unserved": (lambda _: facts(web()), lambda _: facts(web(), SERVER)),
    "R-owner": (
        lambda _: facts(web(), SERVER, ruleset=ruleset(owner="bob")),
        lambda _: facts(web(), SERVER, ruleset=ruleset(owner="alice")),
    ),
    "R-ephemeral": (
        lambda _: facts(web(target=40000), socket(40000)),
        lambda _: facts(web(target=40000), socket(40000), reserved=(Ports(39000, 40000),)),
    ),
    "R-drifted": (lambda _: facts(web(), drift="web"), lambda _: facts(web())),
    "C-interpreter": (
        lambda f: f.program("/usr/bin/python3.11").facts(),
        lambda f: f.program("/usr/bin/server").facts(),
    ),
    "C-script": (
        lambda f: f.program("/usr/bin/server", content=b"#!/usr/bin/python3\n").facts(),
        lambda f: f.program("/usr/bin/server").facts(),
    ),
    "C-nosuid": (
        lambda _: facts(Capable(PROGRAM._replace(nosuid=True))),
        lambda _: facts(Capable(PROGRAM)),
    ),
    "C-no-effective": (
        lambda f: f.program("/usr/bin/server", effective=False).facts(),
        lambda f: f.program("/usr/bin/server").facts(),
    ),
    "C-no-permitted": (
        lambda f: f.program("/usr/bin/server", permitted=0, inheritable=BIND).facts(),
        lambda f: f.program("/usr/bin/server", inheritable=BIND).facts(),
    ),
    "C-lost": (
        lambda f: (
            f.file("/usr/bin/server")
            .file(
                "/var/lib/dpkg/info/server.postinst",
                "if true; then\n  setcap cap_net_bind_service=+ep /usr/bin/server\nfi\n",
            )
            .facts()
        ),
        lambda f: (
            f.program("/usr/bin/server")
            .file(
                "/var/lib/dpkg/info/server.postinst", "setcap 'cap_net_bind_service=+ep' \"/usr/bin/server\" || true\n"
            )
            .facts()
        ),
    ),
    "C-excess": (
        lambda f: f.program("/usr/bin/server", permitted=LONGER).facts(),
        lambda f: f.program("/usr/bin/server").facts(),
    ),
    "C-writable": (
        lambda f: f.program("/usr/bin/server", mode=0o757).facts(),
        lambda f: f.program("/usr/bin/server", mode=0o775).facts(),  # root's group
    ),
    "S-misspelt": (
        service("AmbientCapabilities=CAP_NET_BIND_SERVICES\n" + BOUNDED),
        service(AMBIENT + BOUNDED),
    ),
    "S-unbounded": (service(AMBIENT), service(AMBIENT + BOUNDED)),
    "S-local-only": (
        service(AMBIENT + BOUNDED + "IPAddressDeny=any\nIPAddressAllow=localhost\n"),
        service(AMBIENT + BOUNDED + "IPAddressDeny=any\nIPAddressAllow=localhost 192.0.2.0/24\n"),
    ),
    "S-no-service": (
        lambda f: f.file("/etc/systemd/system/web.socket", socket_unit()).facts(),
        lambda f: f.file("/etc/systemd/system/web.socket", socket_unit()).file(UNIT, "[Service]\n").facts(),
    ),
    "A-not-executable": (byport("80", 0o500), byport("80", 0o500, owner=1000)),
    "A-no-bang": (byport("600", 0o500, 1000), byport("!600", 0o500, 1000)),
    "A-world": (byport("80", 0o755), byport("80", 0o710, 1000)),
    "A-static": (started("/usr/bin/authbind --deep /usr/bin/server", STATIC), started("/usr/bin/server", STATIC)),
    "Y-lowered": (port_start(80, 80), port_start(1024)),
    "Y-differs": (port_start(1024, 80), port_start(80, 80)),
    "P-shared": (
        lambda _: facts(socket(80, ROOT, WORKER, uid=0)),
        lambda _: facts(socket(80, ROOT, uid=0)),
    ),
    "D-two": (
        lambda f: f.file("/etc/nginx/nginx.conf", nginx(80)).file("/etc/authbind/byport/80", "", 0o500, 1000).facts(),
        lambda f: f.file("/etc/nginx/nginx.conf", nginx(81)).file("/etc/authbind/byport/80", "", 0o500, 1000).facts(),
    ),
    "D-granted-twice": (
        lambda f: service(AMBIENT + BOUNDED)(f.program("/usr/bin/server")),
        lambda f: service(AMBIENT + BOUNDED)(f.program("/usr/bin/other")),
    ),
}


def named(found: list[Finding], identity: str) -> list[Finding]:
    return [one for one in found if one.id == identity]


@pytest.mark.parametrize("identity", CASES)
def test_the_fixture_that_triggers_it(identity: str, tmp_path: Path) -> None:
    found = named(findings(CASES[identity][0](Files(tmp_path))), identity)
    assert len(found) == 1
    assert found[0].fix or found[0].severity == NOTE  # what is fine needs no fix
    assert found[0].message


@pytest.mark.parametrize("identity", CASES)
def test_the_fixture_next_to_it_does_not(identity: str, tmp_path: Path) -> None:
    assert not named(findings(CASES[identity][1](Files(tmp_path))), identity)


def test_a_program_that_a_unit_starts_is_looked_at_wherever_it_is(tmp_path: Path) -> None:
    unit = "[Service]\nExecStart=-/home/web/bin/php -S [::]:80\n"
    found = findings(
        Files(tmp_path).program("/home/web/bin/php8.2").link("/home/web/bin/php", "php8.2").file(UNIT, unit).facts()
    )
    assert named(found, "C-interpreter")


def test_what_mends_an_ephemeral_target_keeps_what_was_reserved() -> None:
    some = facts(web(target=40000), socket(40000), reserved=(Ports(39000, 39999), Ports(50000, 50000)))
    (found,) = named(findings(some), "R-ephemeral")
    assert found.fix == ("sysctl -w net.ipv4.ip_local_reserved_ports=39000-40000,50000",)
    assert not named(findings(facts(web(target=32767), socket(32767))), "R-ephemeral")


PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
ROW = re.compile(r"\| (`[^|]*) \| (error|warning|note) \| [^|]+ \|(.*) \|")
PLACEHOLDER = re.compile(
    r"\b(CAPABILITIES|CAPABILITY|COMMANDS?|FILE|GROUP|LINES|NAME|NUMBER|PID|PORTS?|SERVER|SOCKET|UNIT|USER)\b"
)


def documented() -> dict[str, tuple[str, list[str]]]:
    """Id → (severity, what mends it), as docs/audit.md has them."""
    text = PAGE.read_text(encoding="utf-8").partition("### Findings")[2].partition("### JSON")[0]
    found = {}
    for ids, severity, fixes in ROW.findall(text):
        for identity in re.findall("`([^`]+)`", ids):
            found[identity] = severity, re.findall("`([^`]+)`", fixes)
    return found


def test_the_page_has_every_finding_and_no_other() -> None:
    folder = Path(audit.__file__).parent / "findings"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    in_code = set(re.findall(f'"([{"".join(FAMILIES)}]-[a-z0-9-]+)"', text))
    assert in_code == set(CASES)
    assert set(documented()) == {*CASES, "unread"}


@pytest.mark.parametrize("identity", CASES)
def test_the_page_says_how_bad_it_is_and_what_mends_it(identity: str, tmp_path: Path) -> None:
    (found,) = named(findings(CASES[identity][0](Files(tmp_path))), identity)
    severity, fixes = documented()[identity]
    assert found.severity == severity
    assert len(found.fix) == len(fixes)
    for step, pattern in zip(found.fix, fixes, strict=True):
        assert re.fullmatch(PLACEHOLDER.sub(".*", re.escape(pattern)), step), (step, pattern)


def test_every_family_has_cases() -> None:
    assert {identity[0] for identity in CASES} == set(FAMILIES)


@pytest.mark.parametrize("program", [GO, STATIC])
def test_programs_that_authbind_cannot_help(program: bytes, tmp_path: Path) -> None:
    assert named(findings(started("authbind --depth 2 /usr/bin/server -x", program)(Files(tmp_path))), "A-static")


def test_an_empty_tree_has_nothing_to_say(tmp_path: Path) -> None:
    found = findings(Files(tmp_path).facts())
    assert found == []
    assert exit_code(found) == 0


def test_a_note_is_no_reason_for_an_alarm() -> None:
    assert exit_code(findings(facts(socket(80, ROOT, WORKER, uid=0)))) == 0
    assert exit_code(findings(facts(web()))) == 2


def test_only_what_concerns_a_port_that_was_asked_for() -> None:
    some = facts(web(), web(443, 8443), PortStart(80, 80))
    asked = findings(some, [443])
    assert {one.port for one in asked} == {0, 443}


def test_what_cannot_be_read_is_told() -> None:
    found = findings(facts(failures=("nft is missing",)))
    assert [one.id for one in found] == ["unread"]
    assert exit_code(found) == 2
