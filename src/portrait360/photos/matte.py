"""The mask of a crop: which pixels show the person."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from scipy import ndimage
from skimage.measure import label

from portrait360.photos.landmarks import quietly, solutions

_NETWORK_SIDE = 256
_RADIUS = 0.012
"""Radius of the guided filter, in units of the crop's side."""
_EPSILON = 1e-3
_SURE = 0.5
_EDGE = 0.015
"""Width of the soft edge that belongs to a person, in units of the crop's side."""


@runtime_checkable
class MattingModel(Protocol):
    """A matting network of the user's: picture (H, W, 3) in bytes to opacity (H, W) in [0, 1]."""

    def __call__(self, image: UInt8[ndarray, "H W 3"], /) -> Float[ndarray, "H W"]: ...


class SelfieMatte:
    """mediapipe's selfie segmentation, its edges drawn to those of the picture. The network loads at the first crop."""

    def __init__(self) -> None:
        self._network: Any = None

    def __call__(self, image: UInt8[ndarray, "H W 3"], /) -> Float[ndarray, "H W"]:
        with quietly():
            if self._network is None:
                self._network = solutions().selfie_segmentation.SelfieSegmentation(model_selection=0)
            coarse = self._network.process(image).segmentation_mask
        side = image.shape[0]
        opacity = guided_filter(image, coarse, max(1, round(_RADIUS * side)))
        return sharpened(opacity)


def sharpened(opacity: Float[ndarray, "H W"]) -> Float[ndarray, "H W"]:
    """Opacity with a narrow edge: what is below a quarter or above three quarters is settled."""
    return np.clip((opacity - 0.25) / 0.5, 0.0, 1.0).astype(np.float32)


def guided_filter(image: UInt8[ndarray, "H W 3"], values: Float[ndarray, "H W"], radius: int) -> Float[ndarray, "H W"]:
    """`values` smoothed as a linear function of the picture's grey around each pixel, so that edges meet (He 2010)."""
    grey = (image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / 255.0

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, 2 * radius + 1, mode="nearest")

    mean_grey, mean_values = mean(grey), mean(values)
    variance = mean(grey * grey) - mean_grey * mean_grey
    slope = (mean(grey * values) - mean_grey * mean_values) / (variance + _EPSILON)
    return mean(slope) * grey + mean(mean_values - slope * mean_grey)


def person_only(opacity: Float[ndarray, "H W"], place: tuple[float, float]) -> Float[ndarray, "H W"]:
    """The opacity of the piece that holds, or comes closest to, a place (right and down, 0 to 1), and its soft edge.

    A second person that touches the first stays: outlines do not tell them apart.
    """
    pieces = np.asarray(label(opacity >= _SURE))
    if pieces.max() == 0:
        return opacity
    h, w = opacity.shape
    x, y = min(max(place[0], 0.0), 1.0) * (w - 1), min(max(place[1], 0.0), 1.0) * (h - 1)
    rows, columns = np.nonzero(pieces)
    nearest = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    own = pieces == pieces[rows[nearest], columns[nearest]]
    near = np.asarray(ndimage.distance_transform_edt(~own)) <= max(2.0, _EDGE * h)
    others = ndimage.binary_dilation((pieces > 0) & ~own, iterations=2) & ~own
    return np.where(near & ~others, opacity, 0.0).astype(np.float32)
