"""The original two-pass renderer for the CPU: coarse pass, importance samples, merge and compositing ray by ray.

`portrait360.model.rendering.render_original` is the readable twin. Three things make this form fast: samples in
unoccupied cells are empty without a lookup, a ray ends when no light is left, and, the decoder's last layer being
linear, the hidden layer is composited and turned into features once per ray. Layouts as in `kernels.render`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from portrait360.kernels.lookup import (
    HALF,
    ONE,
    ZERO,
    canonical,
    cell_index,
    field_frame,
    gather,
    hidden_layer,
    output,
    ray_line,
    unit_frame,
)
from portrait360.kernels.render import TILE
from portrait360.kernels.simd import FASTMATH, axpy8, load8, softplus1, splat8, store8

EMPTY = np.float32(-1000)
"""Raw density of samples that are not taken (equations 5.5)."""
LEAST_WEIGHT = np.float32(1e-6)
"""Intervals that weigh less add no features."""


@numba.njit(fastmath=FASTMATH, forceinline=True)
def _importance(t: Any, weights: Any, coarse: int, fine: int, cdf: Any, found: Any):
    """Inverse-transform samples of the smoothed coarse weights into found[:fine], ascending (equations 5.7).

    `weights` holds the coarse - 1 interval weights; u runs evenly from 0 to 1.
    """
    last = coarse - 2  # of the interval weights, and of the midpoints that are the edges of the bins
    total = ZERO
    cdf[0] = ZERO
    for k in range(1, last):
        here = weights[k]
        smooth = HALF * (max(weights[k - 1], here) + max(here, weights[k + 1])) + np.float32(0.01 + 1e-5)
        total += smooth
        cdf[k] = total
    for k in range(1, last):
        cdf[k] /= total
    index = 0
    for i in range(fine):
        u = np.float32(i) / np.float32(fine - 1) if fine > 1 else ZERO
        while index < last and cdf[index] <= u:
            index += 1
        low, high = max(index - 1, 0), min(index, last - 1)
        below, above = HALF * (t[low] + t[low + 1]), HALF * (t[high] + t[high + 1])
        span = cdf[high] - cdf[low]
        if span < np.float32(1e-5):
            span = ONE
        found[i] = below + (u - cdf[low]) / span * (above - below)


@lru_cache(maxsize=16)
def midpoint_kernel(
    channels: int, hidden: int, features: int, depth: int, softplus_hidden: bool
) -> Callable[..., None]:
    """The renderer for C plane features, H hidden units, O features and D slices. C divisible by 8, H by 16."""
    C, H, O, D = channels, hidden, features, depth

    @numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
    def forward(
        planes, resolution, views, w1, b1, w2, b2, origins, directions, width, near, far, coarse, fine, field,
        field_shape, field_box, box, limits, occupied, occupancy_shape, scale, shift, stop, rendered,
    ):  # fmt: skip
        """rendered (B, M, O+2): features, opacity, sum of weight * distance.

        `limits`: normalised |x|, |y|, |z| beyond which space is empty. `occupied`: (L, cells), flat.
        """
        images, rays, _ = directions.shape
        stride = resolution * resolution * 3 * D * C
        height, across = rays // width, (width + TILE - 1) // TILE
        blocks = ((height + TILE - 1) // TILE) * across
        has_field = field.size > 0
        frame, unit = field_frame(field_box, field_shape), unit_frame(box)
        step = (far - near) / np.float32(coarse - 1)
        for task in numba.prange(images * blocks):
            image = task // blocks
            block = task - image * blocks
            top, left = (block // across) * TILE, (block % across) * TILE
            base = (image // views) * stride
            cells = (image // views) * (occupied.size // (images // views))
            f, q = np.empty(C, np.float32), np.empty((coarse + 1, 3), np.float32)
            h, total = np.empty((coarse + 2) * H, np.float32), np.empty(H, np.float32)
            t, weights = np.empty(coarse, np.float32), np.empty(coarse, np.float32)
            raws, known = np.empty(coarse, np.float32), np.empty(coarse, np.uint8)
            cdf, found = np.empty(coarse, np.float32), np.empty(max(fine, 1), np.float32)
            for s in range(coarse):
                t[s] = near + (np.float32(s) + HALF) * step
            for pixel in range(TILE * TILE):
                row, column = top + pixel // TILE, left + pixel % TILE
                if row >= height or column >= width:
                    continue
                ray = row * width + column
                for k in range(O + 2):
                    rendered[image, ray, k] = ZERO
                line = ray_line(origins, directions, image, ray)
                visited = 0
                for s in range(coarse):
                    at = q[s]
                    canonical(
                        field, has_field, image, field_shape, frame, unit, line, t[s], at
                    )  # fmt: skip
                    known[s], raws[s], weights[s] = 1, EMPTY, ZERO
                    if abs(at[0]) <= limits[0] and abs(at[1]) <= limits[1] and abs(at[2]) <= limits[2]:
                        if occupied[cells + cell_index(at[0], at[1], at[2], occupancy_shape)]:
                            known[s] = 0
                            visited += 1
                if visited == 0:
                    continue
                # coarse pass: weights only
                through = ONE
                for s in range(coarse):
                    if known[s] == 0:
                        gather(planes, base, resolution, q[s], f, 0, C, D)
                        hidden_layer(f, 0, w1, b1, h, s * H, C, H, softplus_hidden)
                        raws[s] = output(h, s * H, w2, b2, 0, H)
                        known[s] = 1
                    if s > 0:
                        density = softplus1(HALF * (raws[s - 1] + raws[s]) + shift) * scale
                        alpha = ONE - np.float32(math.exp(-density * step))
                        weights[s - 1] = alpha * through
                        through *= ONE - alpha
                        if through < stop:
                            break
                if fine > 0:
                    _importance(t, weights, coarse, fine, cdf, found)
                # merged pass: both kinds of samples by distance
                for j in range(0, H, 8):
                    store8(total, j, splat8(ZERO))
                through, opacity, distance = ONE, ZERO, ZERO
                last_t, last_raw, last_slot = ZERO, EMPTY, 0
                a, b = 0, 0
                for n in range(coarse + fine):
                    if b >= fine or (a < coarse and t[a] <= found[b]):
                        now, slot = t[a], a
                        if known[a] == 0:
                            gather(planes, base, resolution, q[a], f, 0, C, D)
                            hidden_layer(f, 0, w1, b1, h, a * H, C, H, softplus_hidden)
                            raws[a] = output(h, a * H, w2, b2, 0, H)
                            known[a] = 1
                        raw = raws[a]
                        a += 1
                    else:
                        now, slot, raw = found[b], coarse + b % 2, EMPTY
                        at = q[coarse]
                        canonical(
                            field, has_field, image, field_shape, frame, unit, line, now, at
                        )  # fmt: skip
                        if abs(at[0]) <= limits[0] and abs(at[1]) <= limits[1] and abs(at[2]) <= limits[2]:
                            if occupied[cells + cell_index(at[0], at[1], at[2], occupancy_shape)]:
                                gather(planes, base, resolution, at, f, 0, C, D)
                                hidden_layer(f, 0, w1, b1, h, slot * H, C, H, softplus_hidden)
                                raw = output(h, slot * H, w2, b2, 0, H)
                        b += 1
                    if n > 0:
                        density = softplus1(HALF * (last_raw + raw) + shift) * scale
                        alpha = ONE - np.float32(math.exp(-density * (now - last_t)))
                        weight = alpha * through
                        if weight > LEAST_WEIGHT:
                            half = HALF * weight
                            for j in range(0, H, 8):
                                sums = axpy8(half, load8(h, last_slot * H + j), load8(total, j))
                                store8(total, j, axpy8(half, load8(h, slot * H + j), sums))
                            opacity += weight
                            distance += weight * HALF * (last_t + now)
                        through *= ONE - alpha
                        if through < stop:
                            break
                    last_t, last_raw, last_slot = now, raw, slot
                for k in range(O):
                    bias = b2[1 + k]
                    rendered[image, ray, k] = output(total, 0, w2, b2, 1 + k, H) - bias + bias * opacity
                rendered[image, ray, O] = opacity
                rendered[image, ray, O + 1] = distance

    return forward
