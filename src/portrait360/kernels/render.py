"""The fused CPU renderer: field warp, tri-grid lookup, decoder and compositing in one pass over each ray.

Kernels are compiled for the sizes of a `Form`: constant sizes let the compiler vectorise. The backward pass recomputes
each ray instead of storing samples, so that memory stays that of the inputs and outputs. The readable twin is
`portrait360.model.rendering.render_plain`; `kernels.blocks` describes the inputs. Rays are walked in square tiles, so
that neighbours find the planes in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from portrait360.kernels.blocks import DecoderWeights, Form
from portrait360.kernels.lookup import (
    ONE,
    ZERO,
    axis_taps,
    decode,
    field_frame,
    gather,
    plane_taps,
    taps8,
    tri_grid_taps,
    unit_frame,
)
from portrait360.kernels.rays import TILE, make_ray, next_sample, ray_index, tiling
from portrait360.kernels.simd import (
    FASTMATH,
    axpy8,
    device,
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

_kernel = numba.njit(parallel=True, fastmath=FASTMATH, cache=True)


@device
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


@device
def _scatter(grad: Any, base: int, resolution: int, q: Any, g: Any, channels: int, depth: int):
    """Adjoint of `gather` in the planes."""
    o0, w0, o1, w1, o2, w2 = tri_grid_taps(base, resolution, q, channels, depth)
    for c in range(0, channels, 8):
        v = load8(g, c)
        _scatter8(grad, o0, w0, c, v)
        _scatter8(grad, o1, w1, c, v)
        _scatter8(grad, o2, w2, c, v)


@device
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


@device
def _position_gradient(planes: Any, base: int, resolution: int, q: Any, g: Any, channels: int, depth: int):
    """Gradient of g . feature with respect to the normalised position q."""
    x, y, z = axis_taps(q[0], resolution), axis_taps(q[1], resolution), axis_taps(q[2], resolution)
    sx, sy, sz = axis_taps(q[0], depth), axis_taps(q[1], depth), axis_taps(q[2], depth)
    x0, y0, z0 = _directional(planes, base, resolution, 0, x, y, sz, g, channels, depth)
    x1, z1, y1 = _directional(planes, base, resolution, 1, x, z, sy, g, channels, depth)
    y2, z2, x2 = _directional(planes, base, resolution, 2, y, z, sx, g, channels, depth)
    return x0 + x1 + x2, y0 + y1 + y2, z0 + z1 + z2


# ---- forward ----


@device
def march(form: Any, planes: Any, base: int, resolution: int, decoder: Any, light: Any, ray: Any, samples: Any,
          space: Any, shapes: Any, frames: Any, cells: int, scratch: Any, rendered: Any):  # fmt: skip
    """Composite a ray's samples from the camera on, and write its row of `rendered`."""
    f, h, out, q, total = scratch
    features = form.outputs - 1

    # Sample by sample, until no light is left.
    has_noise = samples.noise.size > 0
    through, opacity, distance = ONE, ZERO, ZERO
    total[:] = ZERO
    s = 0 if ray.step > ZERO else samples.count
    while s < samples.count:
        s, t, _, _, _, _ = next_sample(s, samples.count, ray, space, shapes, frames, cells, q)
        if s == samples.count:
            break
        gather(planes, base, resolution, q, f, 0, form.channels, form.depth)
        decode(f, 0, decoder.w1, decoder.b1, decoder.w2, decoder.b2, h, 0, out, 0,
               form.channels, form.hidden, form.outputs, form.softplus)  # fmt: skip
        raw = out[0] + light.shift
        if has_noise:
            raw += samples.noise[ray.image, ray.index, s]
        alpha = ONE - exp_of_negative1(-softplus1(raw) * light.scale * ray.step)

        # The light that it adds, and what passes.
        weight = through * alpha
        for k in range(features):
            value = logistic1(out[1 + k]) if light.sigmoid else out[1 + k]
            total[k] += weight * value
        opacity += weight
        distance += weight * t
        through *= ONE - alpha
        if through < light.stop:
            break
        s += 1

    # The ray's row.
    for k in range(features):
        rendered[ray.image, ray.index, k] = total[k]
    rendered[ray.image, ray.index, features] = opacity
    rendered[ray.image, ray.index, features + 1] = distance


# ---- backward ----


class Record(NamedTuple):
    """What the backward pass keeps of one ray's samples."""

    q: Any
    """(S, 3) normalised canonical positions."""
    corners: Any
    """(S,) of the field."""
    fractions: Any
    """(S, 3) in the field's voxel."""
    f: Any
    """(S * C,) plane features."""
    h: Any
    """(S * H,) hidden layers."""
    out: Any
    """(S * K,) decoded; features activated."""
    state: Any
    """(S, 4) raw density, alpha, transmittance, gain (the light that weight 1 would add to the loss)."""


@device
def retrace(form: Any, planes: Any, base: int, resolution: int, decoder: Any, light: Any, ray: Any, samples: Any,
            space: Any, shapes: Any, frames: Any, cells: int, record: Any, grad: Any):  # fmt: skip
    """`march` once more, keeping the samples. Returns how many there are."""
    C, H, K, features = form.channels, form.hidden, form.outputs, form.outputs - 1
    has_noise = samples.noise.size > 0
    through = ONE
    count, s = 0, 0
    while s < samples.count:
        s, _, corner, fx, fy, fz = next_sample(s, samples.count, ray, space, shapes, frames, cells, record.q[count])
        if s == samples.count:
            break

        # Look up and decode.
        record.corners[count] = corner
        record.fractions[count, 0], record.fractions[count, 1], record.fractions[count, 2] = fx, fy, fz
        gather(planes, base, resolution, record.q[count], record.f, count * C, C, form.depth)
        o = count * K
        decode(record.f, count * C, decoder.w1, decoder.b1, decoder.w2, decoder.b2, record.h, count * H, record.out, o,
               C, H, K, form.softplus)  # fmt: skip
        raw = record.out[o] + light.shift
        if has_noise:
            raw += samples.noise[ray.image, ray.index, s]
        alpha = ONE - exp_of_negative1(-softplus1(raw) * light.scale * ray.step)

        # The light that it adds, and what passes.
        gain = grad[ray.image, ray.index, features]
        for k in range(1, K):
            if light.sigmoid:
                record.out[o + k] = logistic1(record.out[o + k])
            gain += grad[ray.image, ray.index, k - 1] * record.out[o + k]
        record.state[count, 0], record.state[count, 1] = raw, alpha
        record.state[count, 2], record.state[count, 3] = through, gain
        through *= ONE - alpha
        count += 1
        if through < light.stop:
            break
        s += 1
    return count


@device
def output_gradient(form: Any, light: Any, ray: Any, record: Any, n: int, behind: Any, grad: Any, go: Any):
    """Gradient of the decoder's outputs at sample n into `go`. Returns `behind` with the sample's light added."""
    K = form.outputs
    raw, alpha, through, gain = record.state[n, 0], record.state[n, 1], record.state[n, 2], record.state[n, 3]
    weight = through * alpha
    # d/d(rho * step) of the ray's sum: own light let through, light behind blocked
    slope = ray.step * (through * (ONE - alpha) * gain - behind)
    behind += weight * gain
    go[0] = slope * light.scale * logistic1(raw)
    for k in range(1, K):
        value = weight * grad[ray.image, ray.index, k - 1]
        if light.sigmoid:
            value *= record.out[n * K + k] * (ONE - record.out[n * K + k])
        go[k] = value
    return behind


@device
def decoder_gradient(form: Any, decoder: Any, record: Any, n: int, go: Any, gh: Any, gf: Any, mine: Any):
    """From the gradient of the outputs at sample n to that of the plane features (`gf`); adds to the decoder's."""
    C, H, K = form.channels, form.hidden, form.outputs
    for k in range(K):
        mine.b2[k] += go[k]

    # last layer and activation
    for j in range(0, H, 8):
        hidden_now, total = load8(record.h, n * H + j), splat8(ZERO)
        for k in range(K):
            g = go[k]
            total = axpy8(g, load8(decoder.w2, k * H + j), total)
            store8(mine.w2, k * H + j, axpy8(g, hidden_now, load8(mine.w2, k * H + j)))
        if not form.softplus:
            total = leaky_gradient8(hidden_now, total)
        store8(gh, j, total)
    if form.softplus:
        for j in range(H):
            gh[j] *= ONE - exp_of_negative1(-record.h[n * H + j])  # sigmoid of the input

    # first layer
    for j in range(0, H, 8):
        store8(mine.b1, j, fma8(load8(gh, j), splat8(ONE), load8(mine.b1, j)))
    for c in range(C):
        value, total = record.f[n * C + c], splat8(ZERO)
        for j in range(0, H, 8):
            g = load8(gh, j)
            store8(mine.w1, c * H + j, axpy8(value, g, load8(mine.w1, c * H + j)))
            total = fma8(g, load8(decoder.w1, c * H + j), total)
        gf[c] = sum8(total)


@device
def field_gradient(grad_field: Any, shape: Any, corner: int, fractions: Any, n: int, gx: Any, gy: Any, gz: Any):
    """Add the gradient of a sample's position to the eight nodes around it."""
    _, ny, nx = shape
    for m in range(8):
        w = fractions[n, 0] if m & 1 else ONE - fractions[n, 0]
        w *= fractions[n, 1] if m & 2 else ONE - fractions[n, 1]
        w *= fractions[n, 2] if m & 4 else ONE - fractions[n, 2]
        o = corner + 3 * ((m & 1) + nx * ((m >> 1) & 1) + nx * ny * (m >> 2))
        grad_field[o] += w * gx
        grad_field[o + 1] += w * gy
        grad_field[o + 2] += w * gz


@device
def clear(mine: Any):
    """Set a latent's sums to zero. In a function of its own: numba would merge zeroing here and copying in `keep` into
    one parallel loop, since it does not see that the sums, inside of their tuple, change in between."""
    for values in (mine.w1, mine.b1, mine.w2, mine.b2):
        for i in range(len(values)):
            values[i] = ZERO


@device
def keep(mine: Any, grads: Any, latent: int):
    """Write a latent's sums into its rows."""
    for i in range(len(mine.w1)):
        grads.w1[latent, i] = mine.w1[i]
    for i in range(len(mine.b1)):
        grads.b1[latent, i] = mine.b1[i]
    for i in range(len(mine.w2)):
        grads.w2[latent, i] = mine.w2[i]
    for i in range(len(mine.b2)):
        grads.b2[latent, i] = mine.b2[i]


# ---- kernels ----


@lru_cache(maxsize=16)
def forward_kernel(form: Form) -> Callable[..., None]:
    """The renderer, compiled for the sizes of a form."""
    C, H, K, D = form.channels, form.hidden, form.outputs, form.depth

    @_kernel
    def forward(planes, decoder, lines, samples, space, geometry, sizes, light, rendered):
        """rendered (B, M, K + 1): features, opacity, sum of weight * distance."""
        # Sizes and frames of all rays.
        images, rays, _ = lines.directions.shape
        views, resolution = sizes.views, sizes.resolution
        stride, cell_count = resolution * resolution * 3 * D * C, space.occupied.size // (images // views)
        field_shape, cell_shape, gap_shape = sizes.field, sizes.cells, sizes.gaps
        frame, unit = field_frame(geometry.field, field_shape), unit_frame(geometry.box)
        gap_frame = field_frame(geometry.gaps, gap_shape)
        height, across, tiles = tiling(rays, lines.width)

        # Tile by tile.
        for task in numba.prange(images * tiles):
            image = task // tiles
            tile, latent = task - image * tiles, image // views
            f, h, out = np.empty(C, np.float32), np.empty(H, np.float32), np.empty(K, np.float32)
            q, total = np.empty(3, np.float32), np.empty(K - 1, np.float32)
            for inner in range(TILE * TILE):
                index = ray_index(tile, inner, across, height, lines.width)
                if index >= 0:
                    ray = make_ray(lines, samples, gap_frame, image, index)
                    march(form, planes, latent * stride, resolution, decoder, light, ray, samples, space,
                          (field_shape, cell_shape, gap_shape), (frame, unit), latent * cell_count,
                          (f, h, out, q, total), rendered)  # fmt: skip

    return forward


@lru_cache(maxsize=16)
def backward_kernel(form: Form) -> Callable[..., None]:
    """The renderer's adjoint."""
    C, H, K, D = form.channels, form.hidden, form.outputs, form.depth

    @_kernel
    def backward(planes, decoder, lines, samples, space, geometry, sizes, light, grad, grads):
        """Gradients of features and opacity (grad (B, M, K + 1); the distance column carries none), into `grads`."""
        images, rays, _ = lines.directions.shape
        views, resolution = sizes.views, sizes.resolution
        stride, cell_count = resolution * resolution * 3 * D * C, space.occupied.size // (images // views)
        field_shape, cell_shape, gap_shape = sizes.field, sizes.cells, sizes.gaps
        frame, unit, box = field_frame(geometry.field, field_shape), unit_frame(geometry.box), geometry.box
        gap_frame = field_frame(geometry.gaps, gap_shape)
        height, across, tiles = tiling(rays, lines.width)
        wants_field = grads.field.size > 0
        for latent in numba.prange(images // views):
            base = latent * stride

            # scratch: a ray's samples, one sample's gradients, and this latent's decoder gradients
            S = samples.count
            qs, corners = np.empty((S, 3), np.float32), np.empty(S, np.int64)
            fractions, state = np.empty((S, 3), np.float32), np.empty((S, 4), np.float32)
            f, h, out = np.empty(S * C, np.float32), np.empty(S * H, np.float32), np.empty(S * K, np.float32)
            record = Record(qs, corners, fractions, f, h, out, state)
            gh, gf, go = np.empty(H, np.float32), np.empty(C, np.float32), np.empty(K, np.float32)
            mine_w1, mine_b1 = np.empty(C * H, np.float32), np.empty(H, np.float32)
            mine_w2, mine_b2 = np.empty(K * H, np.float32), np.empty(K, np.float32)
            mine = DecoderWeights(mine_w1, mine_b1, mine_w2, mine_b2)
            clear(mine)

            for image in range(latent * views, (latent + 1) * views):
                for pixel in range(tiles * TILE * TILE):
                    tile, inner = pixel // (TILE * TILE), pixel % (TILE * TILE)
                    index = ray_index(tile, inner, across, height, lines.width)
                    if index < 0:
                        continue
                    ray = make_ray(lines, samples, gap_frame, image, index)
                    if ray.step <= ZERO:
                        continue

                    # Follow the ray once more, then go back along it.
                    count = retrace(form, planes, base, resolution, decoder, light, ray, samples, space,
                                    (field_shape, cell_shape, gap_shape), (frame, unit), latent * cell_count,
                                    record, grad)  # fmt: skip
                    behind = ZERO
                    for n in range(count - 1, -1, -1):
                        behind = output_gradient(form, light, ray, record, n, behind, grad, go)
                        decoder_gradient(form, decoder, record, n, go, gh, gf, mine)
                        _scatter(grads.planes, base, resolution, qs[n], gf, C, D)
                        if wants_field:
                            gx, gy, gz = _position_gradient(planes, base, resolution, qs[n], gf, C, D)
                            gx, gy, gz = gx / box[3], gy / box[4], gz / box[5]
                            field_gradient(grads.field, field_shape, corners[n], fractions, n, gx, gy, gz)
            keep(mine, grads, latent)

    return backward
