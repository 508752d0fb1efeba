"""What the programs of iptables are told, and what becomes of a change where one prints nonsense or never ends."""

import contextlib
from pathlib import Path

import pytest

from redirector import errors
from redirector.backends.iptables import commands
from redirector.backends.iptables.backend import IptablesBackend
from tests.kernel.iptables import Programs, iptables
from tests.kernel.lab import Lab
from tests.kernel.product import Product, mapping, on_iptables, opened

pytestmark = on_iptables


WEB = mapping("web", 80, 8080, protocol=["tcp", "udp"], exclusive=True)


def test_they_are_told_nothing_of_our_environment(
    product: Product, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LIBDIR", "/nonexistent")
    monkeypatch.setenv("LD_PRELOAD", "")
    text = f"env >{tmp_path}/env; echo $* >{tmp_path}/argv; cat >{tmp_path}/text; exit 1"
    programs.replace("ipv4", "restore", f"#!/bin/sh\n{text}\n")
    with pytest.raises(errors.Refused):
        product.apply(WEB)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"PATH", "LC_ALL"} <= names <= {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
    assert (tmp_path / "argv").read_text() == "--noflush --counters --wait 5\n"  # no word of the file's
    assert "-j REDIRECTOR-IN" in (tmp_path / "text").read_text()


def test_a_host_that_has_them_under_plain_names(
    lab: Lab, product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they have one variant alone: `iptables -V` tells which it is."""
    variant = product.backend.name.removeprefix("iptables-")
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (tmp_path / f"{name}{suffix}").symlink_to(f"/usr/sbin/xtables-{variant}-multi")
    monkeypatch.setattr(commands, "FOLDERS", (str(tmp_path),))
    with contextlib.closing(opened(lab.host.namespace, product.backend.name)) as backend:
        assert product.apply(WEB, backend=backend).recorded
        assert backend.observe().program == product.backend.observe().program
    other = "legacy" if variant == "nft" else "nft"
    with pytest.raises(errors.Unavailable, match=f"there is no iptables-{other}-save"):
        commands.find(other, "ipv4", "save")
    (tmp_path / "iptables").unlink()  # nothing tells the variant now
    with pytest.raises(errors.Unavailable):
        commands.find(variant, "ipv4", "save")


def test_one_that_never_ends(product: Product, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SECONDS", 0.5)
    programs.replace("ipv4", "restore", "#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(errors.Refused, match="did not end within"):
        product.apply(WEB)
    assert product.status().state == "absent"


def test_one_that_prints_nonsense(lab: Lab, product: Product, programs: Programs) -> None:
    # Of the legacy variant a table that is not loaded is not asked for.
    iptables(lab.host, product.backend.name, "ipv6", "-t nat -L -n")
    programs.replace("ipv6", "save", "#!/bin/sh\nprintf '*nat\\n:A - [0:0]\\nwhat\\033[31m\\n'\n")
    with pytest.raises(errors.Refused, match=r"line 3: .*what\\x1b\[31m"):
        product.apply(WEB)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_no_other_namespace_is_ever_changed(lab: Lab, variant: str) -> None:
    backend = lab.host.namespace.call(IptablesBackend, variant)
    try:
        with pytest.raises(RuntimeError):
            backend.observe()  # in the namespace of the test's own process
    finally:
        backend.close()
