"""The README's tour, command by command: what it prints is what is printed."""

import os
import re
import subprocess
from pathlib import Path

from tests.kernel.lab import Lab

README = Path(__file__).parents[2] / "README.md"
TOUR = "/tmp/tour"  # as the README names it: the test's own folder takes its place
MARK = "the end of the command, exit "
SERVER = "python3 -m http.server"


def plain(line: str) -> str:
    """Without what differs from one run to the next: times."""
    return re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", line).rstrip()


def test_the_tour(lab: Lab, tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    tour = text[text.index(f"mkdir -m 700 {TOUR}") : text.index("Leave by `exit`")].replace(TOUR, str(tmp_path))
    (written,) = re.findall(r"```toml\n(.*?)```", tour, re.DOTALL)
    (tmp_path / "mappings.toml").write_text(written)
    os.chmod(tmp_path, 0o700)
    (tmp_path / "bin").mkdir()
    redirector = lab.command()
    (tmp_path / "bin" / "redirector").write_text("#!/bin/sh\nexec " + " ".join(redirector) + ' "$@"\n')
    (tmp_path / "bin" / "redirector").chmod(0o755)
    environment = lab.environment() | {"REDIRECTOR_STATE_DIR": str(tmp_path / "state")}
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    pipe = subprocess.PIPE
    shell = lab.host.namespace.popen(
        ["bash"], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment
    )
    commands_in, told_out = shell.stdin, shell.stdout
    assert commands_in is not None
    assert told_out is not None

    def run(command: str) -> list[str]:
        # The server is there when its port is.
        wait = "until curl -s http://127.0.0.1:8080/ >/dev/null; do :; done\n" if command.startswith(SERVER) else ""
        commands_in.write(f'{command}\n{wait}echo "{MARK}$?"\n')
        commands_in.flush()
        told = []
        for line in told_out:
            if line.startswith(MARK):
                break
            told.append(plain(line))
        return told

    commands = 0
    with shell:
        try:
            for block in re.findall(r"```console\n(.*?)```", tour, re.DOTALL):
                for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                    command, _, expected = part.partition("\n")
                    assert run(command) == [plain(line) for line in expected.splitlines()], command
                    commands += 1
        finally:
            run("kill %1")
            commands_in.close()
    assert commands > 25
