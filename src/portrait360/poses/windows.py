"""What a discriminator sees of real pictures: the pictures as it has learned to see them, and body poses in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.geometry.cameras import zoom_camera
from portrait360.model.discriminator import Discriminator, Pictures
from portrait360.model.layers import resize
from portrait360.poses.calibration import PoseCalibration

LEAST_DETAIL = 0.8
"""Middle parts with fewer of a picture's pixels per pixel of the model are not shown: they would be blurred."""


def network_pictures(
    model: ModelConfig,
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    window: float = 1.0,
    *,
    before_grey: bool = False,
) -> Pictures:
    """Pictures and masks of any size, or their middle parts, as the model's discriminator has learned to see real ones.

    This project's models: before plain grey if they have no background network, the mean over the area of each
    pixel (middle parts: bilinearly), and the mask at the side of the rays (equations 10.4), as in training. The
    original's: resized bilinearly, the mask at its own size (equations 14.2). `before_grey`: the pictures are before
    plain grey already.
    """
    side = model.resolution
    if model.background is None and not before_grey:
        images = images * masks + model.plain_background * (1.0 - masks)
    if window != 1.0:
        images, masks = middle(images, window), middle(masks, window)
    if model.discriminator.mirror_once:
        if window != 1.0:
            images, masks = resize(images, side), resize(masks, side)
        elif images.shape[-1] > side:
            images, masks = (F.interpolate(v, size=(side, side), mode="area") for v in (images, masks))
        masks = resize(masks, model.raw_resolution)
    images = resize(images, side)
    raw = None if model.superresolution is None else resize(images, model.raw_resolution)
    return Pictures(images, raw, masks)


def middle(pictures: Float[Tensor, "B C H H"], window: float) -> Float[Tensor, "B C W W"]:
    """The middle part whose side is `window` times the picture's, rounded to whole pixels on both sides."""
    margin = round(pictures.shape[-1] * (1.0 - window) / 2.0)
    inside = slice(margin, pictures.shape[-1] - margin)
    return pictures[:, :, inside, inside]


def windows_with_detail(calibration: PoseCalibration | None, side: int, model: ModelConfig) -> tuple[float, ...]:
    """Of the windows that a calibration knows (None: the whole picture alone), the first ones in which pictures of
    `side` pixels have enough detail; the whole picture is always among them."""
    windows = (1.0,) if calibration is None else calibration.windows
    count = 1
    while count < len(windows) and side * windows[count] >= LEAST_DETAIL * model.resolution:
        count += 1
    return windows[:count]


@torch.no_grad()
def window_poses(
    discriminator: Discriminator,
    model: ModelConfig,
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    cameras: Float[Tensor, "B 25"],
    windows: tuple[float, ...],
    *,
    before_grey: bool = False,
) -> Float[Tensor, "B K 6"]:
    """Body poses that the discriminator sees in pictures and their middle parts, seen by cameras to match.

    Every picture is judged by itself: the minibatch deviation (equations 8.4) does not depend on the others.

    Args:
        discriminator, model: the network and the model that it belongs to.
        images: pictures in [-1, 1] of any size, background included.
        masks: 1 = person, 0 = background, of the same size.
        cameras: camera labels of the whole pictures.
        windows: sides of the parts, in units of the picture's; 1 is the whole.
        before_grey: as for `network_pictures`.
    """
    full, poses = images.shape[-1], []
    for window in windows:
        seen_by = zoom_camera(cameras, full / middle(masks, window).shape[-1])
        shown = network_pictures(model, images, masks, window, before_grey=before_grey)
        poses.append(discriminator.predict_pose(shown, seen_by, parts=len(images)))
    return torch.stack(poses, dim=1)
