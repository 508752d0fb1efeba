"""`redirector report` on a live host: the page tells the kernel's state and what packets do, and loads nothing."""

import os
import stat

from tests.kernel.echo import Answered
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, mapping, on_each
from tests.test_drawing import is_harmless

WEB = mapping("web", 80, 8080, comment="<b>&")


@on_each
def test_the_page_of_a_host(lab: Lab, product: Product) -> None:
    product.apply(WEB)
    lab.host.serve("tcp", HOST[0], 8080)
    assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
    path = os.path.join(os.path.dirname(lab.state_dir), "report.html")
    product.run("report", "--out", path)
    with open(path, encoding="utf-8") as file:
        page = file.read()
    is_harmless(page)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for words in ("in sync", f'<td class="number">{1}</td>', "&lt;b&gt;&amp;", f"process {os.getpid()}", "web → 8080"):
        assert words in page
    product.admin.deletes(80)
    found = product.json("report")
    assert found["status"]["state"] == "drifted"
    assert [way for way in found["graph"]["ways"] if way["ports"] == ["80"]] == []
    assert ">drifted<" in product.run("report")


@on_each
def test_ours_is_one_station_whatever_the_backend(lab: Lab, product: Product) -> None:
    product.apply(WEB)
    lab.host.serve("tcp", HOST[0], 8080)
    found = product.json("graph")
    (own,) = [number for number, station in enumerate(found["stations"]) if station["own"]]
    taken = [
        (stop["station"], stop["verdict"]) for way in found["ways"] if way["ports"] == ["80"] for stop in way["stops"]
    ]
    assert set(taken) == {(own, "takes")}
