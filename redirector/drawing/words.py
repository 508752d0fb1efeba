"""Words of a drawing, and how much room they take."""

from __future__ import annotations

import unicodedata

from redirector.drawing.data import Station


def station_words(station: Station) -> tuple[str, str, str]:
    """Its table, its form and kind, its hooks and its place among the others."""
    hooks, priority = ", ".join(station.hooks), station.priority
    form = f"{station.form}, " if station.form else ""
    return station.table, f"{form}{station.kind}", hooks if priority is None else f"{hooks}: {priority}"


def columns(text: str) -> int:
    """The columns that a text takes in a font of one width."""
    return sum(_columns(character) for character in text)


def cut(text: str, most: int) -> str:
    """The beginning that fits into `most` columns."""
    if columns(text) <= most:
        return text
    width, end = 1, 0
    for character in text:
        width += _columns(character)
        if width > most:
            break
        end += 1
    return f"{text[:end]}…"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
