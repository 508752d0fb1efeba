"""The experiments, found by a table: name → (module, function, arguments after the workshop).

Each function takes the Workshop and returns the Section of what it measured; a module is imported when its turn comes.
To add one: a function, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from report import Section
from workshop import Workshop

TABLE: dict[str, tuple[str, ...]] = {
    "start": ("startup", "start"),
    "imports": ("startup", "imported"),
    # Early, while the measuring process is small: see measure.own_peak.
    "growth": ("growth", "growth"),
    "keys": ("growth", "keys"),
    "limit": ("growth", "limit"),
    "shifted": ("bulk", "measure", "shifted"),
    "range": ("bulk", "measure", "range"),
    "tables": ("bulk", "measure", "tables"),
    "engine": ("engines", "engine"),
    "observe": ("engines", "observe"),
    "status": ("idle", "status"),
    "unchanged": ("idle", "unchanged"),
    "delta": ("delta", "delta"),
    "healing": ("healing", "healing"),
    "connects-nftables": ("packets", "connects", "nftables"),
    "connects-iptables-nft": ("packets", "connects", "iptables-nft"),
    "connects-iptables-legacy": ("packets", "connects", "iptables-legacy"),
    "proxies": ("proxies", "proxies"),
    "rivals": ("rivals", "rivals"),
    "load-iptables-nft": ("iptables", "load", "nft"),
    "load-iptables-legacy": ("iptables", "load", "legacy"),
    "range-iptables": ("iptables", "shifted"),
}
# Minutes of their own: not for every day.
SLOW = {"growth", "keys", "limit", "load-iptables-nft", "load-iptables-legacy"}


def find(name: str) -> Callable[[Workshop], Section]:
    """The experiment of that name, one of `TABLE`."""
    module, function, *arguments = TABLE[name]
    measure: Callable[..., Section] = getattr(import_module(f"experiments.{module}"), function)
    return lambda shop: measure(shop, *arguments)
