"""Real images as a discriminator was trained on them, and body poses predicted from them and their centre crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.config import ModelConfig
from portrait360.geometry.cameras import zoom_camera
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.layers import resize
from portrait360.poses.calibration import PoseCalibration

LEAST_DETAIL = 0.8
"""Crops with fewer of an image's pixels per pixel of the model are left out: they would be blurred."""


def network_images(
    model: ModelConfig,
    images: Float[Tensor, "B 3 H H"],
    masks: Float[Tensor, "B 1 H H"],
    window: float = 1.0,
    *,
    on_grey: bool = False,
) -> DiscriminatorInput:
    """Images and masks of any size, or their centre crops, as the model's discriminator was trained on real ones.

    This project's models: on a plain grey background if they have no background network, averaged over the area of
    each pixel (crops: bilinearly), and the mask at the side of the rays (equations 10.4), as in training. The
    original's: resized bilinearly, the mask at its own size (equations 14.2). `on_grey`: the images are on a grey
    background already.
    """
    # Background and crop
    side = model.resolution
    if model.background is None and not on_grey:
        images = images * masks + model.plain_background * (1.0 - masks)
    if window != 1.0:
        images, masks = centre_crop(images, window), centre_crop(masks, window)

    # Resize as in training
    if model.discriminator.mirror_once:
        if window != 1.0:
            images, masks = resize(images, side), resize(masks, side)
        elif images.shape[-1] > side:
            images, masks = (F.interpolate(v, size=(side, side), mode="area") for v in (images, masks))
        masks = resize(masks, model.raw_resolution)
    images = resize(images, side)
    raw = None if model.superresolution is None else resize(images, model.raw_resolution)
    return DiscriminatorInput(images, raw, masks)


def centre_crop(images: Float[Tensor, "B C H H"], window: float) -> Float[Tensor, "B C W W"]:
    """The centre crop whose side is `window` times the image's, rounded to whole pixels on both sides."""
    margin = round(images.shape[-1] * (1.0 - window) / 2.0)
    inside = slice(margin, images.shape[-1] - margin)
    return images[:, :, inside, inside]


def windows_with_detail(calibration: PoseCalibration | None, side: int, model: ModelConfig) -> tuple[float, ...]:
    """The first windows of a calibration (None: the whole image alone) in which images of `side` pixels have enough
    detail; the whole image is always among them."""
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
    on_grey: bool = False,
) -> Float[Tensor, "B K 6"]:
    """Predicted body poses of images and their centre crops, with cameras to match.

    Every image is predicted by itself: the minibatch deviation (equations 8.4) does not depend on the others.

    Args:
        discriminator, model: the network and the model that it belongs to.
        images: in [-1, 1], of any size, background included.
        masks: 1 = person, 0 = background, of the same size.
        cameras: camera labels of the whole images.
        windows: sides of the crops, in units of the image's; 1 is the whole.
        on_grey: as for `network_images`.
    """
    # One crop size after the other
    full, poses = images.shape[-1], []
    for window in windows:
        zoomed = zoom_camera(cameras, full / centre_crop(masks, window).shape[-1])
        crops = network_images(model, images, masks, window, on_grey=on_grey)
        poses.append(discriminator.predict_pose(crops, zoomed, parts=len(images)))

    # Side by side
    return torch.stack(poses, dim=1)
