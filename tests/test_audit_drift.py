"""Two audits compared: alike, they are equal; what was changed in one is told, and nothing else."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.audit.capability import BIND
from redirector.audit.chains import chains
from redirector.audit.document import AUDIT, PORT, Document, Many, Maybe, Named, is_document, parse, wrong
from redirector.audit.drift import Difference, differences, unlike
from redirector.audit.facts import Facts, ProxyListen, Where
from redirector.audit.settings import settings
from redirector.audit.verdict import findings
from redirector.findings import Finding
from redirector.mappings import InvalidFile
from redirector.output_audit import Looked, audit_json, drift_json, drift_text
from redirector.source import SourceFile
from redirector.terminal import Paint
from tests.audit_trees import WWW, Files, facts, holder, socket, web

WORDS = st.text("abc;: \n\x1b\udc80→", min_size=1, max_size=6)
LEAVES: dict[type, st.SearchStrategy[Any]] = {str: WORDS, int: st.integers(1, 65535), bool: st.booleans()}


def values_of(shape: Any) -> st.SearchStrategy[Any]:
    """Anything of that shape."""
    if isinstance(shape, Maybe):
        return st.none() | values_of(shape.of)
    if isinstance(shape, Many):
        return st.lists(values_of(shape.of), max_size=2)
    if isinstance(shape, Named):
        return st.dictionaries(WORDS, values_of(shape.of), max_size=2)
    if isinstance(shape, dict):
        return st.fixed_dictionaries({key: values_of(inner) for key, inner in shape.items()})
    return LEAVES[shape]


def same_format(found: Document) -> Document:
    return found | {"redirector_audit": 1}


DOCUMENTS = values_of(AUDIT).map(same_format)


def document(some: Facts, *ports: int) -> Document:
    """What `audit --json` says of these facts, written and read."""
    written = json.dumps(audit_json(some, chains(some, ports), findings(some, ports), Looked(ports)))
    return parse(SourceFile("a.json", written.encode()))


def told(one: Facts, other: Facts) -> set[Difference]:
    forth, back = (differences(*pair) for pair in ((document(one), document(other)), (document(other), document(one))))
    assert {d._replace(a=d.b, b=d.a) for d in back} == set(forth)
    return set(forth)


@given(DOCUMENTS)
def test_what_is_read_is_what_was_written(found: Document) -> None:
    assert parse(SourceFile("a.json", json.dumps(found).encode())) == found


@given(DOCUMENTS)
def test_an_audit_is_equal_to_itself(found: Document) -> None:
    assert differences(found, copy.deepcopy(found)) == ()
    assert unlike(found, found) == ""


# What each part of an audit is called where it is told, once it is not there any more: kind, about, key and value.
NEW = "new"
PARTS: dict[str, tuple[Any, Callable[[Any], Difference]]] = {
    "rules": (
        {"owner": NEW, "text": "t", "file": None, "address": None, "to": 1, "certain": True, "priority": 7}
        | {"families": ["f"], "sides": ["s"], "line": 3, "mapping": None},
        lambda port: Difference("port", port, f"rule of {NEW}", "", "t, to :1, over f, for s connections, priority 7"),
    ),
    "ways": (
        {"mechanism": NEW, "by": "b", "file": "f", "line": 1},
        lambda port: Difference("port", port, f"set up by {NEW}", "", "b in f"),
    ),
}


@given(DOCUMENTS, st.data())
def test_what_comes_on_a_port_is_told_and_nothing_else(found: Document, data: st.DataObject) -> None:
    found["ports"].append(data.draw(values_of(PORT)))
    port = data.draw(st.sampled_from(found["ports"]))
    name = data.draw(st.sampled_from(sorted(PARTS)))
    part, expected = PARTS[name]
    changed = copy.deepcopy(found)
    changed["ports"][found["ports"].index(port)][name].append(part)
    assert differences(found, changed) == (expected(f"{port['protocol']} {port['ports']}"),)


PROCESS = ["user", "executable", "unit", "permitted", "effective", "ambient"]
SOCKET = ["user", "mechanism", "file"]
SOME = document(facts(web(), socket(8080, holder(5, unit="web.service", executable="/usr/bin/server"))))


@given(st.sampled_from(SOCKET + PROCESS), WORDS)
def test_what_changes_of_a_socket_is_told_and_nothing_else(key: str, value: str) -> None:
    changed = copy.deepcopy(SOME)
    (served,) = changed["ports"][0]["sockets"]
    of_process = key in PROCESS and key != "user"
    record = served["processes"][0] if of_process else served
    before, record[key] = record[key], value
    name = f"[::]:8080 server {key}" if of_process else f"[::]:8080 {key}"
    expected = (Difference("port", "tcp 80", name, before or "", value),) if value != before else ()
    assert differences(SOME, changed) == expected


@given(DOCUMENTS, WORDS, WORDS)
def test_what_changes_of_a_setting_is_told_and_nothing_else(found: Document, key: str, value: str) -> None:
    one = {"mechanism": "capability", "name": "/usr/bin/server", "values": {key: "old"}, "file": None, "line": None}
    other = one | {"values": {key: value}}
    before, after = (found | {"settings": [*found["settings"], setting]} for setting in (one, other))
    assert differences(before, after) == (Difference("capability", "/usr/bin/server", key, "old", value),)


@given(DOCUMENTS, st.integers(1, 65535))
def test_findings_that_are_new_or_gone(found: Document, port: int) -> None:
    one = {"id": "R-x", "severity": "warning", "message": "m", "fix": [], "port": port, "about": None}
    after = found | {"findings": [*found["findings"], one]}
    place = ("finding", f"R-x port {port}", "warning")
    assert differences(found, after) == (Difference(*place, "", "m"),)
    assert differences(after, found) == (Difference(*place, "m", ""),)


def test_the_mechanism_and_what_goes_with_it() -> None:
    one = facts(socket(80, holder(5, permitted=BIND, ambient=BIND, executable="/srv/a"), uid=1000))
    other = facts(socket(80, holder(6, uid=0, executable="/srv/a"), uid=0))
    assert told(one, other) == {
        ("port", "tcp 80", "[::]:80 user", "alice", "root"),
        ("port", "tcp 80", "[::]:80 mechanism", "ambient", "root"),
        ("port", "tcp 80", "[::]:80 server user", "alice", "root"),
        ("port", "tcp 80", "[::]:80 server permitted", "cap_net_bind_service", ""),
        ("port", "tcp 80", "[::]:80 server ambient", "cap_net_bind_service", ""),
        ("port", "tcp 80", "set up by ambient", "server", ""),
    }


def test_processes_and_workers_differ_by_nature() -> None:
    root, other = holder(10, "nginx", 0), holder(77, "nginx", 0)
    one = facts(socket(80, root, holder(11, "nginx", WWW), uid=0))
    more = facts(socket(80, other, holder(78, "nginx", WWW), holder(79, "nginx", WWW), uid=0))
    assert told(one, more) == set()


def test_counters_and_lines_differ_by_nature() -> None:
    rule = web(owner="nftables table ip nat", text="tcp dport 80 counter packets 3 bytes 180 redirect to :8080")
    later = rule._replace(text=rule.text.replace("3 bytes 180", "44 bytes 2640"), where=Where("/etc/a", 9))
    assert told(facts(rule._replace(where=Where("/etc/a", 2))), facts(later)) == set()
    assert told(facts(rule), facts(rule._replace(priority=5))) != set()


def nginx(address: str, *, line: int = 1) -> ProxyListen:
    return ProxyListen("nginx", address, 80, "tcp", Where("/etc/nginx/nginx.conf", line))


def test_the_order_of_what_servers_are_told_does_not_matter() -> None:
    one, other = facts(nginx("::"), nginx("192.0.2.1", line=2)), facts(nginx("192.0.2.1"), nginx("::", line=2))
    assert told(one, other) == set()
    (found,) = told(one, facts(nginx("::")))
    assert found == ("proxy", "nginx, tcp 80", "address", "192.0.2.1, ::", "::")


class TestTrees:
    """What is configured in the one and the other."""

    def both(self, path: Path, one: Callable[[Files], Files], other: Callable[[Files], Files]) -> set[Any]:
        users = "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n"
        made = [Files(path / name).file("/etc/passwd", users).file("/etc/group", "web:x:33:\n") for name in "ab"]
        found = told(one(made[0]).facts(), other(made[1]).facts())
        return {row for row in found if row.kind != "finding"}

    def test_capability_sets(self, tmp_path: Path) -> None:
        found = self.both(
            tmp_path,
            lambda f: f.program("/usr/bin/server", owner=33),
            lambda f: f.program("/usr/bin/server", permitted=BIND | 1 << 12, mode=0o700, owner=33),
        )
        more = "cap_net_bind_service,cap_net_admin=ep"
        assert found == {
            ("capability", "/usr/bin/server", "capabilities", "cap_net_bind_service=ep", more),
            ("capability", "/usr/bin/server", "mode", "755", "700"),
        }

    def test_what_a_package_declares(self, tmp_path: Path) -> None:
        script = "/var/lib/dpkg/info/server.postinst"
        found = self.both(
            tmp_path,
            lambda f: f.program("/usr/bin/server"),
            lambda f: f.program("/usr/bin/server").file(script, "setcap cap_net_bind_service=+ep /usr/bin/server\n"),
        )
        key = f"declared in {script}"
        assert found == {("capability", "/usr/bin/server", key, "", "cap_net_bind_service=+ep")}

    def test_grants_of_authbind(self, tmp_path: Path) -> None:
        byport, byuid = "/etc/authbind/byport/80", "/etc/authbind/byuid/33"
        found = self.both(
            tmp_path,
            lambda f: f.file(byport, "", 0o500, 33).file(byuid, "0.0.0.0/0,1-100\n"),
            lambda f: f.file(byport, "", 0o510, 1001).file(byuid, "0.0.0.0/0,1-200\n"),
        )
        assert found == {
            ("authbind", "byport/80", "owner", "www", "bob"),
            ("authbind", "byport/80", "group", "web", "1001"),
            ("authbind", "byport/80", "mode", "500", "510"),
            ("authbind", "byuid, user www", "grants", "0.0.0.0/0,1-100", "0.0.0.0/0,1-200"),
        }

    def test_the_sysctl(self, tmp_path: Path) -> None:
        text, name = "net.ipv4.ip_unprivileged_port_start = {}\n", "net.ipv4.ip_unprivileged_port_start"
        found = self.both(
            tmp_path,
            lambda f: f.file("/etc/sysctl.d/a.conf", text.format(80)),
            lambda f: f.file("/etc/sysctl.d/b.conf", "\n" + text.format(443)),
        )
        assert found == {
            ("sysctl", name, "configured", "80", "443"),
            ("sysctl", name, "file", "/etc/sysctl.d/a.conf", "/etc/sysctl.d/b.conf"),
        }

    def test_units_and_their_drop_ins(self, tmp_path: Path) -> None:
        folder = "/etc/systemd/system"
        service = "[Service]\nUser=www\nExecStart=/usr/bin/server\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
        other = "[Service]\nUser=nobody\nExecStart=/usr/bin/other\n"

        def files(made: Files) -> Files:
            made.file(f"{folder}/web.service", service).file(f"{folder}/other.service", other)
            return made.file(f"{folder}/s.socket", "[Socket]\nListenStream=81\nService=web.service\n")

        found = self.both(
            tmp_path,
            files,
            lambda f: (
                files(f)
                .file(f"{folder}/web.service.d/a.conf", "# a remark\n[Service]\nUser=bob\nNoNewPrivileges=yes\n")
                .file(f"{folder}/other.service", other.replace("nobody", "bob"))  # has nothing to do with ports
                .file(f"{folder}/s.socket.d/a.conf", "[Socket]\nListenDatagram=192.0.2.1:82\n")
            ),
        )
        assert found == {
            ("unit", "web.service", "User", "www", "bob"),
            ("unit", "web.service", "NoNewPrivileges", "", "yes"),
            ("socket-unit", "s.socket", "listens", "tcp any 81", "tcp any 81, udp 192.0.2.1 82"),
            ("port", "udp 82", "set up by socket-unit", "", f"s.socket in {folder}/s.socket.d/a.conf"),
        }

    def test_mappings(self, tmp_path: Path) -> None:
        text = 'version = 1\n[[mapping]]\nname = "web"\nlisten = 80\nto = {}\n'
        path = "/etc/redirector/mappings.toml"
        found = self.both(
            tmp_path, lambda f: f.file(path, text.format(8080)), lambda f: f.file(path, "\n" + text.format(8081))
        )
        rule = (
            'mapping "web": tcp 80 → {0}, to :{0}, over ipv4 and ipv6, for arriving and own connections, priority -110'
        )
        assert found == {
            ("port", "tcp 80", "rule of redirector", rule.format(8080), rule.format(8081)),
            ("port", "tcp 80", "leads to", "8080", "8081"),
        }

    def test_other_roots_are_no_difference(self, tmp_path: Path) -> None:
        def files(made: Files) -> Files:
            text = "events {}\nhttp {\n  server {\n    listen 80;\n    listen [::]:80;\n  }\n}\n"
            made.file("/etc/nginx/nginx.conf", text).program("/usr/bin/python3", mode=0o777)
            return made.file("/etc/authbind/byport/600", "", 0o755)

        assert self.both(tmp_path, files, files) == set()


def test_findings_are_about_something() -> None:
    some = facts(failures=("nft is missing",))
    assert findings(some) == [
        Finding("unread", "warning", "not everything could be read: nft is missing", about="nft is missing")
    ]


def test_two_findings_of_a_kind_are_two(tmp_path: Path) -> None:
    one, two = Files(tmp_path / "a").program("/usr/bin/perl"), Files(tmp_path / "b").program("/usr/bin/perl")
    found = told(one.facts(), two.program("/usr/bin/ruby").facts())
    assert [(d.about, d.a) for d in found if d.kind == "finding"] == [("C-interpreter /usr/bin/ruby", "")]


class TestAFileThatIsWrong:
    def read(self, data: str | bytes) -> list[str]:
        file = SourceFile("prod.json", data if isinstance(data, bytes) else data.encode())
        assert is_document(file)
        with pytest.raises(InvalidFile) as raised:
            parse(file)
        assert all(found.hint and found.file == "prod.json" for found in raised.value.diagnostics)
        return [f"{found.place}: {found.message}" for found in raised.value.diagnostics]

    def test_everything_is_told(self) -> None:
        broken = copy.deepcopy(SOME)
        broken["everywhere"] = 0
        del broken["findings"]
        broken["asked"] = [80, "81", True]
        broken["ports"][0]["rules"][0]["to"] = "8080"
        broken["ports"][0]["sockets"][0]["processes"] = {}
        broken["settings"] = [
            {"mechanism": "unit", "name": "a", "values": {"User": 1}, "file": None, "line": None},
            "x",
        ]
        assert self.read(json.dumps(broken)) == [
            'prod.json: asked[1]: a whole number is wanted, not "81"',
            "prod.json: asked[2]: a whole number is wanted, not true",
            "prod.json: everywhere: true or false is wanted, not 0",
            'prod.json: ports[0].rules[0].to: a whole number is wanted, not "8080"',
            "prod.json: ports[0].sockets[0].processes: a list is wanted, not an object",
            "prod.json: settings[0].values.User: text is wanted, not 1",
            'prod.json: settings[1]: an object is wanted, not "x"',
            "prod.json: findings: is missing",
        ]

    def test_other_json(self) -> None:
        assert self.read('{"redirector_plan": 1}') == [
            "prod.json: this is JSON, but no audit: it has no redirector_audit"
        ]

    def test_no_json(self) -> None:
        assert self.read('{"redirector_audit": 1,\n  "root": }') == ["prod.json:2:11: no JSON: Expecting value"]
        assert "prod.json: no JSON that can be read" in self.read(b'{"root": "\xff"}')[0]
        assert "prod.json: no JSON that can be read" in self.read('{"a":' * 100_000)[0]

    def test_a_later_format(self) -> None:
        assert self.read(json.dumps(SOME | {"redirector_audit": 2})) == [
            "prod.json: an audit of format 2; this version of redirector reads 1"
        ]

    def test_more_keys_are_no_fault(self) -> None:
        assert not list(wrong(SOME | {"more": 1}, AUDIT))


@pytest.mark.parametrize("key", ["asked", "everywhere", "root"])
def test_only_what_was_asked_alike_is_compared(key: str) -> None:
    other = {"asked": [80], "everywhere": True, "root": "/srv/image"}[key]
    assert unlike(SOME, SOME | {key: other})


def test_how_it_is_told() -> None:
    found = (
        Difference("unit", "web.service", "User", "www", "bob\x1b[31m"),
        Difference("unit", "web.service", "NoNewPrivileges", "", "yes"),
        Difference("finding", "R-drifted", "error", "gone", ""),
    )
    assert drift_text(found, Paint(enabled=False)).split("\n") == [
        "unit web.service",
        "  - User = www",
        "  + User = bob\\x1b[31m",
        "  + NoNewPrivileges = yes",
        "finding R-drifted",
        "  - error = gone",
    ]
    assert drift_text((), Paint(enabled=False)) == "no difference"
    assert drift_json(found)["differences"][1] == {
        "kind": "unit",
        "about": "web.service",
        "key": "NoNewPrivileges",
        "a": None,
        "b": "yes",
    }
    assert not drift_json(found)["equal"]
    assert drift_json(()) == {"equal": True, "differences": []}


def test_each_setting_is_told_once() -> None:
    some = facts(nginx("::"), nginx("::", line=2))
    assert [(one.mechanism, one.name, dict(one.values)) for one in settings(some)] == [
        ("proxy", "nginx, tcp 80", {"address": "::"})
    ]
