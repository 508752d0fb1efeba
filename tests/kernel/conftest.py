"""The `kernel` tests: each gets a lab of its own, and none is ever skipped.

Root makes network namespaces freely. A plain user makes the whole test process root of a user namespace first, which
the kernel allows only before there are threads, hence at the end of the collection. Where neither works, the kernel
tests fail and say why.
"""

import getpass
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirector.backends.iptables import commands
from redirector.backends.opening import NAMES
from redirector.host.namespaces import Namespace
from redirector.host.privileges import become_user_namespace_root
from tests.kernel.iptables import Programs
from tests.kernel.lab import Lab
from tests.kernel.product import Product

HERE = Path(__file__).parent
HINT = "run the tests as root, or let plain users make user namespaces (user_namespaces(7), Files)"

_forbidden = pytest.StashKey[str]()


def _is_ours(item: pytest.Item) -> bool:
    return HERE in item.path.parents


@pytest.hookimpl(tryfirst=True)  # before -m selects by the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(_is_ours, items):
        item.add_marker(pytest.mark.kernel)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or not any(map(_is_ours, session.items)):
        return
    try:
        if os.geteuid():
            _keep_name()
            become_user_namespace_root()
        Namespace.create("probe").close()
    except OSError as error:
        session.config.stash[_forbidden] = f"no network namespaces here: {error}; {HINT}"


def _keep_name() -> None:
    """Let pytest call its temporary folder after the user as it was: root's is closed to us."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # Python up to 3.12, and from 3.13 on
        name = str(os.getuid())
    os.environ["LOGNAME"] = name


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = item.config.stash.get(_forbidden, None)
    if reason is not None:
        pytest.fail(reason, pytrace=False)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab of the test's own: what it does to links, addresses, sysctls and rules goes with it (about 40 ms)."""
    with Lab(str(tmp_path / "state")) as built:
        yield built


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests of a module, for property tests: `reset` it before each example."""
    with Lab(str(tmp_path_factory.mktemp("lab") / "state")) as built:
        yield built


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever wants the product gets it on each backend, or on those of its mark `backends`: why these alone, the
    module's docstring tells."""
    mark = metafunc.definition.get_closest_marker("backends")
    for name in {"product", "shared_product"}.intersection(metafunc.fixturenames):
        metafunc.parametrize(name, mark.args if mark else NAMES, indirect=True)


@pytest.fixture
def product(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Product]:
    """The product on a backend, in a lab of the test's own; "nftables/read" reads everything each time."""
    name, read, _ = request.param.partition("/")
    with Product(lab, name, trusting=not read) as made:
        yield made


@pytest.fixture
def programs(product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """What this process runs instead of iptables' own programs: those, until a test puts others there."""
    made = Programs(tmp_path / "programs", product.backend.name)
    monkeypatch.setattr(commands, "FOLDERS", made.folders)
    return made


@pytest.fixture(scope="module")
def shared_product(request: pytest.FixtureRequest, shared_lab: Lab) -> Iterator[Product]:
    """The product on a backend, one for all tests of a module; nothing of it is left for the next backend."""
    with Product(shared_lab, request.param) as made:
        yield made
        made.remove(purge=True)
