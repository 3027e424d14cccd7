"""Every value of a preset that a run can set, with its dotted name: `training.batch`, `model.render.samples`."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from portrait360.config.model import ModelConfig
from portrait360.config.training import Preset, TrainingConfig


@dataclass(frozen=True)
class PresetField:
    """One value, or one part that holds further values."""

    path: str
    """For instance `training.raw_ramp.final`."""
    kind: Any
    """Its type."""
    owner: type
    """The dataclass that has it."""
    part: type | None
    """The dataclass of the further values that it holds, if it does."""

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition(".")[2]

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return type(None) in typing.get_args(self.kind)

    @property
    def about(self) -> str:
        """What it means: the docstring below the field, or that of the part."""
        documented = _field_docstrings(self.owner).get(self.name, "")
        return documented or inspect.getdoc(self.part) or ""

    def of(self, preset: Preset) -> Any:
        """What a preset has; None for the values of a part that it lacks."""
        value: Any = preset
        for name in self.path.split("."):
            value = None if value is None else getattr(value, name)
        return value


@cache
def preset_fields() -> dict[str, PresetField]:
    """All fields of the training recipe and of the model config by their paths; a part comes before its values."""
    roots = (("training", TrainingConfig), ("model", ModelConfig))
    return {field.path: field for path, owner in roots for field in _fields(path, owner)}


def differences(one: Preset, other: Preset) -> list[PresetField]:
    """Values that differ between two presets; a part that only one of them has counts as one."""
    found: list[PresetField] = []
    for field in preset_fields().values():
        values = field.of(one), field.of(other)
        lacks = field.part is not None and (values[0] is None) != (values[1] is None)
        within = any(field.path.startswith(f"{part.path}.") for part in found)
        if lacks or (field.part is None and values[0] != values[1] and not within):
            found.append(field)
    return found


def _fields(path: str, owner: type) -> Iterator[PresetField]:
    kinds = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
        kind, inner = kinds[field.name], f"{path}.{field.name}"
        options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        parts = (option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option))
        part = next(parts, None)
        yield PresetField(inner, kind, owner, part)
        if part is not None:
            yield from _fields(inner, part)


@cache
def _field_docstrings(owner: type) -> dict[str, str]:
    from docstring_parser import parse_from_object  # reads the source: only where help is printed

    found = parse_from_object(owner).params
    return {one.arg_name: " ".join((one.description or "").split()) for one in found if one.args[0] == "attribute"}
