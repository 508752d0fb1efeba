"""The product at work on a machine of the lab: by its real commands, or inside this process where they add nothing.

Inside this process means the same calls that the commands make: a backend in the machine's namespace, a history in
the lab's state folder, and `reconcile.change`. Guards have a say in the commands only.
"""

import json
import os
import subprocess
from typing import Any, Self, cast

import pytest

from redirector import mappings, neighbours, proof, reconcile
from redirector import status as against
from redirector.backends.base import Backend
from redirector.backends.opening import NAMES, open_backend
from redirector.history import History
from redirector.host.addresses import connected_networks
from redirector.host.namespaces import Namespace
from redirector.model import Ruleset
from redirector.reconcile import Origin, Outcome, Wish
from redirector.report import Status
from redirector.source import SourceFile
from tests.kernel.admin import admin
from tests.kernel.lab import Lab, Machine

ORIGIN = Origin("apply", "a test", "tests")

# Marks (see conftest). What is no matter of the backend is tested on one.
on_each = pytest.mark.backends(*NAMES)
READ = "nftables/read"  # each time everything is read, as where nothing is proven
on_nftables = pytest.mark.backends("nftables")
on_iptables = pytest.mark.backends(*NAMES[1:])


def ruleset(text: str) -> Ruleset:
    """The ruleset of a mapping file; `version = 1` goes without saying."""
    return mappings.parse([SourceFile("test.toml", f"version = 1\n{text}".encode())])


def mapping(name: str, listen: object, to: object, **keys: object) -> str:
    """One `[[mapping]]` of a file, each value as TOML has it."""
    values = {"name": name, "listen": listen, "to": to, **keys}
    # JSON's strings, numbers, booleans and arrays are TOML's, too.
    return "\n".join(["[[mapping]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def handles(machine: Machine, what: str = "table inet redirector") -> str:
    """What `nft -a list` prints: also the handles, by which an object that was made anew can be told."""
    return machine.run("nft", "-a", "list", *what.split())


def insist() -> list[str]:
    """What `apply` of a file needs where a plain user tests: in that user namespace even / belongs to nobody known."""
    return [] if os.stat("/").st_uid in (0, os.geteuid()) else ["--allow-unsafe-file"]


class Inside:
    """A backend of which every call is made inside its network namespace: what runs commands needs it."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self._namespace = namespace
        self._backend = namespace.call(open_backend, name)
        self.name = name

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        return lambda *args: self._namespace.call(method, *args)


def opened(namespace: Namespace, name: str) -> Backend:
    """A backend for a network namespace."""
    made: Any = namespace.call(open_backend, name) if name == "nftables" else Inside(namespace, name)
    return cast(Backend, made)


class Product:
    """The product on a lab's host. Close it: it holds a netlink socket.

    One that is not `trusting` has forgotten, each time, what it had proven of the kernel: it reads everything.
    """

    def __init__(self, lab: Lab, backend: str = "nftables", *, trusting: bool = True) -> None:
        self.lab = lab
        self.trusting = trusting
        self.backend = opened(lab.host.namespace, backend)
        self.history = History(lab.state_dir)
        self.admin = admin(lab.host, backend)

    # -- inside this process

    def apply(self, text: str | Ruleset, *, verify: bool = False, backend: Backend | None = None) -> Outcome:
        """Apply a mapping file. Raises what `reconcile.change` raises."""
        wanted = self.resolved(ruleset(text)) if isinstance(text, str) else text
        self._forget()
        with self.history.locked():
            return reconcile.change(backend or self.backend, self.history, Wish(wanted, ORIGIN, verify=verify))

    def resolved(self, wanted: Ruleset) -> Ruleset:
        """The ruleset of a file, with what it takes of the facts of the lab's host."""
        return neighbours.resolved(wanted, self.lab.host.namespace.call(connected_networks))

    def remove(self, *, purge: bool = False) -> Outcome:
        """Drain, or take the table away."""
        wish = Wish(Ruleset(), ORIGIN._replace(action="remove"), purge=purge)
        self._forget()
        with self.history.locked():
            return reconcile.change(self.backend, self.history, wish)

    def status(self) -> Status:
        return against.status(self.backend, self.history)

    def _forget(self) -> None:
        if not self.trusting:
            proof.forget(self.history.folder)

    def genid(self) -> int:
        """The kernel's generation number in the host's namespace; on the iptables backends always 0."""
        return self.backend.genid()

    # -- by the real commands

    def file(self, text: str, name: str = "mappings.toml") -> str:
        """A mapping file on the disk; its path."""
        path = os.path.join(os.path.dirname(self.lab.state_dir), name)
        with open(path, "w", encoding="utf-8") as out:
            out.write(f"version = 1\n{self._settings(text)}{text}")
        os.chmod(path, 0o600)
        return path

    def _settings(self, text: str) -> str:
        if self.backend.name == "nftables" or "[settings]" in text:
            return ""
        return f'[settings]\nbackend = "{self.backend.name}"\n'

    def run(self, *args: str, code: int = 0, insists: bool = True, **options: Any) -> str:
        """What `redirector ARGS` prints (errors go after the output); it must end with `code`."""
        done = self._run(args, code, insists, options)
        return done.stdout + done.stderr

    def json(self, *args: str, code: int = 0, **options: Any) -> Any:
        """The JSON that `redirector ARGS --json` prints; it must end with `code`."""
        return json.loads(self._run((*args, "--json"), code, True, options).stdout)

    def _run(
        self, args: tuple[str, ...], code: int, insists: bool, options: dict[str, Any]
    ) -> "subprocess.CompletedProcess[str]":
        self._forget()
        done = self.lab.redirector(*args, *(insist() if insists and "apply" in args else ()), **options)
        told = done.stdout + done.stderr
        assert done.returncode == code, f"redirector {' '.join(args)}: exit {done.returncode}, not {code}: {told}"
        assert "Traceback" not in told, told
        return done

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
