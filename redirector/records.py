"""`NamedTuple` as typing has it, at half the price.

Theory of operation. `typing.NamedTuple` compiles the annotation of every field, only to keep it (a ForwardRef each, in
modules that postpone the evaluation of annotations, as ours do). That is half of what a class costs, and `apply` makes
sixty. The one here takes names and defaults, and leaves annotations the text that they are. Type checkers see typing's.
"""

import sys
from typing import TYPE_CHECKING, Any

# From 3.14 on typing evaluates annotations only when somebody asks (PEP 649).
if TYPE_CHECKING or sys.version_info >= (3, 14):
    from typing import NamedTuple
else:
    from collections import namedtuple

    class _Maker(type):
        """The metaclass of `NamedTuple`: a class statement with that as its base makes a subclass of tuple."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body.get("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])  # noqa: PYI024 (as typing does)
            for key, value in body.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """What a class statement names as its base; nothing is an instance of it."""


__all__ = ["NamedTuple"]
