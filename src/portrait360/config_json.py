"""The configs of `portrait360.config` as JSON and back.

Unknown keys are errors, so that weights never load into a network they were not made for; a missing key takes its
default, so that files from before a field came still load.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from portrait360.types import CheckpointError

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Any config of this module as JSON text."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return _build(next(o for o in options if o is not type(None)), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if not _has_default(f)}
        if not isinstance(value, dict) or not needed <= set(value) <= set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise CheckpointError(
                f"the configuration at {where} does not have the expected entries (came: {got}).",
                "The file was made by another version or another program.",
            )
        return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise CheckpointError(f"the configuration at {where} should be a list, not {value!r}.")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise CheckpointError(f"the configuration at {where} is {value!r}; known: {typing.get_args(kind)}.")
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise CheckpointError(f"the configuration at {where} is {value!r}, expected {getattr(kind, '__name__', kind)}.")


def from_json(kind: type[T], text: str) -> T:
    """The config of class `kind` from `to_json` text.

    Raises:
        CheckpointError: not JSON, entries that do not belong to `kind`, or one missing that has no default.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError("the configuration is not valid JSON.", "The file is damaged.") from error
    return _build(kind, value, kind.__name__)
