"""P: sockets that a privileged parent opened and its workers share: as it should be, and told as a note. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from redirector.audit.facts import Facts, Socket
from redirector.audit.ways import means
from redirector.errors import plural, printable
from redirector.findings import NOTE, Finding


def find(facts: Facts) -> Iterator[Finding]:
    """Socket by socket."""
    for socket in facts.of(Socket):
        if means(socket, facts).mechanism != "parent":
            continue
        listener = socket.listener
        workers = [h for h in socket.holders if h.uid]
        users = ", ".join(sorted({printable(facts.user(h.uid)) for h in workers}))
        parent = next((h for h in socket.holders if not h.uid), None)
        opened = (
            f"{printable(parent.command)} (process {parent.pid})" if parent else "a process of root's that has ended"
        )
        count = f"{plural(len(workers), 'worker')} without privileges ({users})"
        message = f"{listener.protocol} {listener.port}: {opened} opened the socket as root, for {count}: fine"
        yield Finding("P-shared", NOTE, message, (), listener.port)
