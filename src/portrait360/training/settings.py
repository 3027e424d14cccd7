"""Values of a preset that one run changes: `train(..., batch=32)`, `--training.batch 32`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from difflib import get_close_matches

from portrait360.config import Preset
from portrait360.config.fields import PresetField, differences, preset_fields
from portrait360.runtime.tensors import from_json
from portrait360.types import CheckpointError, InputError

LENGTH = "training.total_kimg"
"""What a resumed run may change: it then goes on for longer."""


def full_names(values: Mapping[str, object]) -> dict[str, object]:
    """Values of a preset by their full names.

    Args:
        values: by the plain name of a field (`batch`) where only one has it, else by the full one
            (`{"model.discriminator.clamp": None}`).

    Raises:
        TypeError: no field has that name, or several do.
    """
    known, found = preset_fields(), dict[str, object]()
    for name, value in values.items():
        paths = [name] if name in known else [path for path, field in known.items() if field.name == name]
        if not paths:
            raise TypeError(f"there is no option {name!r}.{_near(name)}")
        if len(paths) > 1:
            raise TypeError(f"{name!r} could be any of {', '.join(paths)}: pass **{{{paths[0]!r}: ...}}.")
        found[paths[0]] = value
    return found


def _near(name: str) -> str:
    fields = preset_fields().values()
    names = [field.path if "." in name else field.name for field in fields]
    near = list(dict.fromkeys(get_close_matches(name, names)))
    return f" Perhaps you meant {' or '.join(near)}." if near else ""


def with_settings(preset: Preset, settings: Mapping[str, object]) -> Preset:
    """The preset with other values, by full name.

    Args:
        preset: what all other values are taken from.
        settings: values of their fields' types; numbers, texts, lists and configs.

    Raises:
        InputError: a value of another type, one out of its range, or values that do not fit each other.
    """
    if not settings:
        return preset
    try:
        changed = _changed(preset, settings)
    except CheckpointError:
        raise _misfit(preset, settings) from None
    return changed


def _changed(preset: Preset, settings: Mapping[str, object]) -> Preset:
    """Through JSON, as checkpoints keep it: what a run trains with is what can be read back."""
    values = dataclasses.asdict(preset)
    for path in sorted(settings):  # a part before its values
        *parts, name = path.split(".")
        inner = values
        for part in parts:
            if inner[part] is None:
                inner[part] = {}
            inner = inner[part]
        inner[name] = _plain(settings[path])
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise CheckpointError("a value cannot be written as JSON.") from error
    return from_json(Preset, text)


def _plain(value: object) -> object:
    """A config as a dictionary; everything else as it is."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _misfit(preset: Preset, settings: Mapping[str, object]) -> InputError:
    """Which value is of another type than its field, or which part lacks values."""
    for path, value in settings.items():
        field = preset_fields()[path]
        try:
            _changed(preset, {path: value})
        except CheckpointError:
            part = _missing_part(preset, path)
            if part is None:
                return InputError(
                    f"`{path}` takes {_type_name(field)}, not {value!r}.", "Leave it out for the preset's."
                )
    part = next(part for path in settings if (part := _missing_part(preset, path)) is not None)
    return InputError(
        f"`{part.path}` is None in this preset, and needs all of its values to be set.",
        f"They are {', '.join(f'`{path}`' for path in preset_fields() if path.startswith(f'{part.path}.'))}.",
    )


def _missing_part(preset: Preset, path: str) -> PresetField | None:
    """The part that has this field, if the preset lacks it."""
    parts = (field for field in preset_fields().values() if path.startswith(f"{field.path}."))
    return next((part for part in parts if part.of(preset) is None), None)


def _type_name(field: PresetField) -> str:
    text = field.kind.__name__ if isinstance(field.kind, type) else str(field.kind)
    return (
        text.replace("typing.", "").replace("portrait360.config.model.", "").replace("portrait360.config.training.", "")
    )


def resumed_preset(stored: Preset, settings: Mapping[str, object]) -> Preset:
    """What a resumed run trains: what its checkpoint says, for as long as the settings say.

    Raises:
        InputError: a setting differs from what the run began with.
    """
    asked = with_settings(stored, settings)
    for field in differences(stored, asked):
        if field.path != LENGTH:
            old, new = field.of(stored), field.of(asked)
            raise InputError(
                f"`{field.path}` was {old} when the run began and cannot become {new} now.",
                "Leave it out to go on as the run began, or start a new one.",
            )
    return asked
