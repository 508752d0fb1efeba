"""Commands as people type them, or keep them in a script: `iptables -t nat -A PREROUTING …`; also what -S prints.

Each line is taken for itself: what needs a shell (variables, loops, pipes) is left over.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from redirector.errors import printable
from redirector.importers import chains
from redirector.importers.chains import Line
from redirector.importers.found import Beyond, Findings, Leftover, Place, Text

TOOL = re.compile(r"(?:\S*/)?(ip6?tables)(?:-nft|-legacy)?")
SHELL = re.compile(r"[$`|&<>()]|;")
CHAIN = {"--append": "-A", "--insert": "-I", "--new-chain": "-N", "--flush": "-F", "--policy": "-P", "--delete": "-D"}
OTHER = {"--delete-chain": "-X", "--replace": "-R", "--rename-chain": "-E", "--zero": "-Z", "--list": "-L"}
COMMANDS = CHAIN | OTHER | {"--list-rules": "-S", "--check": "-C"}
PASSED = ("-n", "-v", "--numeric", "--verbose", "-E", "-H")  # of iptables, or of sudo


def read(text: Text) -> Findings:
    """What the commands leave behind on a host that had no rules."""
    tables: dict[str, chains.Chains] = {}
    left: dict[Place, str] = {}  # one reason is enough for a line
    for place in _lines(text):
        for part in _parts(place):
            try:
                _carry_out(place, part, tables, text.family)
            except Beyond as beyond:
                left.setdefault(place, str(beyond))
    found = Findings([], [Leftover(place, why) for place, why in left.items()], [], set())
    for family, nat in tables.items():
        found.add(chains.walk(nat, family))
    return found


def _lines(text: Text) -> Iterator[Place]:
    """Lines that say something; one that ends in a backslash goes on."""
    begin, joined = 0, ""
    for number, line in enumerate(text.text.split("\n"), 1):
        begin = begin or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        whole = (joined + line).strip()
        if whole and not whole.startswith("#"):
            yield Place(text.name, begin, whole)
        begin, joined = 0, ""
    if joined.strip():
        yield Place(text.name, begin, joined.strip())


def _parts(place: Place) -> Iterator[list[str]]:
    """The words of each command of a line; none where they cannot be told, and then the line as one word."""
    try:
        lexer = shlex.shlex(place.text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        yield [place.text]
        return
    part: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&"):
            if part:
                yield part
            part = []
        else:
            part.append(word)


def _carry_out(place: Place, words: list[str], tables: dict[str, chains.Chains], default: str) -> None:
    """Do to `tables` (chains, by family) what one command does. Raises Beyond."""
    while words and (words[0] == "sudo" or (words[0] in PASSED and words[0] not in COMMANDS.values())):
        words = words[1:]
    found = TOOL.fullmatch(words[0]) if words else None
    if not words or not (found or words[0] in COMMANDS.values()):
        raise Beyond("not a command of iptables")
    if any(SHELL.search(word) for word in words):
        raise Beyond("only a shell knows what this becomes: give what iptables-save prints when it has run")
    family = ("ipv6" if found[1] == "ip6tables" else "ipv4") if found else default or "ipv4"
    table, command, arguments, rest = _options(words[1:] if found else words)
    if table != "nat" and found:
        return  # does not redirect
    nat = tables.setdefault(family, {})
    chain = arguments[0] if arguments else ""
    match command:
        case "-A":
            nat.setdefault(chain, []).append(Line(place, lambda: rest))
        case "-I":
            position = int(arguments[1]) - 1 if len(arguments) > 1 else 0
            nat.setdefault(chain, []).insert(max(position, 0), Line(place, lambda: rest))
        case "-N":
            nat.setdefault(chain, [])
        case "-F":
            for name in [chain] if chain else list(nat):
                nat[name] = []
        case "-P" | "-L" | "-S" | "-Z" | "-X" | "-C":
            pass
        case _:
            raise Beyond(f"{command or 'this'} adds no rule: give what iptables-save prints when it has run")


def _options(words: list[str]) -> tuple[str, str, list[str], list[str]]:
    """(table, command, chain and position, what is left: the rule). Raises Beyond."""
    table, command = "filter", ""
    arguments: list[str] = []
    rest: list[str] = []
    left = list(reversed(words))
    while left:
        word = left.pop()
        name = COMMANDS.get(word, word)
        if word in ("-t", "--table"):
            table = left.pop() if left else ""
        elif word.startswith("--table="):
            table = word[8:]
        elif word in ("-w", "--wait", "-W", "--wait-interval"):
            if left and left[-1].isdigit():
                left.pop()
        elif not command and name in COMMANDS.values():
            command = name
            while left and not left[-1].startswith(("-", "!")) and len(arguments) < 2:
                arguments.append(left.pop())
        elif word not in PASSED:
            rest.append(word)
    if command in ("-A", "-I", "-N") and not arguments:
        raise Beyond(f"{command} names no chain")
    if command == "-I" and len(arguments) > 1 and not re.fullmatch("[0-9]{1,9}", arguments[1]):
        raise Beyond(f"{printable(arguments[1][:40])} is no position")
    return table, command, arguments, rest
