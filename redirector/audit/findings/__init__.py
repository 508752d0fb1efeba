"""Families of findings: each module has `find(facts)`. The table is `audit.FAMILIES`."""
