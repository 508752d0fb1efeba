"""Commits to nf_tables as a source of events: who changed something in tables that hold our redirects.

Theory of operation. After a commit the kernel announces each thing that was changed, packed into datagrams, and then
one message of its own, NEWGEN: the new genid, and the process that has committed (nf_tables_commit_release and
nf_tables_gen_notify in net/netfilter/nf_tables_api.c). Every one of those things names its table in attribute 1. So the
bytes of that attribute, with a name of ours in it, are looked for in what comes before a NEWGEN: if they are nowhere,
the commit was no business of ours, and costs no more than this. (If they are there by chance, in a comment say, one
comparison finds nothing.) Commits are told in their order, as the kernel makes them one at a time; without our own, if
they can be told by the process id: in a PID namespace we have another one than the kernel tells.

A commit may announce more than the socket's buffer holds. The kernel then reports ENOBUFS once and drops everything,
until everything that is there has been read. So nothing is told before that point is reached: whoever looks at the
tables afterwards has not missed what was dropped, and whatever comes later is heard.

The iptables-nft backend's chains are nf_tables' too. What iptables-legacy does, the kernel tells nobody; but where our
redirects leave it for another backend, that is heard.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from redirector.backends.nftables.message import header
from redirector.backends.nftables.wire import GEN_ID, GEN_PROC_NAME, GEN_PROC_PID, NEWGEN, number, text, untext
from redirector.errors import Unavailable
from redirector.naming import TABLE
from redirector.netlink import NETLINK_NETFILTER, NetlinkSocket, attr, messages, table
from redirector.watch.sources import Happening, Suspect

GROUP = 7  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and so on, linux/netfilter/nf_tables.h
# Of somebody who never stops, so much at a time: 10 ms of work, or so.
DATAGRAMS = 500
SUSPECTS = 16

# The tables that hold our redirects, by backend. Where they are in none of these, they may come to any of them.
TABLES = {"nftables": (TABLE,), "iptables-nft": ("nat", "filter")}
ANY = tuple(name for names in TABLES.values() for name in names)


class Commits:
    """Raises errors.Unavailable, errors.NotPermitted where they cannot be heard."""

    name = "nftables"
    patient = True

    def __init__(self, backend: Callable[[], str]) -> None:
        self._backend = backend
        self._concerned = False  # whether what came since the last NEWGEN was of our tables
        self._lost = False  # since everything was last read
        with open("/proc/self/comm", "rb") as file:
            self._us = file.read().rstrip(b"\n").decode("utf-8", "surrogateescape"), os.getpid()
        try:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        except OSError as error:
            raise Unavailable(f"this kernel has no netfilter netlink socket: {error.strerror}") from None
        try:
            self._netlink.join(GROUP)
        except OSError as error:
            from redirector.backends.nftables.backend import explained

            self._netlink.close()
            raise explained(error) from None

    def fileno(self) -> int:
        return self._netlink.fileno()

    def drain(self) -> Happening:
        marks = [attr(TABLE_NAME, text(name)) for name in TABLES.get(self._backend(), ANY)]
        events, read, suspects = 0, 0, []
        for datagram in self._netlink.arrived():
            if not datagram:
                self._lost, self._concerned = True, False
                continue
            read += 1
            self._concerned = self._concerned or any(mark in datagram for mark in marks)
            found = _commit(datagram)
            if found:
                events += 1
                if self._concerned and found[:2] != self._us:
                    suspects.append(found)
                self._concerned = False
            if read >= DATAGRAMS and not self._lost:
                return Happening(events, tuple(suspects))
        lost, self._lost = self._lost, False
        return Happening(events, tuple(suspects), lost)

    def close(self) -> None:
        self._netlink.close()


def _commit(datagram: bytes) -> Suspect | None:
    """Who has committed, if this datagram is the NEWGEN behind everything else."""
    for found in messages(datagram):
        if found.kind != header(NEWGEN):
            return None  # it comes alone
        about = table(found.payload, 4)
        return Suspect(
            untext(about.get(GEN_PROC_NAME, b"")), number(about.get(GEN_PROC_PID)), number(about.get(GEN_ID))
        )
    return None
