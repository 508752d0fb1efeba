"""What `render` prints, loaded by iptables-restore itself, is what `apply` would make."""

import contextlib
from pathlib import Path

import pytest

import redirector
from redirector import mappings, renderers
from redirector.compile import compile_ruleset
from tests.kernel.lab import Lab
from tests.kernel.product import opened

RULES = Path(redirector.__file__).parent.parent / "rules"
FILES = sorted(path.with_suffix(".toml") for path in RULES.glob("*.iptables"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_loaded_by_hand(lab: Lab, path: Path, variant: str) -> None:
    ruleset = mappings.load(str(path))
    program = compile_ruleset(ruleset)
    for tool in ("iptables", "ip6tables"):
        text = renderers.render(f"{tool}-restore", ruleset, program)
        lab.host.run(f"{tool}-{variant}-restore", "--noflush", input=text)
    with contextlib.closing(opened(lab.host.namespace, f"iptables-{variant}")) as backend:
        assert backend.observe().program == program
