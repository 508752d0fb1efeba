"""Redirector owns a Linux host's port redirects: a file of mappings, and the kernel held to it."""

__version__ = "0.1.0"
