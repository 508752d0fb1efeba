"""What is known of the kernel without reading it: when it counts, and that nothing goes wrong because of it."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirector import layout, proof, proving
from redirector.backends.base import Snapshot
from redirector.backends.memory import MemoryBackend
from redirector.compile import compile_ruleset
from redirector.errors import Refused
from redirector.history import History
from redirector.model import Ruleset
from redirector.proof import Head, Proof
from redirector.reconcile import Origin, Outcome, Wish, change
from redirector.status import status
from tests.strategies import mapping, quick

WEB = Ruleset((mapping("web", "80", "8080"),))
MORE = Ruleset((mapping("web", "80", "8081"), mapping("voice", "5000-5009", "6000-6009", protocol=("udp",))))
APPLY = Origin("apply", "/etc/m.toml", "anna", "a stamp")


class Watched(MemoryBackend):
    """Counts how often it is read; `name` is one of ours, so that it is looked for."""

    readings = 0

    def observe(self) -> Snapshot:
        self.readings += 1
        return super().observe()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path / "state"))


def apply(backend: MemoryBackend, history: History, ruleset: Ruleset, **more: Any) -> Outcome:
    with history.locked():
        return change(backend, history, Wish(ruleset, APPLY, **more))


@pytest.fixture
def backend(history: History) -> Watched:
    """WEB is applied, and that was read before."""
    found = Watched()
    apply(found, history, WEB)
    assert found.readings == 1
    return found


def path(history: History) -> Path:
    return Path(history.folder) / layout.PROOF


def replaced(history: History, **fields: Any) -> None:
    found = proof.load(history.folder, whole=True)
    assert found is not None
    proof.save(history.folder, found._replace(**fields))


texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(("\n\n", "\udc80", "a\\nb", " x "))
numbers = st.integers(0, 2**63)
heads = st.builds(Head, numbers, texts, texts, texts, texts, numbers, numbers)
proofs = st.builds(
    Proof,
    heads,
    texts,
    texts,
    numbers,
    st.floats(0, 1e12),
    st.lists(numbers, max_size=6).map(tuple),
    texts,
    st.dictionaries(st.from_regex(r"[a-z_./-]{1,20}", fullmatch=True), numbers, max_size=3),
)


@quick
@given(proofs)
def test_reading_inverts_writing(found: Proof) -> None:
    assert proof._decode(proof._encode(found)) == found


def test_an_apply_proves_what_it_has_done(history: History, backend: Watched) -> None:
    found = proof.load(history.folder, whole=True)
    assert found is not None
    assert found.head == Head(1, "apply", found.head.applied_at, "anna", "/etc/m.toml", 1, 1)
    assert (found.backend, found.identity, found.genid) == (backend.name, backend.identity(), backend.genid())
    assert found.stamp == "a stamp"
    assert found.capacities == {"ports": 64, "counts": 64}


def test_the_next_one_reads_nothing(history: History, backend: Watched) -> None:
    assert not apply(backend, history, WEB).plan
    assert apply(backend, history, MORE).recorded
    assert apply(backend, history, WEB).recorded
    assert backend.readings == 1
    assert backend.program == compile_ruleset(WEB)


def test_what_others_commit_makes_it_read(history: History, backend: Watched) -> None:
    backend.program = compile_ruleset(MORE)
    outcome = apply(backend, history, WEB)
    assert outcome.plan
    assert not outcome.recorded
    assert (backend.readings, backend.program) == (2, compile_ruleset(WEB))
    apply(backend, history, WEB)  # which was proven by the one before
    assert backend.readings == 2


def test_what_others_commit_in_between_makes_it_read(history: History, backend: Watched) -> None:
    backend.touch(3)
    apply(backend, history, MORE)
    assert backend.readings == 4
    assert backend.program == compile_ruleset(MORE)


def test_verify_trusts_nothing(history: History, backend: Watched) -> None:
    apply(backend, history, MORE, verify=True)
    assert backend.readings == 3  # before and after


@pytest.mark.parametrize(
    "fields",
    [
        {"genid": 1},
        {"identity": "memory/of another boot"},
        {"backend": "another"},
        {"made": proof.now() - proof.LIFETIME},  # a genid comes again, some day
        {"made": proof.now() + 1000},
        {"record": (1, 2, 3)},
    ],
)
def test_where_it_does_not_count(history: History, backend: Watched, fields: dict[str, Any]) -> None:
    assert proving.known(backend, history) is not None
    replaced(history, **fields)
    assert proving.known(backend, history) is None


def test_another_generation_than_it_was_made_of(history: History, backend: Watched) -> None:
    file = Path(layout.record(history.folder, 1))
    content = file.read_bytes()
    file.unlink()
    assert proof.load(history.folder) is None
    file.write_bytes(content)  # the same, and yet another file
    assert proof.load(history.folder) is None
    assert status(backend, history).state == "in-sync"
    file.with_name("000002.json").write_bytes(content)
    assert proof.load(history.folder) is None


def test_one_that_was_cut_off_anywhere_is_none_or_knows_less_room(history: History, backend: Watched) -> None:
    whole = path(history).read_bytes()
    found = proof.load(history.folder, whole=True)
    assert found is not None
    for length in range(len(whole)):
        path(history).write_bytes(whole[:length])
        cut = proof.load(history.folder, whole=True)
        if cut is not None:  # without a map's capacity, or with a smaller one, it is made anew for nothing: no harm
            assert cut._replace(capacities={}) == found._replace(capacities={})
            assert all(size <= found.capacities.get(name, 64) for name, size in cut.capacities.items())
    path(history).write_bytes(os.urandom(100))
    assert proof.load(history.folder) is None


def test_one_that_lies_is_found_out_by_the_kernel(history: History, backend: Watched) -> None:
    """As where the file was brought from elsewhere: the kernel refuses what cannot be, and then it is read."""

    class Refusing(Watched):
        def commit(self, steps: Any, expect: int) -> None:
            try:
                super().commit(steps, expect)
            except KeyError:
                raise Refused("no such element; nothing was changed") from None

    other = Refusing(compile_ruleset(Ruleset()))
    replaced(history, identity=other.identity(), genid=other.genid())
    assert apply(other, history, MORE).recorded
    assert other.readings == 1
    assert other.program == compile_ruleset(MORE)


def test_a_refusal_for_another_reason_is_told(history: History, backend: Watched) -> None:
    def judge(*_: object) -> None:
        raise Refused("the guards say no")

    with pytest.raises(Refused, match="the guards"):
        apply(backend, history, MORE, judge=judge)
    assert backend.program == compile_ruleset(WEB)


def test_a_state_folder_that_takes_no_file_costs_nothing_but_the_proof(history: History, backend: Watched) -> None:
    path(history).unlink()
    path(history).mkdir()
    assert apply(backend, history, MORE).recorded
    assert apply(backend, history, WEB).recorded
    assert backend.readings == 3
    assert sorted(os.listdir(history.folder)) == ["generations", "lock", "proof"]


def test_no_table_proves_nothing(history: History, backend: Watched) -> None:
    apply(backend, history, Ruleset(), purge=True)
    assert proof.load(history.folder) is None


def test_a_backend_without_genid_proves_nothing(history: History) -> None:
    class Mute(Watched):
        """As those of iptables."""

        def observe(self) -> Snapshot:
            return super().observe()._replace(genid=0)

        def commit(self, steps: Any, expect: int) -> None:
            super().commit(steps, self.generation)

        def genid(self) -> int:
            return 0

    backend = Mute()
    apply(backend, history, WEB)
    apply(backend, history, MORE)
    assert not path(history).exists()
    assert status(backend, history).proof is None
