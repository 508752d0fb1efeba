"""A rendering that is more than one file: a shell script that puts the files where they belong, and says what it is.

Files of ours carry a mark and are replaced; somebody else's of the same name is refused, before anything is written.
With DESTDIR= in the environment the script fills that root, an image's say, and runs no command on this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MARK = "# Written by `redirector render`."
# `ours PATH…` ends the script if one of these files is somebody else's.
OURS = f"""\
root=${{DESTDIR:-}}
ours() {{
    for file; do
        if [ -e "$root$file" ] && ! grep -qxF '{MARK}' "$root$file"; then
            echo "$root$file is there and not ours: nothing was changed" >&2
            exit 1
        fi
    done
}}
"""
# `put PATH`: standard input becomes that file, all of it or nothing.
_PUT = """\
put() {
    mkdir -p "$root${1%/*}"
    cat > "$root$1.new"
    chmod 644 "$root$1.new"
    mv "$root$1.new" "$root$1"
}
"""


@dataclass(frozen=True, slots=True)
class File:
    """A text file of root's that anybody may read; `path` is absolute, and plain for a shell."""

    path: str
    text: str


def remarks(lines: Iterable[str]) -> str:
    """A block of comments; a line that is empty stays so."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def head(kind: str, lines: Sequence[str]) -> str:
    """What every rendering begins with."""
    shadow = (
        f"The mappings of a redirector file by another mechanism: {kind}.",
        "",
        "A redirect of the same ports would go on taking their packets: `redirector remove` ends it.",
    )
    return remarks((*shadow, "", *lines) if lines else shadow)


def script(kind: str, lines: Sequence[str], files: Sequence[File], here: Sequence[str], there: Sequence[str]) -> str:
    """A script of sh; `here` are the commands that follow on this machine, `there` those in a root apart."""
    parts = [f"#!/bin/sh\n{head(kind, lines)}set -eu\numask 022\n{OURS}{_PUT}"]
    parts.append("ours " + " ".join(file.path for file in files) + "\n")
    parts += [f"\nput {file.path} <<'END'\n{MARK}\n{file.text}END\n" for file in files]
    first, second = ("".join(f"    {command}\n" for command in commands) for commands in (here, there))
    parts.append(f'\nif [ -z "$root" ]; then\n{first}else\n{second}fi\n')
    return "".join(parts)
