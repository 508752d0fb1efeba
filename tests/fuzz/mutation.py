"""Damage to bytes: what accidents, other programs and enemies make of them. All chance comes from `dice`."""

import random
from collections.abc import Callable, Sequence

# At the edges of what counters, lengths and signs can hold.
EDGES = (b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff\xff\xff\xff")
LONGEST = 1 << 18  # bytes, of a case that is blown up

Blow = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _span(dice: random.Random, data: bytearray, most: int = 64) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.randint(1, most))


def _flip(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.randrange(256)


def _edge(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    edge = dice.choice(EDGES)
    start = dice.randrange(len(data) + 1)
    data[start : start + len(edge)] = edge


def _delete(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    start, end = _span(dice, data)
    del data[start:end]


def _double(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    start, end = _span(dice, data)
    data[end:end] = data[start:end]


def _move(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    start, end = _span(dice, data)
    part = data[start:end]
    del data[start:end]
    at = dice.randrange(len(data) + 1)
    data[at:at] = part


def _insert(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = dice.choice(words) if words and dice.random() < 0.8 else dice.randbytes(dice.randint(1, 12))


def _replace(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    start, end = _span(dice, data, 12)
    data[start:end] = dice.choice(words) if words else dice.randbytes(4)


def _cut(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    del data[dice.randrange(len(data) + 1) :]


def _blow_up(dice: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    """A piece again and again: what takes time that grows faster than the text shows then."""
    start, end = _span(dice, data)
    piece = data[start:end]
    if piece:
        data[end:end] = piece * min(dice.choice((10, 100, 1000)), LONGEST // len(piece))


BLOWS: tuple[Blow, ...] = (_flip, _set, _edge, _delete, _double, _move, _insert, _replace)
RARE: tuple[Blow, ...] = (_cut, _blow_up)


def damaged(dice: random.Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """`data` after one blow, or some; `words` are what may be put into it."""
    found = bytearray(data)
    for _ in range(min(dice.randint(1, 8), dice.randint(1, 8))):
        blow = dice.choice(RARE) if dice.random() < 0.06 else dice.choice(BLOWS)
        blow(dice, found, words)
    return bytes(found[:LONGEST])
