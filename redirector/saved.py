"""Plans saved by `plan --out`, applied later only if nothing of ours has changed in between.

A saved plan is JSON: the Ruleset, the namespace and boot that it was made in, and a digest of the Program that was
observed (without counters). It is told from a mapping file by its first character: no TOML starts with "{".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from redirector.backends.base import Backend
from redirector.errors import BadConfiguration, Refused, TryAgain, printable
from redirector.mappings import from_document, to_document
from redirector.model import InvalidModel, Ruleset
from redirector.plan import program_digest
from redirector.program import Program
from redirector.source import SourceFile

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """`observed` is the digest of the Program that it starts from; `origin` the file that it was made of."""

    ruleset: Ruleset
    identity: str
    observed: str
    origin: str

    def require(self, backend: Backend) -> None:
        """Raises TryAgain if it was made in another network namespace, or before a reboot."""
        if backend.identity() != self.identity:
            raise TryAgain("this plan was made in another network namespace, or before a reboot", "plan again")


def write(path: str, ruleset: Ruleset, observed: Program | None, backend: Backend, file: str) -> None:
    """Save a plan, readable for its owner only. Raises Refused where that fails."""
    content = {
        "redirector_plan": FORMAT,
        "identity": backend.identity(),
        "observed": program_digest(observed),
        "origin": os.path.abspath(file) if file != "-" else "<stdin>",
        "ruleset": to_document(ruleset),
    }
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as out:
            json.dump(content, out, indent=1)
            out.write("\n")
    except (OSError, ValueError) as error:
        raise Refused(f"the plan could not be saved in {printable(path)}: {error}") from None


def read(file: SourceFile) -> SavedPlan:
    """The plan that the file holds. Raises BadConfiguration for a damaged one."""
    try:
        content: Any = json.loads(file.data)
        if content["redirector_plan"] != FORMAT:
            raise ValueError("of a format not known here")
        texts = [content[key] for key in ("identity", "observed", "origin")]
        if not all(isinstance(word, str) for word in texts):
            raise ValueError("with fields of the wrong type")
        return SavedPlan(from_document(content["ruleset"]), *texts)
    except (ValueError, KeyError, TypeError, RecursionError, InvalidModel) as error:
        message = f"{file.name}: not a plan that can be applied ({printable(str(error))[:100]})"
        raise BadConfiguration(message, "plan again with --out") from None
