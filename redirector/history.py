"""Generations on disk: what was applied, when, by whom. `store` is how they get there whole.

Each generation is one JSON file, `generations/NNNNNN.json`. The highest number is the current generation; there is no
pointer that could disagree. `prepare` does all that can fail for want of space or permission *before* the kernel is
changed; what is left for afterwards is one rename.

Files carry a checksum over their content. What cannot be read is told as `Unreadable`, never guessed at: the kernel
is the truth, and a damaged record stops neither `apply` nor `status`.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

from redirector import layout, store
from redirector.errors import NotFound, Refused, printable
from redirector.journal import Entry, ignore
from redirector.mappings import digest, from_document, to_document
from redirector.model import InvalidModel, Ruleset
from redirector.records import NamedTuple

FORMAT = 1
KEEP = 50


class Record(NamedTuple):
    """What one generation records. `action` is apply, rollback or remove; `applied_at` ISO 8601, UTC; `origin` the
    file (or generation) that it came from; `author` who; `identity` the namespace and boot; `purged` that the table was
    taken away."""

    generation: int
    action: str
    applied_at: str
    origin: str
    author: str
    identity: str
    backend: str
    ruleset: Ruleset
    confirmed: bool = True
    purged: bool = False

    @property
    def digest(self) -> str:
        return digest(self.ruleset)


class Unreadable(NamedTuple):
    """A generation whose file is there, but damaged; `reason` in words."""

    generation: int
    reason: str


class History:
    """The generations in one state folder; `tell` is told of each change. Raises errors.NotPermitted where the caller
    may not read or write it."""

    def __init__(self, folder: str, tell: Callable[[Entry], None] = ignore) -> None:
        self.folder = folder
        self.tell = tell
        self._generations = layout.generations(folder)
        self._known: tuple[layout.Key, Record] | None = None  # what was read last, and of which file

    def numbers(self) -> list[int]:
        """Every generation that has a file, readable or not, in ascending order."""
        try:
            return layout.numbers(self.folder)
        except NotADirectoryError:
            raise Refused(f"{printable(self._generations)} is not a folder", "choose another --state-dir") from None
        except PermissionError:
            raise store.forbidden(self.folder) from None

    def current(self) -> Record | Unreadable | None:
        """The latest generation; None before the first."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def read(self, number: int) -> Record | Unreadable:
        """One generation. Raises NotFound where there is none of that number."""
        key: layout.Key = ()
        with contextlib.suppress(OSError):  # which reading it will tell
            key = layout.record_key(self.folder, number)  # the same file has the same content; and it may be large
        if key and self._known and self._known[0] == key:
            return self._known[1]
        found = self._read(number)
        if key and isinstance(found, Record):
            self._known = key, found
        return found

    def _read(self, number: int) -> Record | Unreadable:
        try:
            return _decode(json.loads(store.read(self._path(number))), number)
        except FileNotFoundError:
            raise NotFound(f"there is no generation {number}", "see: redirector history") from None
        except PermissionError:
            raise store.forbidden(self.folder) from None
        except InvalidModel as error:
            return Unreadable(number, f"its mappings are invalid: {printable(str(error))}")
        except (OSError, ValueError, RecursionError) as error:
            return Unreadable(number, f"its file is damaged ({printable(str(error))[:100]})")

    def all(self) -> list[Record | Unreadable]:
        return [self.read(number) for number in self.numbers()]

    def previous(self) -> int:
        """The generation before the current one, but for those that were never confirmed, and the one that the current
        one went back to when such a one was taken back. Raises NotFound."""
        current = self.current()
        for number in reversed(self.numbers()[:-1]):
            record = self.read(number)
            if isinstance(record, Unreadable) or (record.confirmed and not _restored(record, current)):
                return number
        raise NotFound("there is no earlier generation to go back to", "see: redirector history")

    def next_number(self) -> int:
        numbers = self.numbers()
        return numbers[-1] + 1 if numbers else 1

    def prepare(self, record: Record) -> store.Prepared:
        """Write the record next to where it will count. Raises Refused where that fails; nothing then counts."""
        self.make_folders()
        return store.prepare(self._path(record.generation), _encode(record))

    def prune(self) -> None:
        """Keep the last KEEP generations, and the last confirmed one however old; and no temporary file of the dead."""
        numbers = self.numbers()
        old = numbers[:-KEEP]
        if old and not any(self._confirmed(number) for number in numbers[-KEEP:]):
            kept = next((number for number in reversed(old) if self._confirmed(number)), None)
            old = [number for number in old if number != kept]
        for number in old:
            with contextlib.suppress(OSError):  # what cannot be removed does no harm
                os.unlink(self._path(number))
        for folder in (self.folder, self._generations):
            for name in os.listdir(folder):
                if name.endswith(".tmp"):  # we hold the lock, so whoever wrote it is dead
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(folder, name))

    def make_folders(self) -> None:
        """The state folder and what is in it, private. Raises Refused for one that others may write."""
        store.make_private(self.folder)
        store.make_private(self._generations)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the one lock of this state folder. Raises TryAgain after a bounded wait, and says who holds it."""
        return store.locked(self.folder)

    def _path(self, number: int) -> str:
        return layout.record(self.folder, number)

    def _confirmed(self, number: int) -> bool:
        record = self.read(number)
        return isinstance(record, Record) and record.confirmed


class Settled(History):
    """A history as it would be if `record` were its latest: `reconcile.change` to that then finds nothing to record."""

    def __init__(self, history: History, record: Record) -> None:
        super().__init__(history.folder, history.tell)
        self._record = record

    def current(self) -> Record:
        return self._record


def _restored(record: Record, current: Record | Unreadable | None) -> bool:
    """Whether the current generation is the return to `record` after a change that was not confirmed."""
    if not isinstance(current, Record) or current.action != "cancel":
        return False
    return (record.ruleset, record.purged) == (current.ruleset, current.purged)


def _checksum(content: dict[str, Any]) -> str:
    """Against accidents, not attackers: whoever can write here is root (and loading hashlib costs 3 ms)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


_TEXTS = ("action", "applied_at", "origin", "author", "identity", "backend")


def _encode(record: Record) -> bytes:
    content: dict[str, Any] = {"format": FORMAT, "generation": record.generation}
    content |= {name: getattr(record, name) for name in _TEXTS}
    content |= {"confirmed": record.confirmed, "purged": record.purged, "ruleset": to_document(record.ruleset)}
    return (
        json.dumps(content | {"checksum": _checksum(content)}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        + b"\n"
    )


def _decode(content: Any, number: int) -> Record:
    """Inverts `_encode`. Raises ValueError (InvalidModel is one) for what it could not have written."""
    if not isinstance(content, dict):
        raise ValueError("no record")  # noqa: TRY004 (damage, like all the others here)
    checksum = content.pop("checksum", "")
    if checksum != _checksum(content):
        raise ValueError("checksum differs")
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')!r} is not known here")
    if content.get("generation") != number:
        raise ValueError("it belongs to another generation")
    texts = {name: content[name] for name in _TEXTS if isinstance(content.get(name), str)}
    if len(texts) != len(_TEXTS):
        raise ValueError("fields are missing")
    return Record(
        generation=number,
        ruleset=from_document(content.get("ruleset")),
        confirmed=content.get("confirmed") is True,
        purged=content.get("purged") is True,
        **texts,
    )
