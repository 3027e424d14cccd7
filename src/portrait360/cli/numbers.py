"""Numbers on the command line: tyro's own message about one that is wrong lists Python types."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

NUMBERS = ConstructorRegistry()
"""For `tyro.cli`."""
_KINDS = {int: "a whole number", float: "a number"}


@NUMBERS.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read `int`, `float`, and either of them or None; whoever wants None leaves the flag out."""
    options = [kind for kind in get_args(info.type) or (info.type,) if kind is not NoneType]
    if len(options) != 1 or options[0] not in _KINDS or info.type_origin is tuple:
        return None
    number = options[0]

    def read(words: list[str]) -> Any:
        try:
            return number(words[0])
        except ValueError:
            raise ValueError(f"expected {_KINDS[number]}, not {words[0]!r}.") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=number.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, (int, number)),
        str_from_instance=lambda value: [str(value)],
    )
