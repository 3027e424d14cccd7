"""The deformation field on GPUs, in Triton: Newton's method node by node, and its gradient.

`portrait360.kernels.deformation` is its twin for the CPU (same arrays, same steps; the constants are its own),
`geometry.deformation.deformation_field_reference` the readable one. A program takes `BLOCK` nodes of one image.
"""

from __future__ import annotations

import triton
import triton.language as tl

from portrait360.kernels import deformation as twin

BLOCK = 128
_BONES = tl.constexpr(twin.BONES)
_ITERATIONS = tl.constexpr(twin.ITERATIONS)
_LAST_STEP = tl.constexpr(float(twin.LAST_STEP))
_MAX_STEP = tl.constexpr(float(twin.MAX_STEP))
_MIN_DETERMINANT = tl.constexpr(float(twin.MIN_DETERMINANT))


@triton.jit
def _place(position, nodes, inverse_spacing):
    """Lower node, fraction and slope of one axis; beyond the box the border value continues without slope."""
    last = nodes - 1.0
    slope = tl.where((position >= 0.0) & (position <= last), inverse_spacing, 0.0)
    position = tl.minimum(tl.maximum(position, 0.0), last)
    index = tl.minimum(position.to(tl.int32), nodes - 2)
    return index, position - index.to(tl.float32), slope


@triton.jit
def _place_point(counts, low, inverse_spacing, x, y, z):
    """Offset of the lower corner, steps to the next node along x, y and z, fractions and slopes.

    `counts`: the volume's nodes (nx, ny, nz).
    """
    ix, fx, sx = _place((x - low[0]) * inverse_spacing, counts[0], inverse_spacing)
    iy, fy, sy = _place((y - low[1]) * inverse_spacing, counts[1], inverse_spacing)
    iz, fz, sz = _place((z - low[2]) * inverse_spacing, counts[2], inverse_spacing)
    along_y = counts[0] * _BONES
    along_z = counts[1] * along_y
    return iz * along_z + iy * along_y + ix * _BONES, _BONES, along_y, along_z, fx, fy, fz, sx, sy, sz


@triton.jit
def _weight(volume, m, place):
    """Trilinear weight of bone m and its slopes along x, y and z."""
    start, along_x, along_y, along_z, fx, fy, fz, sx, sy, sz = place
    near = volume + start + m
    far = near + along_z
    a, b = tl.load(near), tl.load(near + along_x)
    c, d = tl.load(near + along_y), tl.load(near + along_y + along_x)
    e, f = tl.load(far), tl.load(far + along_x)
    g, h = tl.load(far + along_y), tl.load(far + along_y + along_x)
    ba, dc, fe, hg = b - a, d - c, f - e, h - g
    near_low, near_high, far_low, far_high = a + ba * fx, c + dc * fx, e + fe * fx, g + hg * fx
    near_rise, far_rise = near_high - near_low, far_high - far_low
    near_value, far_value = near_low + near_rise * fy, far_low + far_rise * fy
    near_x, far_x = ba + (dc - ba) * fy, fe + (hg - fe) * fy
    return (
        near_value + (far_value - near_value) * fz,
        (near_x + (far_x - near_x) * fz) * sx,
        (near_rise + (far_rise - near_rise) * fz) * sy,
        (far_value - near_value) * sz,
    )


@triton.jit
def _row(deltas, m, row, x, y, z):
    """Row of bone m's motion less the identity: its three numbers, and what it adds to a point."""
    p = deltas + row * 4 * _BONES + m
    d0, d1, d2 = tl.load(p), tl.load(p + _BONES), tl.load(p + 2 * _BONES)
    return d0, d1, d2, d0 * x + d1 * y + d2 * z + tl.load(p + 3 * _BONES)


@triton.jit
def _determinant(a):
    return a[0] * (a[4] * a[8] - a[5] * a[7]) - a[1] * (a[3] * a[8] - a[5] * a[6]) + a[2] * (a[3] * a[7] - a[4] * a[6])


@triton.jit
def _move(volume, place, deltas, x, y, z):
    """Displacement (3 numbers) of a canonical point; Jacobian (9, row-major) of its posed position."""
    # Displacement, blended motion (a), and what the slopes of the weights add to it (s).
    px, py, pz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    a0, a1, a2 = tl.zeros_like(x) + 1.0, tl.zeros_like(x), tl.zeros_like(x)
    a3, a4, a5 = tl.zeros_like(x), tl.zeros_like(x) + 1.0, tl.zeros_like(x)
    a6, a7, a8 = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x) + 1.0
    s0, s1, s2 = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    s3, s4, s5 = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    s6, s7, s8 = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    for m in tl.static_range(_BONES):
        weight, wx, wy, wz = _weight(volume, m, place)
        d0, d1, d2, ux = _row(deltas, m, 0, x, y, z)
        d3, d4, d5, uy = _row(deltas, m, 1, x, y, z)
        d6, d7, d8, uz = _row(deltas, m, 2, x, y, z)
        px, py, pz = px + weight * ux, py + weight * uy, pz + weight * uz
        a0, a1, a2 = a0 + weight * d0, a1 + weight * d1, a2 + weight * d2
        a3, a4, a5 = a3 + weight * d3, a4 + weight * d4, a5 + weight * d5
        a6, a7, a8 = a6 + weight * d6, a7 + weight * d7, a8 + weight * d8
        s0, s1, s2 = s0 + ux * wx, s1 + ux * wy, s2 + ux * wz
        s3, s4, s5 = s3 + uy * wx, s4 + uy * wy, s5 + uy * wz
        s6, s7, s8 = s6 + uz * wx, s7 + uz * wy, s8 + uz * wz

    # Where space folds, slopes are left out.
    full = (a0 + s0, a1 + s1, a2 + s2, a3 + s3, a4 + s4, a5 + s5, a6 + s6, a7 + s7, a8 + s8)
    sloped = _determinant(full) >= _MIN_DETERMINANT
    jacobian = (
        tl.where(sloped, full[0], a0), tl.where(sloped, full[1], a1), tl.where(sloped, full[2], a2),
        tl.where(sloped, full[3], a3), tl.where(sloped, full[4], a4), tl.where(sloped, full[5], a5),
        tl.where(sloped, full[6], a6), tl.where(sloped, full[7], a7), tl.where(sloped, full[8], a8),
    )  # fmt: skip
    return px, py, pz, jacobian


@triton.jit
def _solve(a, x, y, z):
    """The solution of a 3x3 system by Cramer's rule; zero where the matrix is singular."""
    c0, c1, c2 = a[4] * a[8] - a[5] * a[7], a[2] * a[7] - a[1] * a[8], a[1] * a[5] - a[2] * a[4]
    c3, c4, c5 = a[5] * a[6] - a[3] * a[8], a[0] * a[8] - a[2] * a[6], a[2] * a[3] - a[0] * a[5]
    c6, c7, c8 = a[3] * a[7] - a[4] * a[6], a[1] * a[6] - a[0] * a[7], a[0] * a[4] - a[1] * a[3]
    determinant = a[0] * c0 + a[1] * c3 + a[2] * c6
    regular = tl.abs(determinant) > 1e-3
    inverse = tl.where(regular, 1.0 / tl.where(regular, determinant, 1.0), 0.0)
    return (
        (c0 * x + c1 * y + c2 * z) * inverse,
        (c3 * x + c4 * y + c5 * z) * inverse,
        (c6 * x + c7 * y + c8 * z) * inverse,
    )


@triton.jit
def _node(nodes_x, nodes_y, nodes_z, nx, ny, nz, BLOCK: tl.constexpr):
    """This program's image, offsets of its nodes in the field, whether they exist, and their places."""
    image = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = n < nx * ny * nz
    n = tl.where(exists, n, 0)
    x = tl.load(nodes_x + n % nx)
    y = tl.load(nodes_y + (n // nx) % ny)
    z = tl.load(nodes_z + n // (nx * ny))
    return image, (image * (nx * ny * nz) + n) * 3, exists, x, y, z


@triton.jit
def forward(
    volume, deltas, nodes_x, nodes_y, nodes_z, field, nx, ny, nz, wx, wy, wz, low_x, low_y, low_z, inverse_spacing,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill `field` (B, nz, ny, nx, 3) with canonical - posed. `volume` has (wz, wy, wx, BONES) numbers."""
    image, at, exists, qx, qy, qz = _node(nodes_x, nodes_y, nodes_z, nx, ny, nz, BLOCK)
    motion = deltas + image * 12 * _BONES
    sx, sy, sz = tl.zeros_like(qx), tl.zeros_like(qx), tl.zeros_like(qx)
    going = exists
    for _ in range(_ITERATIONS):
        if tl.max(going.to(tl.int32), axis=0) > 0:
            x, y, z = qx + sx, qy + sy, qz + sz
            place = _place_point((wx, wy, wz), (low_x, low_y, low_z), inverse_spacing, x, y, z)
            px, py, pz, jacobian = _move(volume, place, motion, x, y, z)
            rx, ry, rz = sx + px, sy + py, sz + pz
            dx, dy, dz = _solve(jacobian, rx, ry, rz)
            length = tl.sqrt(dx * dx + dy * dy + dz * dz)
            shrink = tl.where(going, _MAX_STEP / tl.maximum(length, _MAX_STEP), 0.0)
            sx, sy, sz = sx - dx * shrink, sy - dy * shrink, sz - dz * shrink
            going = going & (rx * rx + ry * ry + rz * rz >= _LAST_STEP * _LAST_STEP)
    tl.store(field + at, sx, mask=exists)
    tl.store(field + at + 1, sy, mask=exists)
    tl.store(field + at + 2, sz, mask=exists)


@triton.jit
def backward(
    volume, deltas, nodes_x, nodes_y, nodes_z, field, grad, grad_deltas,
    nx, ny, nz, wx, wy, wz, low_x, low_y, low_z, inverse_spacing, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient with respect to `deltas` (B, 3, 4, BONES), added, from that for `field`.

    Implicit function theorem at the solution x: J dx = -sum_m W_m(x) dD_m [x; 1].
    """
    image, at, exists, qx, qy, qz = _node(nodes_x, nodes_y, nodes_z, nx, ny, nz, BLOCK)
    # The nodes' gradients; programs without any are done.
    gx = tl.load(grad + at, mask=exists, other=0.0)
    gy = tl.load(grad + at + 1, mask=exists, other=0.0)
    gz = tl.load(grad + at + 2, mask=exists, other=0.0)
    if tl.max((gx != 0.0) | (gy != 0.0) | (gz != 0.0), axis=0):
        x, y, z = qx + tl.load(field + at), qy + tl.load(field + at + 1), qz + tl.load(field + at + 2)
        motion = deltas + image * 12 * _BONES

        # Solve the transposed Jacobian at the nodes' canonical places.
        place = _place_point((wx, wy, wz), (low_x, low_y, low_z), inverse_spacing, x, y, z)
        _px, _py, _pz, j = _move(volume, place, motion, x, y, z)
        lx, ly, lz = _solve((j[0], j[3], j[6], j[1], j[4], j[7], j[2], j[5], j[8]), gx, gy, gz)

        # Add its product with each bone's weight and [x; 1].
        out = grad_deltas + image * 12 * _BONES
        for m in tl.static_range(_BONES):
            weight, _wx, _wy, _wz = _weight(volume, m, place)
            for row in tl.static_range(3):
                pull = -weight * (lx if row == 0 else (ly if row == 1 else lz))
                there = out + row * 4 * _BONES + m
                tl.atomic_add(there, tl.sum(pull * x, axis=0), sem="relaxed")
                tl.atomic_add(there + _BONES, tl.sum(pull * y, axis=0), sem="relaxed")
                tl.atomic_add(there + 2 * _BONES, tl.sum(pull * z, axis=0), sem="relaxed")
                tl.atomic_add(there + 3 * _BONES, tl.sum(pull, axis=0), sem="relaxed")
