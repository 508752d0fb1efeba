"""What the demo shows, step by step. A promise is the exact text that a client gets to see, or an exit status."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Sequence

from redirector import source
from redirector.demo.server import CLOSED_PORT, UDP_PORT, WEB_PORTS, greeting
from redirector.demo.stage import CLIENT, HOST, Finished, Stage, url_host
from redirector.errors import BadConfiguration, printable
from redirector.terminal import Paint, say

FOLDER = "mappings"  # what the commands get as FILE, inside the stage's own folder
DNS = f"""\
version = 1

[[mapping]]
name = "dns"
listen = 53
to = {UDP_PORT}
protocol = "udp"
"""
REFUSED = os.strerror(errno.ECONNREFUSED)
FORBIDDEN = os.strerror(errno.EACCES)
# Who asks for which address: from outside, and the host itself, which is where many a redirect stops working.
EVERYBODY = (*(("client", address) for address in HOST), ("host", "127.0.0.1"), ("host", "::1"))
WIDTH = 30  # of what was asked, before what was answered


class Broken(Exception):
    """Something did not come out as promised. It has been said already."""


class Interrupted(Exception):
    """A signal was noted."""


class Teller:
    """Prints the story, line by line, and holds what comes out against what was promised.

    `signals` holds what was noted so far: each line raises Interrupted if there is one.
    """

    def __init__(self, paint: Paint, signals: Sequence[int]) -> None:
        self._paint = paint
        self._signals = signals
        self._step = 0
        self._headed = False  # whether the last line was a headline
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a check mark that a terminal cannot show is no reason to fail

    def blank(self) -> None:
        say("")

    def tell(self, text: str, colour: str = "") -> None:
        """One paragraph. Raises Interrupted."""
        if self._signals:
            raise Interrupted
        self._headed = False
        for line in text.split("\n"):
            say(f"   {self._paint(line, colour)}" if line and colour else f"   {line}".rstrip())

    def bold(self, text: str) -> str:
        return self._paint(text, "bold")

    def step(self, headline: str) -> None:
        self._step += 1
        self.blank()
        say(self.bold(f"{self._step}. {headline}"))
        self._headed = True

    def command(self, args: Sequence[str], finished: Finished, status: int, meaning: str) -> None:
        """A command as it was typed, what it printed, and its exit status unless 0 was promised. Raises Broken."""
        if not self._headed:
            self.blank()
        self.tell(f"{self._paint('$', 'dim')} {self.bold(' '.join(['redirector', *args]))}")
        for line in finished.text.split("\n"):
            say(f"     {line}".rstrip())
        if finished.status or status:
            label = f"exit status ({status}: {meaning})" if meaning else "exit status"
            self.promise(label, str(finished.status), str(status))

    def promise(self, what: str, seen: str, promised: str) -> None:
        """What was asked, and what came out. Raises Broken if that is something else than was promised."""
        kept = seen == promised
        mark = self._paint("✓", "green") if kept else self._paint("✗", "red")
        self.tell(f"{mark} {what.ljust(WIDTH)} {printable(seen)}")
        if not kept:
            self.tell(f"  {'but this was promised:'.ljust(WIDTH)} {promised}", "red")
            self.blank()
            say(self._paint("The demo did not come out as promised: it ends here.", "red"), sys.stderr)
            raise Broken


def play(teller: Teller, web: str, *, terminal: bool) -> None:
    """The whole story. Raises Broken, Interrupted; what Stage raises."""
    with open(web, "rb") as file:
        wanted = file.read()
    started = time.monotonic()
    with Stage(terminal=terminal) as stage:
        scene = _Scene(teller, stage)
        scene.introduce()
        stage.put(f"{FOLDER}/dns.toml", DNS.encode())
        scene.first_mapping()
        stage.put(f"{FOLDER}/web.toml", wanted)
        scene.web()
        scene.tampering()
        scene.rollback()
        scene.removal()
    teller.promise(f"process {stage.servers.pid}", f"exit status {stage.servers.returncode}", "exit status 0")
    teller.promise(stage.folder, "still there" if os.path.exists(stage.folder) else "removed", "removed")
    teller.tell("Without a process the two namespaces ended, and with them the cable.")
    teller.blank()
    say(teller.bold(f"All as promised, in {time.monotonic() - started:.1f} s."))
    say(f"Mapping files to start from: {printable(os.path.dirname(os.path.abspath(web)))}")
    say("What one of them would change on this machine: redirector plan FILE")


class _Scene:
    """The steps; each leaves the stage as the next one needs it."""

    def __init__(self, teller: Teller, stage: Stage) -> None:
        self._teller = teller
        self._stage = stage
        self._insist: list[str] = []

    def introduce(self) -> None:
        stage, teller = self._stage, self._teller
        say(teller.bold("Redirector on real packets. Nothing of this machine's own network is touched."))
        teller.step("A host, a client, and a server without privileges")
        teller.tell(f"Two private network namespaces, joined by a cable:\n  host    {HOST[0]:13} {HOST[1]}")
        teller.tell(f"  client  {CLIENT[0]:13} {CLIENT[1]}")
        teller.tell(f"\nOn the host, a server: process {stage.servers.pid} of {stage.owner}, without privileges:")
        teller.promise(f"listen on port {CLOSED_PORT}", stage.refusal, FORBIDDEN)
        self._web("client", HOST[0], WEB_PORTS[0], port=WEB_PORTS[0])
        teller.tell("\nSo clients that come to the well-known ports find nobody:")
        for address in HOST:
            self._web("client", address, None)
        self._udp("client", HOST[0], None)

    def first_mapping(self) -> None:
        self._teller.step("A mapping file, and a kernel that follows it")
        self._teller.tell(f"{FOLDER}/dns.toml:")
        self._teller.tell("\n".join(f"  {line}" for line in DNS.rstrip().split("\n")), "dim")
        self._judge_folder()
        self._run("apply", FOLDER, *self._insist)
        self._teller.blank()
        for who, address in EVERYBODY:
            self._udp(who, address, UDP_PORT)

    def web(self) -> None:
        self._teller.step("A web server: rules/web.toml comes into the folder, too")
        self._run("plan", FOLDER, status=2, meaning="changes")
        self._run("apply", FOLDER, *self._insist)
        self._teller.blank()
        for who, address in EVERYBODY:
            self._web(who, address, WEB_PORTS[0])
        self._web("client", HOST[0], WEB_PORTS[1], port=443)
        self._run("status")

    def tampering(self) -> None:
        self._teller.step("Somebody meddles with the kernel's tables: status finds it, apply mends it")
        changed = self._stage.delete_element("tcp", 80)
        self._teller.tell(f"by netlink, what `nft delete element inet redirector {changed} {{ tcp . 80 }}` does")
        self._web("client", HOST[0], None)
        self._run("status", status=2, meaning="drift")
        self._run("apply", FOLDER, *self._insist)
        self._teller.blank()
        for who, address in EVERYBODY:
            self._web(who, address, WEB_PORTS[0])

    def rollback(self) -> None:
        self._teller.step("Back to the generation before: without web, and with dns untouched")
        self._run("rollback")
        self._teller.blank()
        for who, address in EVERYBODY:
            self._web(who, address, None)
        self._udp("client", HOST[0], UDP_PORT)
        self._run("history")

    def removal(self) -> None:
        self._teller.step("And away with everything")
        self._run("remove", "--purge")
        self._run("status", status=3, meaning="none applied")
        self._udp("client", HOST[0], None)

    def _run(self, *args: str, status: int = 0, meaning: str = "") -> None:
        self._teller.command(args, self._stage.redirector(*args), status, meaning)

    def _web(self, who: str, address: str, reached: int | None, port: int = 80) -> None:
        """A web client reaches the server's port `reached`; or nobody."""
        url = f"http://{url_host(address)}{'' if port == 80 else f':{port}'}/"
        promised = REFUSED if reached is None else f"200 OK: {greeting(_seen(who, address), reached)}"
        self._teller.promise(f"{who:6}  {url}", self._stage.http(who, address, port), promised)

    def _udp(self, who: str, address: str, reached: int | None) -> None:
        """A UDP client asks port 53, and reaches the server's port `reached`; or nobody."""
        promised = REFUSED if reached is None else f"{greeting(_seen(who, address), reached)}: ping"
        seen = self._stage.udp(who, address, 53, "ping")
        self._teller.promise(f"{who:6}  udp {url_host(address)}:53", seen, promised)

    def _judge_folder(self) -> None:
        """Where `apply` would refuse our own folder, say why: in a user namespace root's folders look like nobody's."""
        try:
            source.read(os.path.join(self._stage.folder, FOLDER), insist=False)
        except BadConfiguration as error:
            self._insist = ["--allow-unsafe-file"]
            self._teller.tell(f"\nHere apply has to be told to trust that folder:\n  {error.message}")
            if self._stage.in_user_namespace:
                self._teller.tell("  (seen from a user namespace, what root has seems to be nobody's)")


def _seen(who: str, address: str) -> str:
    """The address that the server has to see when `who` asks for `address`: their own, whatever is rewritten."""
    return address if who == "host" else CLIENT[HOST.index(address)]
