"""What the experiments share: a folder, the commands to measure, places to run them in, children to talk with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Failed, Place, Sample, place

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
TABLE = ("inet", "redirector")

QUICK, NORMAL, FULL = "quick", "normal", "full"
ROUNDS = {NORMAL: 1, FULL: 3}  # times what an experiment asks for


class Workshop:
    """`pace` is QUICK (small sizes, one round: proves only that it runs), NORMAL or FULL; `environ` is the environment
    of every child."""

    def __init__(self, folder: str, pace: str) -> None:
        self.folder, self.pace = folder, pace
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
        self._helps: dict[str, str] = {}

    @property
    def quick(self) -> bool:
        return self.pace == QUICK

    def rounds(self, count: int) -> int:
        """How many: `count` at the normal pace."""
        return 1 if self.quick else count * ROUNDS[self.pace]

    def size(self, quick: int, normal: int, full: int | None = None) -> int:
        """The one of this pace."""
        return {QUICK: quick, NORMAL: normal, FULL: normal if full is None else full}[self.pace]

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

    def knows(self, command: str, flag: str) -> bool:
        """Whether the command of this version has the flag."""
        if command not in self._helps:
            argv = [self.redirector, command, "--help"]
            done = subprocess.run(argv, check=True, capture_output=True, text=True, env=self.environ)
            self._helps[command] = done.stdout
        return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", self._helps[command]) is not None

    def full(self, here: Place) -> list[str]:
        """`status` by a full comparison, whatever it does of itself."""
        return self.command(here, "status", *["--full"] * self.knows("status", "--full"))

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

    @contextmanager
    def engine(self, here: Place, file: str, other: str, entries: int) -> Iterator[Callable[[str], Sample]]:
        """A running engine.py; the function gives it a job and returns what that cost. Raises Failed."""
        with self.talk(here, "engine.py", [file, other]) as answer_to:

            def ask(job: str) -> Sample:
                answer = answer_to(job)
                if answer.get("entries") != entries:
                    raise Failed(f"the engine did not do its job {job!r}: {answer}")
                return sample(answer)

            yield ask


class Turns:
    """0 or 1, in turns."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> None:
        self.number = 1 - self.number


def sample(answer: dict[str, Any]) -> Sample:
    """What a child says that its work cost. Raises Failed where it says nothing."""
    if "seconds" not in answer:
        raise Failed(f"a child did not do its job: {answer}")
    return Sample(answer["seconds"], answer["cpu"])


def forget(here: Place) -> None:
    """As if nothing had ever been applied, by nftables."""
    here.clean()
    shutil.rmtree(here.state, ignore_errors=True)


def require_equal(one: Place, other: Place, elements: int) -> None:
    """Both must hold the same rules, or what was compared is not the same work. Raises Failed."""
    found, wanted = one.fingerprint(), other.fingerprint()
    if found != wanted or found[0] < elements:
        raise Failed(
            f"the two did not leave the same rules: nft lists {found[0]} words of one, {wanted[0]} of the other"
        )


def _in_user_namespace() -> bool:
    """Where iptables-legacy cannot work: its lock file is the real root's."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", str(2**32 - 1)]
