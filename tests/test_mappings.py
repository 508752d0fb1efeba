"""Mapping files: every problem in one run, each at its exact place; never a traceback; and parse inverts write."""

import json
import os
from pathlib import Path

import pytest
import tomli
from hypothesis import example, given
from hypothesis import strategies as st

from redirector.errors import BadConfiguration
from redirector.fields import FIELDS
from redirector.mappings import Diagnostic, InvalidFile, digest, from_document, load, parse, to_document, write
from redirector.model import InvalidModel, Mapping, Ports, Ruleset, Settings
from redirector.source import SourceFile
from tests.strategies import mapping, quick, rebuilt, rulesets

HEAD = 'version = 1\n[[mapping]]\nname = "web"\nlisten = 80\nto = 8080\n'
WEB = mapping("web", "80", "8080")


def parsed(text: str) -> Ruleset:
    return parse([SourceFile("m.toml", text.encode())])


def diagnostics(*texts: bytes | str) -> list[Diagnostic]:
    """What is found in files called a.toml, b.toml, c.toml."""
    files = [
        SourceFile(f"{chr(ord('a') + i)}.toml", text.encode() if isinstance(text, str) else text)
        for i, text in enumerate(texts)
    ]
    with pytest.raises(InvalidFile) as caught:
        parse(files)
    return caught.value.diagnostics


def marked(text: str) -> tuple[str, list[tuple[int, int, int]]]:
    """The text without its « and », and what they enclose: (line, column, length), in order."""
    places = []
    for number, line in enumerate(text.split("\n"), 1):
        rest = line
        while "«" in rest:
            start = rest.index("«")
            rest = rest.replace("«", "", 1)
            end = rest.index("»")
            rest = rest.replace("»", "", 1)
            places.append((number, start + 1, end - start))
    return text.replace("«", "").replace("»", ""), places


def test_the_smallest_file() -> None:
    assert parsed("version = 1\n") == Ruleset()
    assert parsed(HEAD) == Ruleset((WEB,))


def test_every_key_at_once() -> None:
    text = """
        version = 1
        settings = { backend = "nftables", priority = -105 }
        [[mapping]]
        name = "all"
        listen = ["8000-8009"]
        to = "9000-9009"
        protocol = ["udp", "tcp"]
        family = "ipv4"
        address = "192.0.2.1"
        interface = ["eth0", "veth*"]
        source = ["10.0.0.0/8", "192.0.2.7"]
        local = true
        exclusive = true
        rewrite = "redirect"
        owner = 33
        enabled = false
        comment = "every key"
    """
    expected = Mapping(
        name="all",
        listen=(Ports(8000, 8009),),
        to=Ports(9000, 9009),
        protocol=("udp", "tcp"),
        family="ipv4",
        address=("192.0.2.1",),
        interface=("eth0", "veth*"),
        source=("10.0.0.0/8", "192.0.2.7/32"),
        local=True,
        exclusive=True,
        rewrite="redirect",
        owner=33,
        enabled=False,
        comment="every key",
    )
    assert set(FIELDS) == set(expected._fields)
    assert parsed(text) == Ruleset((expected,), Settings("nftables", -105))


# Where each problem stands («…»), and words of its message and hint.
PROBLEMS = [
    ("version = «2»", "version 2 is not known here", ""),
    ("version = «true»", "version true is not known", ""),
    ("version = «1.0»", "version 1.0 is not known", ""),
    ('version = «"1"»', 'version "1" is not known', ""),
    ("«#» nothing", "the file has no version", "start it with: version = 1"),
    ("version = 1\n«mappings» = []", 'unknown key "mappings"', 'did you mean "mapping"?'),
    ("version = 1\n«colour» = 1", 'unknown key "colour"', "at the top stand version, [[mapping]] and [settings]"),
    ("version = 1\n«mapping» = 3", "mapping must be an array of tables, not a integer", ""),
    ("version = 1\n[«mapping»]", "mapping must be an array of tables", "write [[mapping]], with double brackets"),
    ("version = 1\nmapping = [«3»]", "this mapping must be a table, not the integer 3", ""),
    ("version = 1\nsettings = «3»", "settings must be a table", ""),
    ("version = 1\n[settings]\n«backends» = 1", 'unknown key "backends"', 'did you mean "backend"?'),
    ('version = 1\n[settings]\nbackend = «"nft"»', "backend must be one of", ""),
    ('version = 1\n[[«mapping»]]\nname = "a"\nto = 1', 'mapping "a" has no listen', "add listen = ..."),
    (HEAD + "«lokal» = true", 'unknown key "lokal"', 'did you mean "local"?'),
    (HEAD + 'protocol = ["tcp", «"upd"»]', "protocol must be one of", 'did you mean "udp"?'),
    (HEAD + 'protocol = [\n  "tcp", # one\n\t«"upd"»,\n]', "protocol must be one of", 'did you mean "udp"?'),
    (HEAD + 'comment = «"""a»\nb"""', "printable characters only", ""),
    (HEAD + '"source" = «"10.0.0.1/8"»', "has bits beyond its prefix length", 'write "10.0.0.0/8"'),
    (HEAD + "local   =\t«1»", "must be true or false", ""),
    (HEAD + "enabled = «1979-05-27»", "must be true or false, not 1979-05-27", ""),
    (HEAD + 'comment = "漢字" # ☃\nowner = «"a b"» # no', "is no user name", ""),
    ('version = 1\nmapping = [{name = "a", listen = «0», to = 1}]', "port 0 is out of range", ""),
    ('version = 1\n[[mapping]]\nname = "a"\nlisten = [1, "2-3", «"3-4"»]\nto = 1', "3-4 overlaps 2-3", ""),
    ('version = 1\n[[mapping]]\nname = "a"\nlisten = "1-3"\nto = «"1-2"»', "has 2 ports, but listen", 'to = "1-3" has'),
    ('version = 1\n[[mapping]]\nname = "a"\nlisten = [1, 2]\nto = «"1-2"»', "must then be exactly one range", "split"),
    (HEAD + 'family = "ipv6"\naddress = «"10.0.0.1"»', "10.0.0.1 is ipv4, but family", 'say family = "ipv4"'),
    (HEAD + 'address = ["::1", «"10.0.0.1"»]\nsource = "fd00::/8"', "but no source of this mapping is", ""),
    (HEAD + '[[mapping]]\nname = «"web"»\nlisten = 81\nto = 1', '"web" is already taken (the other: a.toml:3)', ""),
    (HEAD + '[[mapping]]\nname = "b"\nlisten = «"79-81"»\nto = 1', "both claim tcp 80 of everybody", "narrow one by"),
    (HEAD.replace("\n", "\r\n") + "owner = «-1»\r\n", "is no user id", ""),
]


@pytest.mark.parametrize(("text", "words", "hint"), PROBLEMS, ids=lambda value: None)
def test_problems_are_told_where_they_stand(text: str, words: str, hint: str) -> None:
    text, places = marked(text)
    (found,) = diagnostics(text)
    assert (found.line, found.column, found.length) == places[0]
    assert words in found.message
    assert hint in found.hint
    assert found.file == "a.toml"
    assert found.text == text.split("\n")[found.line - 1].rstrip("\r")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("version = 1\nname = 'a\nb'\n", 2),
        ("version = = 1", 1),
        ("version = 1\nversion = 2", 2),
        ('version = 1\nx = "\\q"', 2),
        ("version = 1\n[[mapping]\n", 2),
        ("☃", 1),
        ("version = 1\nx = \x00", 2),
        ("version = 1\n# \x00", 2),
        ("version = 1\nx = 2020-13-45", 2),
        ("x = " + "1" * 5000, 1),
        ("x = [", 1),
        ("version = 1\n[mapping]\n[mapping]\n", 3),
    ],
)
def test_what_is_no_toml_is_told_where_it_stops_being_it(text: str, line: int) -> None:
    """The column is tomli's idea of it, and its tests' business; it must be one of that line."""
    (found,) = diagnostics(text)
    assert found.message.startswith("not TOML: ")
    assert found.line == line
    assert 1 <= found.column <= len(text.split("\n")[line - 1]) + 1


def test_bytes_that_are_no_utf8_are_told_where_they_stand() -> None:
    (found,) = diagnostics("version = 1\n# grün ".encode() + "ü".encode("latin-1") + b"\nx = 1\n")
    assert (found.line, found.column, found.text) == (2, 8, "# grün \ufffd")
    assert found.message.startswith("byte 0xfc is no UTF-8")
    assert diagnostics(b"\xff\xfev\x00e\x00")[0].column == 1
    assert diagnostics(b"x = '\xe2\x98")[0].column == 6  # cut off in the middle of a character


def test_a_byte_order_mark_is_refused() -> None:
    (found,) = diagnostics("\ufeff" + HEAD)
    assert (found.line, found.column) == (1, 1)
    assert "byte order mark" in found.message


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x = " + "{a=" * 100_000, "x" + ".x" * 100_000 + " = 1"])
def test_deep_nesting_is_no_traceback(text: str) -> None:
    assert diagnostics(text)


@pytest.mark.parametrize(
    "text",
    [
        "[«x" + ".x»" + ".x" * 1_000_000 + "]",
        "y = 1\n\nz = {«x» . " + "x . " * 1_000_000 + "x = 1}",
        "«" + "'x'»." * 1 + '"x".' * 1_000_000 + "x = 1",
    ],
)
def test_keys_of_very_many_parts_do_not_keep_us_for_ever(text: str) -> None:
    text, places = marked(text)
    (found,) = diagnostics("version = 1\n" + text)
    assert (found.line - 1, found.column) == places[0][:2]


def test_texts_with_many_dots_are_no_such_keys() -> None:
    addresses = ", ".join(f'"10.0.{i}.{j}"' for i in range(100) for j in range(1, 100))
    text = HEAD + f'comment = "{"a." * 60}"\naddress = [{addresses}]\n# {"." * 10_000} {"x" * 1_000_000}\n'
    assert len(parsed(text).mappings[0].address) == 9_900


def test_nesting_that_tomllib_takes_is_told_by_us() -> None:
    deep = "[" * 150 + "]" * 150
    (found,) = diagnostics(f"{HEAD}source = {deep}")
    assert "a source is text, not the array" in found.message
    assert len(found.message) < 200


def test_huge_numbers_are_no_traceback() -> None:
    huge = "0x" + "f" * 10_000
    for key in ("listen", "to", "name", "owner", "address", "comment", "local", "protocol"):
        text = f'version = 1\n[[mapping]]\nname = "a"\nlisten = 1\nto = 2\n{key}2 = 0'
        replaced = (
            text.replace(f"{key} = ", f"{key} = {huge} # ") if f"{key} = " in text else text + f"\n{key} = {huge}"
        )
        assert diagnostics(replaced)
    assert diagnostics(f"version = {huge}")
    assert diagnostics(f"version = 1\nsettings = {{ priority = -{huge} }}".replace("-0x", "0x"))


def test_all_problems_of_a_file_are_told_in_one_run_in_the_order_of_the_file() -> None:
    text, places = marked(
        """version = «3»
«colour» = "red"

[«settings»]
[[mapping]]
name = "a"
listen = [80, «"http"», «0»]
to = «true»
«protocl» = "tcp"

[[«mapping»]]
name = "b"
to = 1
address = «"10.0.0.0/8"»

[[mapping]]
name = "c"
listen = 80
to = 8080

[[mapping]]
name = «"c"»
listen = «"80-81"»
to = 8081
"""
    )
    found = diagnostics(text)
    wanted = [place for place in places if place[0] != 4]  # an empty table of settings is no problem
    assert [(d.line, d.column, d.length) for d in found] == wanted
    assert str(InvalidFile(found)) == f"a.toml:1:11: {found[0].message} (and {len(found) - 1} more)"


def test_mappings_that_are_fine_are_compared_even_where_others_are_not() -> None:
    text = HEAD + '[[mapping]]\nname = "bad"\n[[mapping]]\nname = "c"\nlisten = 80\nto = 1\n'
    found = diagnostics(text)
    assert [d.line for d in found] == [6, 6, 10]
    assert "a.toml:4" in found[2].message


def test_disabled_mappings_are_validated_and_hold_their_name() -> None:
    off = '[[mapping]]\nname = "off"\nlisten = 80\nto = 1\nenabled = false\n'
    assert len(parsed(HEAD + off).enabled) == 1
    assert len(diagnostics(HEAD + off.replace("80", "0"))) == 1
    assert len(diagnostics(HEAD + off.replace("off", "web"))) == 1


def test_files_of_a_folder_share_names_scopes_and_settings() -> None:
    one = HEAD + "[settings]\npriority = -105\n"
    two = 'version = 1\n[settings]\npriority = -104\n[[mapping]]\nname = "web"\nlisten = 81\nto = 1\n'
    three = 'version = 1\n[[mapping]]\nname = "x"\nlisten = "1-80"\nto = 1\n'
    found = diagnostics(one, two, three)
    assert [(d.file, d.line, d.column) for d in found] == [("b.toml", 2, 2), ("b.toml", 5, 8), ("c.toml", 4, 10)]
    assert "settings stand in a.toml already" in found[0].message
    assert "(the other: a.toml:3)" in found[1].message
    assert '"x" and "web" both claim tcp 80' in found[2].message
    assert "(the other: a.toml:4)" in found[2].message
    apart = parse([SourceFile("a", HEAD.encode()), SourceFile("b", b"version = 1\nsettings.priority = 5\n")])
    assert apart == Ruleset((WEB,), Settings(priority=5))


def test_each_file_of_a_folder_says_its_version() -> None:
    (found,) = diagnostics(HEAD, "# nothing\n")
    assert (found.file, found.line) == ("b.toml", 1)


def test_files_that_are_no_toml_are_all_told() -> None:
    assert [d.file for d in diagnostics("x = ", HEAD, "y = ", b"\xff")] == ["a.toml", "c.toml", "d.toml"]


def test_load_reads_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text(HEAD)
    (tmp_path / "2.toml").write_text("version = 1\n")
    assert load(str(tmp_path)) == load(str(tmp_path / "1.toml")) == Ruleset((WEB,))
    os.mkfifo(tmp_path / "3.toml")
    with pytest.raises(BadConfiguration):
        load(str(tmp_path))


def test_ten_megabytes_are_read() -> None:
    comments = "# nothing of interest in this line, nor in any other one like it\n" * 160_000
    assert len(comments) > 10_000_000
    assert parsed(comments + HEAD) == Ruleset((WEB,))
    (found,) = diagnostics(comments + HEAD + "owner = -1\n")
    assert (found.line, found.column) == (160_006, 9)


def test_many_problems_are_found_quickly() -> None:
    """Positions are looked up, not searched for: one pass over the text for each of these would take many minutes."""
    text = "version = 1\n" + "".join(f'[[mapping]]\nname = "m{i}"\nlisten = 0\nto = 1\n' for i in range(20_000))
    assert len(diagnostics(text)) == 20_000


@quick
@given(rulesets())
def test_parse_inverts_write(ruleset: Ruleset) -> None:
    text = write(ruleset)
    assert parsed(text) == ruleset.written
    assert write(parsed(text)) == text


@quick
@given(rulesets())
def test_from_document_inverts_to_document(ruleset: Ruleset) -> None:
    document = to_document(ruleset)
    assert from_document(document) == ruleset
    assert from_document(json.loads(json.dumps(document))) == ruleset
    assert {"mapping": []} | tomli.loads(write(ruleset)) == to_document(ruleset.written)


@quick
@given(rulesets(), rulesets())
def test_digests_are_equal_exactly_where_documents_are(one: Ruleset, other: Ruleset) -> None:
    assert (digest(one) == digest(other)) == (to_document(one) == to_document(other)) == (one == other)
    assert digest(one.written) == digest(parsed(write(one)))


def test_files_that_mean_the_same_have_one_digest() -> None:
    longer = 'version=1\n[settings]\nbackend="auto"\n' + HEAD.partition("\n")[2] + 'protocol=["tcp"]\nfamily="both"\n'
    assert digest(parsed(longer + 'local=true\nrewrite="port"\ncomment=""\n')) == digest(Ruleset((WEB,)))


def test_any_difference_changes_the_digest() -> None:
    changed = [
        rebuilt(WEB, comment="x"),
        rebuilt(WEB, owner="x"),
        rebuilt(WEB, owner=0),
        rebuilt(WEB, enabled=False),
        rebuilt(WEB, local=False),
        rebuilt(WEB, name="Web"),
        rebuilt(WEB, to=Ports(8081, 8081)),
    ]
    digests = {digest(Ruleset((m,))) for m in (WEB, *changed)} | {digest(Ruleset((WEB,), Settings("nftables")))}
    assert len(digests) == len(changed) + 2


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "version = 1",
        {},
        {"version": 1},
        {"version": 2, "mapping": []},
        {"version": 1, "mapping": {}},
        {"version": 1, "mapping": [None]},
        {"version": 1, "mapping": [{"name": "a"}]},
        {"version": 1, "mapping": [], "settings": None},
        {"version": 1, "mapping": [], "settings": {"priority": "x"}},
        {"version": 1, "mapping": [{"name": "a", "listen": 1, "to": 1}] * 2},
    ],
)
def test_other_documents_are_no_rulesets(document: object) -> None:
    with pytest.raises(InvalidModel):
        from_document(document)


def _judged(data: bytes) -> Ruleset | InvalidFile:
    """The parser's word on any bytes; every diagnostic must have a place that exists."""
    try:
        return parse([SourceFile("f", data)])
    except InvalidFile as error:
        lines = data.decode("utf-8", "replace").split("\n")
        for found in error.diagnostics:
            assert 1 <= found.line <= len(lines)
            assert 1 <= found.column <= len(lines[found.line - 1]) + 1
            assert found.length >= 1
        return error


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"")
@example(b"\0")
@example(b"\r")
def test_arbitrary_bytes_are_a_ruleset_or_an_error(data: bytes) -> None:
    _judged(data)


_keys = st.sampled_from((*FIELDS, "version", "settings", "mapping", "backend", "priority", '"a b"', "a.b", "x"))
_scalars = st.one_of(
    st.sampled_from(
        ("1", "0", "80", "-1", "1.5", "nan", "true", '""', '"tcp"', '"1-5"', '"10.0.0.0/8"', '"::1"', '"eth*"')
    ),
    st.sampled_from(
        ('"a"', "{}", "1979-05-27", "07:32:00", "'''x\ny'''", '"\\u0000"', "0xfffffffffffffffff", "[]", "[[1]]")
    ),
)
_values = st.one_of(_scalars, st.lists(_scalars, max_size=3).map(lambda items: f"[{', '.join(items)}]"))
_lines = st.one_of(
    st.builds("{} = {}".format, _keys, _values),
    st.sampled_from(("[[mapping]]", "[settings]", "[mapping]", "version = 1", 'name = "a"', "listen = 80", "to = 80")),
)


@given(st.lists(_lines, max_size=12).map("\n".join))
def test_arbitrary_documents_are_a_ruleset_or_an_error(text: str) -> None:
    _judged(text.encode())


_tables = st.dictionaries(st.sampled_from(tuple(FIELDS)), _values, max_size=6).map(
    lambda table: "[[mapping]]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())
)


@given(st.lists(_tables, max_size=3).map(lambda tables: "version = 1\n" + "".join(tables)))
def test_arbitrary_mappings_are_a_ruleset_or_an_error(text: str) -> None:
    found = _judged(text.encode())
    if isinstance(found, Ruleset):
        assert parsed(write(found)) == found
