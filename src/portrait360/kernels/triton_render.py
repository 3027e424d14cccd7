"""The fused renderer for GPUs, in Triton: field warp, tri-grid lookup, decoder and compositing, sample by sample.

`portrait360.kernels.render` is its twin for the CPU (same layouts, same samples), `portrait360.model.rendering.
render_plain` the readable one. A program takes a tile of 8 x 8 rays of one image. Both passes walk the samples from
the camera on and keep nothing of them: the gradient needs what lies behind a sample, which is the ray's whole light
(known from the forward pass) less the light so far. Samples that no ray of a tile takes cost a look at the occupancy
grid only.

Widths are padded to powers of two of at least 16, as matrix products of GPUs want them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from portrait360.kernels.rays import EXPLORE_MASK

TILE = 8
"""Side of a program's square of rays."""
_TILE = tl.constexpr(TILE)
_EXPLORE = tl.constexpr(EXPLORE_MASK)


@triton.jit
def _axis_tap(q, size, upper):
    """One of the two taps of zero-padded linear interpolation, align_corners=False: place, weight, its slope in q."""
    position = ((q + 1.0) * size - 1.0) * 0.5
    low = tl.floor(position)
    fraction = position - low
    i = low.to(tl.int32) + upper
    exists = (i >= 0) & (i < size)
    weight = tl.where(upper > 0, fraction, 1.0 - fraction)
    slope = tl.where(upper > 0, size * 0.5, -(size * 0.5))
    return tl.where(exists, i, 0), tl.where(exists, weight, 0.0), tl.where(exists, slope, 0.0)


@triton.jit
def _field_node(position, size):
    """Lower node and fraction of align_corners=True interpolation, for a position in nodes; clamped to the field."""
    position = tl.minimum(tl.maximum(position, 0.0), size - 1.0)
    i = tl.minimum(position.to(tl.int32), size - 2)
    return i, position - i.to(tl.float32)


@triton.jit
def _corner(m, counts):
    """Offset of corner m (bits: x, y, z) of a voxel of the field."""
    return 3 * ((m & 1) + counts[0] * (((m >> 1) & 1) + counts[1] * (m >> 2)))


@triton.jit
def _corner_weight(m, fx, fy, fz):
    weight = tl.where((m & 1) > 0, fx, 1.0 - fx) * tl.where((m & 2) > 0, fy, 1.0 - fy)
    return weight * tl.where((m & 4) > 0, fz, 1.0 - fz)


@triton.jit
def _is_explored(seed, ray, sample):
    """`portrait360.kernels.rays.explore_hash` in 32 bits: one in 32 unoccupied samples is taken all the same."""
    x = ray.to(tl.uint32) * 0x85EBCA6B + seed.to(tl.uint32) * 0x9E3779B1 + sample.to(tl.uint32) * 0xC2B2AE35
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return (x & _EXPLORE) == 0


@triton.jit
def _tap(base, n, q, resolution, take, C: tl.constexpr, D: tl.constexpr, CP: tl.constexpr):
    """Tap n of 24 (plane slowest, then bits: depth, row, column): offsets [R, CP], whether to read them, and place,
    weight and slope along the plane's columns, rows and depth."""
    plane = n // 8
    u = _axis_tap(tl.where(plane < 2, q[0], q[1]), resolution, n & 1)
    v = _axis_tap(tl.where(plane == 0, q[1], q[2]), resolution, (n >> 1) & 1)
    s = _axis_tap(tl.where(plane == 0, q[2], tl.where(plane == 1, q[1], q[0])), D, (n >> 2) & 1)
    c = tl.arange(0, CP)
    offset = base + (((v[0] * resolution + u[0]) * 3 + plane) * D + s[0])[:, None] * C + c[None, :]
    return offset, take[:, None] & (c < C)[None, :], u, v, s


@triton.jit
def _gather(planes, base, q, resolution, take, C: tl.constexpr, D: tl.constexpr, CP: tl.constexpr):
    """Mean feature of the three planes [R, CP]."""
    f = tl.zeros([_TILE * _TILE, CP], tl.float32)
    for n in range(24):
        offset, mask, u, v, s = _tap(base, n, q, resolution, take, C, D, CP)
        f += (u[1] * v[1] * s[1] * (1.0 / 3.0))[:, None] * tl.load(planes + offset, mask=mask, other=0.0)
    return f


@triton.jit
def _scatter(planes, grad_planes, base, q, resolution, take, gf, C: tl.constexpr, D: tl.constexpr, CP: tl.constexpr,
             WANTS_FIELD: tl.constexpr):  # fmt: skip
    """Adjoint of `_gather` in the planes; returns that in q."""
    gx, gy, gz = tl.zeros_like(q[0]), tl.zeros_like(q[0]), tl.zeros_like(q[0])
    for n in range(24):
        offset, mask, u, v, s = _tap(base, n, q, resolution, take, C, D, CP)
        share = u[1] * v[1] * s[1] * (1.0 / 3.0)
        tl.atomic_add(grad_planes + offset, share[:, None] * gf, mask=mask, sem="relaxed")
        if WANTS_FIELD:
            plane = n // 8
            along = tl.sum(gf * tl.load(planes + offset, mask=mask, other=0.0), axis=1) * (1.0 / 3.0)
            du, dv, ds = along * u[2] * v[1] * s[1], along * u[1] * v[2] * s[1], along * u[1] * v[1] * s[2]
            gx += tl.where(plane < 2, du, ds)
            gy += tl.where(plane == 0, dv, tl.where(plane == 1, ds, du))
            gz += tl.where(plane == 0, ds, dv)
    return gx, gy, gz


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _rays(origins, directions, near, far, jitter, rays, width, samples):
    """This program's image and tile of rays: index, whether it exists, origin, direction, first distance, step."""
    height = rays // width
    across = (width + _TILE - 1) // _TILE
    tiles = ((height + _TILE - 1) // _TILE) * across
    image = tl.program_id(0) // tiles
    block = tl.program_id(0) % tiles
    inner = tl.arange(0, _TILE * _TILE)
    row = (block // across) * _TILE + inner // _TILE
    column = (block % across) * _TILE + inner % _TILE
    exists = (row < height) & (column < width)
    ray = image * rays + tl.where(exists, row * width + column, 0)
    step = tl.maximum(tl.load(far + ray) - tl.load(near + ray), 0.0) / samples
    first = tl.load(near + ray) + tl.load(jitter + ray) * step
    ox = tl.load(origins + image * 3)
    oy = tl.load(origins + image * 3 + 1)
    oz = tl.load(origins + image * 3 + 2)
    dx = tl.load(directions + ray * 3)
    dy = tl.load(directions + ray * 3 + 1)
    dz = tl.load(directions + ray * 3 + 2)
    return image, ray, exists, (ox, oy, oz), (dx, dy, dz), first, step


@triton.jit
def _canonical(field, image, frame, counts, box, origin, direction, t, HAS_FIELD: tl.constexpr):
    """Samples at t, warped and normalised to the tri-grid box: whether inside, place, the field's corner and fractions.

    `frame`: the field's lower corner and nodes per world unit, `counts`: its nodes (nx, ny, nz), `box`: centre, half.
    """
    # Posed position.
    x = origin[0] + t * direction[0]
    y = origin[1] + t * direction[1]
    z = origin[2] + t * direction[2]
    start = tl.zeros_like(t).to(tl.int32)
    fx, fy, fz = tl.zeros_like(t), tl.zeros_like(t), tl.zeros_like(t)

    # Plus the field's trilinear displacement.
    if HAS_FIELD:
        i, fx = _field_node((x - frame[0]) * frame[3], counts[0])
        j, fy = _field_node((y - frame[1]) * frame[4], counts[1])
        k, fz = _field_node((z - frame[2]) * frame[5], counts[2])
        start = (((image * counts[2] + k) * counts[1] + j) * counts[0] + i) * 3
        for m in range(8):
            weight = _corner_weight(m, fx, fy, fz)
            node = field + start + _corner(m, counts)
            x += weight * tl.load(node)
            y += weight * tl.load(node + 1)
            z += weight * tl.load(node + 2)

    # Normalised to the box.
    x = (x - box[0]) / box[3]
    y = (y - box[1]) / box[4]
    z = (z - box[2]) / box[5]
    inside = (tl.abs(x) < 1.0) & (tl.abs(y) < 1.0) & (tl.abs(z) < 1.0)
    q = (tl.where(inside, x, 0.0), tl.where(inside, y, 0.0), tl.where(inside, z, 0.0))
    return inside, q, start, fx, fy, fz


@triton.jit
def _takes(occupied, latent, cells, q, seed, ray, sample, EXPLORES: tl.constexpr):
    """Whether samples lie in occupied cells (nx, ny, nz), or are taken all the same; `seed` points at a number."""
    i = tl.minimum(((q[0] + 1.0) * 0.5 * cells[0]).to(tl.int32), cells[0] - 1)
    j = tl.minimum(((q[1] + 1.0) * 0.5 * cells[1]).to(tl.int32), cells[1] - 1)
    k = tl.minimum(((q[2] + 1.0) * 0.5 * cells[2]).to(tl.int32), cells[2] - 1)
    taken = tl.load(occupied + ((latent * cells[2] + k) * cells[1] + j) * cells[0] + i) > 0
    if EXPLORES:
        taken = taken | _is_explored(tl.load(seed), ray, sample)
    return taken


@triton.jit
def _look(field, occupied, image, latent, frame, counts, box, cells, origin, direction, t, alive, seed, ray, sample,
          HAS_FIELD: tl.constexpr, HAS_OCCUPANCY: tl.constexpr, EXPLORES: tl.constexpr):  # fmt: skip
    """Which of the samples at t are taken, and the rest of what `_canonical` returns."""
    inside, q, start, fx, fy, fz = _canonical(field, image, frame, counts, box, origin, direction, t, HAS_FIELD)
    take = alive & inside
    if HAS_OCCUPANCY:
        take = take & _takes(occupied, latent, cells, q, seed, ray, tl.zeros_like(ray) + sample, EXPLORES)
    return take, q, start, fx, fy, fz


@triton.jit
def _load_decoder(w1, b1, w2, b2, C: tl.constexpr, H: tl.constexpr, O: tl.constexpr, CP: tl.constexpr,
                  HP: tl.constexpr, OP: tl.constexpr):  # fmt: skip
    """w1 [CP, HP], b1 [HP], and of the last layer the density's row and bias, the features' [HP, OP] and biases."""
    c, j, k = tl.arange(0, CP), tl.arange(0, HP), tl.arange(0, OP)
    first = tl.load(w1 + c[:, None] * H + j[None, :], mask=(c < C)[:, None] & (j < H)[None, :], other=0.0)
    bias = tl.load(b1 + j, mask=j < H, other=0.0)
    density = tl.load(w2 + j, mask=j < H, other=0.0)
    last = tl.load(w2 + (1 + k)[None, :] * H + j[:, None], mask=(k < O)[None, :] & (j < H)[:, None], other=0.0)
    return first, bias, density, tl.load(b2), last, tl.load(b2 + 1 + k, mask=k < O, other=0.0)


@triton.jit
def _shade(f, decoder, noise, take, step, scale, shift, SOFTPLUS: tl.constexpr, SIGMOID: tl.constexpr,
           PRECISION: tl.constexpr, HAS_NOISE: tl.constexpr, HP: tl.constexpr, H: tl.constexpr):  # fmt: skip
    """Input of the hidden layer's activation, its output, shifted raw densities, features, alphas.

    `noise` points at the samples' own.
    """
    before = tl.dot(f, decoder[0], input_precision=PRECISION) + decoder[1][None, :]
    hidden = _softplus(before) if SOFTPLUS else tl.where(before > 0, before, before * 0.2)
    hidden = tl.where((tl.arange(0, HP) < H)[None, :], hidden, 0.0)
    raw = tl.sum(hidden * decoder[2][None, :], axis=1) + decoder[3] + shift
    if HAS_NOISE:
        raw += tl.load(noise)
    value = tl.dot(hidden, decoder[4], input_precision=PRECISION) + decoder[5][None, :]
    if SIGMOID:
        value = _sigmoid(value)
    return before, hidden, raw, value, tl.where(take, 1.0 - tl.exp(-_softplus(raw) * scale * step), 0.0)


@triton.jit
def forward(
    planes, w1, b1, w2, b2, origins, directions, near, far, jitter, noise, field, occupied, seed, rendered,
    rays, width, samples, views, resolution, frame, counts, box, cells, light,
    C: tl.constexpr, H: tl.constexpr, O: tl.constexpr, D: tl.constexpr,
    CP: tl.constexpr, HP: tl.constexpr, OP: tl.constexpr,
    SOFTPLUS: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr, HAS_FIELD: tl.constexpr,
    HAS_NOISE: tl.constexpr, HAS_OCCUPANCY: tl.constexpr, EXPLORES: tl.constexpr,
):  # fmt: skip
    """rendered (B, M, O+2): features, opacity, sum of weight * distance. The grid is B times the tiles of an image.

    Tuples: `frame`, `counts` and `box` as of `_canonical`, `cells` (nx, ny, nz), `light` (scale, shift, stop).
    """
    # This program's rays and the decoder.
    image, ray, exists, origin, direction, first, step = _rays(
        origins, directions, near, far, jitter, rays, width, samples
    )
    latent = image // views
    base = latent.to(tl.int64) * (resolution * resolution * 3 * D * C)
    decoder = _load_decoder(w1, b1, w2, b2, C, H, O, CP, HP, OP)

    # Sample by sample.
    through = tl.full([_TILE * _TILE], 1.0, tl.float32)
    opacity = tl.zeros([_TILE * _TILE], tl.float32)
    distance = tl.zeros([_TILE * _TILE], tl.float32)
    total = tl.zeros([_TILE * _TILE, OP], tl.float32)
    for s in range(samples):
        alive = exists & (step > 0) & (through >= light[2])
        t = first + s * step
        take, q, _start, _fx, _fy, _fz = _look(
            field, occupied, image, latent, frame, counts, box, cells, origin, direction, t, alive, seed, ray, s,
            HAS_FIELD, HAS_OCCUPANCY, EXPLORES,
        )  # fmt: skip
        if tl.max(take.to(tl.int32), axis=0) > 0:
            f = _gather(planes, base, q, resolution, take, C, D, CP)
            _before, _hidden, _raw, value, alpha = _shade(
                f, decoder, noise + ray * samples + s, take, step, light[0], light[1],
                SOFTPLUS, SIGMOID, PRECISION, HAS_NOISE, HP, H,
            )  # fmt: skip
            weight = through * alpha
            total += weight[:, None] * value
            opacity += weight
            distance += weight * t
            through *= 1.0 - alpha

    # The rays' rows.
    k = tl.arange(0, OP)
    out = rendered + ray * (O + 2)
    tl.store(out[:, None] + k[None, :], total, mask=exists[:, None] & (k < O)[None, :])
    tl.store(out + O, opacity, mask=exists)
    tl.store(out + O + 1, distance, mask=exists)


@triton.jit
def backward(
    planes, w1, b1, w2, b2, origins, directions, near, far, jitter, noise, field, occupied, seed, rendered, grad,
    grad_planes, grad_w1, grad_b1, grad_w2, grad_b2, grad_field,
    rays, width, samples, views, resolution, frame, counts, box, cells, light,
    C: tl.constexpr, H: tl.constexpr, O: tl.constexpr, D: tl.constexpr,
    CP: tl.constexpr, HP: tl.constexpr, OP: tl.constexpr,
    SOFTPLUS: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr, HAS_FIELD: tl.constexpr,
    HAS_NOISE: tl.constexpr, HAS_OCCUPANCY: tl.constexpr, EXPLORES: tl.constexpr, WANTS_FIELD: tl.constexpr,
):  # fmt: skip
    """Gradients of features and opacity (grad (B, M, O+2); the distance column carries none), added to grad_*.

    grad_w1 (C, H), grad_w2 (1 + O, H); `rendered` is what `forward` wrote.
    """
    # This program's rays and the decoder.
    image, ray, exists, origin, direction, first, step = _rays(
        origins, directions, near, far, jitter, rays, width, samples
    )
    latent = image // views
    base = latent.to(tl.int64) * (resolution * resolution * 3 * D * C)
    decoder = _load_decoder(w1, b1, w2, b2, C, H, O, CP, HP, OP)
    c, j, k = tl.arange(0, CP), tl.arange(0, HP), tl.arange(0, OP)

    # What the loss wants of the rays, and their whole light under it.
    columns = ray[:, None] * (O + 2) + k[None, :]
    shown = exists[:, None] & (k < O)[None, :]
    wanted = tl.load(grad + columns, mask=shown, other=0.0)
    wanted_opacity = tl.load(grad + ray * (O + 2) + O, mask=exists, other=0.0)
    behind = tl.sum(wanted * tl.load(rendered + columns, mask=shown, other=0.0), axis=1)
    behind += wanted_opacity * tl.load(rendered + ray * (O + 2) + O, mask=exists, other=0.0)

    # Sample by sample, with sums for the decoder.
    through = tl.full([_TILE * _TILE], 1.0, tl.float32)
    sum_w1 = tl.zeros([CP, HP], tl.float32)
    sum_b1 = tl.zeros([HP], tl.float32)
    sum_w2 = tl.zeros([HP, OP], tl.float32)
    sum_b2 = tl.zeros([OP], tl.float32)
    sum_density = tl.zeros([HP], tl.float32)
    sum_bias = 0.0
    for s in range(samples):
        alive = exists & (step > 0) & (through >= light[2])
        t = first + s * step
        take, q, start, fx, fy, fz = _look(
            field, occupied, image, latent, frame, counts, box, cells, origin, direction, t, alive, seed, ray, s,
            HAS_FIELD, HAS_OCCUPANCY, EXPLORES,
        )  # fmt: skip
        if tl.max(take.to(tl.int32), axis=0) > 0:
            f = _gather(planes, base, q, resolution, take, C, D, CP)
            before, hidden, raw, value, alpha = _shade(
                f, decoder, noise + ray * samples + s, take, step, light[0], light[1],
                SOFTPLUS, SIGMOID, PRECISION, HAS_NOISE, HP, H,
            )  # fmt: skip

            # Gradient of the decoder's outputs; light behind is the whole less that so far.
            weight = through * alpha
            gain = wanted_opacity + tl.sum(wanted * value, axis=1)
            behind -= weight * gain
            # d/d(rho * step) of the ray's sum: own light let through, light behind blocked.
            slope = step * (through * (1.0 - alpha) * gain - behind)
            through *= 1.0 - alpha
            g_raw = tl.where(take, slope * light[0] * _sigmoid(raw), 0.0)
            g_value = weight[:, None] * wanted
            if SIGMOID:
                g_value *= value * (1.0 - value)

            # Through the decoder.
            g_hidden = tl.dot(g_value, tl.trans(decoder[4]), input_precision=PRECISION)
            g_hidden += g_raw[:, None] * decoder[2][None, :]
            g_before = g_hidden * (_sigmoid(before) if SOFTPLUS else tl.where(before > 0, 1.0, 0.2))
            g_before = tl.where((j < H)[None, :], g_before, 0.0)
            gf = tl.dot(g_before, tl.trans(decoder[0]), input_precision=PRECISION)
            sum_w1 += tl.dot(tl.trans(f), g_before, input_precision=PRECISION)
            sum_b1 += tl.sum(g_before, axis=0)
            sum_w2 += tl.dot(tl.trans(hidden), g_value, input_precision=PRECISION)
            sum_b2 += tl.sum(g_value, axis=0)
            sum_density += tl.sum(hidden * g_raw[:, None], axis=0)
            sum_bias += tl.sum(g_raw, axis=0)

            # To the planes and the field.
            gx, gy, gz = _scatter(planes, grad_planes, base, q, resolution, take, gf, C, D, CP, WANTS_FIELD)
            if WANTS_FIELD:
                for m in range(8):
                    share = _corner_weight(m, fx, fy, fz)
                    node = grad_field + start + _corner(m, counts)
                    tl.atomic_add(node, share * gx / box[3], mask=take, sem="relaxed")
                    tl.atomic_add(node + 1, share * gy / box[4], mask=take, sem="relaxed")
                    tl.atomic_add(node + 2, share * gz / box[5], mask=take, sem="relaxed")

    # Add the sums to the decoder's gradients.
    real_c, real_j, real_k = c < C, j < H, k < O
    tl.atomic_add(grad_w1 + c[:, None] * H + j[None, :], sum_w1, mask=real_c[:, None] & real_j[None, :], sem="relaxed")
    tl.atomic_add(grad_b1 + j, sum_b1, mask=real_j, sem="relaxed")
    tl.atomic_add(grad_w2 + j, sum_density, mask=real_j, sem="relaxed")
    tl.atomic_add(
        grad_w2 + (1 + k)[None, :] * H + j[:, None], sum_w2, mask=real_j[:, None] & real_k[None, :], sem="relaxed"
    )
    tl.atomic_add(grad_b2, sum_bias, sem="relaxed")
    tl.atomic_add(grad_b2 + 1 + k, sum_b2, mask=real_k, sem="relaxed")
