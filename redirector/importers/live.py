"""What iptables has loaded in this network namespace: both variants, both families. Needs CAP_NET_ADMIN.

Tables of the legacy variant are listed only where they are loaded, for listing them loads them.
"""

from __future__ import annotations

import os

from redirector.backends.iptables import commands
from redirector.backends.iptables.save import Unparsable
from redirector.errors import NotPermitted, Refused, Unavailable
from redirector.host.xtables import PROGRAMS
from redirector.importers import iptables_save
from redirector.importers.found import Findings, Text

VARIANTS = ("nft", "legacy")


def read(_text: Text) -> Findings:
    """Raises NotPermitted, Refused, Unavailable (where there is no iptables), BadConfiguration (unreadable tables)."""
    found = Findings.none()
    found.hints.append("rules that nft itself, or another tool without iptables, has loaded were not looked at")
    missing: list[Unavailable] = []
    used = []
    for variant in VARIANTS:
        before = len(found.entries)
        for family, program in PROGRAMS.items():
            name = f"{program}-{variant}-save"
            try:
                tables = commands.read(variant, [family])[family]
            except Unavailable as error:
                missing.append(error)
                continue
            except commands.Failed as error:
                if os.geteuid():
                    raise NotPermitted(f"{error}", "run it as root, or give what iptables-save prints") from None
                raise Refused(f"{error}", "give what iptables-save prints, as a file") from None
            except Unparsable as error:
                raise iptables_save.unreadable(name, error) from None
            found.add(iptables_save.of_tables(tables, name, family))
        used += [variant] if len(found.entries) > before else []
    if len(missing) == len(VARIANTS) * len(PROGRAMS):
        raise missing[0]
    if len(used) > 1:
        found.hints.append("both variants of iptables have rules that redirect: those of nft are taken to come first")
    return found
