"""Every way to a port: what leads there, who listens, what let them, and where that is configured.

Theory of operation. Three steps that do not mix: *gather* reads the host, or the files below another root, into
`facts.Facts`, rows of plain data; pure code decides (`ways`, `chains`, `findings`, `binding`, `routing`); the output
prints. Each mechanism that can give a port away is one module of `mechanisms` with `gather(tree)`, which
yields rows of its own types; each family of findings is one module of `findings` with `find(facts)`, which asks for
rows by type. Both are found by the tables here and imported when they are used: to add one is to add a file and a line.
"""

from __future__ import annotations

MECHANISMS = ("capabilities", "units", "authbind", "sysctl", "nginx", "haproxy", "caddy", "apache")
# Modules of `mechanisms` with `configured(facts)`, which says in plain text what the rows of their types say.
CONFIGURED = ("capabilities", "units", "authbind", "sysctl", "addresses")

# Family of findings, as their ids begin → module.
FAMILIES = {
    "R": "redirects",
    "C": "capabilities",
    "S": "units",
    "A": "authbind",
    "Y": "sysctl",
    "P": "parents",
    "D": "doubles",
}
