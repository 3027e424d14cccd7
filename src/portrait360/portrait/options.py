"""What users ask of a portrait, checked: truncation, body pose and size."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import Vector3
from portrait360.types import InputError

AT_REST: Vector3 = (0.0, 0.0, 0.0)
"""No turn of neck or head: the canonical body."""
LARGEST_ANGLE = 90.0
"""Degrees."""
DEFAULT_SIZE = 512
"""Side of the images of models that render at any side, pixels."""
SIZES = (64, 2048)
"""Least and largest side that can be asked for, pixels."""

DEFAULT_TEXTURE = 1024
"""Side of a mesh's texture, texels."""
TEXTURES = (256, 512, 1024, 2048)
"""Sides that can be asked for."""
FORMATS = ("glb", "obj")
"""Of mesh files."""


def check_truncation(truncation: float) -> None:
    """Raise InputError unless `truncation` lies between 0 and 1."""
    if not 0.0 <= truncation <= 1.0:
        raise InputError(f"`truncation` must lie between 0 and 1, not be {truncation:g}.", "Try `truncation=0.7`.")


def body_pose_from_degrees(neck: Vector3, head: Vector3) -> Float[Tensor, " 6"]:
    """A body pose in radians from two axis-angle vectors in degrees.

    Raises:
        InputError: not finite, or a turn by more than 90 degrees.
    """
    for name, vector in (("neck", neck), ("head", head)):
        angle = math.sqrt(sum(value * value for value in vector)) if len(vector) == 3 else math.nan
        if not math.isfinite(angle) or angle > LARGEST_ANGLE:
            raise InputError(
                f"`{name}` takes three angles in degrees that turn by at most {LARGEST_ANGLE:.0f} in all,"
                f" not {' '.join(f'{value:g}' for value in vector)}.",
                f"Try `{name}=(0, 20, 0)`, which turns to the person's left.",
            )
    return torch.deg2rad(torch.tensor([*neck, *head], dtype=torch.float64)).float()


def check_posable(body_pose: Tensor, posable: bool, model: str) -> None:
    """Raise InputError for a turn of neck or head if the model of that name knows none."""
    if not posable and bool(body_pose.any()):
        raise InputError(
            f"{model} makes heads that cannot be re-posed.",
            "Leave out `neck` and `head`; turn the camera instead.",
        )


def checked_size(size: int | None, own_side: int | None, model: str) -> int | None:
    """Side of the rays for images of `size` pixels; None for models that have a side of their own.

    Args:
        size: what was asked for; the default when None.
        own_side: side of the images of a model with super-resolution; None where any side can be rendered.
        model: its name.

    Raises:
        InputError: out of range, or not the side of a model that has its own.
    """
    if own_side is not None:
        if size is not None and size != own_side:
            raise InputError(f"{model} makes images of {own_side} pixels, not {size}.", "Leave out `size`.")
        return None
    side = DEFAULT_SIZE if size is None else size
    if not SIZES[0] <= side <= SIZES[1]:
        raise InputError(f"`size` must lie between {SIZES[0]} and {SIZES[1]}, not be {side}.", "Try `size=512`.")
    return side


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
