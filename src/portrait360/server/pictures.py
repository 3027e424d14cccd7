"""Images of a portrait for a browser that does not render itself."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image

from portrait360.config import Vector3
from portrait360.geometry.cameras import zoom_camera
from portrait360.media.images import to_bytes
from portrait360.portrait.camera import Camera
from portrait360.portrait.options import body_pose_from_degrees
from portrait360.portrait.portrait import Portrait
from portrait360.types import InputError

SMALLEST, LARGEST = 32, 1024
"""Sides of images, pixels."""
ZOOMS = (0.6, 5.0)
BACKGROUNDS = {"studio": None, "white": 1.0, "black": -1.0}
"""Levels in [-1, 1] in place of the model's own background."""
_QUALITY = {True: 80, False: 92}
"""Of JPEG: while people turn the portrait, and when it stands still."""


@dataclass(frozen=True)
class View:
    """How a portrait is looked at; angles in degrees."""

    yaw: float = 0.0
    pitch: float = 0.0
    zoom: float = 1.0
    neck: Vector3 = (0.0, 0.0, 0.0)
    head: Vector3 = (0.0, 0.0, 0.0)
    background: str = "studio"
    side: int = 256
    draft: bool = False
    """Whether it may be coarse: people turn the portrait."""
    format: str = "jpeg"

    @staticmethod
    def from_query(query: Mapping[str, str]) -> View:
        """The view that an address asks for.

        Raises:
            InputError: a value is out of range or no number.
        """
        view = View(
            yaw=_number(query, "yaw", (-360.0, 360.0)),
            pitch=_number(query, "pitch", (-90.0, 90.0)),
            zoom=_number(query, "zoom", ZOOMS, 1.0),
            neck=_vector(query, "neck"),
            head=_vector(query, "head"),
            background=query.get("background", "studio"),
            side=round(_number(query, "side", (SMALLEST, LARGEST), 256.0)),
            draft=query.get("draft") == "1",
            format=query.get("format", "jpeg"),
        )
        if view.background not in BACKGROUNDS:
            raise InputError(f"there is no background {view.background!r}.", f"Known ones: {', '.join(BACKGROUNDS)}.")
        if view.format not in ("jpeg", "png"):
            raise InputError(f"images are jpeg or png, not {view.format!r}.", "Use format=png.")
        return view


def _number(query: Mapping[str, str], name: str, limits: tuple[float, float], usual: float = 0.0) -> float:
    text = query.get(name)
    try:
        value = usual if text is None else float(text)
    except ValueError:
        value = math.nan
    if not limits[0] <= value <= limits[1]:
        raise InputError(f"`{name}` must lie between {limits[0]:g} and {limits[1]:g}, not be {text}.")
    return value


def _vector(query: Mapping[str, str], name: str) -> Vector3:
    parts = query.get(name, "0,0,0").split(",")
    if len(parts) != 3:
        raise InputError(f"`{name}` must be three numbers, not {query[name]}.")
    x, y, z = (_number({name: part}, name, (-90.0, 90.0)) for part in parts)
    return x, y, z


@torch.no_grad()
def render_view(portrait: Portrait, view: View) -> UInt8[np.ndarray, "S S 3"]:
    """The portrait as it is looked at.

    Models with super-resolution have images of one side, which is averaged down; drafts leave the super-resolution out.

    Raises:
        InputError: a turn is out of range, or the model knows none.
    """
    # Camera and pose; who cannot be re-posed stays at rest
    renderer = portrait.renderer
    camera = zoom_camera(Camera(view.yaw, view.pitch).label[None], view.zoom)
    pose = body_pose_from_degrees(view.neck, view.head)
    posed = pose[None] if bool(pose.any()) and renderer.posable else None

    # At the wanted side
    own = renderer.own_side
    side = view.side if own is None else (min(view.side, renderer.default_resolution) if view.draft else None)
    out = renderer.render(camera, posed, side, draft=view.draft and own is not None)
    image, mask = out.image, out.mask
    level = BACKGROUNDS[view.background]
    if level is not None:
        mask = F.interpolate(mask, size=image.shape[-1], mode="bilinear").clamp(0.0, 1.0)
        behind = _own_background(portrait)
        # over a plain background the person can be cut out exactly
        image = image + (1.0 - mask) * (level - behind) if behind is not None else image * mask + level * (1.0 - mask)
    if image.shape[-1] > view.side:
        image = F.interpolate(image, size=(view.side, view.side), mode="area")
    return to_bytes(image)[0]


def _own_background(portrait: Portrait) -> float | None:
    """The level in [-1, 1] of the plain background behind a portrait; None if a network makes it."""
    config = portrait.renderer.generator.config
    return config.plain_background if config.background is None and config.features == 3 else None


def encoded(image: UInt8[np.ndarray, "S S 3"], view: View) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    if view.format == "png":
        Image.fromarray(image).save(buffer, "PNG")
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY[view.draft])
    return buffer.getvalue()
