"""`PhotoLimits` from a JSON file: any of its fields, the others keep their defaults."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from pathlib import Path
from typing import Any

from portrait360.files import explain_os_error
from portrait360.photos.quality import PhotoLimits
from portrait360.types import InputError

HIGHEST: dict[str, float] = {
    "smallest_side": math.inf,
    "smallest_sharpness": math.inf,
    "duplicate_bits": 64,
    "most_head_outside": 1.0,
    "most_outside": 1.0,
    "most_shoulders_outside": 2.0,
    "most_overlap": 1.0,
    "least_confidence": 1.0,
    "largest_fit_error": 1.0,
    "largest_turn": 180.0,
    "most_dark": 1.0,
    "most_bright": 1.0,
    "least_person": 1.0,
    "most_uncovered": 1.0,
    "most_covered": 1.0,
    "most_flat": 1.0,
    "fewest_colours": 4096.0,
    "least_quality": math.inf,
}
"""What makes sense at most, for each field; the least is 0, but for marks, which may be any number."""
_MARK = "least_quality"
_MOST_BYTES = 2**20


def read_limits(path: Path) -> PhotoLimits:
    """The limits of a JSON file: an object with names of `PhotoLimits` and numbers.

    Raises:
        InputError: the file is missing or no JSON object, or a name or a value makes no sense.
    """
    path = Path(path)
    return PhotoLimits(**{name: _value(name, value, path) for name, value in _object(path).items()})


def _object(path: Path) -> dict[str, Any]:
    hint = 'Write an object, for instance {"smallest_side": 200, "most_overlap": 0.1}.'
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        missing = InputError(f"there is no file of limits at {path}.", "Check the path.")
        raise explain_os_error(error, path) or missing from error
    if len(text) > _MOST_BYTES:
        raise InputError(f"{path} is too large for a file of limits.", hint)
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {str(error)[:200]}.", hint) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {_short(content)}, not an object of limits.", hint)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice[:80]} is in it twice")
    return dict(pairs)


def _value(name: str, value: Any, path: Path) -> Any:
    """A limit's value of the type that its field has."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(PhotoLimits)}
    if name not in kinds:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), kinds, 1)
        hint = f"Perhaps you meant {near[0]}." if near else f"There are {', '.join(kinds)}."
        raise InputError(f"{path}: there is no limit {name[:80]!r}.", hint)
    if value is None and "None" in kinds[name]:
        return None
    where, hint = f"{path}: {name}", "docs/photos.md says what the limits are."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} must be a number, not {_short(value)}.", hint)
    if kinds[name] == "int" and not isinstance(value, int):
        raise InputError(f"{where} must be a whole number, not {_short(value)}.", hint)
    if not abs(value) < 1e300:
        raise InputError(f"{where} must be a finite number, not {_short(value)}.", hint)
    highest = HIGHEST[name]
    if name != _MARK and not 0 <= value <= highest:
        span = "at least 0" if math.isinf(highest) else f"from 0 to {highest:g}"
        raise InputError(f"{where} must be {span}, not {_short(value)}.", hint)
    return value if kinds[name] == "int" else float(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
