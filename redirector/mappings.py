"""Mapping files ↔ Ruleset. Reading reports every problem of a file in one run, each with its place.

tomli gives values without positions; positions are computed in a second pass over the text, and only after an
error. `write` inverts `parse`, and `from_document` inverts `to_document` (the form kept in generations and plans).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import tomli

from redirector import source
from redirector.errors import BadConfiguration
from redirector.fields import document, parse_mapping, parse_settings
from redirector.model import InvalidModel, Mapping, Problem, Ruleset, Settings, backend_problems, ruleset_problems
from redirector.records import NamedTuple
from redirector.values import Report, kind, network, quoted, several, suggestion

VERSION = 1
# Words joined by dots, each match from the start of a word and without backtracking: linear time.
_DEEP_KEY = r"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){64}"
ROOT_KEYS = ("version", "mapping", "settings")


class Diagnostic(NamedTuple):
    """One problem with its place: `line` and `column` count from 1, in characters, and are 0 where it
    is the file as a whole; `text` is the source line."""

    file: str
    line: int
    column: int
    length: int
    message: str
    hint: str = ""
    text: str = ""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class InvalidFile(BadConfiguration):
    """A file has problems; all of them are in `diagnostics`, in the file's order."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        count = len(diagnostics)
        first = diagnostics[0]
        super().__init__(f"{first.place}: {first.message}" + f" (and {count - 1} more)" * (count > 1))
        self.diagnostics = diagnostics


class _File:
    """One file on its way in: its text, and a way to its positions."""

    def __init__(self, file: source.SourceFile) -> None:
        self.name = file.name
        self.data = file.data
        self.text = ""
        self.document: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._positions: Any = None
        self._lines: list[str] = []

    @property
    def tables(self) -> list[Any]:
        """The [[mapping]] tables, whatever they hold."""
        found = self.document.get("mapping", [])
        return found if isinstance(found, list) else []

    def diagnostic(self, problem: Problem, related: str = "") -> Diagnostic:
        if self._positions is None:
            from redirector.toml_positions import Positions  # only after an error

            self._positions = Positions(self.text)
        find = self._positions.key if problem.at_key else self._positions.value
        place = find(problem.path)
        message = f"{problem.message} (the other: {related})" if related else problem.message
        return self.at(place.line, place.column, place.length, message, problem.hint)

    def at(self, line: int, column: int, length: int, message: str, hint: str = "") -> Diagnostic:
        lines = self._lines = self._lines or self.text.split("\n")
        text = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
        return Diagnostic(self.name, line, column, length, message, hint, text)

    def line_of(self, path: tuple[str | int, ...]) -> str:
        place = self.diagnostic(Problem(path, ""))
        return f"{place.file}:{place.line}"


def load(path: str, *, insist: bool = True, backend: str = "") -> Ruleset:
    """The ruleset of a file, a folder or "-". Raises InvalidFile with every problem, BadConfiguration if unreadable."""
    return parse(source.read(path, insist=insist), backend)


def parse(files: list[source.SourceFile], backend: str = "") -> Ruleset:
    """The ruleset of the files together: one namespace of names, settings in at most one of them. What `backend` ("":
    the one that the settings name) cannot do is a problem, too."""
    opened = [_File(file) for file in files]
    broken = [d for file in opened for d in _decode(file)]
    if broken:
        raise InvalidFile(broken)
    mappings: list[Mapping] = []
    places: list[tuple[_File, int]] = []  # where each mapping stands
    settings, settings_file = Settings(), ""
    for file in opened:
        for index, mapping in _read_tables(file):
            mappings.append(mapping)
            places.append((file, index))
        if "settings" in file.document:
            report = Report(("settings",), file.problems)
            if settings_file:
                report(f"settings stand in {settings_file} already", "keep them in one file", at_key=True)
            settings = parse_settings(file.document["settings"], report) or settings
            file.problems += backend_problems(settings, backend or settings.backend)
            settings_file = file.name
    found = [file.diagnostic(problem) for file in opened for problem in file.problems]
    found += _names_taken(opened, places)
    found += [_placed(places, problem) for problem in ruleset_problems(mappings)]
    if found:
        raise _invalid(opened, found)
    return Ruleset.checked(tuple(mappings), settings)


def places(files: list[source.SourceFile]) -> dict[str, tuple[str, int]]:
    """Where each name stands, by file and line; nothing of files that cannot be decoded."""
    found: dict[str, tuple[str, int]] = {}
    for file in map(_File, files):
        for index, table in enumerate([] if _decode(file) else file.tables):
            name = table.get("name") if isinstance(table, dict) else None
            if isinstance(name, str):
                place = file.diagnostic(Problem(("mapping", index, "name"), ""))
                found.setdefault(name, (place.file, place.line))
    return found


def refused(files: list[source.SourceFile], problems: Iterable[Problem]) -> InvalidFile:
    """What somebody finds wrong with the ruleset that `parse` made of these files, each problem with its place. Paths
    start with ("mapping", index among all) or "settings"."""
    opened = [_File(file) for file in files]
    for file in opened:
        _decode(file)
    places = [(file, index) for file in opened for index in range(len(file.tables))]
    settings = next((file for file in opened if "settings" in file.document), opened[0])
    found = []
    for problem in problems:
        of_mapping = problem.path[:1] == ("mapping",)
        found.append(_placed(places, problem) if of_mapping else settings.diagnostic(problem))
    return _invalid(opened, found)


def _invalid(files: list[_File], found: list[Diagnostic]) -> InvalidFile:
    order = {file.name: i for i, file in enumerate(files)}
    return InvalidFile(sorted(found, key=lambda d: (order[d.file], d.line, d.column)))


def _names_taken(files: list[_File], places: list[tuple[_File, int]]) -> list[Diagnostic]:
    """Names used twice where one of the two mappings is wrong in other ways (`ruleset_problems` sees the others)."""
    if len(places) == sum(len(file.tables) for file in files):
        return []
    valid = {(file.name, index) for file, index in places}
    first: dict[str, tuple[_File, int]] = {}
    found = []
    for file in files:
        for index, table in enumerate(file.tables):
            name = table.get("name") if isinstance(table, dict) else None
            if not isinstance(name, str):
                continue
            other, other_index = first.setdefault(name, (file, index))
            if (other, other_index) == (file, index) or {(file.name, index), (other.name, other_index)} <= valid:
                continue
            problem = Problem(("mapping", index, "name"), f"the name {quoted(name)} is already taken")
            found.append(file.diagnostic(problem, other.line_of(("mapping", other_index, "name"))))
    return found


def _placed(places: list[tuple[_File, int]], problem: Problem) -> Diagnostic:
    """A problem of the ruleset, where it stands in one of the files."""
    file, local = _locate(places, problem.path)
    related = ""
    if problem.related:
        other, other_path = _locate(places, problem.related)
        related = other.line_of(other_path)
    return file.diagnostic(problem._replace(path=local), related)


def _locate(places: list[tuple[_File, int]], path: tuple[str | int, ...]) -> tuple[_File, tuple[str | int, ...]]:
    """From ("mapping", index among all, …) to the file and the path within it."""
    file, index = places[int(path[1])]
    return file, ("mapping", index, *path[2:])


def _decode(file: _File) -> list[Diagnostic]:
    """Bytes to text to TOML; what stops at the first error, because nothing behind it can be trusted."""
    try:
        file.text = file.data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = file.data[: error.start].decode("utf-8")
        file.text = file.data.decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        message = f"byte 0x{file.data[error.start]:02x} is no UTF-8: a mapping file is UTF-8 text"
        return [file.at(line, column, 1, message, "save the file as UTF-8")]
    if file.text.startswith("\ufeff"):
        return [file.at(1, 1, 1, "the file starts with a byte order mark", "save it as UTF-8 without one")]
    try:
        file.document = tomli.loads(file.text)
    except tomli.TOMLDecodeError as error:
        from redirector.toml_positions import syntax_error_position

        message, place = syntax_error_position(error, file.text)
        return [file.at(place.line, place.column, place.length, f"not TOML: {message}")]
    except RecursionError:  # of values, or the parts of a key
        deep = re.search(_DEEP_KEY, file.text)
        start = deep.start() if deep else 0
        line, column = file.text.count("\n", 0, start) + 1, start - file.text.rfind("\n", 0, start)
        return [file.at(line, column, 1, "not a mapping file: its keys or values are nested too deep")]
    except ValueError as error:  # an integer of thousands of digits (sys.set_int_max_str_digits), an impossible date
        return [file.at(1, 1, 1, f"not TOML: {error}")]
    return []


def _read_tables(file: _File) -> list[tuple[int, Mapping]]:
    """The valid mappings with their index in the file; problems go to the file."""
    root = Report((), file.problems)
    for key in file.document:
        if key not in ROOT_KEYS:
            hint = suggestion(key, ROOT_KEYS) or "at the top stand version, [[mapping]] and [settings]"
            root.at(key)(f"unknown key {quoted(key)}", hint, at_key=True)
    version = file.document.get("version")
    if version is None:
        root("the file has no version", "start it with: version = 1")
    elif version != VERSION or isinstance(version, bool | float):
        root.at("version")(f"version {quoted(version)} is not known here; this program reads version {VERSION}")
    tables = file.document.get("mapping", [])
    if not isinstance(tables, list):
        hint = "write [[mapping]], with double brackets" if isinstance(tables, dict) else ""
        root.at("mapping")(f"mapping must be an array of tables, not a {kind(tables)}", hint, at_key=True)
        return []
    parsed = ((i, parse_mapping(table, Report(("mapping", i), file.problems))) for i, table in enumerate(tables))
    return [(i, mapping) for i, mapping in parsed if mapping]


def to_document(ruleset: Ruleset) -> dict[str, Any]:
    """A ruleset as plain data, in the shape of the file; what generations and saved plans hold."""
    found: dict[str, Any] = {"version": VERSION}
    if ruleset.settings != Settings():
        plain = Settings()
        pairs = (("backend", ruleset.settings.backend), ("priority", ruleset.settings.priority))
        found["settings"] = {key: value for key, value in pairs if value != getattr(plain, key)}
    found["mapping"] = [document(mapping) for mapping in ruleset.mappings]
    if ruleset.networks:
        found["networks"] = list(ruleset.networks)
    return found


def from_document(data: Any) -> Ruleset:
    """Inverts `to_document`. Raises InvalidModel for anything that it could not have made."""
    problems: list[Problem] = []
    root = Report((), problems)
    if not isinstance(data, dict) or data.get("version") != VERSION or not isinstance(data.get("mapping"), list):
        raise InvalidModel([Problem((), "not a ruleset of a version known here")])
    settings = parse_settings(data.get("settings", {}), root.at("settings"))
    mappings = [parse_mapping(table, root.at("mapping", i)) for i, table in enumerate(data["mapping"])]
    networks = several(network)(data["networks"], root.at("networks")) if "networks" in data else ()
    if problems or settings is None or networks is None:
        raise InvalidModel(problems)
    return Ruleset(tuple(m for m in mappings if m), settings, networks)


def digest(ruleset: Ruleset) -> str:
    """SHA-256 (hex) of the canonical document: equal for files that mean the same."""
    import hashlib

    canonical = json.dumps(to_document(ruleset), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write(ruleset: Ruleset) -> str:
    """A mapping file (TOML 1.0) that means this ruleset."""
    data = to_document(ruleset)
    lines = [f"version = {VERSION}"]
    tables = [("[settings]", data["settings"])] if "settings" in data else []
    tables += [("[[mapping]]", table) for table in data["mapping"]]
    for header, table in tables:
        lines += ["", header, *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's as well, as long as non-ASCII stays as it is.
    return json.dumps(value, ensure_ascii=False)
