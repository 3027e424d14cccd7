"""Rays of the one-pass CPU renderer: which pixel a task walks, and which samples of a ray are taken."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from portrait360.kernels.lookup import (
    ZERO,
    canonical,
    cell_index,
    ray_line,
    samples_per_voxel,
    voxel_index,
    voxel_line,
)
from portrait360.kernels.simd import device

EXPLORE_MASK = 31
"""One in 32 samples in unoccupied cells is taken all the same, so that new density is found."""
TILE = 8


@numba.njit(inline="always")
def explore_hash(seed: int, ray: int, sample: int) -> int:
    """Well-mixed 32 bits from three integers (deterministic; also used by the twin)."""
    x = (seed * 0x9E3779B1 + ray * 0x85EBCA6B + sample * 0xC2B2AE35) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    x ^= x >> 16
    return x


@numba.njit(inline="always")
def is_skipped(seed: int, ray: int, sample: int) -> bool:
    """Whether a sample where nothing is known to be is left out: all of them with a negative seed, else 31 of 32."""
    return seed < 0 or explore_hash(seed, ray, sample) & EXPLORE_MASK != 0


@numba.njit(inline="always")
def leap(gaps: Any, shape: Any, image: int, voxels: Any, pace: Any, t: Any, seed: int, ray: int, sample: int) -> int:
    """How many samples to leave out from this one on, because rays meet nothing there; 0 = look at this one.

    `gaps`, `shape`: of `portrait360.kernels.lookup.gaps_between`; `voxels`, `pace`: the ray in voxels, and how many
    samples it takes to cross one.
    """
    voxel = voxel_index(shape, voxels, t)
    gap = gaps[image, voxel] if voxel >= 0 else 0
    if gap > 0 and is_skipped(seed, ray, sample):
        return 1 + int(np.float32(gap - 1) * pace)
    return 0


class Ray(NamedTuple):
    """One ray of the one-pass renderer."""

    image: int
    index: int
    number: int
    """Among the rays of all images; picks explored samples."""
    line: Any
    """Origin and direction, six numbers."""
    voxels: Any
    """The same in voxels of the gaps."""
    near: Any
    jitter: Any
    step: Any
    """Distance between samples; not positive: no samples."""
    pace: Any
    """Samples that it takes to cross a voxel."""


@numba.njit(inline="always")
def tiling(rays: int, width: int):
    """Height of images of `width` columns, tiles across, and tiles of an image."""
    height, across = rays // width, (width + TILE - 1) // TILE
    return height, across, ((height + TILE - 1) // TILE) * across


@numba.njit(inline="always")
def ray_index(tile: int, inner: int, across: int, height: int, width: int) -> int:
    """Ray of pixel `inner` of a tile; -1 beyond the image."""
    row, column = (tile // across) * TILE + inner // TILE, (tile % across) * TILE + inner % TILE
    return row * width + column if row < height and column < width else -1


@device
def make_ray(lines: Any, samples: Any, gap_frame: Any, image: int, index: int):
    """The `Ray` of an index."""
    near = samples.near[image, index]
    step = (samples.far[image, index] - near) / np.float32(samples.count)
    line = ray_line(lines.origins, lines.directions, image, index)
    voxels = voxel_line(gap_frame, line)
    pace = samples_per_voxel(voxels, step)
    number = image * lines.directions.shape[1] + index
    return Ray(image, index, number, line, voxels, near, samples.jitter[image, index], step, pace)


@device
def next_sample(s: int, count: int, ray: Any, space: Any, shapes: Any, frames: Any, cells: int, q: Any):
    """The first sample from `s` on that is taken (`count`: none), its distance, and its corner and fractions in the
    field; its normalised canonical position goes into q.

    `shapes`: of field, cells and gaps; `frames`: of the field and the tri-grid's box; `cells`: the latent's first.
    """
    has_field, has_cells, prunes = space.field.size > 0, space.occupied.size > 0, space.gaps.size > 0
    while s < count:
        t = ray.near + (np.float32(s) + ray.jitter) * ray.step

        # Leap over voxels from which nothing is reached.
        if prunes:
            over = leap(space.gaps, shapes[2], ray.image, ray.voxels, ray.pace, t, space.seed, ray.number, s)
            if over > 0:
                s += over
                continue

        # Take it if it lies in the box, and in an occupied cell or explores.
        inside, corner, fx, fy, fz = canonical(
            space.field, has_field, ray.image, shapes[0], frames[0], frames[1], ray.line, t, q
        )
        if inside:
            taken = True
            if has_cells:
                empty = space.occupied[cells + cell_index(q[0], q[1], q[2], shapes[1])] == 0
                taken = not (empty and is_skipped(space.seed, ray.number, s))
            if taken:
                return s, t, corner, fx, fy, fz
        s += 1
    return count, ZERO, 0, ZERO, ZERO, ZERO
