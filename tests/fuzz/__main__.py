"""Fuzz the readers of what others wrote: the mapping file, and what comes in by netlink.

    make fuzz                                            200,000 cases, half of them for each target
    make fuzz ARGS='--seed 7 --cases 1000 --target netlink-decoder'
    .venv/bin/python -m tests.fuzz --replay FILE         a case that failed, again

The seed is printed: the same seed gives the same cases. Ends with 1 where a case failed; each of those is in a file.
"""

import argparse
import os
import secrets
import sys
import time

from tests.fuzz.decoder import Decoder
from tests.fuzz.engine import Target, campaign, load, save, tried
from tests.fuzz.mapping_file import MappingFile

CASES = 200_000
FOLDER = "fuzz-failures"
PROGRAM = f"{sys.executable} -m tests.fuzz"


def targets() -> list[Target]:
    return [MappingFile(), Decoder()]


def main() -> int:
    known = {target.name: target for target in targets()}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of what others wrote.")
    parser.add_argument("--seed", help="any text; by default a new one each time")
    parser.add_argument("--cases", type=int, default=CASES, help="how many in all [%(default)s]")
    parser.add_argument("--target", choices=sorted(known), action="append", help="only this one; by default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes [%(default)s]")
    parser.add_argument("--replay", metavar="FILE", help="run one case that was written down")
    wanted = parser.parse_args()
    if wanted.replay:
        name, case = load(wanted.replay)
        what = tried(known[name], case)
        print(what or "nothing is wrong with this case")  # noqa: T201
        return 1 if what else 0
    seed = wanted.seed or secrets.token_hex(4)
    chosen = [known[name] for name in wanted.target or known]
    share = -(-wanted.cases // len(chosen))
    print(f"seed {seed}: {share:,} cases each of {', '.join(target.name for target in chosen)}", flush=True)  # noqa: T201
    began = time.monotonic()
    found = campaign(chosen, seed, share, wanted.jobs)
    seconds = time.monotonic() - began
    for failure in found:
        path = save(failure, FOLDER)
        print(f"\n{failure.target}, case {failure.number}:\n{failure.what}again: {PROGRAM} --replay {path}")  # noqa: T201
    ran = share * len(chosen) if not found else f"up to {share * len(chosen)}"
    shown = f"{ran:,}" if isinstance(ran, int) else ran
    print(f"{shown} cases in {seconds:.0f} s, seed {seed}: {len(found) or 'no'} failures")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
