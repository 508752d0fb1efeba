"""Many commands in a short time, all in one process, that need not start Python each time.

`python -m tests.kernel.running` reads a command a line, a JSON array of words, and does what `redirector WORDS` would,
but for ending. The answer is a line, too: exit code, output, complaints. Sockets are left to be closed with the
process, as the commands do; here that means when the next one comes.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from tests.kernel.lab import Lab
from tests.kernel.product import insist

# Every exit code of README's table, and 130.
DOCUMENTED = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 64, 69, 75, 77, 78, 130})


class Ended(NamedTuple):
    code: int
    output: str
    complaints: str


def serve() -> None:
    from redirector.cli import run

    for line in sys.stdin:
        sys.argv = ["redirector", *json.loads(line)]
        output, complaints = io.BytesIO(), io.BytesIO()
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(output, "utf-8", "replace", write_through=True)),
            contextlib.redirect_stderr(io.TextIOWrapper(complaints, "utf-8", "replace", write_through=True)),
        ):
            code = run()
            told = [output.getvalue().decode(), complaints.getvalue().decode()]
        print(json.dumps([code, *told]), flush=True)  # noqa: T201 - the answer


class Commands:
    """`redirector` on a lab's host, many times; `wrapper` is what the one process is started by, such as unshare."""

    def __init__(self, lab: Lab, wrapper: Sequence[str] = ()) -> None:
        argv = [*wrapper, sys.executable, "-m", "tests.kernel.running"]
        pipe = subprocess.PIPE
        streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "text": True}
        self.process = lab.host.namespace.popen(argv, env=lab.environment(), **streams)

    def __call__(self, *words: str) -> Ended:
        """Run one to its end. It must end by itself with a documented exit code, and tell of no bug of its own."""
        if "apply" in words:
            words = (*words, *insist())
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        ended = Ended(*json.loads(self.process.stdout.readline()))
        told = f"redirector {' '.join(words)}: {ended}"
        assert ended.code in DOCUMENTED, told
        assert "Traceback" not in ended.complaints, told
        assert "internal error" not in ended.complaints, told
        return ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            assert self.process.stdin
            self.process.stdin.close()


if __name__ == "__main__":
    serve()
