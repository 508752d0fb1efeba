"""What an audit reads: trees, file capabilities, and the configurations of servers, each with file and line."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.audit.capability import ALL, BIND, NAMES, FileCaps, decode, mask, names, told
from redirector.audit.executables import chain, elf
from redirector.audit.facts import ProxyListen
from redirector.audit.mechanisms import capabilities
from redirector.audit.mechanisms.addresses import endpoint
from redirector.audit.mechanisms.authbind import Grant, by_uid
from redirector.audit.mechanisms.caddy import sites
from redirector.audit.mechanisms.capabilities import Capable, capable, declarations
from redirector.audit.mechanisms.haproxy import binds
from redirector.audit.mechanisms.started import behind_authbind
from redirector.audit.mechanisms.sysctl import PortStart
from redirector.audit.mechanisms.units import SocketListen, Unit
from redirector.audit.nat import translation
from redirector.audit.sockets import unit_of
from redirector.audit.tree import Tree
from redirector.model import Ports
from tests.audit_trees import DYNAMIC, GO, STATIC, Files


def listens(files: Files) -> list[tuple[str, str, int, str, str]]:
    """(program, address, port, protocol, place) of what the tree's servers are told to listen on."""
    rows = files.facts().of(ProxyListen)
    return [(row.program, row.address, row.port, row.protocol, str(row.where)) for row in rows]


class TestTree:
    def test_absolute_links_stay_inside(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/usr/lib/a.conf", "inside").link("/etc/a.conf", "/usr/lib/a.conf")
        tree = Tree(str(files.root))
        assert tree.read("/etc/a.conf") == "inside"
        assert tree.inside("/etc/a.conf") == "/usr/lib/a.conf"

    def test_dots_stop_at_the_root(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/etc/passwd", "inside").link("/x/up", "../../../../../etc/passwd")
        assert Tree(str(files.root)).read("/x/up") == "inside"

    def test_a_ring_of_links_is_nothing(self, tmp_path: Path) -> None:
        files = Files(tmp_path).link("/a", "/b").link("/b", "/a")
        assert Tree(str(files.root)).read("/a") is None

    def test_what_is_no_file_reads_as_nothing(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        tree = Tree(str(tmp_path))
        assert [tree.read("/fifo"), tree.read("/"), tree.read("/nothing"), tree.read("/\0")] == [None] * 4

    def test_a_root_by_a_link_of_proc(self, tmp_path: Path) -> None:
        """As a container's: the link reads "/", and leads elsewhere."""
        Files(tmp_path).file("/etc/passwd", "inside").link("/etc/link", "/etc/passwd")
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tmp_path) as running:
            tree = Tree(f"/proc/{running.pid}/cwd")
            assert not tree.live
            assert tree.read("/etc/link") == "inside"
            assert tree.real("/etc/link") == f"/proc/{running.pid}/cwd/etc/passwd"

    def test_patterns(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/etc/s/b.conf").file("/etc/s/a.conf").file("/etc/s/.c.conf").file("/etc/s/d")
        assert list(Tree(str(files.root)).matching("/etc/*/*.conf")) == ["/etc/s/a.conf", "/etc/s/b.conf"]

    def test_the_root_folder_is_the_running_system(self) -> None:
        assert Tree("/").live
        assert Tree("/proc/self/root").live
        assert Tree("").live


class TestCapabilities:
    @given(st.integers(0, 2**41 - 1), st.integers(0, 2**41 - 1), st.booleans())
    def test_what_the_kernel_stores(self, permitted: int, inheritable: int, effective: bool) -> None:
        low, high = 0xFFFFFFFF, 32
        words = (permitted & low, inheritable & low, permitted >> high, inheritable >> high)
        data = struct.pack("<5I", 0x02000000 | effective, *words)
        assert decode(data) == FileCaps(permitted, inheritable, effective)
        namespaced = struct.pack("<6I", 0x03000000 | effective, *words, 1000)
        assert decode(namespaced) == FileCaps(permitted, inheritable, effective, 1000)

    @given(st.binary(max_size=40))
    def test_rubbish_is_none_or_something(self, data: bytes) -> None:
        decode(data)
        elf(data)
        elf(b"\x7fELF\x02\x01" + data + bytes(64))

    @given(st.integers(0, 2**41 - 1))
    def test_names_and_masks(self, value: int) -> None:
        assert mask(names(value)) == (value, [])

    def test_text_is_getcaps(self) -> None:
        assert FileCaps(BIND, 0, True).text == "cap_net_bind_service=ep"
        assert FileCaps(BIND, BIND, True).text == "cap_net_bind_service=eip"
        assert FileCaps(0, BIND).text == "cap_net_bind_service=i"

    def test_there_are_as_many_as_the_kernel_has(self) -> None:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            assert len(NAMES) == int(file.read()) + 1

    def test_the_walk(self, tmp_path: Path) -> None:
        files = Files(tmp_path).program("/a/b/one").program("/two", permitted=1).program("/a/three", inheritable=BIND)
        files.file("/four").link("/five", "a/b/one")
        assert sorted(capable(str(files.root))) == [f"{tmp_path}/a/b/one", f"{tmp_path}/a/three"]

    def test_only_where_programs_are_unless_asked(self, tmp_path: Path) -> None:
        files = Files(tmp_path).program("/home/a/server").program("/usr/bin/server")
        files.link("/bin", "usr/bin")
        assert [row.file.path for row in files.facts().of(Capable)] == ["/usr/bin/server"]
        everything = list(capabilities.gather(Tree(str(tmp_path), "everywhere")))
        assert {row.file.path for row in everything if isinstance(row, Capable)} == {
            "/home/a/server",
            "/usr/bin/server",
        }

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("setcap cap_net_bind_service=+ep /usr/bin/x", ("/usr/bin/x", "cap_net_bind_service=+ep")),
            ("  if setcap 'cap_net_bind_service+ep' \"/usr/bin/x\"; then", ("/usr/bin/x", "cap_net_bind_service+ep")),
            ("setcap -q cap_net_raw,cap_net_bind_service=ep /x", ("/x", "cap_net_raw,cap_net_bind_service=ep")),
            ("setcap cap_net_raw+ep /bin/ping", None),
            ("# setcap cap_net_bind_service=+ep /usr/bin/x", None),
            ("setcap -r /usr/bin/x", None),
        ],
    )
    def test_declarations(self, line: str, found: tuple[str, str] | None) -> None:
        rows = [(row.path, row.caps, row.where.line) for row in declarations("/p", f"\n{line}\n")]
        assert rows == ([(*found, 2)] if found else [])


class TestPrograms:
    @pytest.mark.parametrize(
        ("data", "found"),
        [(DYNAMIC, (False, False)), (STATIC, (True, False)), (GO, (False, True)), (b"#!/bin/sh\n", (False, False))],
    )
    def test_elf(self, data: bytes, found: tuple[bool, bool]) -> None:
        assert elf(data) == found

    def test_scripts_lead_to_what_runs(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/usr/bin/env", DYNAMIC, 0o755).file("/usr/bin/python3.11", DYNAMIC, 0o755)
        files.link("/usr/bin/python3", "python3.11").file("/srv/a", "#! /usr/bin/env -S python3 -I\n", 0o755)
        paths = [one.path for one in chain(Tree(str(tmp_path)), "/srv/a")]
        assert paths == ["/srv/a", "/usr/bin/env", "/usr/bin/python3.11"]

    def test_a_script_of_itself_ends(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/a", "#!/a\n", 0o755)
        assert len(chain(Tree(str(files.root)), "/a")) == 5

    @pytest.mark.parametrize(
        ("command", "program"),
        [
            ("/usr/bin/authbind --deep /usr/bin/x -p 80", "/usr/bin/x"),
            ("authbind --depth 3 x", "x"),
            ("authbind", ""),
            ("/usr/bin/x authbind y", ""),
        ],
    )
    def test_behind_authbind(self, command: str, program: str) -> None:
        assert behind_authbind(command.split()) == program


class TestServers:
    def test_nginx_through_includes_with_file_and_line(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file(
            "/etc/nginx/nginx.conf",
            "events {}\nhttp {\n  include sites/*;\n  server {\n    listen 127.0.0.1:81 default_server;\n"
            '    listen [::]:82 ssl; # listen 83;\n    location / { return 200 "listen 84;"; }\n  }\n}\n'
            "stream {\n  server {\n    listen 53 udp;\n  }\n}\n",
        )
        files.file("/etc/nginx/sites/a", "server {\n  listen unix:/run/x;\n  include more;\n}\n")
        files.file("/etc/nginx/more", "listen *:85;\nlisten 86 quic reuseport;\n")
        files.file("/etc/nginx/sites/b", "server { server_name x; }\n")
        assert listens(files) == [
            ("nginx", "", 85, "tcp", "/etc/nginx/more:1"),
            ("nginx", "", 86, "udp", "/etc/nginx/more:2"),
            ("nginx", "", 80, "tcp", "/etc/nginx/sites/b:1"),
            ("nginx", "127.0.0.1", 81, "tcp", "/etc/nginx/nginx.conf:5"),
            ("nginx", "::", 82, "tcp", "/etc/nginx/nginx.conf:6"),
            ("nginx", "", 53, "udp", "/etc/nginx/nginx.conf:12"),
        ]

    @pytest.mark.parametrize(
        "text", ["http { server { listen 80;", "}", "include nginx.conf;", "\0", "listen 80;", "a {" * 500]
    )
    def test_a_broken_nginx_says_nothing(self, text: str, tmp_path: Path) -> None:
        assert listens(Files(tmp_path).file("/etc/nginx/nginx.conf", text)) == []

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("bind *:80", [("", 80, "tcp")]),
            ("  bind :80,[::]:443 ssl crt x # bind :81", [("", 80, "tcp"), ("::", 443, "tcp")]),
            ("bind 192.0.2.1:8000-8002", [("192.0.2.1", port, "tcp") for port in (8000, 8001, 8002)]),
            ("bind quic4@:443 ssl", [("", 443, "udp")]),
            ("bind ipv6@:80 v6only", [("", 80, "tcp")]),
            ("bind /run/x.sock", []),
            ("bind fd@3", []),
            ("listen stats :8404", [("", 8404, "tcp")]),
            ("frontend web", []),
            ("server a 192.0.2.9:80", []),
        ],
    )
    def test_haproxy(self, line: str, found: list[tuple[str, int, str]]) -> None:
        assert list(binds(line)) == found

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (":80 {\n}\n", [(1, 80)]),
            ("# :79\nexample.org, http://other.org {\n  respond :81\n}\n", [(2, 80), (2, 443), (2, 80)]),
            ("{\n  http_port 8080\n  https_port 8443\n}\n\nexample.org {\n}\n", [(6, 8080), (6, 8443)]),
            ("(snippet) {\n  x\n}\nhttps://a.org:8443 {\n  y {\n  }\n}\nb.org:81 {\n}\n", [(4, 8443), (8, 81)]),
            ("localhost\nreverse_proxy :9000\n", [(1, 80), (1, 443)]),
            ("a.org:81,\nb.org:82 {\n}\n", [(1, 81), (2, 82)]),
            ("", []),
        ],
    )
    def test_caddy(self, text: str, found: list[tuple[int, int]]) -> None:
        assert list(sites(text)) == found

    def test_apache_through_includes(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/etc/apache2/apache2.conf", "# Listen 79\nInclude ports.conf\n")
        files.file("/etc/apache2/ports.conf", 'Listen 80\n<IfModule ssl>\n  Listen "[::]:443" https\n</IfModule>\n')
        assert listens(files) == [
            ("apache", "", 80, "tcp", "/etc/apache2/ports.conf:1"),
            ("apache", "::", 443, "tcp", "/etc/apache2/ports.conf:3"),
        ]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("80", ("", 80)),
            ("*:80", ("", 80)),
            ("192.0.2.1:80", ("192.0.2.1", 80)),
            ("[::1]:80", ("::1", 80)),
            ("[::1]", ("::1", 8)),
            ("localhost", ("localhost", 8)),
            ("unix:/run/x", ("", 0)),
            ("$port", ("", 0)),
            ("99999", ("99999", 8)),
        ],
    )
    def test_endpoints(self, text: str, found: tuple[str, int]) -> None:
        assert endpoint(text, 8) == found


class TestSettings:
    def test_sysctl_files_hide_each_other_and_the_last_counts(self, tmp_path: Path) -> None:
        name = "net.ipv4.ip_unprivileged_port_start"
        files = Files(tmp_path).file("/usr/lib/sysctl.d/50-a.conf", f"{name}=1\n").file("/etc/sysctl.d/50-a.conf", "")
        files.file("/etc/sysctl.d/60-b.conf", f"# {name} = 2\n-net/ipv4/ip_unprivileged_port_start = 443\n")
        files.file("/run/sysctl.d/40-c.conf", f"{name} = 80\n").file("/etc/sysctl.d/99-no", f"{name} = 3\n")
        (row,) = files.facts().of(PortStart)
        assert (row.runtime, row.configured, str(row.where)) == (None, 443, "/etc/sysctl.d/60-b.conf:2")

    def test_authbinds_names(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/etc/authbind/byport/80", mode=0o710, owner=7).file("/etc/authbind/byport/!600")
        files.file("/etc/authbind/byport/http").file("/etc/authbind/byaddr/::1,81").file("/etc/authbind/byaddr/a:82")
        files.file("/etc/authbind/byuid/1000", "nonsense\n::/0,1-90\n").file("/etc/authbind/byuid/bob", "::/0,1\n")
        rows = {(row.kind, row.ports, row.address, row.bang, row.for_uid) for row in files.facts().of(Grant)}
        assert rows == {
            ("byport", Ports(80, 80), "", False, -1),
            ("byport", Ports(600, 600), "", True, -1),
            ("byaddr", Ports(81, 81), "::1", False, -1),
            ("byaddr", Ports(82, 82), "a", False, -1),
            ("byuid", Ports(1, 90), "::/0", False, 1000),
        }

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("0.0.0.0/0:80,90", (Ports(80, 90), "0.0.0.0/0")),
            ("192.0.2.1,80", (Ports(80, 80), "192.0.2.1")),
            ("192.0.2.1-192.0.2.9,80-81", (Ports(80, 81), "192.0.2.1-192.0.2.9")),
            ("::/0,90-80", None),
            ("# x", None),
        ],
    )
    def test_lines_by_user(self, line: str, found: tuple[Ports, str] | None) -> None:
        assert by_uid(line) == found


class TestUnits:
    def one(self, files: Files, name: str = "web.service") -> Unit:
        return next(unit for unit in files.facts().of(Unit) if unit.name == name)

    def test_drop_ins_resets_and_places(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file(
            "/lib/systemd/system/web.service",
            "[Service]\nExecStart=/usr/bin/old\nAmbientCapabilities=CAP_NET_RAW\nUser=web\n",
        )
        text = (
            "[Service]\n# none of it\nAmbientCapabilities=\nAmbientCapabilities=CAP_NET_BIND_SERVICE \\\n  cap_chown\n"
        )
        files.file("/etc/systemd/system/web.service.d/50-caps.conf", text)
        unit = self.one(files)
        assert unit.file == "/lib/systemd/system/web.service"
        assert names(unit.ambient) == ["cap_chown", "cap_net_bind_service"]
        assert str(unit.where("AmbientCapabilities")) == "/etc/systemd/system/web.service.d/50-caps.conf:4"
        assert unit.last("User") == "web"

    def test_a_masked_unit_has_nothing(self, tmp_path: Path) -> None:
        files = Files(tmp_path).file("/lib/systemd/system/web.socket", "[Socket]\nListenStream=80\n")
        files.file("/lib/systemd/system/web.service", "[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n")
        assert files.facts().of(SocketListen)
        files.link("/etc/systemd/system/web.socket", "/dev/null").link("/etc/systemd/system/web.service", "/dev/null")
        assert not files.facts().of(SocketListen)
        assert self.one(files).masked
        assert not self.one(files).ambient

    @pytest.mark.parametrize(
        ("lines", "bounded", "ambient"),
        [
            ("", False, BIND),
            ("CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", True, BIND),
            ("CapabilityBoundingSet=~CAP_SYS_ADMIN\n", True, BIND),
            ("CapabilityBoundingSet=~CAP_NET_BIND_SERVICE\n", True, 0),
            ("CapabilityBoundingSet=\n", True, 0),
            ("CapabilityBoundingSet=CAP_CHOWN\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", True, BIND),
        ],
    )
    def test_bounding_sets(self, lines: str, bounded: bool, ambient: int, tmp_path: Path) -> None:
        text = f"[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n{lines}"
        unit = self.one(Files(tmp_path).file("/etc/systemd/system/web.service", text))
        assert (unit.bounded, unit.ambient) == (bounded, ambient)

    @pytest.mark.parametrize(
        ("lines", "found"),
        [
            ("", False),
            ("NoNewPrivileges=true\n", True),
            ("DynamicUser=yes\n", True),
            ("User=web\nMemoryDenyWriteExecute=yes\n", True),
            ("MemoryDenyWriteExecute=yes\n", False),  # as root it is not implied
            ("User=web\nPrivateDevices=no\n", False),
        ],
    )
    def test_no_new_privileges(self, lines: str, found: bool, tmp_path: Path) -> None:
        unit = self.one(Files(tmp_path).file("/etc/systemd/system/web.service", f"[Service]\n{lines}"))
        assert unit.no_new_privileges is found

    @pytest.mark.parametrize(
        ("name", "lines", "starts", "has"),
        [
            ("web.socket", "", "web.service", True),
            ("other.socket", "", "other.service", False),
            ("other.socket", "Service=web.service\n", "web.service", True),
            ("conn.socket", "Accept=yes\n", "conn@.service", True),
            ("web.socket", "Accept=yes\n", "web@.service", False),
            ("conn@a.socket", "", "conn@.service", True),
        ],
    )
    def test_what_a_socket_starts(self, name: str, lines: str, starts: str, has: bool, tmp_path: Path) -> None:
        files = Files(tmp_path).file(f"/etc/systemd/system/{name}", f"[Socket]\nListenStream=[::]:80\n{lines}")
        files.file("/etc/systemd/system/web.service").file("/etc/systemd/system/conn@.service")
        (row,) = files.facts().of(SocketListen)
        assert (row.starts, row.has_service, row.address, row.port) == (starts, has, "::", 80)

    @pytest.mark.parametrize(
        ("cgroup", "unit"),
        [
            ("0::/system.slice/web.service\n", "web.service"),
            ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
            ("0::/system.slice/system-web.slice/web@a.service/payload\n", "web@a.service"),
            ("", ""),
        ],
    )
    def test_the_unit_of_a_process(self, cgroup: str, unit: str) -> None:
        assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080", ("", Ports(8080, 8080))),
        ("-A PREROUTING -p tcp -j DNAT --to-destination :8080", ("", Ports(8080, 8080))),
        ("-A DOCKER ! -i docker0 -p tcp -j DNAT --to-destination 172.17.0.2:80", ("172.17.0.2", Ports(80, 80))),
        ("-A PREROUTING -j DNAT --to-destination [2001:db8::1]:80", ("2001:db8::1", Ports(80, 80))),
        ("-A PREROUTING -p tcp -j DNAT --to-destination 127.0.0.1:8080", ("", Ports(8080, 8080))),
        ("-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.9", ("192.0.2.9", None)),
        ("tcp dport 80 redirect to :8080", ("", Ports(8080, 8080))),
        ("tcp dport 80 dnat to 192.0.2.9:8080", ("192.0.2.9", Ports(8080, 8080))),
        ("tcp dport 80 dnat ip6 to [2001:db8::1]:8080 persistent", ("2001:db8::1", Ports(8080, 8080))),
        ("dnat to :tcp dport map { 80 : 8080 }", ("", None)),
        ("tcp dport 80 redirect", ("", None)),
    ],
)
def test_where_a_rule_leads(text: str, found: tuple[str, Ports | None]) -> None:
    assert translation(text) == found


def test_sets_of_processes_as_text() -> None:
    assert told(0) == told(0, 0) == ""
    assert told(BIND | 1) == "cap_chown,cap_net_bind_service"
    assert told(ALL) == told(ALL | 1 << 60) == "all"
    assert told(0xFF, 0xFF) == "all"  # on a host where no process can have more
    assert told(0x1) == told(0x1, 0xFF) == "cap_chown"
