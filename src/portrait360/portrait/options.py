"""What users ask of a portrait, checked and in the units of the networks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import Vector3
from portrait360.errors import InputError
from portrait360.portrait.arguments import AT_REST as AT_REST
from portrait360.portrait.arguments import check_format as check_format
from portrait360.portrait.arguments import check_size, check_turns
from portrait360.portrait.arguments import check_truncation as check_truncation
from portrait360.portrait.arguments import checked_texture as checked_texture

DEFAULT_SIZE = 512
"""Side of the images of models that render at any side, pixels."""


def body_pose_from_degrees(neck: Vector3, head: Vector3) -> Float[Tensor, " 6"]:
    """A body pose in radians from two axis-angle vectors in degrees.

    Raises:
        InputError: not finite, or a turn by more than 90 degrees.
    """
    check_turns(neck, head)
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
    check_size(side)
    return side
