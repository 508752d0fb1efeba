"""The terminal, and what is printed to whoever reads it: colours, progress, and printing that cannot fail."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Self, TextIO

COLOURS = {"green": 32, "red": 31, "yellow": 33, "blue": 34, "bold": 1, "dim": 2}


class Paint:
    """ANSI colours, or none: they are for terminals only, and NO_COLOR (no-color.org) turns them off."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def __call__(self, text: str, colour: str) -> str:
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self._enabled else text


class Progress:
    """On a terminal, a line that says what takes so long; it appears after half a second and cleans up after itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._what = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if stream.isatty() else None

    def __call__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _show(self) -> None:
        seconds = 0.5
        while not self._done.wait(0.5):
            self._stream.write(f"\r\x1b[K{self._what} … {seconds:.0f} s")
            self._stream.flush()
            seconds += 0.5
        if seconds > 0.5:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def paint_for(stream: TextIO, environ: dict[str, str] | None = None) -> Paint:
    """Colours if `stream` is a terminal that wants them."""
    values = os.environ if environ is None else environ
    return Paint(stream.isatty() and not values.get("NO_COLOR") and values.get("TERM") != "dumb")


def as_json(data: Any) -> str:
    """JSON that no terminal obeys: json escapes the control characters of ASCII only, and names that others chose may
    hold those from U+0080 on, or bytes that are no text at all."""
    import json

    text = json.dumps(data, indent=2, ensure_ascii=False)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print; a reader that went away, or a full disk, changes nothing about what was done to the kernel."""
    target = stream or sys.stdout
    try:
        target.write(text + "\n")
        target.flush()
    except (OSError, ValueError):
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), target.fileno())
