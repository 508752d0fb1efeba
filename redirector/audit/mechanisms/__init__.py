"""Mechanisms: each module has `gather(tree)`. The table is `audit.MECHANISMS`."""
