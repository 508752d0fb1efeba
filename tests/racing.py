"""A process that puts one thing after the other in a name's place, as fast as it can: the other side of a race."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROUNDS = 1_000_000  # it ends by itself, whatever becomes of the test

# Arguments: the name, a name beside it, the owner of links (-1: as they are made), and what to put there by turns:
# "link:TARGET", or "file:PATH", which is linked hard. rename(2) leaves no moment in which nothing is there.
SCRIPT = """
import os, sys
name, beside, uid, *things = sys.argv[1:]
for number in range(ROUNDS):
    for thing in things:
        kind, _, target = thing.partition(":")
        if kind == "link":
            os.symlink(target, beside)
            os.lchown(beside, int(uid), -1)
        else:
            os.link(target, beside)
        os.replace(beside, name)
    if not number:
        print("racing", flush=True)
"""


@contextmanager
def swapped(name: Path, *things: str, uid: int = -1) -> Iterator[None]:
    """While it is entered, `name` is each of `things` by turns: "link:TARGET" or "file:PATH"."""
    code = SCRIPT.replace("ROUNDS", str(ROUNDS))
    argv = [sys.executable, "-I", "-c", code, str(name), f"{name}.beside", str(uid), *things]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as racer:
        try:
            assert racer.stdout is not None
            assert racer.stdout.readline() == b"racing\n"
            yield
            assert racer.poll() is None, "the race was over before the end"
        finally:
            racer.kill()
