"""The nftables backend: one netlink socket, observation within one generation, transactions with compare-and-swap.

Theory of operation. Every commit of anyone in this network namespace moves the generation number (genid). `observe`
reads it, dumps our table, and reads it again: unchanged means that everything read belongs together. While others
commit all the time that may never happen; then two equal readings in a row are as good, because a foreign commit
cannot change our table without changing what we read of it.

`commit` sends the genid that the plan was made against in BATCH_BEGIN; the kernel answers ERESTART if it has moved.
Only BATCH_END asks for an acknowledgement: one answer for the whole transaction. A socket error after sending, or no
answer in time, proves nothing either way, and is told as OutcomeDoubtful.

Lowest kernel: 5.10, the first that keeps a table's comment (NFTA_TABLE_USERDATA), which is our mark; the other things
used are older: NAT in the inet family 5.2, NFNL_BATCH_GENID 4.16, maps of objects (NFT_SET_OBJECT) 4.10.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from redirector.backends.base import OutcomeDoubtful, Overtaken, Snapshot, Supposed
from redirector.backends.nftables import decode, message, wire
from redirector.backends.nftables.encode import Batch
from redirector.backends.nftables.message import header, nfgenmsg
from redirector.backends.nftables.rules import decode_rule, parse_expressions
from redirector.backends.place import Place
from redirector.errors import NotPermitted, Refused, TryAgain, Unavailable, printable
from redirector.model import Ruleset
from redirector.naming import TABLE
from redirector.netlink import (
    NLMSG_ERROR,
    DumpInterrupted,
    Message,
    attr,
    error_number,
    table,
)
from redirector.plan import Step
from redirector.program import Chain, Map, Program, Rule

LOWEST_KERNEL = (5, 10)
READINGS = 50  # of a table that others keep changing


def kernel_fault(release: str) -> str:
    """Why a kernel of this release (uname -r) will not do, "" if it will or cannot be judged."""
    parts = release.split("-", maxsplit=1)[0].split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return ""
    if (int(parts[0]), int(parts[1])) >= LOWEST_KERNEL:
        return ""
    wanted = ".".join(map(str, LOWEST_KERNEL))
    return f"Linux {printable(release)} is too old for the nftables backend: it needs {wanted} or later"


class NftablesBackend:
    """Raises errors.Unavailable where the kernel has no nf_tables, errors.NotPermitted without CAP_NET_ADMIN."""

    name = "nftables"

    def __init__(self) -> None:
        fault = kernel_fault(os.uname().release)
        if fault:
            raise Unavailable(fault)
        try:
            self._place = Place()
        except OSError as error:
            raise Unavailable(f"this kernel has no netfilter netlink socket: {error.strerror}") from None
        self._netlink = self._place.netfilter

    def close(self) -> None:
        self._place.close()

    def genid(self) -> int:
        try:
            return message.genid(self._netlink)
        except OSError as error:
            raise explained(error) from None

    def identity(self) -> str:
        return self._place.identity()

    def restart_flows(self, ruleset: Ruleset, ports: AbstractSet[int], former: AbstractSet[tuple[str, int]]) -> int:
        return self._place.restart_flows(ruleset, ports, former)

    def suppose(self, *programs: Supposed) -> None:
        """Elements come in any order: nothing is faster than to decode them."""

    def observe(self) -> Snapshot:
        previous: Snapshot | None = None
        for _ in range(READINGS):
            before = self.genid()
            try:
                seen = self._read(before)
            except DumpInterrupted:
                continue
            except FileNotFoundError:
                continue  # a map went away between two dumps
            except OSError as error:
                raise explained(error) from None
            after = self.genid()
            if before == after:
                return seen
            if previous is not None and previous.program == seen.program and previous.foreign == seen.foreign:
                return Snapshot(seen.program, after, seen.foreign, seen.counters)
            previous = seen
        raise TryAgain("others change the kernel's tables faster than they can be read", "try again in a moment")

    def check(self, steps: Iterable[Step]) -> None:
        batch = Batch(steps, 0, self._netlink.next_seq())
        try:
            self._netlink.send(batch.dry())
        except OSError as error:
            raise _unsent(error) from None
        failure = self._answer(batch, {batch.last_seq})
        if failure:
            raise failure

    def commit(self, steps: Iterable[Step], expect: int) -> None:
        batch = Batch(steps, expect, self._netlink.next_seq())
        try:
            self._netlink.send(batch.committed())
        except OSError as error:
            # These come before the kernel has looked at the message, and so does a timeout, which is none other than
            # EAGAIN again and again; after any other it may have been processed.
            if isinstance(error, TimeoutError) or error.errno in (errno.EMSGSIZE, errno.EPERM, errno.EAGAIN):
                raise _unsent(error) from None
            raise OutcomeDoubtful(error.strerror or "sending failed") from error
        failure = self._answer(batch, {batch.begin_seq, batch.end_seq})
        if failure:
            raise failure

    def _answer(self, batch: Batch, final: set[int]) -> Exception | None:
        """What the kernel says of a batch: None for an acknowledgement, else what to raise."""
        failures: list[tuple[int, int]] = []
        self._netlink.reserve(batch.end_seq)
        while True:
            try:
                replies = self._netlink.receive()
            except OSError as error:  # a timeout, or ENOBUFS: answers were lost
                return OutcomeDoubtful(str(error))
            for reply in replies:
                if reply.kind != NLMSG_ERROR or not batch.begin_seq <= reply.seq <= batch.end_seq:
                    continue
                number = error_number(reply)
                if number:
                    failures.append((reply.seq, number))
            # All answers to one batch come in the order of its messages, before send returns; so once one has been
            # read, everything behind it is there as well: the last is the acknowledgement, or there was an error.
            if failures:
                failures += self._more_failures(batch)
                return _failure(batch, failures)
            if any(r.kind == NLMSG_ERROR and r.seq in final and not error_number(r) for r in replies):
                return None

    def _more_failures(self, batch: Batch) -> list[tuple[int, int]]:
        """The rest of the errors of a batch, as far as they have arrived."""
        found = []
        for reply in self._netlink.pending():
            number = error_number(reply) if reply.kind == NLMSG_ERROR else 0
            if number and batch.begin_seq <= reply.seq <= batch.end_seq:
                found.append((reply.seq, number))
        return found

    def _dump(self, kind: int, payload: bytes = b"") -> list[Message]:
        return self._netlink.dump(header(kind), nfgenmsg() + payload)

    def _rows(self, kind: int, table_attribute: int) -> list[dict[int, bytes]]:
        """The attributes of all objects of one kind in our table (some dumps cannot be narrowed to one table)."""
        name = attr(table_attribute, wire.text(TABLE))
        return decode.ours(decode.rows(self._dump(kind, name)), table_attribute)

    def _read(self, genid: int) -> Snapshot:
        """One reading of our table."""
        name = attr(wire.TABLE_NAME, wire.text(TABLE))
        try:
            reply = self._netlink.request(header(wire.GETTABLE), nfgenmsg() + name)
        except FileNotFoundError:
            return Snapshot(None, genid)
        row = table(reply.payload, 4)
        foreign = decode.foreign_reason(row)
        if foreign:
            return Snapshot(Program({}, {}, wire.number(row.get(wire.TABLE_FLAGS))), genid, foreign)
        maps: dict[str, Map] = {}
        members: dict[str, frozenset[int]] = {}
        for found in decode.ours(
            decode.rows(self._dump(wire.GETSET, attr(wire.SET_TABLE, wire.text(TABLE)))), wire.SET_TABLE
        ):
            set_name = wire.untext(found.get(wire.SET_NAME, b""))
            if decode.anonymous(found):
                members[set_name] = decode.members(self._elements(set_name))
                continue
            kind = decode.set_kind(found)
            if kind not in wire.SET_TYPES:
                maps[set_name] = Map(kind, {})
                continue
            maps[set_name] = Map(kind, decode.entries(kind, self._elements(set_name)), decode.capacity(found))
        chains = self._chains(members)
        flags = wire.number(row.get(wire.TABLE_FLAGS))
        counters, strays = self._objects()
        return Snapshot(Program(chains, maps, flags, strays, frozenset(counters)), genid, "", counters)

    def _elements(self, set_name: str) -> list[Message]:
        place = attr(wire.ELEMENTS_TABLE, wire.text(TABLE)) + attr(wire.ELEMENTS_SET, wire.text(set_name))
        return self._dump(wire.GETSETELEM, place)

    def _chains(self, members: dict[str, frozenset[int]]) -> dict[str, Chain]:
        rules: dict[str, list[Rule]] = {}
        for row in decode.ours(
            decode.rows(self._dump(wire.GETRULE, attr(wire.RULE_TABLE, wire.text(TABLE)))), wire.RULE_TABLE
        ):
            found = parse_expressions(row.get(wire.RULE_EXPRESSIONS, b""), members)
            rule = decode_rule(found, wire.parse_comment(row.get(wire.RULE_USERDATA)))
            rules.setdefault(wire.untext(row.get(wire.RULE_CHAIN, b"")), []).append(rule)
        chains = {}
        for row in self._rows(wire.GETCHAIN, wire.CHAIN_TABLE):
            name = wire.untext(row.get(wire.CHAIN_NAME, b""))
            chains[name] = Chain(decode.hook(row), tuple(rules.get(name, ())))
        return chains

    def _objects(self) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
        """(packets, bytes) by counter; and the other objects and flowtables in our table: we never make any."""
        objects = self._rows(wire.GETOBJ, wire.OBJ_TABLE)
        flowtables = self._rows(wire.GETFLOWTABLE, wire.FLOWTABLE_TABLE)
        strays = [("object", row.get(wire.OBJ_NAME, b"")) for row in objects if not decode.is_counter(row)]
        strays += [("flowtable", row.get(wire.FLOWTABLE_NAME, b"")) for row in flowtables]
        counters = dict(decode.counter(row) for row in objects if decode.is_counter(row))
        return counters, tuple(f"{word} {printable(wire.untext(name))}" for word, name in strays)


def explained(error: OSError) -> Exception:
    """The kernel's refusal to talk, as what it means."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return NotPermitted("the kernel refuses: this needs CAP_NET_ADMIN", "run it as root, or with that capability")
    if error.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL):
        return Unavailable("this kernel has no nf_tables", "load the module nf_tables, or choose another backend")
    return error


def _unsent(error: OSError) -> Exception:
    if error.errno == errno.EMSGSIZE:
        return Refused(
            "the transaction is larger than this user namespace may send at once; nothing was changed",
            "raise net.core.wmem_max on the host, or run where CAP_NET_ADMIN holds outside of user namespaces",
        )
    if error.errno == errno.EPERM:
        return explained(error)
    return Refused(f"the transaction could not be sent: {error.strerror or error}; nothing was changed", "try again")


def _failure(batch: Batch, failures: list[tuple[int, int]]) -> Exception:
    """From (sequence number, errno) to what it means; decisions by errno, never by text."""
    numbers = {number for _, number in failures}
    if (batch.begin_seq, errno.ERESTART) in failures:
        return Overtaken()
    if errno.EPERM in numbers:
        return explained(PermissionError(errno.EPERM, ""))
    parts = [f"{batch.about.get(seq, 'the transaction')}: {os.strerror(number)}" for seq, number in failures[:5]]
    more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
    message = f"the kernel refuses the transaction, nothing was changed: {printable('; '.join(parts))}{more}"
    if errno.ENOENT in numbers or errno.EOPNOTSUPP in numbers:
        return Refused(
            message, "the kernel may lack modules: nft_nat, nft_redir, nft_fib_inet, nft_ct, nft_reject_inet"
        )
    return Refused(message)
