"""`redirector metrics`: the numbers are what packets and tampering made of the kernel."""

import os
from typing import Any

from tests.kernel.echo import Answered
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, mapping, on_each

MAPPINGS = mapping("web", 80, 8080) + mapping("lan", 81, 8081) + mapping("old", 82, 8082, enabled=False)


def number(found: Any, name: str, label: str = "") -> float:
    (value,) = [one["value"] for one in found[f"redirector_{name}"] if label in ("", *one["labels"].values())]
    return float(value)


@on_each
def test_connections_are_counted_by_mapping_and_drift_is_told(lab: Lab, product: Product) -> None:
    assert number(product.json("metrics"), "state", "absent") == 1
    product.apply(MAPPINGS)
    lab.host.serve("tcp", HOST[0], 8080)
    for _ in range(3):
        assert isinstance(lab.client.ask_tcp(HOST[0], 80), Answered)
    found = product.json("metrics")
    assert number(found, "connections_total", "web") == 3
    assert number(found, "connections_total", "lan") == 0
    assert (number(found, "state", "in-sync"), number(found, "drift")) == (1, 0)
    assert (number(found, "mappings", "enabled"), number(found, "mappings", "disabled")) == (2, 1)
    product.admin.deletes(81)
    found = product.json("metrics")
    assert (number(found, "state", "drifted"), number(found, "mapping_in_sync", "lan")) == (1, 0)
    assert number(found, "mapping_in_sync", "web") == 1


@on_each
def test_the_file_of_a_collector_has_what_is_printed(lab: Lab, product: Product) -> None:
    product.apply(MAPPINGS)
    folder = os.path.dirname(lab.state_dir)
    assert product.run("metrics", "--out", f"{folder}/redirector.prom") == ""
    with open(f"{folder}/redirector.prom", encoding="utf-8") as file:
        assert file.read() == product.run("metrics")
    assert 'redirector_connections_total{mapping="web"} 0' in product.run("metrics")
    assert "name a file in a folder that exists" in product.run("metrics", "--out", f"{folder}/no/such", code=1)
