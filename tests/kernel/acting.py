"""A process that calls itself something else, such as sshd, and listens: for tests of what the guards see.

`python -m tests.kernel.acting NAME ADDRESS PORT [COMMAND…]` prints a line once it listens. Without a command it then
waits until its standard input ends. With one it accepts a connection, stops listening, runs the command, and ends as
that does: what an ssh session looks like, from its server down.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

from tests.kernel.lab import Lab


def act(name: str, address: str, port: int, command: list[str]) -> int:
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(name)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:
        print("listening", flush=True)  # noqa: T201 - what the test waits for
        if not command:
            sys.stdin.read()
            return 0
        connection, _client = server.accept()
    with connection:
        return subprocess.run(command, check=False).returncode


@contextlib.contextmanager
def actor(lab: Lab, name: str, address: str, port: int, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """The process on the host, listening; at the end its input ends, and with it the process."""
    argv = [sys.executable, "-m", "tests.kernel.acting", name, address, str(port), *command]
    pipe = subprocess.PIPE
    streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    with lab.host.namespace.popen(argv, env=lab.environment(), text=True, **streams) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "listening\n"
        yield child
        if child.stdin and not child.stdin.closed:
            child.stdin.close()


if __name__ == "__main__":
    sys.exit(act(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
