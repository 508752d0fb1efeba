"""The second opinion: libnftables, through the distribution's own Python binding, in a child process.

The library is C, reads whatever others put into the kernel, and can crash on it; and the binding belongs to the
distribution's Python, not to the tests'. So this file is two programs. `Library` is the tests' side: it starts this
same file as a child inside a network namespace, and speaks with it line by line in JSON. A child that ends before it
has answered is an AssertionError, with what it last said.
"""

import json
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # the child cannot import it
    from redirector.host.namespaces import Namespace

PYTHON = "/usr/bin/python3"  # the one that Debian's python3-nftables is for


class Refusal(AssertionError):
    """libnftables does not accept a command; the message is its own."""


class Library:
    """libnftables at work inside one namespace; a context manager."""

    def __init__(self, namespace: "Namespace") -> None:
        # -I: neither PYTHONPATH nor this folder may stand before the distribution's modules.
        argv = [PYTHON, "-I", __file__]
        pipe = subprocess.PIPE
        self._child: subprocess.Popen[str] = namespace.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def load(self, text: str) -> None:
        """Run commands or a table in nft's language, as `nft -f`. Raises Refusal."""
        self._command(text, json_form=False)

    def load_json(self, text: str) -> None:
        """The same in libnftables' JSON, as `nft -j -f`. Raises Refusal."""
        self._command(text, json_form=True)

    def flush(self) -> None:
        self.load("flush ruleset")

    def text(self) -> str:
        """Our table as `nft list table` prints it."""
        return self._command("list table inet redirector", json_form=False)

    def listing(self) -> list[dict[str, Any]]:
        """Our table as `nft -j list table` prints it, without what differs from one loading to the next.

        That is the handles, which only count, and the order of elements, which is the hash's.
        """
        answer = self._command("list table inet redirector", json_form=True)
        objects: list[dict[str, Any]] = json.loads(answer)["nftables"]
        for found in objects:
            for value in found.values():
                value.pop("handle", None)
                if "elem" in value:
                    value["elem"].sort(key=json.dumps)
        return objects

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()  # which ends it
        self._child.wait()
        for stream in (self._child.stdout, self._child.stderr):
            assert stream is not None
            stream.close()

    def _command(self, text: str, *, json_form: bool) -> str:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps([json_form, text]) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            complaint = self._child.stderr.read() if self._child.stderr else ""
            raise AssertionError(f"libnftables' process ended with {self._child.wait()}: {complaint}")
        status, output, error = json.loads(answer)
        if status:
            raise Refusal(error)
        return str(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve() -> None:
    """The child's side: commands in, answers out, until the input ends."""
    import nftables

    library = nftables.Nftables()
    for line in sys.stdin:
        json_form, text = json.loads(line)
        library.set_json_output(json_form)  # of the input, too
        sys.stdout.write(json.dumps(library.cmd(text)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
