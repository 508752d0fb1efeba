"""`make boot-test`: Redirector at boot, on a real Debian in a virtual machine, shown by what clients get.

Theory of operation. One disk, made as `vagrant up` makes a machine (see `image`), is booted three times. Each boot ends
in the state in which the next one begins: the first in a power cut while a change waits for confirm, the second with a
broken mapping file. Web servers without privileges listen on 3000 and 3001, and each says its port, so that an answer
tells where a redirect led. Clients are in the machine itself; outside, in a network namespace joined to it by a cable;
and on the machine that runs the test, through the virtual network card.

Prints one line for each thing shown. Needs root, and the packages that the Makefile names. KVM is used where it works.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping

from vagrant.image import Failed, Image, make, work_folder
from vagrant.machine import Lost, Machine

DISK_SECONDS = 600  # to make the disk: a minute the first time, seconds later on
PLAY_SECONDS = 600  # for all that is shown
KVM_SECONDS = 30.0  # a machine that takes longer by hardware is emulated faster
BOOT_SECONDS = 150.0
CARD_SECONDS = 30.0

HOST = ("192.0.2.1", "2001:db8::1")
OUTSIDE = ("192.0.2.100", "2001:db8::100")
LOOPBACK = ("127.0.0.1", "::1")
CABLE = f"""
set -e
ip netns add outside
ip link add cable index 1000 type veth peer name eth0 netns outside
ip link set cable up
ip -n outside link set eth0 up
ip address add {HOST[0]}/24 dev cable
ip address add {HOST[1]}/64 dev cable nodad
ip -n outside address add {OUTSIDE[0]}/24 dev eth0
ip -n outside address add {OUTSIDE[1]}/64 dev eth0 nodad
"""
UNIT, STAND_IN, AFTERWARDS = "redirector.service", "redirector-reload.service", "redirector-nftables.service"
FILE = "/etc/redirector/mappings.toml"
ELSEWHERE = """version = 1
[[mapping]]
name = "node"
listen = [80, 81]
to = 3001
"""
BROKEN_AT = "6:6"  # line and column
BROKEN = 'version = 1\n\n[[mapping]]\nname = "node"\nlisten = 80\nto = 300000\n'
REFUSED = "Connection refused"
# Debian's nftables.conf has a table of its own.
TABLES = {"table inet filter", "table inet redirector"}
JOURNAL = f"journalctl --no-pager -b -o cat -u {UNIT}"
# systemctl waits for the unit that it names, and not for those that follow: this waits for what is under way of ours.
FOLLOWED = f"systemd-run -q -p Type=oneshot -p After={UNIT} -p After={STAND_IN} -p After={AFTERWARDS} true"
UNFLUSHED = "/root/unflushed"
CONSOLE_LINES = 40


class Story:
    """What was shown so far, and what was not."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def show(self, what: str, got: object, wanted: object) -> None:
        if got == wanted:
            self.passed += 1
            print(f"ok    {what}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {what}\n      wanted {wanted!r}\n      got    {got!r}", flush=True)

    def show_pages(self, what: str, got: Mapping[str, str], wanted: str) -> None:
        """That every client got the same; one that did not is told alone."""
        self.show(what, {client: page for client, page in got.items() if page != wanted}, {})


def clients(machine: Machine, port: int) -> dict[str, str]:
    """What clients of this port get, over IPv4 and IPv6: the machine's own, and those outside."""
    own, far = (*LOOPBACK, *HOST), HOST
    pages = [*machine.pages(port, own), *machine.pages(port, far, "outside")]
    return dict(zip((*own, *(f"{address} from outside" for address in far)), pages, strict=True))


def clients_of_80(machine: Machine) -> dict[str, str]:
    """The same, and what a client on this machine gets, through the machine's network card."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{machine.forwarded_port}/", timeout=CARD_SECONDS) as answer:
            page = answer.read().decode()
    except OSError as error:
        page = str(error)
    return clients(machine, 80) | {"through the card": page}


def complaint(machine: Machine, script: str) -> str:
    """What a script printed if it fails, "" if it does not."""
    status, out = machine.run(script)
    return f"exit {status}: {out.strip()}" if status else ""


def prop(machine: Machine, name: str, unit: str = UNIT) -> str:
    return machine.told(f"systemctl show -P {name} {unit}")


def settled(machine: Machine) -> str:
    """What systemd says of the whole system once it has booted, "running" or "degraded"; then there is a cable, too."""
    state = machine.run("systemctl is-system-running --wait")[1].strip()
    machine.told(CABLE)
    return state


def before_the_network(story: Story, machine: Machine, through: str) -> None:
    """`through` is the property of our unit that has the moment at which it was through."""
    rules = machine.told("cat /run/witness.rules")
    story.show("the rules are there when the network may begin", "tcp . 80" in rules, True)
    addresses = machine.told("cat /run/witness.addresses").splitlines()  # "1: lo    inet 127.0.0.1/8 …"
    story.show("no interface but lo has an address by then", {line.split()[1] for line in addresses} - {"lo"}, set())
    moments = int(prop(machine, through)), int(prop(machine, "ActiveEnterTimestampMonotonic", "network-pre.target"))
    story.show("the unit is through before network-pre.target", 0 < moments[0] <= moments[1], True)


def generations(machine: Machine) -> list[tuple[int, bool]]:
    """Number and whether it is confirmed."""
    history = json.loads(machine.told("redirector history --json"))
    return [(found["generation"], found["confirmed"]) for found in history]


def write(machine: Machine, text: str) -> None:
    """The mapping file, safe from a power cut."""
    machine.told(f"cat > {FILE} <<'END'\n{text}END\nsync {FILE}")


def first_boot(story: Story, machine: Machine) -> None:
    """Nothing was ever applied: the file counts. Ends with a change that waits for confirm."""
    story.show("all units are well", settled(machine), "running")
    before_the_network(story, machine, "ActiveEnterTimestampMonotonic")
    story.show_pages("clients of port 80 get 3000", clients_of_80(machine), "3000")
    story.show_pages("clients of port 81, which is not mapped, are refused", clients(machine, 81), REFUSED)
    beside_nftables(story, machine)
    write(machine, ELSEWHERE)
    story.show("a change is applied with --confirm=10m", complaint(machine, "redirector apply --confirm=10m"), "")
    story.show_pages("clients of port 80 get 3001", clients_of_80(machine), "3001")
    story.show_pages("clients of port 81 get 3001", clients(machine, 81), "3001")
    story.show("generation 2 waits for confirm", generations(machine), [(1, True), (2, False)])


def beside_nftables(story: Story, machine: Machine) -> None:
    """Debian's nftables.service flushes everything, its own rules and others'."""
    machine.told("nft flush ruleset")
    story.show_pages("after nft flush ruleset they are refused at port 80, too", clients(machine, 80), REFUSED)
    for verbs in (("restart",), ("reload",), ("stop", "start")):
        commands = "; ".join(f"systemctl {verb} nftables" for verb in verbs)
        machine.told(f"nft add table inet canary; {commands}; {FOLLOWED}")
        tables = set(machine.told("nft list tables").splitlines())
        story.show(f"after {commands}: rules of others are flushed, ours are back", tables, TABLES)
        story.show_pages("clients of port 80 get 3000", clients_of_80(machine), "3000")
    before = machine.told("nft add table inet canary; nft list ruleset")
    machine.told(f"systemctl stop {UNIT}")
    story.show(f"systemctl stop {UNIT} changes no rule of anybody", machine.told("nft list ruleset"), before)
    machine.told(f"systemctl start {UNIT}")


def second_boot(story: Story, machine: Machine) -> None:
    """After the power cut; the file still has what nobody confirmed. Ends with a broken file."""
    story.show("all units are well", settled(machine), "running")
    story.show("what was written but not flushed is lost", machine.run(f"cat {UNFLUSHED} 2>&-")[1].strip(), "")
    before_the_network(story, machine, "ActiveEnterTimestampMonotonic")
    story.show_pages("clients of port 80 get 3000 again", clients_of_80(machine), "3000")
    story.show_pages("clients of port 81 are refused again", clients(machine, 81), REFUSED)
    known = [(1, True), (2, False), (3, True)]
    story.show("history: generation 2 was never confirmed, and there is a third", generations(machine), known)
    story.show("the third is as the first", complaint(machine, "redirector compare 1 3"), "")
    status = json.loads(machine.run("redirector status --json")[1])
    story.show("status: in sync, nothing waits", status["state"], "in-sync")
    told = "generation 2 was not confirmed" in machine.told(JOURNAL)
    story.show("the journal says that generation 2 was not confirmed", told, True)
    write(machine, BROKEN)


def third_boot(story: Story, machine: Machine) -> None:
    """With a broken file."""
    story.show("systemd calls the system degraded", settled(machine), "degraded")
    failed = [line.split()[0] for line in machine.told("systemctl --failed --plain --no-legend").splitlines()]
    story.show("the unit failed, and no other did", failed, [UNIT])
    story.show("its exit status is 78: the file is bad", prop(machine, "ExecMainStatus"), "78")
    journal = machine.told(JOURNAL)
    story.show("the journal has the place of the mistake", f"{FILE}:{BROKEN_AT}: " in journal, True)
    story.show("the journal says what is in force", "generation 3 is in force" in journal, True)
    before_the_network(story, machine, "InactiveEnterTimestampMonotonic")
    story.show_pages("clients of port 80 get 3000", clients_of_80(machine), "3000")
    for verb in ("restart", "reload"):
        machine.told(f"systemctl {verb} nftables; {FOLLOWED}")
        story.show_pages(f"after systemctl {verb} nftables, too", clients_of_80(machine), "3000")


def play(story: Story, image: Image, folder: str) -> None:
    """The three boots of one disk. Raises Lost, Failed."""
    disk, console = os.path.join(folder, "disk.qcow2"), os.path.join(folder, "console")
    try:
        accelerator, machine = switch_on(image, disk, console)
        with machine:
            print(f"first boot: {machine.boot_seconds:.0f} s ({accelerator})", flush=True)
            first_boot(story, machine)
            machine.told(f"echo unflushed > {UNFLUSHED}")
            machine.cut_power()
        with Machine(image, disk, accelerator, console, BOOT_SECONDS) as machine:
            print(f"boot after the power cut: {machine.boot_seconds:.0f} s", flush=True)
            second_boot(story, machine)
            machine.shut_down()
        with Machine(image, disk, accelerator, console, BOOT_SECONDS) as machine:
            print(f"boot with a broken file: {machine.boot_seconds:.0f} s", flush=True)
            third_boot(story, machine)
    except Lost:
        with open(console, encoding="utf-8", errors="replace") as file:
            print("the console's end:", *file.read().splitlines()[-CONSOLE_LINES:], sep="\n  ", flush=True)
        raise


def switch_on(image: Image, disk: str, console: str) -> tuple[str, Machine]:
    """A machine on a fresh disk, and how it is accelerated. Raises Lost."""
    image.overlay(disk)
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        try:
            return "kvm", Machine(image, disk, "kvm", console, KVM_SECONDS)
        except Lost as error:
            print(f"no KVM here ({str(error).splitlines()[0]}): the machine is emulated", flush=True)
            image.overlay(disk)
    return "tcg", Machine(image, disk, "tcg", console, BOOT_SECONDS)


def main() -> int:
    if os.geteuid():
        print("make boot-test: must be run as root: it makes the disk of a virtual machine", file=sys.stderr)
        return 77
    signal.signal(signal.SIGALRM, _too_late)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that everything is put away
    started = time.monotonic()
    story = Story()
    try:
        with work_folder() as folder:
            signal.alarm(DISK_SECONDS)
            image = make(folder)
            print(f"the disk: {time.monotonic() - started:.0f} s", flush=True)
            signal.alarm(PLAY_SECONDS)
            play(story, image, folder)
            signal.alarm(0)
    except (Failed, Lost) as error:
        story.show("it comes to its end", str(error), "")
    print(f"{time.monotonic() - started:.0f} s in all")
    print(f"{story.passed} passed, {story.failed} failed")
    return int(story.failed > 0)


def _too_late(*_: object) -> None:
    raise Lost("it takes too long: given up")


if __name__ == "__main__":
    sys.exit(main())
