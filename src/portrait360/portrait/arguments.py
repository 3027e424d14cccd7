"""What users ask of a portrait, checked in the time that it takes to type: nothing here imports torch."""

from __future__ import annotations

import math
import re

from portrait360.config import Vector3
from portrait360.errors import InputError

AT_REST: Vector3 = (0.0, 0.0, 0.0)
"""No turn of neck or head: the canonical body."""
LARGEST_ANGLE = 90.0
"""Degrees."""
LARGEST_SEED = 2**32 - 1
MOST_SEEDS = 10_000
SIZES = (64, 2048)
"""Least and largest side that can be asked for, pixels."""

DEFAULT_TEXTURE = 1024
"""Side of a mesh's texture, texels."""
TEXTURES = (256, 512, 1024, 2048)
"""Sides that can be asked for."""
FORMATS = ("glb", "obj")
"""Of mesh files."""

_PEOPLE = {"neck": 45.0, "head": 45.0}
"""Degrees by which people turn a joint at most, roughly: half of the 80 to 90 of both together, about the vertical."""
_LEARNED = 25.0
"""Degrees by which synthetic people turn each of the two at most (`synthetic.subject`), about any one axis."""
_NAMED_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def parse_seeds(text: str) -> list[int]:
    """Seeds from text like `7`, `0-3` or `0,5,7-9`: in that order, each once.

    Raises:
        InputError: not of this form, out of range, or too many.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(
                f"`seeds` takes whole numbers of at least 0 and ranges of them, not {text!r}.",
                "Try `seeds=0-3` or `seeds=0,5,7-9`.",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"the range of seeds {part.strip()!r} runs backwards.", f"Try {last}-{first}.")
        if last > LARGEST_SEED:
            raise InputError(f"the seed {last} is above the largest, {LARGEST_SEED}.", "Use a smaller one.")
        if last - first + 1 + len(seeds) > MOST_SEEDS:
            raise InputError(f"`seeds` {text} asks for more than {MOST_SEEDS} portraits.", "Make them in several runs.")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def check_seed(seed: int) -> None:
    """Raise InputError unless `seed` lies in 0 .. LARGEST_SEED."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"`seed` must lie between 0 and {LARGEST_SEED}, not be {seed}.", "Try `seed=7`.")


def check_truncation(truncation: float) -> None:
    """Raise InputError unless `truncation` lies between 0 and 1."""
    if not 0.0 <= truncation <= 1.0:
        raise InputError(f"`truncation` must lie between 0 and 1, not be {truncation:g}.", "Try `truncation=0.7`.")


def check_turns(neck: Vector3, head: Vector3) -> None:
    """Raise InputError unless two axis-angle vectors in degrees are finite and turn by at most 90 each."""
    for name, vector in (("neck", neck), ("head", head)):
        angle = _angle(vector)
        if not math.isfinite(angle) or angle > LARGEST_ANGLE:
            raise InputError(
                f"`{name}` takes three angles in degrees that turn by at most {LARGEST_ANGLE:.0f} in all,"
                f" not {' '.join(f'{value:g}' for value in vector)}.",
                f"Try `{name}=(0, 20, 0)`, which turns to the person's left.",
            )


def unnatural_turns(neck: Vector3, head: Vector3) -> list[str]:
    """Warnings for turns that are allowed but that no neck does."""
    return [
        f"no {'neck turns' if name == 'neck' else 'head turns against its neck'} by {_angle(vector):.0f} degrees:"
        f" people reach about {_PEOPLE[name]:.0f}, and the packaged model was trained with up to about {_LEARNED:.0f}."
        for name, vector in (("neck", neck), ("head", head))
        if _angle(vector) > _PEOPLE[name]
    ]


def check_size(size: int | None) -> None:
    """Raise InputError unless images of `size` pixels can be asked for."""
    if size is not None and not SIZES[0] <= size <= SIZES[1]:
        raise InputError(f"`size` must lie between {SIZES[0]} and {SIZES[1]}, not be {size}.", "Try `size=512`.")


def checked_texture(texture: int | None) -> int:
    """Side of a mesh's texture; the default when None. Raises InputError unless it is one of `TEXTURES`."""
    side = DEFAULT_TEXTURE if texture is None else texture
    if side not in TEXTURES:
        known = ", ".join(str(known) for known in TEXTURES)
        raise InputError(f"`texture` must be one of {known}, not {side}.", "Try `texture=1024`.")
    return side


def check_format(format: str) -> None:
    """Raise InputError unless `format` is one of `FORMATS`."""
    if format not in FORMATS:
        raise InputError(f"`format` must be glb or obj, not {format!r}.", "Try `format=glb`.")


def is_device_name(name: str) -> bool:
    """Whether a name is one of a device that networks run on; whether this machine has it, torch knows."""
    return _NAMED_DEVICE.fullmatch(name) is not None


def _angle(vector: Vector3) -> float:
    return math.sqrt(sum(value * value for value in vector)) if len(vector) == 3 else math.nan
