"""What each path through the commands imports: start-up time is imports, and an import is easily added by mistake.

Of ours the sets are exact. Of all others what `import click` has not brought: what Python itself splits its modules
into differs from version to version, so those sets are bounds.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.kernel.product import Product, insist, mapping, on_nftables

pytestmark = on_nftables

CHECKOUT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys
import click
before = set(sys.modules)
from redirector.cli import run
sys.argv[0] = "redirector"
code = run()
print("\\n" + json.dumps([code, sorted(set(sys.modules) - before)]))
"""

START = "cli cli.app errors model records"
CHECK = f"{START} cli.looking fields guards layout mappings output source terminal values"
PROOF = (
    "backends backends.nftables backends.nftables.message backends.place layout netlink output proof source terminal"
)
BACKENDS = (
    "backends.base backends.nftables.backend backends.nftables.decode backends.nftables.encode "
    "backends.nftables.rules backends.nftables.wire backends.opening changes committing compile fields history journal "
    "known mappings naming pending plan program proving reconcile selection store values"
)
STATUS = f"{START} {PROOF} cli.looking report"
FULL = f"{STATUS} {BACKENDS} status"
HOST = "host host.dumps host.facts host.listeners host.processes host.ssh host.units"
APPLY = f"{START} {PROOF} {BACKENDS} {HOST} cli.applying guards"
WATCH = (
    f"{START} {PROOF} {BACKENDS} cli.watching host host.systemd metrics output_watch report status status_metrics "
    "watch watch.figures watch.look watch.loop watch.patience watch.sources watch.told"
)

STDLIB = (
    "_json _locale _socket _string _struct array bisect _bisect fcntl json json.decoder json.encoder json.scanner "
    "locale pwd select string struct zlib tomli tomli._parser tomli._re tomli._types difflib time errno"
)


def imported(product: Product, *args: str) -> tuple[set[str], set[str]]:
    """What a command imports of ours, without our name in front of it, and of all others beyond click."""
    argv = [sys.executable, "-c", CODE, *args]
    environment = product.lab.environment()
    done: subprocess.CompletedProcess[str] = product.lab.host.namespace.run(
        argv, env=environment, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout + done.stderr
    ours = {name.removeprefix("redirector.") for name in names if name.startswith("redirector.")}
    return ours, {n for n in names if not n.startswith(("redirector", "click")) and not n.endswith("__mypyc")}


def words(text: str) -> set[str]:
    return set(text.split())


def test_the_paths(product: Product) -> None:
    file = str(CHECKOUT / "rules" / "web.toml")  # old enough for its stamp to tell that it has not changed
    for args, ours in (
        (("--version",), START),
        (("check", file), CHECK),
        (("apply", file, "--allow-unsafe-file"), f"{APPLY} host.firewalls"),  # the first one chooses the backend
        (("status",), STATUS),
        (("status", "--full"), FULL),
        (("watch", "--once"), WATCH),  # what stays in memory while it goes on, but for what hears
    ):
        found, others = imported(product, *args)
        assert found == words(ours), args
        assert others <= words(STDLIB), args


def test_the_next_apply(product: Product) -> None:
    product.run("apply", product.file(mapping("web", 80, 8080)))
    found, others = imported(product, "apply", product.file(mapping("web", 80, 8081)), *insist())
    assert found == words(APPLY)
    assert others <= words(STDLIB)
