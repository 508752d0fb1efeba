"""`redirector watch` as it runs on a lab's host: what it tells, on standard error and to a service manager of ours."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from tests.kernel.echo import Answered
from tests.kernel.lab import HOST, Lab
from tests.kernel.product import Product, mapping

PATIENCE = 30.0
WEB = mapping("web", 80, 8080)
OTHER = mapping("web", 80, 8081)
TABLE = "inet redirector"


def serve(lab: Lab) -> None:
    """What WEB and OTHER lead to."""
    for address in HOST:
        lab.host.serve("tcp", address, 8080, 8081)


def served(lab: Lab, port: int = 8080) -> bool:
    """Whether a client from outside is led there, over IPv4 and IPv6."""
    answers = [lab.client.ask_tcp(address, 80) for address in HOST]
    return all(isinstance(answer, Answered) and answer.port == port for answer in answers)


class Watch:
    """A running one."""

    def __init__(self, process: "subprocess.Popen[bytes]", manager: socket.socket) -> None:
        self.process, self._manager = process, manager
        self._unread = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that it tells, without its name. AssertionError where none comes, EOFError at the end."""
        assert self.process.stderr
        while b"\n" not in self._unread:
            assert select.select([self.process.stderr], [], [], PATIENCE)[0], "it tells nothing"
            data = os.read(self.process.stderr.fileno(), 65536)
            if not data:
                raise EOFError(self._unread)
            self._unread += data
        found, _, self._unread = self._unread.partition(b"\n")
        return found.decode().removeprefix("redirector: ")

    def until(self, words: str) -> list[str]:
        """The lines up to the first with these words, that one last."""
        lines = [self.line()]
        while words not in lines[-1]:
            assert len(lines) < 1000, lines[-10:]
            lines.append(self.line())
        return lines

    def healed(self) -> str:
        """The next line, which must tell of a healing; without the time that it took."""
        found = self.line()
        assert re.match(r"healed in \d+ ms: ", found), found
        return found.partition(": ")[2]

    def notified(self) -> dict[str, str]:
        """The next thing that it tells its service manager."""
        return dict(line.split("=", 1) for line in self._manager.recv(65536).decode().split("\n"))

    def await_ready(self) -> None:
        """Raises AssertionError, with what it complained of, where it does not become ready."""
        try:
            assert self.notified()["READY"] == "1"
        except TimeoutError:
            self.process.kill()
            raise AssertionError((self.process.communicate()[1] or b"").decode()) from None

    def until_status(self, words: str) -> None:
        """Return when its status for the service manager has these words."""
        while words not in self.notified().get("STATUS", ""):
            pass

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> list[str]:
        """Let it end, cleanly; the lines that it had still to tell."""
        self.send(signal.SIGTERM)
        lines = []
        with contextlib.suppress(EOFError):
            while True:
                lines.append(self.line())
        assert self.process.wait(PATIENCE) == 0, lines
        assert lines.pop() == "ended; the redirects stay as they are"
        return lines

    def switches(self) -> int:
        """How often it has slept so far: what wakes up sleeps again."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            (found,) = re.findall(r"^voluntary_ctxt_switches:\t(\d+)$", file.read(), re.MULTILINE)
        return int(found)

    def asleep(self) -> None:
        """Return when it waits for the next event, in poll(2), of its two descriptors."""
        call: list[str] = []
        while call[:1] not in (["7"], ["73"]) or call[2] != "0x2":  # poll; ppoll, where there is no poll
            with open(f"/proc/{self.pid}/syscall", encoding="ascii") as file:
                call = file.read().split()

    def resident(self) -> int:
        """Its memory, in KiB."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            (found,) = re.findall(r"^VmRSS:\s+(\d+) kB$", file.read(), re.MULTILINE)
        return int(found)


@contextlib.contextmanager
def watching(
    product: Product, *args: str, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
) -> Iterator[Watch]:
    """On the product's host, from the moment on that it is ready until the block ends."""
    lab = product.lab
    path = os.path.join(os.path.dirname(lab.state_dir), "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        process = lab.host.namespace.popen(
            [*wrapper, *lab.command("watch", *args)],
            env=lab.environment({"NOTIFY_SOCKET": path, **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        watch = Watch(process, manager)
        try:
            watch.await_ready()
            yield watch
        finally:
            process.kill()
            process.communicate()
            os.unlink(path)


def started(watch: Watch) -> None:
    assert watch.line().startswith("watching: ")
