"""What the crop of a person measures, for the gates (`gates`) that decide whether to learn from it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy import ndimage

_SCALE = 256
"""Sharpness and flatness are measured at most at so many pixels."""
_DARK, _BRIGHT = 8, 247
_FLAT_LEVELS = 2


def measure_image(
    image: UInt8[ndarray, "R R 3"], mask: UInt8[ndarray, "R R"], inside: Float[ndarray, "R R"], side: float
) -> dict[str, float]:
    """The measures of `gates` that the crop itself gives.

    Args:
        image: the crop.
        mask: 255 where the person is.
        inside: 1 where the crop shows the photo, 0 in the padding.
        side: of the crop, in pixels of the photo.

    Returns:
        Shares of pixels from 0 to 1, the side in pixels of the photo, the variance of the Laplacian of grey levels, and
        a number of colours.
    """
    # Only the pixels of the person that the photo has.
    person = (mask >= 128) & (inside >= 0.5)
    grey = np.asarray(Image.fromarray(image).convert("L"))

    # What they measure.
    return {
        "side": float(side),
        "sharpness": _sharpness(grey, person, side),
        "dark": _share(grey < _DARK, person),
        "bright": _share(grey > _BRIGHT, person),
        "person": float(mask.mean() / 255.0),
        "outside": float(1.0 - inside.mean()),
        **_flatness(image, person, side),
    }


def _share(what: Bool[ndarray, "R R"], of: Bool[ndarray, "R R"]) -> float:
    """The share of the pixels `of` that are `what`; 0 when there are none."""
    return float(what[of].mean()) if of.any() else 0.0


def _at_scale(array: UInt8[ndarray, "..."], side: float, kernel: Image.Resampling) -> UInt8[ndarray, "..."]:
    """At as many pixels as the photo has, at most _SCALE."""
    pixels = max(8, int(min(side, _SCALE, len(array))))
    return np.asarray(Image.fromarray(array).resize((pixels, pixels), kernel))


def _region(person: Bool[ndarray, "R R"], side: float) -> Bool[ndarray, "S S"]:
    """The person at the scale of the measures; everything when nothing of it is left."""
    region = _at_scale(person.astype(np.uint8) * 255, side, Image.Resampling.BOX) >= 128
    return region if region.any() else np.ones_like(region)


def _sharpness(grey: UInt8[ndarray, "R R"], person: Bool[ndarray, "R R"], side: float) -> float:
    """Variance of the Laplacian over the person and its outline, which is all that bald heads have."""
    small = _at_scale(grey, side, Image.Resampling.LANCZOS).astype(np.float32)
    region = np.asarray(ndimage.binary_dilation(_region(person, side), iterations=2), bool)
    return float(ndimage.laplace(small, mode="nearest")[region].var())


def _flatness(image: UInt8[ndarray, "R R 3"], person: Bool[ndarray, "R R"], side: float) -> dict[str, float]:
    small = _at_scale(image, side, Image.Resampling.BOX)
    region = _region(person, side)
    highest, lowest = ndimage.maximum_filter(small, (3, 3, 1)), ndimage.minimum_filter(small, (3, 3, 1))
    even = (highest - lowest).max(axis=2) <= _FLAT_LEVELS
    exposed = (small.max(axis=2) >= _DARK) & (small.min(axis=2) <= _BRIGHT)
    coarse = (small[region] >> 4).astype(np.int64) @ np.array([256, 16, 1])
    counts = np.sort(np.bincount(coarse))[::-1].cumsum()
    return {
        "flat": _share(even & exposed, region),
        "colours": float(np.searchsorted(counts, 0.95 * len(coarse)) + 1),
    }
