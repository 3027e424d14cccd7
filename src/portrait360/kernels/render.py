"""The fused CPU renderer: field warp, tri-grid lookup, decoder and compositing in one pass over each ray.

`fused_kernels` compiles a forward and a backward function, and one that reads densities, for given sizes (constant
sizes let the compiler vectorise). The backward pass recomputes each ray instead of storing samples, so that memory
stays that of the inputs and outputs. `portrait360.model.rendering.render_plain` is the readable twin.

Layouts: planes (L, P, P, 3, D, C), one tri-grid per latent; B = L * views images, latent-major. Box arrays are
(centre xyz, half xyz). An empty array switches a part off (field, density noise, occupancy, gaps: what a ray may leap
over, see `portrait360.kernels.lookup.gaps_between`). Rays form pictures of
`width` columns and are walked in square tiles, so that neighbours find the planes in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from portrait360.kernels.lookup import (
    ONE,
    ZERO,
    axis_taps,
    canonical,
    cell_index,
    decode,
    field_frame,
    gather,
    plane_taps,
    ray_line,
    samples_per_voxel,
    taps8,
    tri_grid_taps,
    unit_frame,
    voxel_index,
    voxel_line,
)
from portrait360.kernels.simd import (
    FASTMATH,
    axpy8,
    exp_of_negative1,
    fma8,
    leaky_gradient8,
    load8,
    logistic1,
    softplus1,
    splat8,
    store8,
    sum8,
)

EXPLORE_MASK = 31
"""One in 32 samples in unoccupied cells is taken all the same, so that new matter is found."""
TILE = 8
BLOCK = 512
"""Points that one task of `density` reads."""


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


@numba.njit(fastmath=FASTMATH, forceinline=True)
def _scatter8(grad: Any, o: Any, w: Any, c: int, g: Any):
    """grad at eight taps += weight * g at channel c."""
    store8(grad, o[0] + c, axpy8(w[0], g, load8(grad, o[0] + c)))
    store8(grad, o[1] + c, axpy8(w[1], g, load8(grad, o[1] + c)))
    store8(grad, o[2] + c, axpy8(w[2], g, load8(grad, o[2] + c)))
    store8(grad, o[3] + c, axpy8(w[3], g, load8(grad, o[3] + c)))
    store8(grad, o[4] + c, axpy8(w[4], g, load8(grad, o[4] + c)))
    store8(grad, o[5] + c, axpy8(w[5], g, load8(grad, o[5] + c)))
    store8(grad, o[6] + c, axpy8(w[6], g, load8(grad, o[6] + c)))
    store8(grad, o[7] + c, axpy8(w[7], g, load8(grad, o[7] + c)))


@numba.njit(fastmath=FASTMATH, forceinline=True)
def _scatter(grad: Any, base: int, resolution: int, q: Any, g: Any, channels: int, depth: int):
    """Adjoint of `gather` in the planes."""
    o0, w0, o1, w1, o2, w2 = tri_grid_taps(base, resolution, q, channels, depth)
    for c in range(0, channels, 8):
        v = load8(g, c)
        _scatter8(grad, o0, w0, c, v)
        _scatter8(grad, o1, w1, c, v)
        _scatter8(grad, o2, w2, c, v)


@numba.njit(fastmath=FASTMATH, forceinline=True)
def _directional(planes: Any, base: int, resolution: int, plane: int, u: Any, v: Any, s: Any, g: Any,
                 channels: int, depth: int):  # fmt: skip
    """Derivatives of g . feature of one plane along its two axes and its depth."""
    slopes_u = (u[0], u[1], u[4], u[5])
    slopes_v = (v[0], v[1], v[4], v[5])
    slopes_s = (s[0], s[1], s[4], s[5])
    o, wu = plane_taps(base, resolution, plane, depth, channels, slopes_u, v, s)
    _, wv = plane_taps(base, resolution, plane, depth, channels, u, slopes_v, s)
    _, ws = plane_taps(base, resolution, plane, depth, channels, u, v, slopes_s)
    du, dv, ds = splat8(ZERO), splat8(ZERO), splat8(ZERO)
    for c in range(0, channels, 8):
        k = load8(g, c)
        du = fma8(k, taps8(planes, o, wu, c, splat8(ZERO)), du)
        dv = fma8(k, taps8(planes, o, wv, c, splat8(ZERO)), dv)
        ds = fma8(k, taps8(planes, o, ws, c, splat8(ZERO)), ds)
    return sum8(du), sum8(dv), sum8(ds)


@numba.njit(fastmath=FASTMATH, forceinline=True)
def _position_gradient(planes: Any, base: int, resolution: int, q: Any, g: Any, channels: int, depth: int):
    """Gradient of g . feature with respect to the normalised position q."""
    x, y, z = axis_taps(q[0], resolution), axis_taps(q[1], resolution), axis_taps(q[2], resolution)
    sx, sy, sz = axis_taps(q[0], depth), axis_taps(q[1], depth), axis_taps(q[2], depth)
    x0, y0, z0 = _directional(planes, base, resolution, 0, x, y, sz, g, channels, depth)
    x1, z1, y1 = _directional(planes, base, resolution, 1, x, z, sy, g, channels, depth)
    y2, z2, x2 = _directional(planes, base, resolution, 2, y, z, sx, g, channels, depth)
    return x0 + x1 + x2, y0 + y1 + y2, z0 + z1 + z2


@lru_cache(maxsize=16)
def fused_kernels(
    channels: int, hidden: int, features: int, depth: int, softplus_hidden: bool
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Forward and backward renderer and a reader of densities.

    Sizes: C plane features, H hidden units, O features and D depth slices. C must be a multiple of 8 and H of 16.
    """
    C, H, O, D = channels, hidden, features, depth
    K = 1 + O

    @numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
    def forward(
        planes, resolution, views, w1, b1, w2, b2, origins, directions, width, near, far, jitter, samples, noise, field,
        field_shape, field_box, box, occupied, occupancy_shape, gaps, gap_shape, gap_box, seed, scale, shift, sigmoid,
        stop, rendered,
    ):  # fmt: skip
        """rendered (B, M, O+2): features, opacity, sum of weight * distance."""
        images, rays, _ = directions.shape
        stride = resolution * resolution * 3 * D * C
        height, across = rays // width, (width + TILE - 1) // TILE
        blocks = ((height + TILE - 1) // TILE) * across
        has_field, has_noise, has_occupancy = field.size > 0, noise.size > 0, occupied.size > 0
        frame, unit = field_frame(field_box, field_shape), unit_frame(box)
        prunes, gap_frame = gaps.size > 0, field_frame(gap_box, gap_shape)
        for task in numba.prange(images * blocks):
            image = task // blocks
            block = task - image * blocks
            top, left = (block // across) * TILE, (block % across) * TILE
            base = (image // views) * stride
            cells = (image // views) * (occupied.size // (images // views))
            f, h, out = np.empty(C, np.float32), np.empty(H, np.float32), np.empty(K, np.float32)
            q, total = np.empty(3, np.float32), np.empty(O, np.float32)
            for pixel in range(TILE * TILE):
                row, column = top + pixel // TILE, left + pixel % TILE
                if row >= height or column >= width:
                    continue
                ray = row * width + column
                step = (far[image, ray] - near[image, ray]) / np.float32(samples)
                line = ray_line(origins, directions, image, ray)
                voxels = voxel_line(gap_frame, line)
                through, opacity, distance = ONE, ZERO, ZERO
                total[:] = ZERO
                if step > ZERO:
                    pace = samples_per_voxel(voxels, step)
                    s = -1
                    while s < samples - 1:
                        s += 1
                        t = near[image, ray] + (np.float32(s) + jitter[image, ray]) * step
                        if prunes:
                            over = leap(gaps, gap_shape, image, voxels, pace, t, seed, image * rays + ray, s)
                            if over > 0:
                                s += over - 1
                                continue
                        inside, _, _, _, _ = canonical(field, has_field, image, field_shape, frame, unit, line, t, q)
                        if not inside:
                            continue
                        if has_occupancy:
                            cell = cells + cell_index(q[0], q[1], q[2], occupancy_shape)
                            if occupied[cell] == 0 and is_skipped(seed, image * rays + ray, s):
                                continue
                        gather(planes, base, resolution, q, f, 0, C, D)
                        decode(f, 0, w1, b1, w2, b2, h, 0, out, 0, C, H, K, softplus_hidden)
                        raw = out[0] + shift
                        if has_noise:
                            raw += noise[image, ray, s]
                        alpha = ONE - exp_of_negative1(-softplus1(raw) * scale * step)
                        weight = through * alpha
                        for k in range(O):
                            value = logistic1(out[1 + k]) if sigmoid else out[1 + k]
                            total[k] += weight * value
                        opacity += weight
                        distance += weight * t
                        through *= ONE - alpha
                        if through < stop:
                            break
                for k in range(O):
                    rendered[image, ray, k] = total[k]
                rendered[image, ray, O] = opacity
                rendered[image, ray, O + 1] = distance

    @numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
    def backward(
        planes, resolution, views, w1, b1, w2, b2, origins, directions, width, near, far, jitter, samples, noise, field,
        field_shape, field_box, box, occupied, occupancy_shape, gaps, gap_shape, gap_box, seed, scale, shift, sigmoid,
        stop, grad,
        grad_planes, grad_w1, grad_b1, grad_w2, grad_b2, grad_field,
    ):  # fmt: skip
        """Gradients of features and opacity (grad (B, M, O+2); the distance column carries none).

        grad_planes like planes; decoder gradients one row per latent; grad_field like field, empty = not wanted.
        """
        images, rays, _ = directions.shape
        stride = resolution * resolution * 3 * D * C
        height, across = rays // width, (width + TILE - 1) // TILE
        blocks = ((height + TILE - 1) // TILE) * across
        has_field, has_noise, has_occupancy = field.size > 0, noise.size > 0, occupied.size > 0
        frame, unit = field_frame(field_box, field_shape), unit_frame(box)
        prunes, gap_frame = gaps.size > 0, field_frame(gap_box, gap_shape)
        wants_field = grad_field.size > 0
        for latent in numba.prange(images // views):
            base = latent * stride
            cells = latent * (occupied.size // (images // views))
            qs, corners = np.empty((samples, 3), np.float32), np.empty(samples, np.int64)
            fractions = np.empty((samples, 3), np.float32)
            f, h, out = (
                np.empty(samples * C, np.float32),
                np.empty(samples * H, np.float32),
                np.empty(samples * K, np.float32),
            )
            state = np.empty((samples, 4), np.float32)  # raw density, alpha, transmittance, gain
            gh, gf, go = np.empty(H, np.float32), np.empty(C, np.float32), np.empty(K, np.float32)
            mine_w1, mine_b1 = np.zeros(C * H, np.float32), np.zeros(H, np.float32)
            mine_w2, mine_b2 = np.zeros(K * H, np.float32), np.zeros(K, np.float32)
            for image in range(latent * views, (latent + 1) * views):
                for pixel in range(blocks * TILE * TILE):
                    block, inner = pixel // (TILE * TILE), pixel % (TILE * TILE)
                    row, column = (
                        (block // across) * TILE + inner // TILE,
                        (block % across) * TILE + inner % TILE,
                    )
                    if row >= height or column >= width:
                        continue
                    ray = row * width + column
                    step = (far[image, ray] - near[image, ray]) / np.float32(samples)
                    if step <= ZERO:
                        continue
                    line = ray_line(origins, directions, image, ray)
                    voxels = voxel_line(gap_frame, line)
                    through = ONE
                    count = 0
                    pace = samples_per_voxel(voxels, step)
                    s = -1
                    while s < samples - 1:
                        s += 1
                        t = near[image, ray] + (np.float32(s) + jitter[image, ray]) * step
                        if prunes:
                            over = leap(gaps, gap_shape, image, voxels, pace, t, seed, image * rays + ray, s)
                            if over > 0:
                                s += over - 1
                                continue
                        q = qs[count]
                        inside, corner, fx, fy, fz = canonical(
                            field, has_field, image, field_shape, frame, unit, line, t, q
                        )
                        if not inside:
                            continue
                        if has_occupancy:
                            cell = cells + cell_index(q[0], q[1], q[2], occupancy_shape)
                            if occupied[cell] == 0 and is_skipped(seed, image * rays + ray, s):
                                continue
                        corners[count] = corner
                        fractions[count, 0], fractions[count, 1], fractions[count, 2] = fx, fy, fz
                        gather(planes, base, resolution, q, f, count * C, C, D)
                        o = count * K
                        decode(f, count * C, w1, b1, w2, b2, h, count * H, out, o, C, H, K, softplus_hidden)
                        raw = out[o] + shift
                        if has_noise:
                            raw += noise[image, ray, s]
                        alpha = ONE - exp_of_negative1(-softplus1(raw) * scale * step)
                        gain = grad[image, ray, O]
                        for k in range(1, K):
                            if sigmoid:
                                out[o + k] = logistic1(out[o + k])
                            gain += grad[image, ray, k - 1] * out[o + k]
                        state[count, 0], state[count, 1] = raw, alpha
                        state[count, 2], state[count, 3] = through, gain
                        through *= ONE - alpha
                        count += 1
                        if through < stop:
                            break
                    behind = ZERO
                    for n in range(count - 1, -1, -1):
                        raw, alpha, through, gain = state[n, 0], state[n, 1], state[n, 2], state[n, 3]
                        weight = through * alpha
                        # d/d(rho * step) of the ray's sum: own light let through, light behind blocked.
                        slope = step * (through * (ONE - alpha) * gain - behind)
                        behind += weight * gain
                        go[0] = slope * scale * logistic1(raw)
                        for k in range(1, K):
                            value = weight * grad[image, ray, k - 1]
                            if sigmoid:
                                value *= out[n * K + k] * (ONE - out[n * K + k])
                            go[k] = value
                        for k in range(K):
                            mine_b2[k] += go[k]
                        for j in range(0, H, 8):
                            hidden_now, total = load8(h, n * H + j), splat8(ZERO)
                            for k in range(K):
                                g = go[k]
                                total = axpy8(g, load8(w2, k * H + j), total)
                                store8(mine_w2, k * H + j, axpy8(g, hidden_now, load8(mine_w2, k * H + j)))
                            if not softplus_hidden:
                                total = leaky_gradient8(hidden_now, total)
                            store8(gh, j, total)
                        if softplus_hidden:
                            for j in range(H):
                                gh[j] *= ONE - exp_of_negative1(-h[n * H + j])  # sigmoid of the input
                        for j in range(0, H, 8):
                            store8(mine_b1, j, fma8(load8(gh, j), splat8(ONE), load8(mine_b1, j)))
                        for c in range(C):
                            value, total = f[n * C + c], splat8(ZERO)
                            for j in range(0, H, 8):
                                g = load8(gh, j)
                                store8(mine_w1, c * H + j, axpy8(value, g, load8(mine_w1, c * H + j)))
                                total = fma8(g, load8(w1, c * H + j), total)
                            gf[c] = sum8(total)
                        _scatter(grad_planes, base, resolution, qs[n], gf, C, D)
                        if wants_field:
                            gx, gy, gz = _position_gradient(planes, base, resolution, qs[n], gf, C, D)
                            gx, gy, gz = gx / box[3], gy / box[4], gz / box[5]
                            _, ny, nx = field_shape
                            for m in range(8):
                                w = fractions[n, 0] if m & 1 else ONE - fractions[n, 0]
                                w *= fractions[n, 1] if m & 2 else ONE - fractions[n, 1]
                                w *= fractions[n, 2] if m & 4 else ONE - fractions[n, 2]
                                o = corners[n] + 3 * ((m & 1) + nx * ((m >> 1) & 1) + nx * ny * (m >> 2))
                                grad_field[o] += w * gx
                                grad_field[o + 1] += w * gy
                                grad_field[o + 2] += w * gz
            grad_w1[latent] = mine_w1
            grad_b1[latent] = mine_b1
            grad_w2[latent] = mine_w2
            grad_b2[latent] = mine_b2

    @numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
    def density(planes, resolution, latents, w1, b1, w2, b2, points, scale, shift, densities):
        """densities (L, N) per world unit at points (N, 3) of the tri-grid's [-1, 1]^3, the same for all latents."""
        stride = resolution * resolution * 3 * D * C
        count = len(points)
        blocks = (count + BLOCK - 1) // BLOCK
        for task in numba.prange(latents * blocks):
            latent, first = task // blocks, (task % blocks) * BLOCK
            f, h, out = np.empty(C, np.float32), np.empty(H, np.float32), np.empty(1, np.float32)
            for n in range(first, min(first + BLOCK, count)):
                gather(planes, latent * stride, resolution, points[n], f, 0, C, D)
                decode(f, 0, w1, b1, w2, b2, h, 0, out, 0, C, H, 1, softplus_hidden)
                densities[latent, n] = softplus1(out[0] + shift) * scale

    return forward, backward, density
