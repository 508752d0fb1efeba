"""The kernel against the last applied generation: the states, what drifted, and connections by mapping."""

from pathlib import Path
from typing import Any

import pytest

from redirector import proving
from redirector.backends.base import Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.compile import compile_ruleset
from redirector.history import History, Record
from redirector.model import Ports, Ruleset
from redirector.program import Program, Route, port_key
from redirector.reconcile import Origin, Wish, change
from redirector.report import Drift
from redirector.status import count_connections, status
from tests.strategies import mapping

WEB = Ruleset((mapping("web", "80", "8080"), mapping("lan", "80", "8090", source=("10.0.0.0/8",), exclusive=True)))
EMPTY = Ruleset()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


@pytest.fixture
def backend(history: History) -> MemoryBackend:
    """WEB is applied."""
    found = MemoryBackend()
    apply(found, history, WEB)
    return found


def apply(backend: MemoryBackend, history: History, ruleset: Ruleset, **more: Any) -> None:
    with history.locked():
        change(backend, history, Wish(ruleset, Origin("apply", "m.toml", "anna"), **more))


def entries(backend: MemoryBackend, name: str) -> dict[Any, Any]:
    assert backend.program is not None
    return backend.program.maps[name].entries


def test_before_the_first_apply_there_is_nothing(history: History) -> None:
    assert status(MemoryBackend(), history).state == "absent"


def test_a_table_of_ours_without_a_history_is_unknown(history: History) -> None:
    for program in (compile_ruleset(WEB), compile_ruleset(EMPTY), Program({}, {})):
        assert status(MemoryBackend(program), history).state == "unknown"


def test_a_foreign_table_before_the_first_apply_is_told(history: History) -> None:
    backend = MemoryBackend()
    backend.foreign = "it does not carry our mark"
    found = status(backend, history)
    assert found.state == "absent"
    assert "it does not carry our mark" in found.note


def test_in_sync(backend: MemoryBackend, history: History) -> None:
    found = status(backend, history)
    assert (found.state, found.backend, found.drift, found.note) == ("in-sync", "memory", (), "")
    current = history.current()
    assert isinstance(current, Record)
    assert found.head == proving.head(current)


def test_drift_is_told_by_mapping_down_to_one_entry(backend: MemoryBackend, history: History) -> None:
    ports = entries(backend, "ports")
    ports[port_key(6, 80)] = (9999, "web")
    ports[port_key(17, 53)] = (5353, "stranger")
    del entries(backend, "arriving_from_10.0.0.0/8_ports")[port_key(6, 80)]
    found = status(backend, history)
    assert found.state == "drifted"
    old, new = Route("tcp", Ports(80, 80), Ports(9999, 9999)), Route("tcp", Ports(80, 80), Ports(8080, 8080))
    lan = Route("tcp", Ports(80, 80), Ports(8090, 8090), "from 10.0.0.0/8")
    assert set(found.drift) == {
        Drift("changed", "web", "", (old,), (new,)),
        Drift("extra", "stranger", "", (Route("udp", Ports(53, 53), Ports(5353, 5353)),), ()),
        Drift("changed", "lan", "", (), (lan,)),  # its guard is still there
    }


def test_drift_of_the_frame_is_structure(backend: MemoryBackend, history: History) -> None:
    assert backend.program is not None
    backend.program = backend.program._replace(flags=1)
    found = status(backend, history)
    assert (found.state, [drift.kind for drift in found.drift]) == ("drifted", ["structure"])


def test_a_table_that_is_gone_is_drift(backend: MemoryBackend, history: History) -> None:
    backend.program = None
    found = status(backend, history)
    assert found.state == "drifted"
    assert found.drift[0] == Drift("structure", None, "the table is gone")
    assert {drift.mapping for drift in found.drift} == {None, "web", "lan"}


def test_a_foreign_table_in_place_of_ours_is_drift(backend: MemoryBackend, history: History) -> None:
    backend.foreign = "it does not carry our mark"
    found = status(backend, history)
    assert (found.state, len(found.drift)) == ("drifted", 1)


def test_after_remove_it_is_drained(backend: MemoryBackend, history: History) -> None:
    apply(backend, history, EMPTY)
    assert status(backend, history).state == "drained"
    # The table may go too, such as by a reboot: no redirect is as good as an empty table …
    backend.program = None
    assert status(backend, history).state == "drained"
    # … but redirects that are there again are drift.
    backend.program = compile_ruleset(WEB)
    assert status(backend, history).state == "drifted"


def test_a_drained_table_that_lost_what_holds_connections_is_drift(backend: MemoryBackend, history: History) -> None:
    apply(backend, history, EMPTY)
    assert backend.program is not None
    backend.program.chains["prerouting"] = backend.program.chains["prerouting"]._replace(rules=())
    assert status(backend, history).state == "drifted"


def test_after_a_purge_it_is_absent(backend: MemoryBackend, history: History) -> None:
    apply(backend, history, EMPTY, purge=True)
    assert status(backend, history).state == "absent"
    backend.program = compile_ruleset(EMPTY)
    assert status(backend, history).state == "drifted"


def test_a_damaged_generation_is_unknown(backend: MemoryBackend, history: History) -> None:
    (Path(history.folder) / "generations" / "000001.json").write_text("damaged")
    found = status(backend, history)
    assert (found.state, found.head) == ("unknown", None)
    assert "generation 1: its file is damaged" in found.note


@pytest.mark.parametrize(
    ("identity", "note"),
    [
        ("boot-a/1", ""),
        ("boot-a/2", "this state folder was last used in another network namespace"),
        ("boot-b/1", "the machine has been restarted since"),
    ],
)
def test_drift_after_a_reboot_or_in_another_namespace_is_explained(history: History, identity: str, note: str) -> None:
    class Placed(MemoryBackend):
        place = "boot-a/1"

        def identity(self) -> str:
            return self.place

    backend = Placed()
    apply(backend, history, WEB)
    backend.program, backend.place = None, identity
    assert status(backend, history).note == note


def test_connections_are_counted_by_mapping_and_counters_of_others_do_not_count() -> None:
    program = compile_ruleset(WEB)
    counters = {"taken_web": (3, 180), "taken_lan": (0, 0), "mine": (99, 9900), "taken_": (9, 9)}
    assert count_connections(Snapshot(program, 1, "", counters)) == {"web": 3, "lan": 0}
    assert count_connections(Snapshot(None, 1)) == {}


def test_what_is_not_counted_is_drift_of_its_mapping(backend: MemoryBackend, history: History) -> None:
    del entries(backend, "counts")[port_key(6, 80)]
    found = status(backend, history)
    assert (found.state, found.drift) == ("drifted", (Drift("changed", "web", "tcp 80 not counted"),))
    assert found.drifted == {"web"}
