"""`records.NamedTuple` held against typing's: whatever a class can be asked, both answer alike."""

import copy
import pickle
import typing
from typing import Any

import pytest

from redirector.plan import AddChain
from redirector.records import NamedTuple


class Ours(NamedTuple):
    """Text."""

    a: int
    b: "tuple[str, ...]" = ()
    c: str = "c"

    @property
    def double(self) -> int:
        return 2 * self.a

    def __str__(self) -> str:
        return f"<{self.a}>"

    @classmethod
    def one(cls) -> "Ours":
        return cls(1)


class Theirs(typing.NamedTuple):
    """Text."""

    a: int
    b: "tuple[str, ...]" = ()
    c: str = "c"

    @property
    def double(self) -> int:
        return 2 * self.a

    def __str__(self) -> str:
        return f"<{self.a}>"

    @classmethod
    def one(cls) -> "Theirs":
        return cls(1)


BOTH: list[Any] = [Ours, Theirs]


@pytest.mark.parametrize("kind", BOTH)
def test_what_a_class_tells_of_itself(kind: Any) -> None:
    assert kind._fields == kind.__match_args__ == ("a", "b", "c")
    assert kind._field_defaults == {"b": (), "c": "c"}
    assert (kind.__doc__, kind.__module__, kind.__qualname__) == ("Text.", __name__, kind.__name__)
    assert issubclass(kind, tuple)
    assert list(kind.__annotations__) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", BOTH)
def test_what_an_instance_does(kind: Any) -> None:
    found = kind(1, c="d")
    assert found == (1, (), "d")
    assert (found.a, found.double, str(found)) == (1, 2, "<1>")
    assert repr(found) == f"{kind.__name__}(a=1, b=(), c='d')"
    assert found._replace(a=2) == kind(2, c="d") != kind.one()
    assert copy.copy(found) == pickle.loads(pickle.dumps(found)) == kind._make(found) == found  # noqa: S301 (our own)
    assert not hasattr(found, "__dict__")
    match found:
        case kind(a, _, c):
            assert (a, c) == (1, "d")
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(AttributeError):
        found.a = 3


def test_a_class_without_fields() -> None:
    class Nothing(NamedTuple):
        """Like Keep, or AddTable."""

    assert Nothing() == ()
    assert isinstance(Nothing(), tuple)


def test_equal_contents_are_of_different_classes_where_a_match_asks() -> None:
    match AddChain("a", None):
        case Ours():
            raise AssertionError
        case AddChain(name, None):
            assert name == "a"
