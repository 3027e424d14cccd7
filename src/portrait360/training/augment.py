"""Changes to batches: blur, mirroring, and swapping with the neighbour in the batch (equations 10.2, 10.3)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from portrait360.data.sampling import mirrored
from portrait360.geometry.cameras import zoom_camera
from portrait360.model.generator import select
from portrait360.model.layers import resize
from portrait360.poses.windows import centre_crop


def mirror_some(
    flags: Bool[Tensor, " B"],
    images: Float[Tensor, "B 3 H W"],
    masks: Float[Tensor, "B 1 H W"],
    cameras: Float[Tensor, "B 25"],
    body_poses: Float[Tensor, "B 6"],
):
    """Mirror image, mask, camera and body pose together where the flag is set (equations 1.5)."""
    samples = (images, masks, cameras, body_poses)
    return tuple(select(flags, there, here) for there, here in zip(mirrored(*samples), samples, strict=True))


def zoom_some(
    levels: Int[Tensor, " B"],
    images: Float[Tensor, "B 3 H W"],
    masks: Float[Tensor, "B 1 H W"],
    cameras: Float[Tensor, "B 25"],
    windows: tuple[float, ...],
    side: int,
):
    """Bring images to `side` pixels: the whole at level 0, at level k a centre crop, with a camera to match.

    `levels` are on the CPU, the others where they will be used. `windows`: sides of the centre crops for level 1, 2,
    ... in units of the image's, rounded to whole pixels.
    """
    full = images.shape[-1]
    shown = images.new_empty(len(images), 3, side, side), masks.new_empty(len(masks), 1, side, side), cameras.clone()
    for level in range(len(windows) + 1):
        rows = (levels == level).nonzero()[:, 0].to(images.device)
        if not len(rows):
            continue

        # Crop, then average down whole images and resize crops
        window = windows[level - 1] if level else 1.0
        parts = [centre_crop(values[rows], window) for values in (images, masks)]
        for out, part in zip(shown, parts, strict=False):
            if not level and full != side:
                out[rows] = F.interpolate(part, size=(side, side), mode="area")
            else:
                out[rows] = resize(part, side)

        # A crop's camera has a longer focal length
        if level:
            shown[2][rows] = zoom_camera(cameras[rows], full / parts[0].shape[-1])
    return shown


def swap_some(flags: Bool[Tensor, " B"], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Take the previous sample's values where the flag is set (roll by one; one flag for all tensors)."""
    return tuple(select(flags, t.roll(1, dims=0), t) for t in tensors)
