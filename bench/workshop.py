"""What the experiments share: a folder, the commands to measure, places to run them in, children to talk with."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Failed, Place, place

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


class Workshop:
    """`quick` is for small sizes and one round; `environ` is the environment of every child."""

    def __init__(self, folder: str, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.variants = ["nft"] if _in_user_namespace() else ["nft", "legacy"]
        drop = re.compile("PYTHON|SSH_|REDIRECTOR_")
        self.environ = {name: value for name, value in os.environ.items() if not drop.match(name)}
        self.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
        self.environ["REDIRECTOR_JOURNAL"] = ""
        self.redirector = str(BIN / "redirector")
        # Where the root folder belongs to nobody that we know (a user namespace), every file is unsafe.
        unsafe = os.stat("/").st_uid not in (0, os.geteuid())
        # A namespace of ours has no sshd in it; one that listens on a port of ours outside does not matter here.
        self._insist = ["--allow-ssh"] + ["--allow-unsafe-file"] * unsafe

    def rounds(self, count: int) -> int:
        return 1 if self.quick else count

    @contextmanager
    def place(self, label: str) -> Iterator[Place]:
        with place(label, self.folder, self.environ) as found:
            yield found

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def write(self, name: str, text: str) -> str:
        path = self.file(name)
        Path(path).write_text(text, encoding="ascii")
        return path

    def command(self, here: Place, name: str, *arguments: str) -> list[str]:
        return [self.redirector, name, *arguments, "--state-dir", here.state]

    def apply(self, here: Place, file: str) -> list[str]:
        return self.command(here, "apply", file, *self._insist)

    @contextmanager
    def talk(self, here: Place, script: str, arguments: Sequence[str]) -> Iterator[Callable[[object], dict[str, Any]]]:
        """A running child, a script of this folder; the function gives it a line, and returns what it answers ({} where
        it has died). Raises Failed."""
        with here.start([sys.executable, str(HERE / script), *arguments]) as child:
            if child.stdin is None or child.stdout is None:
                raise Failed(f"{script} has no pipes")
            source, target = child.stdout, child.stdin

            def ask(line: object) -> dict[str, Any]:
                target.write(f"{line}\n")
                target.flush()
                answer: dict[str, Any] = json.loads(source.readline() or "{}")
                return answer

            if not source.readline():
                raise Failed(f"{script} did not start")
            yield ask


def _in_user_namespace() -> bool:
    """Where iptables-legacy cannot work: its lock file is the real root's."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", str(2**32 - 1)]
