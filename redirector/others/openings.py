"""The commands that let redirected connections through a filter of others: one kind for each owner of the filter. Pure.

Only what was redirected is let in (`ct status dnat`): a direct connection to the target port stays as it was. The tools
of firewalld and ufw know no such rule short of their raw languages: there the port is opened.
"""

from __future__ import annotations

from collections.abc import Iterator

from redirector.model import Ports
from redirector.others import Question, Spans, Table

MULTIPORT = 15  # ports in one rule of xt_multiport, a range counts as two (XT_MULTI_PORTS)


def opening(table: Table, base: str, stopped: Question, owner: str, *, by_rule: bool) -> tuple[str, ...]:
    """The commands, in the order in which they have to run; or words, where a name is not fit for a command line.

    `by_rule`: it is a rule that drops, so that the new one has to stand before it, not at the end.
    """
    if owner == "firewalld":
        ports = " ".join(f"--add-port={span}/{stopped.protocol}" for span in stopped.ports)
        return (f"firewall-cmd --permanent {ports} && firewall-cmd --reload",)
    if owner == "ufw":
        return tuple(f"ufw allow {_colons(span)}/{stopped.protocol}" for span in stopped.ports)
    if table.form == "nftables":
        if not (_plain(table.name) and _plain(base)):
            return ("accept them in that chain; its name is not fit for a command line",)
        verb = "insert" if by_rule else "add"
        status = " ct status dnat" if stopped.dnat else ""
        rule = f"{stopped.protocol} dport {_nft(stopped.ports)}{status} accept"
        quoted = f"'{rule}'" if "{" in rule else rule
        return (f"nft {verb} rule {table.family} {table.name} {base} {quoted}",)
    tool = table.form.replace("iptables", "ip6tables" if table.family == "ip6" else "iptables")
    status = " -m conntrack --ctstate DNAT" if stopped.dnat else ""
    return tuple(
        f"{tool} -I {base} -p {stopped.protocol} {ports}{status} -j ACCEPT" for ports in _multiport(stopped.ports)
    )


def passing(table: Table, chain: str, address: str, stopped: Question, *, ufw: bool) -> tuple[str, ...]:
    """The commands that let connections through a filter at the forward hook to `address`, and the answers back."""
    ports = stopped.ports
    if ufw:
        to = f"proto {stopped.protocol} to {address} port"
        return tuple(f"ufw route allow {to} {_colons(span)}" for span in ports)
    if table.form == "nftables":
        if not (_plain(table.name) and _plain(chain)):
            return ("accept them in that chain; its name is not fit for a command line",)
        place, header = f"nft insert rule {table.family} {table.name} {chain}", "ip6" if ":" in address else "ip"
        rules = (
            f"{header} daddr {address} {stopped.protocol} dport {_nft(ports)} ct status dnat accept",
            f"{header} saddr {address} {stopped.protocol} sport {_nft(ports)} ct state established accept",
        )
        return tuple(f"{place} '{rule}'" if "{" in rule else f"{place} {rule}" for rule in rules)
    tool = table.form.replace("iptables", "ip6tables" if table.family == "ip6" else "iptables")
    found = []
    for match in _multiport(ports):
        there, back = f"-d {address} -p {stopped.protocol} {match}", match.replace("--dport", "--sport")
        found.append(f"{tool} -I {chain} {there} -m conntrack --ctstate DNAT -j ACCEPT")
        answers = f"-s {address} -p {stopped.protocol} {back}"
        found.append(f"{tool} -I {chain} {answers} -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    return tuple(found)


def _plain(name: str) -> bool:
    return name.isascii() and name.replace("_", "").replace("-", "").isalnum() and name[0].isalpha()


def _nft(ports: Spans) -> str:
    text = ", ".join(map(str, ports))
    return text if len(ports) == 1 else f"{{ {text} }}"


def _colons(span: Ports) -> str:
    return str(span).replace("-", ":")


def _multiport(ports: Spans) -> Iterator[str]:
    """The matches for all ports, as many as it takes."""
    if len(ports) == 1:
        yield f"--dport {_colons(ports[0])}"
        return
    row: list[str] = []
    room = MULTIPORT
    for span in ports:
        cost = 1 if span.size == 1 else 2
        if cost > room:
            yield f"-m multiport --dports {','.join(row)}"
            row, room = [], MULTIPORT
        row.append(_colons(span))
        room -= cost
    if row:
        yield f"-m multiport --dports {','.join(row)}"
