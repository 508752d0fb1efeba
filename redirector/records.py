"""`NamedTuple` as typing has it, at a fraction of the price.

Theory of operation. `typing.NamedTuple` compiles the annotation of every field, only to keep it, and `namedtuple` under
it compiles a constructor for each class and sets a dozen attributes of it one by one: about 0.2 ms a class, and `apply`
makes sixty, of which it fills every other one. Here a class is one call of `type`: what all have in common is
inherited, and a constructor is compiled when the first of its tuples is made. Annotations stay the text that they are.
Type checkers see typing's.
"""

import sys
from typing import TYPE_CHECKING, Any

# From 3.14 on typing evaluates annotations only when somebody asks (PEP 649).
if TYPE_CHECKING or sys.version_info >= (3, 14):
    from typing import NamedTuple
else:
    from _collections import _tuplegetter  # what namedtuple gives to its fields, too

    class _Tuple(tuple):
        """What every one of our tuples has: the names are namedtuple's."""

        __slots__ = ()
        _fields: tuple[str, ...] = ()

        @classmethod
        def _make(cls, iterable: Any) -> Any:
            found = tuple.__new__(cls, iterable)
            if len(found) != len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, not {len(found)}")
            return found

        def _replace(self, **values: Any) -> Any:
            found = self._make(map(values.pop, self._fields, self))
            if values:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(values)}")
            return found

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in zip(self._fields, self, strict=True))})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

    class _Maker(type):
        """The metaclass of `NamedTuple`: a class statement with that as its base makes a subclass of tuple."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body[field] for field in fields if field in body}
            body |= {field: _tuplegetter(i, field) for i, field in enumerate(fields)}

            def construct(cls: type, *args: Any, **values: Any) -> Any:
                made.__new__ = staticmethod(_constructor(fields, tuple(defaults.values())))
                return made.__new__(cls, *args, **values)

            own = {"__slots__": (), "__new__": construct, "_fields": fields, "_field_defaults": defaults}
            made: Any = type(name, (_Tuple,), own | {"__match_args__": fields} | body)
            return made

    def _constructor(fields: tuple[str, ...], defaults: tuple[Any, ...]) -> Any:
        """`__new__` of a class with these fields, of which the last ones have `defaults`."""
        names = ", ".join(fields)
        source = f"lambda _cls, {names}: _new(_cls, ({names}{',' * bool(fields)}))"
        function = eval(source, {"_new": tuple.__new__})  # noqa: S307 (of our own names, as in namedtuple)
        function.__defaults__ = defaults
        return function

    class NamedTuple(metaclass=_Maker):
        """What a class statement names as its base; nothing is an instance of it."""


__all__ = ["NamedTuple"]
