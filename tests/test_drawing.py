"""What is drawn: how ports are cut, ways joined and grouped, and that no name gets out of its quotes, in any kind."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector.audit.facts import Facts, Holder, Rule, Socket
from redirector.audit.nat import OURS, of_ruleset
from redirector.choose import Choice
from redirector.drawing import KINDS, data, draw, gather
from redirector.drawing.data import Client, End, Graph, Station, Stop, Way, clients_words, elements, grouped, joined
from redirector.drawing.words import columns, cut
from redirector.errors import printable
from redirector.findings import Finding
from redirector.host.listeners import Listener
from redirector.host.routes import Way as Address
from redirector.model import Mapping, Ports, Ruleset
from redirector.others import Base, Clause, Table
from redirector.output_report import Gathered, report_html
from redirector.report import Drift, Status
from tests.strategies import mapping

KNOWN = tuple(Client(side, family) for side in (data.OUTSIDE, data.HERE) for family in ("ipv4", "ipv6"))
ADDRESSES = (Address("eth0", 2, "192.0.2.1", "192.0.2.1"), Address("eth0", 2, "2001:db8::1", "2001:db8::1"))
WEB = mapping("web", "80", "8080")
HOSTILE = '"><script>alert(1)</script><svg onload=x>&amp;]]>--><!--\\N\\"};\n\x1b[31m\u202e\udc80\x00\ufffe'
SCRIPT = HOSTILE.partition("\n")[0]


def socket(port: int, command: str = "server", address: str = "", protocol: str = "tcp") -> Socket:
    """One for all addresses of both families, unless it has one of its own."""
    family = "ipv4" if address else "ipv6"
    listener = Listener(protocol, family, address or "::", port, 33, 1000 + port, 0, False)
    return Socket(listener, (Holder(port, command, 33),))


def facts(*mappings: Mapping, items: tuple[object, ...] = (), **more: Any) -> Facts:
    ruleset = Ruleset(mappings)
    return Facts("", (*of_ruleset(ruleset, {}), *items), {33: "www"}, ruleset, **more)


def rows(found: Graph) -> list[tuple[str, str, list[tuple[str, str]], str]]:
    """(clients, ports, stops, end) of each way."""
    return [
        (
            clients_words(way.clients, found.known),
            f"{way.protocol} {data.ports_words(way.ports)}",
            [(stop.verdict, stop.name) for stop in way.stops],
            way.end.title,
        )
        for way in found.ways
    ]


def other(text: str, ports: Ports, priority: int, *, certain: bool = True, target: Ports | None = None) -> Rule:
    table = "nftables table ip others"
    return Rule(
        f"{table}, chain c", text, "tcp", ports, target, "", ("ipv4",), ("arriving",), certain, priority, table=table
    )


def others(
    priority: int, *clauses: Clause, kind: str = "nat", hook: str = "prerouting", policy: str = "accept"
) -> Table:
    base = Base(kind, hook, priority, policy)
    return Table("nftables", "ip", "others", {"c": base}, {"c": clauses or (Clause("return", ""),)})


class TestGathering:
    def test_a_mapping_and_its_server(self) -> None:
        found = gather.graph(facts(WEB, items=(socket(8080),)), ADDRESSES)
        assert rows(found) == [("anyone", "tcp 80", [("takes", "web")], "server")]
        assert found.ways[0].targets == (Ports(8080, 8080),)

    def test_nobody_listens(self) -> None:
        assert rows(gather.graph(facts(WEB), ADDRESSES)) == [("anyone", "tcp 80", [("takes", "web")], "nobody listens")]

    def test_a_scope_is_a_client_of_its_own(self) -> None:
        lan = mapping("lan", "80", "8090", source=("10.0.0.0/8",))
        found = rows(gather.graph(facts(WEB, lan, items=(socket(8080), socket(8090, "other"))), ADDRESSES))
        assert sorted(found) == [
            ("anyone", "tcp 80", [("takes", "web")], "server"),
            ("from 10.0.0.0/8", "tcp 80", [("takes", "lan")], "other"),
        ]

    @pytest.mark.parametrize("scope", [{"interface": ("eth0",)}, {"interface": ("eth*",)}, {"address": ("192.0.2.1",)}])
    def test_somebody_outside_is_in_no_scope(self, scope: dict[str, Any]) -> None:
        found = gather.graph(facts(mapping("one", "80", "8080", family="ipv4", local=False, **scope)), ADDRESSES)
        assert [clients for clients, *_ in rows(found)] == [str(found.ways[0].clients[0].scope)]
        assert found.ways[0].clients[0].scope

    def test_a_range_is_cut_where_somebody_listens_behind_it(self) -> None:
        shifted = mapping("range", "9000-9019", "19000-19019")
        found = rows(gather.graph(facts(shifted, items=(socket(19004),)), ADDRESSES))
        assert [(ports, end) for _, ports, _, end in found] == [
            ("tcp 9000-9003, 9005-9019", "nobody listens"),
            ("tcp 9004", "server"),
        ]

    def test_a_range_is_cut_where_a_filter_names_its_targets(self) -> None:
        shifted = mapping("range", "9000-9019", "19000-19019", family="ipv4", local=False)
        drop = Clause("drop", "dropped", ports=(Ports(19010, 19019),))
        items = (others(0, drop, kind="filter", hook="input"), *(socket(port) for port in range(19000, 19020)))
        found = rows(gather.graph(facts(shifted, items=items), ADDRESSES))
        dropped = [ports for _, ports, stops, _ in found if ("drops", "dropped") in stops]
        assert dropped == ["tcp 9010-9019"]
        assert len(found) == 11

    def test_others_before_and_behind_ours(self) -> None:
        items = (
            others(-120, Clause("nat", "early", ports=(Ports(80, 80),), certain=False)),
            other("early", Ports(80, 80), -120, certain=False),
            others(-100, Clause("nat", "late", ports=(Ports(80, 80),)))._replace(name="later"),
            other("late", Ports(80, 80), -100)._replace(table="nftables table ip later"),
            socket(8080),
        )
        found = gather.graph(facts(WEB, items=items), ADDRESSES)
        outside = next(way for way in found.ways if Client(data.OUTSIDE, "ipv4") in way.clients)
        assert [stop[1:3] for stop in outside.stops] == [
            ("may take", "early"),
            ("takes", "web"),
            ("not reached", "late"),
        ]
        assert [found.stations[stop.station].table for stop in outside.stops] == ["ip others", OURS, "ip later"]
        assert not outside.sure

    def test_an_exclusive_target_refuses(self) -> None:
        found = rows(gather.graph(facts(mapping("a", "80", "8080", exclusive=True), items=(socket(8080),)), ADDRESSES))
        assert ("outside", "tcp 8080", [("refuses", "exclusive")], "refused") in found
        assert ("this host", "tcp 8080", [], "server") in found

    def test_a_closed_port_is_told_only_if_asked_for(self) -> None:
        only = mapping("web", "80", "8080", family="ipv4")
        assert len(rows(gather.graph(facts(only), ADDRESSES))) == 1
        asked = rows(gather.graph(facts(only), ADDRESSES, (80, 81)))
        assert [row[1] for row in asked] == ["tcp 80", "tcp 80", "tcp 81"]

    def test_what_is_left_out_or_not_known_is_told(self) -> None:
        found = gather.graph(facts(WEB, failures=("no\x1bpe",), drift="web"), ADDRESSES)
        assert found.notes == (
            "not everything could be read: no\\x1bpe",
            "the kernel does not hold all that was applied: web",
        )


class TestWays:
    def test_who_they_are(self) -> None:
        scoped = Client(data.OUTSIDE, "ipv4", "from 10.0.0.0/8")
        own = Client(data.HERE, "ipv6", "at 2001:db8::1")
        assert clients_words(KNOWN, KNOWN) == "anyone"
        assert clients_words((*KNOWN, scoped), KNOWN) == "anyone"
        assert clients_words(KNOWN[:2], KNOWN) == "outside"
        assert clients_words(KNOWN[::2], KNOWN) == "anyone, IPv4"
        assert clients_words((*KNOWN[1:], scoped), KNOWN) == "outside, IPv6; from 10.0.0.0/8; this host"
        assert clients_words((scoped, own), KNOWN) == "from 10.0.0.0/8; this host at 2001:db8::1"

    def test_very_many_that_fare_alike_are_one_and_no_port_is_lost(self) -> None:
        many = [mapping(f"m{number}", str(10000 + number), str(20000 + number)) for number in range(200)]
        found = gather.graph(facts(*many, items=tuple(socket(20000 + number) for number in range(50))), ADDRESSES)
        few = grouped(found)
        assert (len(found.ways), len(few.ways)) == (200, 2)
        for what in (found, few):
            ports = sorted(port for way in what.ways for span in way.ports for port in range(span.first, span.last + 1))
            assert ports == list(range(10000, 10200))
        assert [way.stops[0].name for way in few.ways] == ["m0 and 49 more", "m50 and 149 more"]
        assert [way.end.title for way in few.ways] == ["server", "nobody listens"]

    def test_a_few_stay_as_they_are(self) -> None:
        found = gather.graph(facts(WEB), ADDRESSES)
        assert grouped(found) is found

    def test_joining_is_done_once(self) -> None:
        found = gather.graph(facts(WEB, mapping("range", "90-99", "190-199"), items=(socket(193),)), ADDRESSES)
        assert joined(found.ways) == list(found.ways)


texts = st.text().map(printable) | st.just(printable(HOSTILE))
clients = st.lists(
    st.sampled_from(KNOWN) | st.builds(Client, st.just(data.OUTSIDE), st.just("ipv4"), texts), min_size=1
)
spans = st.integers(1, 65000).map(lambda first: (Ports(first, first + 5),))
stops = st.builds(
    Stop,
    st.integers(0, 1),
    st.sampled_from((data.TAKES, data.MAY, data.UNREACHED, data.DROPS)),
    texts,
    texts,
    st.booleans(),
)
ends = st.builds(
    End, st.sampled_from((data.SERVED, data.NOBODY, data.STOPPED, data.ELSEWHERE, data.UNKNOWN)), texts, texts
)
ways = st.builds(
    Way,
    clients.map(tuple),
    st.just("tcp"),
    spans,
    st.lists(stops, max_size=3).map(tuple),
    spans,
    ends,
    st.booleans(),
)
stations = st.builds(
    Station,
    texts,
    texts,
    st.sampled_from(("nat", "filter")),
    st.none() | st.integers(-300, 300),
    st.just(("input",)),
    st.tuples(texts),
)
graphs = st.builds(
    Graph,
    st.tuples(stations, stations),
    st.lists(ways, max_size=4).map(tuple),
    st.just(KNOWN),
    st.lists(texts, max_size=2).map(tuple),
)
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """The elements and attributes of a page, and its text; fails where what is opened is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text: list[str] = []
        self.open: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


DRAWN_TAGS = {"svg", "title", "style", "rect", "text", "line", "path"}
PAGE_TAGS = {"html", "head", "meta", "body", "h1", "h2", "p", "section", "div", "details", "summary", "table", "tr"}
PAGE_TAGS |= {"th", "td", "span", "br", "code", "pre"}
NAMES = {"class", "xmlns", "width", "height", "role", "x", "y", "rx", "x1", "y1", "x2", "y2", "d", "xml:space"}
PAGE_NAMES = NAMES | {"lang", "charset", "http-equiv", "content", "name"}


def is_harmless(page: str) -> None:
    found = Page(page)
    assert found.tags <= DRAWN_TAGS | PAGE_TAGS
    assert found.names <= PAGE_NAMES
    assert found.comments == []
    assert "url(" not in page
    assert "@import" not in page


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - what we have drawn has no document type to be abused


def unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


class TestKinds:
    @given(graphs)
    def test_svg_is_well_formed_and_has_only_what_we_draw(self, found: Graph) -> None:
        tree = parsed(draw("svg", found))
        names = set()
        for element in tree.iter():
            assert element.tag.removeprefix(SVG) in DRAWN_TAGS
            names |= set(element.attrib)
        assert names <= NAMES | {"{http://www.w3.org/XML/1998/namespace}space"}
        said = "".join(tree.itertext())
        assert all(way.end.title[:10] in said for way in found.ways if way.end.kind != data.STOPPED)

    @given(graphs)
    def test_nothing_is_drawn_outside_of_the_picture(self, found: Graph) -> None:
        tree = parsed(draw("svg", found))
        width, height = float(tree.attrib["width"]), float(tree.attrib["height"])
        for one in tree.iter(f"{SVG}rect"):
            assert float(one.get("x", "0")) + float(one.attrib["width"]) <= width
            assert float(one.get("y", "0")) + float(one.attrib["height"]) <= height
        for one in tree.iter(f"{SVG}text"):
            shown = one.text or ""
            assert float(one.attrib["x"]) + columns(shown) * 7.2 <= width
            assert float(one.attrib["y"]) <= height

    @given(graphs)
    def test_html_is_balanced_and_has_only_what_we_write(self, found: Graph) -> None:
        is_harmless(draw("html", found))

    @given(graphs)
    def test_dot_has_each_node_and_edge_and_nothing_else(self, found: Graph) -> None:
        string = r'"((?:[^"\\]|\\.)*)"'
        nodes, edges = elements(found)
        text = draw("dot", found)
        statements = re.findall(rf"^ *{string} \[label={string}, shape=\"\w+\"\];$", text, re.MULTILINE)
        joins = re.findall(rf"^  {string} -> {string} \[style=\"\w+\"\];$", text, re.MULTILINE)
        assert sorted((unquoted(name), unquoted(label)) for name, label in statements) == sorted(
            (n.id, n.label) for n in nodes
        )
        assert [(unquoted(tail), unquoted(head)) for tail, head in joins] == [(e.tail, e.head) for e in edges]
        rest = re.sub(string, "", text)
        assert set(re.findall(r"\w+", rest)) <= {
            *("digraph", "redirector", "graph", "rankdir", "fontname", "node", "label", "shape", "style", "subgraph"),
            *("cluster_0", "cluster_1"),
        }

    @given(graphs)
    def test_every_way_leads_from_a_client_to_its_end(self, found: Graph) -> None:
        nodes, edges = elements(found)
        kinds = {node.id: node.kind for node in nodes}
        assert len(kinds) == len(nodes)
        onward: dict[str, list[str]] = {}
        for edge in edges:
            if edge.kind != "unreached":
                onward.setdefault(edge.tail, []).append(edge.head)
        for number, way in enumerate(found.ways):
            at = f"port:{number}"
            assert kinds[at] == "port"
            while kinds[at] != "end":
                (at,) = onward[at]
            assert next(node.label for node in nodes if node.id == at) == ": ".join(filter(None, way.end[1:]))

    @pytest.mark.parametrize("kind", KINDS)
    def test_names_of_others_on_the_whole_way(self, kind: str) -> None:
        items = (
            others(-100, Clause("nat", HOSTILE, ports=(Ports(81, 81),)))._replace(name=HOSTILE),
            other(HOSTILE, Ports(81, 81), -100, target=Ports(8080, 8080))._replace(
                table=f"nftables table ip {HOSTILE}", owner=HOSTILE
            ),
            socket(8080, HOSTILE),
        )
        found = facts(WEB, items=items, failures=(HOSTILE,))._replace(users={33: HOSTILE})
        drawn = draw(kind, gather.graph(found, ADDRESSES))
        assert all(line.isprintable() for line in drawn.split("\n"))
        if kind != "dot":
            assert "<script" not in drawn

    def test_a_text_is_cut_to_its_room(self) -> None:
        assert (cut("abc", 3), cut("abcd", 3), cut("日本語", 5), columns("e\u0301日")) == ("abc", "ab…", "日本…", 3)


class TestReport:
    def test_whatever_anybody_named_the_page_is_ours(self) -> None:
        hostile = Finding("id", "warning", HOSTILE, (HOSTILE,))
        status = Status(
            "drifted",
            "nftables",
            None,
            (Drift("structure", None, printable(HOSTILE)),),
            (WEB._replace(comment=SCRIPT),),
            {},
            printable(HOSTILE),
        )
        items = (socket(8080, HOSTILE),)
        graph = gather.graph(facts(WEB, items=items), ADDRESSES)
        choice = Choice("nftables", (HOSTILE,))
        page = report_html(Gathered(HOSTILE, "now", "1", status, printable(HOSTILE), choice, (hostile,), graph))
        is_harmless(page)
        assert "<script" not in page
        assert all(line.isprintable() for line in page.split("\n"))
        assert page.encode()
        assert page.count("&lt;script&gt;alert(1)") >= 8

    def test_it_tells_the_mappings_their_state_and_what_mends_them(self) -> None:
        old = mapping("old", "81", "8081", enabled=False)
        status = Status("drifted", "nftables", None, (Drift("missing", "web", "gone"),), (WEB, old), {"web": 1234})
        finding = Finding("taken-first", "error", "somebody takes it", ("do this",))
        graph = gather.graph(facts(WEB), ADDRESSES)
        page = report_html(Gathered("host", "now", "1", status, "", Choice("nftables", ("it is",)), (finding,), graph))
        said = " ".join("".join(Page(page).text).split())
        for words in (
            "drifted",
            "1,234",
            "disabled",
            "gone",
            "redirector apply",
            "taken-first",
            "do this",
            "because it is",
        ):
            assert words in said
