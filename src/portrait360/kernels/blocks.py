"""What the CPU renderers read, in named blocks: planes and decoder, rays, samples, space, and the boxes' numbers.

Layouts: planes (L, P, P, 3, D, C), one tri-grid per latent, flat, those of a pyramid one after the other; B = L * views
images, latent-major. An empty array switches a part off (field, density noise, occupancy, gaps).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """Sizes that kernels are compiled for: constants, so that the compiler unrolls and vectorises."""

    channels: int
    """Of a plane's features; divisible by 8, or at least 8 in the two-pass renderer."""
    hidden: int
    """Units of the decoder's hidden layer; divisible by 16."""
    outputs: int
    """Of the decoder: the raw density and the rendered features."""
    depth: int
    """Slices of a plane."""
    softplus: bool
    """Activation of the hidden layer; else leaky ReLU."""
    levels: int = 1
    """Of a pyramid of tri-grids."""

    @property
    def scratch(self) -> int:
        """Room for the features of a point."""
        return (self.channels + 7) // 8 * 8


class DecoderWeights(NamedTuple):
    """The decoder's layers, gains included."""

    w1: np.ndarray
    """(C, H), flat."""
    b1: np.ndarray
    w2: np.ndarray
    """(K, H), flat."""
    b2: np.ndarray


class Lines(NamedTuple):
    """Rays of B images, M each, row by row in images of `width` columns."""

    origins: np.ndarray
    """(B, 3)."""
    directions: np.ndarray
    """(B, M, 3)."""
    width: int


class Samples(NamedTuple):
    """Where the one-pass renderer samples each ray: (s + jitter) / count of the way from near to far."""

    near: np.ndarray
    """(B, M); rays with near >= far have no samples."""
    far: np.ndarray
    jitter: np.ndarray
    noise: np.ndarray
    """(B, M, S) on raw densities, or empty."""
    count: int


class Passes(NamedTuple):
    """Where the two-pass renderer samples all rays."""

    near: np.float32
    far: np.float32
    coarse: int
    fine: int
    limits: np.ndarray
    """(3,) normalised |x|, |y|, |z| beyond which space is empty."""


class Space(NamedTuple):
    """What rays meet on their way to the tri-grid."""

    field: np.ndarray
    """Displacements (B, nz, ny, nx, 3), flat."""
    occupied: np.ndarray
    """Cells (L, nz, ny, nx) of the tri-grid's box, flat."""
    gaps: np.ndarray
    """(B, voxels): how far away the nearest voxel is that leads to an occupied cell (`lookup.gaps_between`)."""
    seed: int
    """Which samples in unoccupied cells are taken all the same; negative: none."""


class Geometry(NamedTuple):
    """The boxes, as numbers."""

    box: np.ndarray
    """(6,) of the tri-grid: centre xyz, half xyz."""
    field: np.ndarray
    """(6,) of the field's nodes: low xyz, high xyz."""
    gaps: np.ndarray
    """(6,) of the corners of the gaps' voxels: low xyz, high xyz."""


class Sizes(NamedTuple):
    """Counts. Shapes are (nz, ny, nx)."""

    resolution: int
    """P, of the planes; of a pyramid's finest ones."""
    views: int
    """Images of each tri-grid."""
    field: tuple[int, ...]
    """Nodes."""
    cells: tuple[int, ...]
    gaps: tuple[int, ...]
    """Corners of voxels."""


class Light(NamedTuple):
    """How decoded values become light."""

    scale: np.float32
    """Density per world unit is scale * softplus(raw + shift)."""
    shift: np.float32
    sigmoid: bool
    """Features pass through a logistic function."""
    stop: np.float32
    """A ray ends when less than this share of light is left."""


class Gradients(NamedTuple):
    """Where the backward pass adds to, laid out as what they belong to; decoder gradients one row per latent."""

    planes: np.ndarray
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    field: np.ndarray
    """Empty: not wanted."""
