"""The backends by name, as in `[settings] backend`; each is imported when it is opened."""

from __future__ import annotations

from redirector.backends.base import Backend

NAMES = ("nftables", "iptables-nft", "iptables-legacy")


def open_backend(name: str) -> Backend:
    """One of NAMES, for the network namespace of the calling thread. Raises errors.Unavailable."""
    if name == "nftables":
        from redirector.backends.nftables.backend import NftablesBackend

        return NftablesBackend()
    from redirector.backends.iptables.backend import IptablesBackend

    return IptablesBackend(name.removeprefix("iptables-"))
