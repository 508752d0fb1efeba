"""Every exception of Redirector, by whose fault it is; each maps to one exit code.

The numbers follow sysexits.h (BSD) from 64 on; the small ones say what became of the kernel's state.
"""

from __future__ import annotations


class RedirectorError(Exception):
    """Base of all. `exit_code` is what the process ends with; `hint` says what the person can do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Refused(RedirectorError):
    """Refused or failed, and nothing was changed."""

    exit_code = 1


class RolledBack(RedirectorError):
    """The kernel was changed, and then put back as it was."""

    exit_code = 5


class OutcomeUnknown(RedirectorError):
    """The kernel's state could not be established, or an undo failed too."""

    exit_code = 6


class NotFound(RedirectorError):
    """No such generation, or nothing to go back to."""

    exit_code = 7


class Usage(RedirectorError):
    """The command line makes no sense (EX_USAGE)."""

    exit_code = 64


class Unavailable(RedirectorError):
    """The kernel or the host lacks what the backend needs (EX_UNAVAILABLE)."""

    exit_code = 69


class TryAgain(RedirectorError):
    """Locked or overtaken by somebody else; nothing was changed (EX_TEMPFAIL)."""

    exit_code = 75


class NotPermitted(RedirectorError):
    """CAP_NET_ADMIN, or access to the state folder, is missing (EX_NOPERM)."""

    exit_code = 77


class BadConfiguration(RedirectorError):
    """The mapping file is wrong or unsafe (EX_CONFIG)."""

    exit_code = 78


def printable(text: str) -> str:
    """`text` with everything that a terminal could take for a command escaped, for names that others chose."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")
