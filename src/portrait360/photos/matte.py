"""The mask of a crop: which pixels show the person, and how much of the fitted body they leave uncovered."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from scipy import ndimage
from scipy.ndimage import binary_dilation, binary_erosion
from skimage.measure import label
from skimage.segmentation import watershed

from portrait360.geometry.silhouette import SIDE
from portrait360.photos.crop import Crop, Square
from portrait360.photos.detect import quietly, solutions

_OUTLINE_SIDE = 160
"""Pixels at which outlines are segmented, 94 of them the crop itself: the encoder takes 128."""
_RADIUS = 0.012
"""Radius of the guided filter, in units of the crop's side."""
_EPSILON = 1e-3
_SURE = 0.5
_EDGE = 0.015
"""Width of the soft edge that belongs to a person, in units of the crop's side."""
WIDER = 1.7
"""With so much more around it, segmentation loses 1 % of the synthetic persons from their crops, else 3.5 %; outlines
are a little coarser then."""
GREY = 128
"""Level of the grey background, the most frequent one in the encoder's training."""


@runtime_checkable
class MattingModel(Protocol):
    """A matting network of the user's: image (H, W, 3) in bytes to opacity (H, W) in [0, 1]."""

    def __call__(self, image: UInt8[ndarray, "H W 3"], /) -> Float[ndarray, "H W"]: ...


class SelfieMatte:
    """mediapipe's selfie segmentation, its edges drawn to those of the image. The network loads at the first crop."""

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


class Outline:
    """A person's opacity in and around a crop, segmented once, for crops nearby."""

    def __init__(self, crop: Crop, matte: MattingModel) -> None:
        """Segment a crop and what is around it. Raises PhotoError as `Crop.image` does."""
        self.square = Square(crop.square.centre, crop.square.side * crop.most_wider(WIDER))
        opacity = person_only(matte(self.square.of(crop.photo, _OUTLINE_SIDE).image), (0.5, 0.5))
        self._levels = np.repeat(np.rint(np.clip(opacity, 0.0, 1.0) * 255.0).astype(np.uint8)[..., None], 3, axis=2)

    def opacity(self, crop: Crop) -> Float[ndarray, "R R"]:
        """Of the pixels of a crop of the same photo. Raises PhotoError where it misses what was segmented."""
        scale = _OUTLINE_SIDE / self.square.side
        x, y = (
            (place - middle) * scale + _OUTLINE_SIDE / 2.0
            for place, middle in zip(crop.square.centre, self.square.centre, strict=True)
        )
        levels = Square((x, y), crop.square.side * scale).of(self._levels, crop.resolution)
        return levels.image[..., 0] / np.float32(255.0)


def wider_opacity(crop: Crop, matting: MattingModel, wider: float = WIDER) -> Float[ndarray, "R R"]:
    """Opacity of the pixels of a crop, segmented with more around it. Raises PhotoError as `Crop.image` does."""
    around = crop.wider(wider)
    margin = (around.resolution - crop.resolution) // 2
    return matting(around.image)[margin : margin + crop.resolution, margin : margin + crop.resolution]


def mirrored_opacity(image: UInt8[ndarray, "H W 3"], matting: MattingModel) -> Float[ndarray, "H W"]:
    """Opacity segmented in the mirror image: another try where the network failed."""
    return matting(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]


def on_grey(image: UInt8[ndarray, "H W 3"], opacity: Float[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """A person cut out, in front of grey."""
    share = np.clip(opacity, 0.0, 1.0)[..., None]
    return np.rint(image * share + GREY * (1.0 - share)).astype(np.uint8)


def sharpened(opacity: Float[ndarray, "H W"]) -> Float[ndarray, "H W"]:
    """Opacity with a narrow edge: what is below a quarter or above three quarters is settled."""
    return np.clip((opacity - 0.25) / 0.5, 0.0, 1.0).astype(np.float32)


def guided_filter(image: UInt8[ndarray, "H W 3"], values: Float[ndarray, "H W"], radius: int) -> Float[ndarray, "H W"]:
    """`values` smoothed as a linear function of the image's grey around each pixel, so that edges meet (He 2010)."""
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


# ---- the fitted body beside the mask ----

_RIM = 4
"""Pixels of the silhouette's rim that are left out: people are not the mean body, and fits are off by so much."""


def uncovered_share(
    silhouette: Bool[ndarray, "S S"], mask: UInt8[ndarray, "R R"], inside: Float[ndarray, "R R"]
) -> float:
    """Share of a silhouette, without its rim and as far as the photo reaches, in which the mask has no person.

    Args:
        mask: 255 where the person is.
        inside: 1 where the crop shows the photo, 0 in the padding.
    """
    body = binary_erosion(silhouette, iterations=_RIM, border_value=1) & _shrunk(inside >= 0.5)
    return float((body & ~_shrunk(mask >= 128)).sum() / max(body.sum(), 1))


def _shrunk(where: Bool[ndarray, "R R"]) -> Bool[ndarray, "S S"]:
    small = Image.fromarray(where.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small) >= 128


# ---- other people in the mask ----

FAR = 0.15
"""Distance from the fitted body, in units of the crop's side, from which on a mask is somebody else's. Hair and clothes
of 250 synthetic people reached 0.16 under exact poses; with poses 10 degrees off, 0.4 % of them did so."""
_SOFT_EDGE = 4
"""Pixels of the silhouette's image by which the soft edge of a mask reaches beyond its middle."""
_LEAST_OTHER = 0.004
"""Share of the crop that such a part covers at least to be somebody."""


def without_others(mask: UInt8[ndarray, "R R"], silhouette: Bool[ndarray, "S S"]) -> UInt8[ndarray, "R R"]:
    """A mask without the people beside the one that was fitted, whom segmentation does not tell apart.

    What lies far from the fitted body is somebody else's. The border between both runs where the mask is narrowest (a
    watershed of the distance to the mask's outline).

    Args:
        mask: 255 where a person is.
        silhouette: of the fitted body.
    """
    # Parts that are far from the body
    person = _shrunk(mask >= 128)
    away = np.asarray(ndimage.distance_transform_edt(~silhouette)) / len(silhouette)
    pieces = np.asarray(label(person & (away > FAR)))
    sizes = np.bincount(pieces.ravel())
    others = [piece for piece in range(1, len(sizes)) if sizes[piece] >= _LEAST_OTHER * pieces.size]
    if not others or not (person & silhouette).any():
        return mask

    # Who owns the rest
    markers = np.where(silhouette & person, 1, 0)
    for number, piece in enumerate(others, start=2):
        markers[pieces == piece] = number
    depth = np.asarray(ndimage.distance_transform_edt(person))
    owner = watershed(-depth, markers, mask=person)
    soft = binary_dilation(owner > 1, iterations=_SOFT_EDGE) & (owner != 1)
    theirs = Image.fromarray((soft * 255).astype(np.uint8)).resize(
        (mask.shape[1], mask.shape[0]), Image.Resampling.BILINEAR
    )
    return np.minimum(mask, 255 - np.asarray(theirs))


def beyond_share(mask: UInt8[ndarray, "R R"], silhouette: Bool[ndarray, "S S"]) -> float:
    """Share of a mask that lies far from the fitted body."""
    person = _shrunk(mask >= 128)
    away = np.asarray(ndimage.distance_transform_edt(~silhouette)) / len(silhouette)
    return float((person & (away > FAR)).sum() / max(person.sum(), 1))
