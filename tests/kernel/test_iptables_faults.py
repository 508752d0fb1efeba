"""Killed, or failing, on the iptables backends: a sample of what `make faults` tries (see faults_children)."""

import pytest

from tests.kernel.faults_children import ERRORS, SCENARIOS, Place, Rig, Scenario, of_child, of_command
from tests.kernel.lab import Lab
from tests.kernel.strace import Call, Fault

SAMPLE = {"iptables-nft": 7, "iptables-legacy": 5}
GOLDEN = (5**0.5 - 1) / 2  # its multiples, without their integers, are spread as evenly as any

LOG = r"""
openat(AT_FDCWD</>, "/s/state/lock", O_RDWR|O_CREAT, 0600) = 4</s/state/lock>
read(7</etc/passwd>, "…", 9)       = 9
pipe2([5<pipe:[9]>, 6<pipe:[9]>], O_CLOEXEC) = 0
vfork()                            = 77
read(5<pipe:[9]>, "", 50000)       = 0
write(6<pipe:[8]>, "*nat…", 80)    = 80
wait4(77, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 77
rename("/s/state/generations/000002.json.7.tmp", "/s/state/generations/000002.json") = 0
""".strip().splitlines()
CHILD_LOG = ["sendto(3, …) = 20", "sendto(3, …) = 20", "setsockopt(3, …) = 0", "sendmsg(3, …) = 900", "close(3) = 0"]


@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in SCENARIOS if scenario.name == "apply"],
    ids=lambda scenario: scenario.backend,
)
def test_a_sample_of_faults(lab: Lab, scenario: Scenario) -> None:
    rig = Rig(lab, scenario)
    try:
        chosen = [rig.faults[int(len(rig.faults) * ((i + 1) * GOLDEN % 1))] for i in range(SAMPLE[scenario.backend])]
        assert [message for place in chosen for message in rig.try_fault(place)] == []
    finally:
        rig.close()


def test_the_places_in_the_command() -> None:
    found = [(place.fault.call.name, place.fault.call.number) for place in of_command(LOG, "/s/state")]
    assert found == [("pipe2", 1), ("vfork", 1), ("read", 2), ("write", 1), ("wait4", 1), ("rename", 1)]


def test_the_places_in_children() -> None:
    writes = [f"{p.fault.what} {p.fault.call.name} {p.fault.call.number}" for p in of_child(CHILD_LOG, "x-restore", 1)]
    assert writes == [
        "SIGKILL sendto 1", "EPERM sendto 1", "SIGKILL sendto 2", "EAGAIN sendto 2",
        *(f"{what} {name} 1" for name in ("setsockopt", "sendmsg") for what in ("SIGKILL", *ERRORS)),
    ]  # fmt: skip
    reads = [(p.fault.what, p.fault.call.number) for p in of_child(CHILD_LOG[:2], "x-save", 1)]
    assert reads == [("SIGKILL", 1), ("EPERM", 1), ("EAGAIN", 2)]


def test_whether_it_happened() -> None:
    kill, fail = (Place(Fault(Call("sendmsg", 1, "child", ""), what), "x", 1) for what in ("SIGKILL", "EPERM"))
    assert kill.happened("close(3) = 0\nsendmsg(3, …) = ?\n+++ killed by SIGKILL +++")
    assert not kill.happened("sendmsg(3, …) = 9\nclose(3) = ?\n+++ killed by SIGKILL +++")
    assert not kill.happened("sendmsg(3, …) = 9\n+++ exited with 0 +++")
    assert fail.happened("sendmsg(3, …) = -1 EPERM (Operation not permitted) (INJECTED)")
    assert not fail.happened("sendmsg(3, …) = -1 EPERM (Operation not permitted)")
