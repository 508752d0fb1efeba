"""An audit under a real systemd: what its units give away, and what it does not say of a misspelt one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import systemd_box
from tests.kernel.systemd_box import REDIRECTOR, SYSTEM_PYTHON

SERVER = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(s.accept())"
UNITS = {
    "amb.service": f"[Service]\nUser=nobody\nExecStart={SYSTEM_PYTHON} -I /box/server.py 80\n"
    "AmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\nNoNewPrivileges=yes\n",
    "act.socket": "[Socket]\nListenStream=81\n",
    "act.service": "[Service]\nExecStart=/bin/true\n",
    "plain.service": f"[Service]\nUser=nobody\nExecStart={SYSTEM_PYTHON} -I /box/server.py 8082\n",
    "wrong.service": f"[Service]\nUser=nobody\nExecStart={SYSTEM_PYTHON} -I /box/server.py 83\n"
    "AmbientCapabilities=CAP_NET_BIND_SERVICES\nNoNewPrivileges=yes\n",
    "orphan.socket": "[Socket]\nListenStream=84\nService=gone.service\n",
}
SCENARIO = f"""
systemctl start amb.service act.socket plain.service
until ss -Hltn | grep -q ':80 ' && ss -Hltn | grep -q ':8082 '; do :; done
{REDIRECTOR} audit 80 81 8082 83 84 --json || echo "exit $?" >> /box/exits
for unit in amb plain wrong; do
    systemd-analyze verify $unit.service > /box/verify-$unit 2>&1 || true
done
echo ---
{REDIRECTOR} explain 80 --user nobody --binary {SYSTEM_PYTHON} --json
echo ---
systemctl start wrong.service || true
while [ "$(state wrong.service)" = active ] || [ "$(state wrong.service)" = activating ]; do :; done
state wrong.service
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str, Path]:
    """(the audit, the explanation, what became of the misspelt unit, the box's folder)."""
    folder = tmp_path_factory.mktemp("box")
    shared = folder / "shared"
    shared.mkdir()
    (shared / "server.py").write_text(SERVER.replace("; ", "\n"))
    prepare = "".join(f"cat > etc/systemd/system/{name} <<'END'\n{text}END\n" for name, text in UNITS.items())
    audit, explained, state = systemd_box.run(folder, prepare, SCENARIO).split("---\n")
    return json.loads(audit), json.loads(explained), state.strip(), shared


def chain(found: Any, port: int) -> Any:
    (one,) = [one for one in found["ports"] if one["port"] == port]
    return one


@pytest.mark.parametrize(
    ("port", "mechanism", "user", "place"),
    [
        (80, "ambient", "nobody", ("amb.service", 4)),
        (81, "socket-unit", "root", ("act.socket", 2)),
        (8082, "unprivileged", "nobody", ("plain.service", 3)),
    ],
)
def test_the_mechanism_and_the_line_that_configures_it(
    box: tuple[Any, Any, str, Path], port: int, mechanism: str, user: str, place: tuple[str, int]
) -> None:
    (served,) = chain(box[0], port)["sockets"]
    assert (served["mechanism"], served["user"]) == (mechanism, user)
    assert (served["file"], served["line"]) == (f"/etc/systemd/system/{place[0]}", place[1])


def test_a_misspelt_capability_is_found_and_is_really_none(box: tuple[Any, Any, str, Path]) -> None:
    found, _, state, shared = box
    (one,) = [one for one in found["findings"] if one["id"] == "S-misspelt"]
    assert "/etc/systemd/system/wrong.service:4" in one["message"]
    assert "CAP_NET_BIND_SERVICE" in one["fix"][0]
    assert state == "failed"  # its server could not bind
    assert "BIND_SERVICES" not in (shared / "verify-wrong").read_text()  # which is why an audit has to say it


def test_a_socket_without_its_service_is_found(box: tuple[Any, Any, str, Path]) -> None:
    found = [one["port"] for one in box[0]["findings"] if one["id"] == "S-no-service"]
    assert found == [84]


def test_a_unit_as_it_should_be_is_not(box: tuple[Any, Any, str, Path]) -> None:
    assert not [one for one in box[0]["findings"] if "amb.service" in one["message"] and one["id"][0] == "S"]


def test_a_user_who_could_bind_it_as_that_unit(box: tuple[Any, Any, str, Path]) -> None:
    explained = box[1]
    assert not explained["binds"]
    assert "ambient" in explained["through"]
    outcomes = {
        one["interface"]: (one["outcome"], one["user"]) for one in explained["clients"] if one["to"] == "127.0.0.1"
    }
    assert outcomes == {None: ("served", "nobody")}
