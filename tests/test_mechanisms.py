"""Mappings by other mechanisms than redirects: what each cannot do is told with its place; the rest is golden.

What the texts do when they are installed is the business of kernel/test_mechanisms.py.

rules/mechanisms/web.KIND is what rules/web.toml renders to (for authbind with an owner in each mapping), voice.nginx
the same of rules/voice.toml. After a wanted change write them anew, and read the difference:

    .venv/bin/python -m tests.test_mechanisms && git diff rules
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from redirector import mappings, renderers
from redirector.compile import compile_ruleset
from redirector.errors import Refused, Usage
from redirector.mappings import Diagnostic
from redirector.model import InvalidModel, Ruleset
from redirector.renderers import MECHANISMS, Options
from redirector.source import SourceFile
from tests.strategies import mapping, quick, rebuilt, rulesets

RULES = Path(__file__).parents[1] / "rules"
GOLDEN = RULES / "mechanisms"
SERVER = Options({"": ("/usr/local/bin/server", "--quiet")})
PLAIN = Options({"": ("/usr/local/bin/server",)})

UNITS = ("systemd-socket", "systemd-ambient", "systemd-proxyd")
SCRIPTS = (*UNITS, "authbind", "setcap")
BINDERS = ("systemd-ambient", "authbind", "setcap", "sysctl")  # the server binds the ports itself
PROXIES = ("systemd-proxyd", "nginx", "haproxy", "caddy")


def rendered(kind: str, ruleset: Ruleset, options: Options = PLAIN) -> str:
    return renderers.render(kind, ruleset, compile_ruleset(ruleset), options)


def golden() -> dict[Path, str]:
    web, voice = (mappings.load(str(RULES / f"{name}.toml")) for name in ("web", "voice"))
    owned = Ruleset(tuple(rebuilt(m, owner="www-data") for m in web.mappings))
    found = {}
    for kind in MECHANISMS:
        # Caddy has no business with TLS that is not its own.
        ruleset = {"authbind": owned, "caddy": Ruleset(web.mappings[:1])}.get(kind, web)
        found[GOLDEN / f"web.{kind}"] = rendered(kind, ruleset, PLAIN if kind == "setcap" else SERVER)
    return found | {GOLDEN / "voice.nginx": rendered("nginx", voice)}


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    assert golden()[path] == path.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert set(GOLDEN.iterdir()) == set(golden())


HEAD = 'version = 1\n[[mapping]]\nname = "m"\nowner = "u"\n'


def problems(kind: str, text: str, options: Options = PLAIN) -> list[Diagnostic]:
    """What a file cannot have by this mechanism, each with its place."""
    files = [SourceFile("m.toml", text.encode())]
    with pytest.raises(InvalidModel) as caught:
        rendered(kind, mappings.parse(files), options)
    return mappings.refused(files, caught.value.problems).diagnostics


# Mechanisms, what a mapping says beyond its name and owner («what is to blame»), and a part of the message.
IMPOSSIBLE = (
    (("systemd-proxyd", "haproxy", "caddy"), 'listen = 80\nto = 8080\nprotocol = «"udp"»', "cannot do udp"),
    (("systemd-proxyd", "haproxy"), 'listen = 80\nto = 8080\nprotocol = ["tcp", «"udp"»]', "cannot do udp, only tcp"),
    (
        ("systemd-socket", "systemd-ambient", "systemd-proxyd", "authbind", "nginx", "haproxy", "caddy"),
        'listen = 80\nto = 8080\nprotocol = «"sctp"»',
        "cannot do sctp",
    ),
    (BINDERS, 'listen = 80\nto = 8080\n«source» = "10.0.0.0/8"', "cannot tell clients apart by their address"),
    (
        ("systemd-socket", "systemd-proxyd", "nginx", "haproxy", "caddy"),
        'listen = 80\nto = 8080\nsource = "10.0.0.0/8"\nlocal = «true»',
        "own connections past source",
    ),
    ((*BINDERS, "nginx", "caddy"), 'listen = 80\nto = 8080\ninterface = «"eth0"»', "cannot bind to an interface"),
    (
        ("systemd-socket", "systemd-proxyd", "haproxy"),
        'listen = 80\nto = 8080\ninterface = ["eth0", «"veth*"»]',
        "to one interface of a plain name",
    ),
    (
        ("systemd-socket", "systemd-proxyd", "haproxy"),
        'listen = 80\nto = 8080\ninterface = «"e%i"»',
        "to one interface of a plain name",
    ),
    (tuple(MECHANISMS), "listen = 80\nto = 8080\nlocal = «false»", "cannot leave this host's own connections out"),
    (tuple(MECHANISMS), 'listen = 80\nto = 8080\nrewrite = «"redirect"»', "cannot rewrite the address"),
    (PROXIES, "listen = 80\nto = 8080\nexclusive = «true»", "cannot refuse clients that go to port 8080"),
    (PROXIES, "listen = 80\nto = «80»", "would be its own target"),
    (("nginx", "haproxy"), 'listen = "9000-9009"\nto = «"9005-9014"»', "would be its own target"),
    (("systemd-proxyd",), 'listen = "9000-9009"\nto = «"19000-19009"»', "cannot pass a range on one to one"),
    (("authbind",), 'listen = [80, «"90-99"»]\nto = 8080', "a file for each port, and none for the range 90-99"),
    (("systemd-socket", "systemd-proxyd", "nginx"), 'listen = «"2000-2512"»\nto = 8080', "here 513: 512 is the limit"),
    (("caddy",), "listen = «443»\nto = 8443", "can do HTTP only"),
)
CASES = [(kind, text, message) for kinds, text, message in IMPOSSIBLE for kind in kinds]


@pytest.mark.parametrize(("kind", "text", "message"), CASES)
def test_what_it_cannot_do_is_told_at_its_place(kind: str, text: str, message: str) -> None:
    before, blamed, after = re.split("[«»]", f"{HEAD}{text}\n")
    found = problems(
        kind,
        before + blamed + after,
        Options(http=frozenset({"m"})) if kind == "caddy" and "443" not in text else PLAIN,
    )
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    at = [(d.file, d.line, d.column, d.length) for d in found if message in d.message]
    assert at == [("m.toml", line, column, len(blamed))], found


def test_all_of_it_is_told_at_once() -> None:
    text = HEAD + 'listen = 80\nto = 8080\nsource = "10.0.0.0/8"\nprotocol = ["tcp", "sctp"]\nrewrite = "redirect"\n'
    assert [d.line for d in problems("authbind", text)] == [7, 8, 9]


def test_in_a_folder_of_files() -> None:
    """Mappings are counted among all files, and their lines in their own."""
    texts = ('name = "a"\nlisten = 80\nto = 81\n', '\nname = "b"\nlisten = 82\nto = 83\nexclusive = true\n')
    files = [SourceFile(f"{n}.toml", f"version = 1\n[[mapping]]\n{text}".encode()) for n, text in enumerate(texts)]
    with pytest.raises(InvalidModel) as caught:
        rendered("nginx", mappings.parse(files))
    (found,) = mappings.refused(files, caught.value.problems).diagnostics
    assert (found.file, found.line, found.column) == ("1.toml", 7, 13)


def test_what_is_disabled_is_no_problem() -> None:
    off = mapping("zzz", "81", "8081", source=("10.0.0.0/8",), protocol=("sctp",), rewrite="redirect", enabled=False)
    for kind in MECHANISMS:
        assert "zzz" not in rendered(kind, Ruleset((mapping(owner="u"), off)))


def pair(one: str, other: str) -> str:
    head = 'version = 1\n[[mapping]]\nname = "a"\nowner = "u"\nto = 8080\n'
    return head + f'{one}\n[[mapping]]\nname = "b"\nowner = "u"\nto = 8081\n{other}\n'


@pytest.mark.parametrize(
    ("kinds", "one", "other", "message"),
    [
        (
            ("systemd-socket", "systemd-proxyd", "nginx", "haproxy", "caddy"),
            "listen = 80",
            'listen = 80\nsource = "10.0.0.0/8"',
            "cannot tell the clients",
        ),
        (("systemd-socket", "haproxy"), 'listen = 80\ninterface = "eth0"', "listen = 80", "cannot tell the clients"),
        (BINDERS, 'listen = 80\naddress = "192.0.2.1"', "listen = 80", "the second is refused (EADDRINUSE)"),
    ],
)
def test_two_on_one_port(kinds: tuple[str, ...], one: str, other: str, message: str) -> None:
    for kind in kinds:
        (found,) = problems(kind, pair(one, other))
        assert message in found.message
        text = pair(one, other).splitlines()
        assert f"(the other: m.toml:{text.index('listen = 80') + 1})" in found.message
        assert found.line == len(text) - other.count("\n")


def test_two_on_one_port_of_different_addresses() -> None:
    here, there = (
        mapping(n, "80", to, owner="u", address=(a,))
        for n, to, a in (("a", "81", "192.0.2.1"), ("b", "82", "192.0.2.2"))
    )
    six = mapping("c", "80", "83", owner="u", address=("2001:db8::1",))
    four = mapping("d", "80", "84", owner="u", family="ipv4")
    for kind in MECHANISMS:
        assert rendered(kind, Ruleset((here, there, six)))
        assert rendered(kind, Ruleset((six, four)))
    nested = Ruleset((here, mapping("all", "80", "85")))
    for kind in ("systemd-socket", "systemd-proxyd", "nginx", "haproxy", "caddy"):
        assert rendered(kind, nested)
    assert rendered("systemd-socket", nested).count("ReusePort=yes") == 2
    assert "ReusePort" not in rendered("systemd-socket", Ruleset((here,)))


def test_the_target_of_one_is_the_port_of_another() -> None:
    text = pair("listen = 80", "listen = 8080")
    for kind in PROXIES:
        (found,) = problems(kind, text)
        assert "itself has port 8080" in found.message
        assert (found.line, "m.toml:11" in found.message) == (5, True)
    for kind in BINDERS:
        assert rendered(kind, mappings.parse([SourceFile("m.toml", text.encode())]))


def test_what_does_not_meet() -> None:
    """Targets may be one server, a protocol has ports of its own, and what is disabled has none."""
    one_server = mapping("a", "80", "8080", source=("10.0.0.0/8",)), mapping("b", "81", "8080")
    off = mapping("off", "8080", "8081", enabled=False)
    for kind in PROXIES:
        assert rendered(kind, Ruleset((*one_server, off)), Options(http=frozenset("ab")))
    assert rendered("nginx", Ruleset((mapping("a", "53", "5353"), mapping("b", "5353", "53", protocol=("udp",)))))
    assert len(problems("nginx", HEAD + "listen = 80\nto = 80\n")) == 1


def test_a_wide_range_meets_all_that_is_in_it() -> None:
    head = 'version = 1\n[[mapping]]\nname = "a"\nlisten = "80-90"\nto = 8080\naddress = "192.0.2.1"\n'
    between = '[[mapping]]\nname = "b"\nlisten = 81\nto = 8081\naddress = "192.0.2.2"\n'
    (found,) = problems("setcap", head + between + '[[mapping]]\nname = "c"\nlisten = 90\nto = 8082\n')
    assert (found.line, '"a" and "c"' in found.message) == (14, True)


def test_a_range_of_the_same_length_in_http_and_in_bytes() -> None:
    shifted = Ruleset((mapping("r", "9000-9001", "19000-19001"),))
    assert "server r 127.0.0.1:+10000\n" in rendered("haproxy", shifted)
    assert "server r 127.0.0.1:-100\n" in rendered("haproxy", Ruleset((mapping("r", "9000-9001", "8900-8901"),)))
    assert "        9001 127.0.0.1:19001;\n" in rendered("nginx", shifted)


def test_which_mappings_are_http() -> None:
    """By the port, unless the options say otherwise."""
    ruleset = Ruleset(
        (
            mapping("a", "80 8080", "8081"),
            mapping("b", "80-81", "8082", address=("192.0.2.1",)),
            mapping("c", "443", "8443"),
        )
    )
    for options, http in (
        (Options(), "a"),
        (Options(http=frozenset("c"), stream=frozenset("a")), "c"),
        (Options(http=frozenset("ab")), "ab"),
    ):
        text = rendered("haproxy", ruleset, options)
        assert "".join(re.findall(r"listen (\w)\n    mode http", text)) == http
        assert text.count("mode tcp") == 3 - len(http)
    (found,) = problems(
        "nginx", HEAD + 'listen = 80\nto = 81\nprotocol = ["tcp", "udp"]\n', Options(http=frozenset("m"))
    )
    assert (found.line, "HTTP goes over tcp" in found.message) == (7, True)


def test_the_target_is_on_the_loopback_of_a_family_that_there_is() -> None:
    for six in (mapping(family="ipv6"), mapping(address=("2001:db8::1",)), mapping(source=("fd00::/8",))):
        assert "127.0.0.1" not in rendered("haproxy", Ruleset((six,)))
        assert "    server m [::1]:8080\n" in rendered("haproxy", Ruleset((six,)))
    assert "0.0.0.0" not in rendered("nginx", Ruleset((mapping(source=("fd00::/8",)),)))


def test_servers_of_one_program_and_one_user_are_one_service() -> None:
    ruleset = Ruleset(
        (
            mapping("a", "80", "8080", owner="u"),
            mapping("b", "81", "8081", owner="u"),
            mapping("c", "82", "8082", owner=33),
            mapping("d", "83", "8083", owner="u"),
        )
    )
    options = Options({"": ("/bin/one", "100%", "$HOME"), "d": ("/home/u/two",)})
    text = rendered("systemd-socket", ruleset, options)
    services = re.findall(r"put (\S+)\.service <<", text)
    assert services == [f"/etc/systemd/system/mapping-{name}" for name in "acd"]
    assert "\nSockets=mapping-a.socket mapping-b.socket\n" in text
    assert 'ExecStart=/bin/one "100%%" $$HOME\n' in text
    assert text.count("User=u\n") == 2
    assert "User=33\n" in text
    assert text.count("ProtectHome=read-only\n") == 1


def test_a_server_of_many_sockets_may_have_as_many_descriptors() -> None:
    """1,500 sockets and the usual limit of 1,024: the service did not start."""
    one, other = mapping("a", "2000-2511", "80"), mapping("b", "3000", "81")
    assert "LimitNOFILE" not in rendered("systemd-socket", Ruleset((one,)))
    assert "\nLimitNOFILE=65536\n" in rendered("systemd-socket", Ruleset((one, other)))


@pytest.mark.parametrize("kind", ["systemd-socket", "systemd-ambient", "setcap"])
def test_a_program_is_needed(kind: str) -> None:
    ruleset = Ruleset((mapping("a", "80", "8080"), mapping("b", "81", "8081")))
    with pytest.raises(Usage, match='server of "b"') as caught:
        rendered(kind, ruleset, Options({"a": ("/bin/one",)}))
    assert "--program 'b=" in caught.value.hint


@pytest.mark.parametrize(
    "options", [Options({"x": ("/bin/one",)}), Options(http=frozenset("x")), Options(stream=frozenset("x"))]
)
def test_options_name_mappings(options: Options) -> None:
    with pytest.raises(Usage, match='no mapping "x"'):
        rendered("nginx", Ruleset((mapping(),)), options)


def test_http_and_a_stream_at_once() -> None:
    with pytest.raises(Usage, match="both"):
        rendered("nginx", Ruleset((mapping(),)), Options(http=frozenset("m"), stream=frozenset("m")))


def test_nothing_to_render() -> None:
    for kind in MECHANISMS:
        with pytest.raises(Refused, match="no mapping is enabled"):
            rendered(kind, Ruleset((mapping(enabled=False),)))
    for kind in ("setcap", "sysctl", "authbind"):
        with pytest.raises(Refused, match="no mapping has a port below 1024"):
            rendered(kind, Ruleset((mapping("m", "1024", "8080", owner="u"),)))


@pytest.mark.parametrize("program", ["/usr/bin/python3.11", "/usr/bin/node", "/bin/bash", "/usr/bin/perl5.36.0"])
def test_no_capability_for_an_interpreter(program: str) -> None:
    with pytest.raises(Refused, match="is an interpreter"):
        rendered("setcap", Ruleset((mapping(),)), Options({"": (program,)}))


def test_a_capability_knows_no_arguments() -> None:
    with pytest.raises(Usage, match="arguments"):
        rendered("setcap", Ruleset((mapping(),)), SERVER)


def test_authbind_wants_a_user() -> None:
    (found,) = problems("authbind", 'version = 1\n[[mapping]]\nname = "m"\nlisten = 80\nto = 8080\n')
    assert (found.line, found.column, found.hint) == (3, 8, 'add owner = "…", the user that the server runs as')


def test_authbind_from_512_on() -> None:
    text = rendered(
        "authbind", Ruleset((mapping("m", "511 512 1023 1024", "8080", owner="u", address=("::1", "127.0.0.1")),))
    )
    granted = re.findall(r"^grant u (.*)$", text, re.MULTILINE)
    assert granted == [
        *("/etc/authbind/byaddr/::1,511", "'/etc/authbind/byaddr/!::1,512'", "'/etc/authbind/byaddr/!::1,1023'"),
        *("/etc/authbind/byaddr/127.0.0.1,511", "'/etc/authbind/byaddr/!127.0.0.1,512'"),
        "'/etc/authbind/byaddr/!127.0.0.1,1023'",
    ]


def test_the_lowest_port_counts() -> None:
    ruleset = Ruleset(
        (mapping("a", "80 443", "8080"), mapping("b", "8081 70-79", "8081"), mapping("c", "60", "8082", enabled=False))
    )
    assert rendered("sysctl", ruleset).endswith("\nnet.ipv4.ip_unprivileged_port_start = 70\n")


def run(*argv: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, cwd=cwd, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


ODD = mapping(
    "odd", "80-83", "8080", address=("192.0.2.1", "2001:db8::1"), owner=33, interface=("eth0", "lo"), protocol=("tcp",)
)


@pytest.mark.parametrize(
    ("kind", "threshold"), [("systemd-socket", 12), ("systemd-ambient", 15), ("systemd-proxyd", 10)]
)
def test_systemd_finds_nothing_wrong(kind: str, threshold: int, tmp_path: Path) -> None:
    """With the units, and with how confined they are: the exposure, times ten."""
    odd = ODD if kind != "systemd-ambient" else rebuilt(ODD, interface=(), local=True)
    options = Options({"": ("/bin/true",), "odd": ("/bin/true", '/it\'s a 100% "odd" $HOME; #é\\')})
    for name, ruleset in (("plain", Ruleset((mapping("odd"),))), ("odd", Ruleset((odd, mapping("m", "90", "8090"))))):
        root = tmp_path / name
        (tmp_path / "script").write_text(rendered(kind, ruleset, options))
        run("sh", "script", cwd=tmp_path, DESTDIR=str(root))
        units = sorted(map(str, (root / "etc/systemd/system").glob("mapping*")))
        assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *units, cwd=tmp_path) == ""
        services = [unit for unit in units if unit.endswith(".service")]
        run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", *services, cwd=tmp_path)
        for capabilities in re.findall(
            r"Capabilit\w+=(.+)$", "".join(Path(unit).read_text() for unit in units), re.MULTILINE
        ):
            run("systemd-analyze", "capability", capabilities, cwd=tmp_path)


@quick
@given(rulesets())
def test_any_file_is_rendered_or_told_about(ruleset: Ruleset) -> None:
    """Never half: what is rendered says each port, address, network and interface of each mapping that is enabled."""
    for kind in MECHANISMS:
        options = Options(
            {"": ("/bin/server",)}, http=frozenset(m.name for m in ruleset.mappings) if kind == "caddy" else frozenset()
        )
        try:
            text = rendered(kind, ruleset, options)
        except InvalidModel as error:
            blamed = [ruleset.mappings[int(problem.path[1])] for problem in error.problems]
        except Refused:
            continue
        else:
            check_complete(kind, ruleset, text)
            continue
        assert all(mapping.enabled for mapping in blamed)


def check_complete(kind: str, ruleset: Ruleset, text: str) -> None:
    for one in ruleset.enabled:
        said = {*one.address, *one.source, *one.interface, one.name, *(str(ports.first) for ports in one.listen)}
        if kind in PROXIES:
            said.add(str(one.to.first))  # haproxy has it in a remark, where it writes the distance
        assert all(word in text for word in said), (kind, one)


def test_scripts_are_sh(tmp_path: Path) -> None:
    for kind in SCRIPTS:
        run("sh", "-n", str(GOLDEN / f"web.{kind}"), cwd=tmp_path)


def redirector(*words: str, file: str = HEAD + "listen = 80\nto = 8080\n") -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "redirector", "render", "-", *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, input=file)


def test_the_command() -> None:
    done = redirector("--as", "systemd-socket", "--program", "m=/bin/server --flag 'a b'")
    assert done.returncode == 0
    assert 'ExecStart=/bin/server --flag "a b"\n' in done.stdout


def test_the_commands_refusals() -> None:
    done = redirector(
        "--as", "setcap", "--program", "/bin/server", file=HEAD + 'listen = 80\nto = 8080\nsource = "10.0.0.0/8"\n'
    )
    assert done.returncode == 78
    assert "<stdin>:7:1: " in done.stderr + done.stdout
    done = redirector(
        "--as", "iptables-restore", "--json", file=HEAD + "listen = 80\nto = 8080\n[settings]\npriority = 1\n"
    )
    assert done.returncode == 0
    done = redirector("--as", "iptables-restore", file=HEAD + "listen = 80\nto = 8080\n[settings]\npriority = 1\n")
    assert (done.returncode, "<stdin>:8:12: " in done.stderr + done.stdout) == (78, True)
    for words in (
        ("--as", "setcap"),
        ("--as", "setcap", "--program", "server"),
        ("--as", "setcap", "--program", "/bin/'"),
        ("--as", "nginx", "--json"),
        ("--as", "nginx", "--http", "other"),
        ("--as", "nginx", "--program", "/bin/server"),
        ("--as", "sysctl", "--stream", "m"),
        ("--as", "nft", "--http", "m"),
    ):
        assert redirector(*words).returncode == 64, words


def test_a_refusal_as_json() -> None:
    done = redirector("--json", "--as", "json", file=HEAD + "listen = 80\n")
    assert done.returncode == 78
    assert json.loads(done.stdout)["problems"]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path, text in golden().items():
        path.write_text(text, encoding="utf-8")
