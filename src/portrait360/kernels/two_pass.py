"""The original two-pass renderer for the CPU: coarse pass, importance samples, merge and compositing ray by ray.

`portrait360.model.rendering.render_original` is the readable twin. Three things make this form fast: samples in
unoccupied cells are empty without a lookup, a ray ends when no light is left, and, the decoder's last layer being
linear, the hidden layer is composited and turned into features once per ray. `kernels.blocks` describes the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from portrait360.kernels.blocks import Form
from portrait360.kernels.lookup import (
    HALF,
    ONE,
    ZERO,
    canonical,
    cell_index,
    field_frame,
    gather_levels,
    hidden_layer,
    output,
    ray_line,
    unit_frame,
)
from portrait360.kernels.rays import TILE, ray_index, tiling
from portrait360.kernels.simd import FASTMATH, axpy8, device, load8, softplus1, splat8, store8

EMPTY = np.float32(-1000)
"""Raw density of samples that are not taken (equations 5.5)."""
LEAST_WEIGHT = np.float32(1e-6)
"""Intervals that weigh less add no features."""


@device
def _importance(t: Any, weights: Any, coarse: int, fine: int, cdf: Any, found: Any):
    """Inverse-transform samples of the smoothed coarse weights into found[:fine], ascending (equations 5.7).

    `weights` holds the coarse - 1 interval weights; u runs evenly from 0 to 1.
    """
    # Smoothed weights, summed up and normalised.
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

    # Invert the sums at evenly spaced u.
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


class Scratch(NamedTuple):
    """Of one ray."""

    t: Any
    """(S,) coarse distances."""
    weights: Any
    """(S,) of the coarse intervals."""
    q: Any
    """(S + 1, 3) normalised canonical positions; the last row is that of an importance sample."""
    known: Any
    """(S,) whether `raws` and `h` of a coarse sample hold what the decoder gives."""
    raws: Any
    """(S,) raw densities."""
    f: Any
    """(C,) plane features."""
    h: Any
    """((S + 2) * H,) hidden layers: of coarse samples, and in turn of two importance samples."""
    cdf: Any
    found: Any
    """(I,) distances of importance samples."""
    total: Any
    """(H,) composited hidden layer."""


@device
def _is_visited(at: Any, limits: Any, occupied: Any, cells: int, shape: Any) -> bool:
    """Whether a normalised position lies within the limits and in an occupied cell; `cells`: the latent's first."""
    if abs(at[0]) <= limits[0] and abs(at[1]) <= limits[1] and abs(at[2]) <= limits[2]:
        if occupied[cells + cell_index(at[0], at[1], at[2], shape)]:
            return True
    return False


@device
def _place_coarse(image: int, line: Any, space: Any, shapes: Any, frames: Any, cells: int, limits: Any, scratch: Any):
    """Positions of the coarse samples. Returns how many of them have to be decoded."""
    visited = 0
    for s in range(len(scratch.t)):
        at = scratch.q[s]
        canonical(space.field, space.field.size > 0, image, shapes[0], frames[0], frames[1], line, scratch.t[s], at)
        scratch.known[s], scratch.raws[s], scratch.weights[s] = 1, EMPTY, ZERO
        if _is_visited(at, limits, space.occupied, cells, shapes[1]):
            scratch.known[s] = 0
            visited += 1
    return visited


@device
def _decode(form: Any, planes: Any, base: int, resolution: int, decoder: Any, at: Any, slot: int, scratch: Any):
    """Raw density at a position; its hidden layer goes into slot `slot`."""
    H = form.hidden
    gather_levels(planes, base, resolution, at, scratch.f, form.channels, form.depth, form.levels)
    hidden_layer(scratch.f, 0, decoder.w1, decoder.b1, scratch.h, slot * H, form.channels, H, form.softplus)
    return output(scratch.h, slot * H, decoder.w2, decoder.b2, 0, H)


@device
def _weigh_coarse(form: Any, planes: Any, base: int, resolution: int, decoder: Any, light: Any, step: Any,
                  scratch: Any):  # fmt: skip
    """Weights of the coarse intervals (equations 5.6), from the camera on until no light is left."""
    through = ONE
    for s in range(len(scratch.t)):
        if scratch.known[s] == 0:
            scratch.raws[s] = _decode(form, planes, base, resolution, decoder, scratch.q[s], s, scratch)
            scratch.known[s] = 1
        if s > 0:
            density = softplus1(HALF * (scratch.raws[s - 1] + scratch.raws[s]) + light.shift) * light.scale
            alpha = ONE - np.float32(math.exp(-density * step))
            scratch.weights[s - 1] = alpha * through
            through *= ONE - alpha
            if through < light.stop:
                break


@device
def _composite(form: Any, planes: Any, base: int, resolution: int, decoder: Any, light: Any, image: int, line: Any,
               space: Any, shapes: Any, frames: Any, cells: int, passes: Any, scratch: Any):  # fmt: skip
    """Composite coarse and importance samples by distance (equations 5.8): the hidden layer into `scratch.total`.

    Returns opacity and the sum of weight * distance.
    """
    H, coarse, fine = form.hidden, passes.coarse, passes.fine
    t, found, h, total = scratch.t, scratch.found, scratch.h, scratch.total
    for j in range(0, H, 8):
        store8(total, j, splat8(ZERO))
    through, opacity, distance = ONE, ZERO, ZERO
    last_t, last_raw, last_slot = ZERO, EMPTY, 0
    a, b = 0, 0
    for n in range(coarse + fine):
        # the nearer one of the next coarse and the next importance sample
        if b >= fine or (a < coarse and t[a] <= found[b]):
            now, slot = t[a], a
            if scratch.known[a] == 0:
                scratch.raws[a] = _decode(form, planes, base, resolution, decoder, scratch.q[a], a, scratch)
                scratch.known[a] = 1
            raw = scratch.raws[a]
            a += 1
        else:
            now, slot, raw = found[b], coarse + b % 2, EMPTY
            at = scratch.q[coarse]
            canonical(space.field, space.field.size > 0, image, shapes[0], frames[0], frames[1], line, now, at)
            if _is_visited(at, passes.limits, space.occupied, cells, shapes[1]):
                raw = _decode(form, planes, base, resolution, decoder, at, slot, scratch)
            b += 1

        # the interval between it and the one before
        if n > 0:
            density = softplus1(HALF * (last_raw + raw) + light.shift) * light.scale
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
            if through < light.stop:
                break
        last_t, last_raw, last_slot = now, raw, slot
    return opacity, distance


@lru_cache(maxsize=16)
def two_pass_kernel(form: Form) -> Callable[..., None]:
    """The renderer, compiled for the sizes of a form."""
    C, H, features = form.scratch, form.hidden, form.outputs - 1

    @numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
    def forward(planes, decoder, lines, passes, space, geometry, sizes, light, rendered):
        """rendered (B, M, features + 2): features, opacity, sum of weight * distance."""
        images, rays, _ = lines.directions.shape
        views, resolution, coarse, fine = sizes.views, sizes.resolution, passes.coarse, passes.fine
        stride, cell_count = planes.size // (images // views), space.occupied.size // (images // views)
        field_shape, cell_shape = sizes.field, sizes.cells
        frame, unit = field_frame(geometry.field, field_shape), unit_frame(geometry.box)
        height, across, tiles = tiling(rays, lines.width)
        step = (passes.far - passes.near) / np.float32(coarse - 1)
        for task in numba.prange(images * tiles):
            image = task // tiles
            tile, latent = task - image * tiles, image // views
            base, cells = latent * stride, latent * cell_count
            f, q = np.empty(C, np.float32), np.empty((coarse + 1, 3), np.float32)
            h, total = np.empty((coarse + 2) * H, np.float32), np.empty(H, np.float32)
            t, weights = np.empty(coarse, np.float32), np.empty(coarse, np.float32)
            raws, known = np.empty(coarse, np.float32), np.empty(coarse, np.uint8)
            cdf, found = np.empty(coarse, np.float32), np.empty(max(fine, 1), np.float32)
            scratch = Scratch(t, weights, q, known, raws, f, h, cdf, found, total)

            # Ray by ray: coarse pass, importance samples, both together.
            for s in range(coarse):
                t[s] = passes.near + (np.float32(s) + HALF) * step
            for inner in range(TILE * TILE):
                index = ray_index(tile, inner, across, height, lines.width)
                if index < 0:
                    continue
                for k in range(features + 2):
                    rendered[image, index, k] = ZERO
                line = ray_line(lines.origins, lines.directions, image, index)
                shapes, frames = (field_shape, cell_shape), (frame, unit)
                if _place_coarse(image, line, space, shapes, frames, cells, passes.limits, scratch) == 0:
                    continue
                _weigh_coarse(form, planes, base, resolution, decoder, light, step, scratch)
                if fine > 0:
                    _importance(t, weights, coarse, fine, cdf, found)
                opacity, distance = _composite(
                    form, planes, base, resolution, decoder, light, image, line, space, shapes, frames, cells, passes,
                    scratch,
                )  # fmt: skip

                # The composited hidden layer to features; the bias counts as often as light arrived.
                for k in range(features):
                    bias = decoder.b2[1 + k]
                    value = output(total, 0, decoder.w2, decoder.b2, 1 + k, H)
                    rendered[image, index, k] = value - bias + bias * opacity
                rendered[image, index, features] = opacity
                rendered[image, index, features + 1] = distance

    return forward
