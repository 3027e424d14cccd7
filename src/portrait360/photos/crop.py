"""The square crop of a photo, with a soft border where it leaves the photo.

Beyond its border the photo is continued as FFHQ (Karras 2019) does it: mirrored, blurred away from the border, and
faded to one colour, so that the crop has neither an edge nor a second person there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from numpy import ndarray
from PIL import Image, ImageFilter

from portrait360.photos.records import PhotoError

LARGEST_SIDE = 4.0
"""A crop is at most so many times as large as the longer side of the photo."""

_BLUR = 0.02
"""Standard deviation of the blur in the padding, in crop sides; FFHQ's."""
_BLURRED_AT = 0.06
_FADED_AT = 0.35
"""Distances from the photo, in crop sides, from which on the padding is wholly blurred, and one colour."""

_GAP = 2
"""Shrinking averages blocks of pixels first, and leaves at least so large a factor to the Lanczos filter."""

_MARGIN = 4
"""Pixels that the filters need around the crop, in units of the larger of one pixel before and after resampling."""


@dataclass(frozen=True)
class Square:
    """A square region of a photo, in pixels of the photo: pixel (row i, column j) covers [j, j + 1) × [i, i + 1)."""

    centre: tuple[float, float]
    """Right and down."""
    side: float

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Centre (right, down) and side."""
        return (*self.centre, self.side)

    def of(self, photo: UInt8[ndarray, "H W 3"], resolution: int) -> Crop:
        """The crop of a photo that shows this region."""
        return Crop(photo, self, resolution)

    def moved(self, offset: Float[ndarray, " 2"], scale: float) -> Square:
        """One whose centre lies `offset` of this one's sides from this one's, and `scale` times as large."""
        x, y = np.array(self.centre) + offset * self.side
        return Square((float(x), float(y)), self.side * scale)

    def shares(self, points: Float[ndarray, "*N 2"]) -> Float[ndarray, "*N 2"]:
        """Points of the photo in units of the side, from the upper left corner."""
        return (points - np.array(self.centre)) / self.side + 0.5

    def points(self, shares: Float[ndarray, "*N 2"]) -> Float[ndarray, "*N 2"]:
        """Inverse of `shares`."""
        return (shares - 0.5) * self.side + np.array(self.centre)


@dataclass(frozen=True, eq=False)
class Crop:
    """A square of a photo at `resolution` pixels. Its pixels are made when they are first asked for.

    Shrinking uses a Lanczos filter as wide as the new pixels, enlarging a bicubic one. Only the part of the photo that
    is needed is touched.
    """

    photo: UInt8[ndarray, "H W 3"]
    square: Square
    resolution: int

    @cached_property
    def inside(self) -> Float32[ndarray, "R R"]:
        """How much of each pixel the photo covers: 1 where it shows the photo, 0 in the padding.

        Raises:
            PhotoError: "bad fit": the crop misses the photo, or is more than LARGEST_SIDE times as large, or not
                finite.
        """
        height, width = self.photo.shape[:2]
        left, top = self._corner
        self._check()
        across = _covered(left, self.square.side, self.resolution, width)
        down = _covered(top, self.square.side, self.resolution, height)
        return down[:, None] * across[None, :]

    @cached_property
    def image(self) -> UInt8[ndarray, "R R 3"]:
        """The pixels. Raises PhotoError as `inside` does."""
        inside, side, resolution = self.inside, self.square.side, self.resolution
        left, top = self._corner
        image = _resampled(self.photo, left, top, side, resolution)
        if inside.min() == 1.0:
            return image
        height, width = self.photo.shape[:2]
        beyond_x, beyond_y = _beyond(left, side, resolution, width), _beyond(top, side, resolution, height)
        return _softened(image, inside, np.hypot(beyond_y[:, None], beyond_x[None, :]))

    def wider(self, times: float) -> Crop:
        """More around the same pixels: at most `times` as wide, as whole pixels and LARGEST_SIDE allow."""
        margin = int((self.most_wider(times) - 1.0) / 2.0 * self.resolution)
        pixels = self.resolution + 2 * margin
        return Crop(self.photo, Square(self.square.centre, self.square.side * pixels / self.resolution), pixels)

    def most_wider(self, times: float) -> float:
        """`times`, or how many times larger a crop may be, which must not be too large for the photo."""
        return max(1.0, min(times, LARGEST_SIDE * max(self.photo.shape[:2]) / self.square.side))

    @property
    def _corner(self) -> tuple[float, float]:
        """Left and top."""
        (x, y), half = self.square.centre, self.square.side / 2
        return x - half, y - half

    def _check(self) -> None:
        height, width = self.photo.shape[:2]
        (left, top), side = self._corner, self.square.side
        if not all(map(math.isfinite, (left, top, side))) or side <= 0:
            raise PhotoError("bad fit", f"a crop of side {side} at {self.square.centre} is none.")
        if side > LARGEST_SIDE * max(height, width):
            raise PhotoError("bad fit", f"the crop would be over {LARGEST_SIDE:.0f} times as large as the photo.")
        if left >= width or top >= height or left + side <= 0 or top + side <= 0:
            raise PhotoError("bad fit", "the crop would lie outside of the photo.")


def _covered(start: float, side: float, resolution: int, length: int) -> Float32[ndarray, " R"]:
    """Share of each pixel of the crop, along one axis, that lies within [0, length)."""
    edges = np.clip(start + np.arange(resolution + 1) * (side / resolution), 0.0, length)
    return np.clip(np.diff(edges) * (resolution / side), 0.0, 1.0).astype(np.float32)


def _beyond(start: float, side: float, resolution: int, length: int) -> Float32[ndarray, " R"]:
    """How far the centre of each pixel lies outside of [0, length], in crop sides."""
    centres = start + (np.arange(resolution) + 0.5) * (side / resolution)
    return (np.maximum(np.maximum(-centres, centres - length), 0.0) / side).astype(np.float32)


def _resampled(
    photo: UInt8[ndarray, "H W 3"], left: float, top: float, side: float, resolution: int
) -> UInt8[ndarray, "R R 3"]:
    """The crop of the photo that is mirrored at its borders again and again."""
    scale = side / resolution
    block = max(1, int(scale / _GAP))
    margin = _MARGIN * max(1.0, scale / block)
    columns, x = _span(left / block, side / block, margin)
    rows, y = _span(top / block, side / block, margin)
    part = _blocks(
        photo, _mirrored(rows, -(-photo.shape[0] // block)), _mirrored(columns, -(-photo.shape[1] // block)), block
    )
    box = (x, y, x + side / block, y + side / block)
    kernel = Image.Resampling.LANCZOS if scale > 1.0 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(part).resize((resolution, resolution), kernel, box=box))


def _span(start: float, side: float, margin: float) -> tuple[Int[ndarray, " N"], float]:
    """The pixels around [start, start + side), and where that begins among them."""
    first = math.floor(start - margin)
    return np.arange(first, math.ceil(start + side + margin)), start - first


def _mirrored(places: Int[ndarray, " N"], length: int) -> Int[ndarray, " N"]:
    """Places of a row of `length` pixels continued as c b a | a b c | c b a ..."""
    turn = places % (2 * length)
    return np.where(turn < length, turn, 2 * length - 1 - turn)


def _blocks(
    photo: UInt8[ndarray, "H W 3"], rows: Int[ndarray, " M"], columns: Int[ndarray, " N"], block: int
) -> UInt8[ndarray, "M N 3"]:
    """The photo's blocks of `block`² pixels, averaged, in the given rows and columns of blocks.

    The last ones average what there is, if the photo is no multiple of the block.
    """
    top, left = int(rows.min()), int(columns.min())
    part = photo[top * block : (int(rows.max()) + 1) * block, left * block : (int(columns.max()) + 1) * block]
    if block > 1:
        part = np.asarray(Image.fromarray(np.ascontiguousarray(part)).reduce(block))
    return np.ascontiguousarray(part[rows - top][:, columns - left])


def _softened(
    crop: UInt8[ndarray, "R R 3"], inside: Float[ndarray, "R R"], beyond: Float[ndarray, "R R"]
) -> UInt8[ndarray, "R R 3"]:
    """The padding, `beyond` crop sides away from the photo, blurred and faded to the median colour of the photo."""
    shown = inside >= 0.5
    median = np.median(crop[shown] if shown.any() else crop.reshape(-1, 3), axis=0)
    outside = beyond > 0.0
    blurred = np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(_BLUR * len(crop))))[outside]
    share = _eased(beyond[outside] / _BLURRED_AT)[:, None]
    padding = crop[outside] * (1.0 - share) + blurred * share
    share = _eased(beyond[outside] / _FADED_AT)[:, None]
    padding = padding * (1.0 - share) + median * share
    softened = crop.copy()
    softened[outside] = np.rint(padding).astype(np.uint8)
    return softened


def _eased(share: Float[ndarray, " N"]) -> Float[ndarray, " N"]:
    """From 0 to 1 without a kink at either end."""
    share = np.clip(share, 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)
