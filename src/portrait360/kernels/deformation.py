"""Canonical positions of posed points by Newton's method, parallel over images and nodes, and their gradient.

The plain twin is `geometry.deformation.deformation_field_reference`. Everything is in float32.
Solved per node q: x + sum_m W_m(x) D_m [x; 1] = q, with D_m = (motion of bone m) - identity.

Arrays: volume (Z, Y, X, BONES); deltas (B, 3, 4, BONES); field and its gradient (B, nz, ny, nx, 3).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from portrait360.kernels.simd import FASTMATH

BONES = 4
"""Always four moving bones, missing ones with zero weights: a fixed count lets the compiler use one vector
instruction for all four."""

ITERATIONS = 8
"""Newton steps at most; ordinary poses need two."""

LAST_STEP = np.float32(3e-4)
"""A step from a residual below this (world units) is the last: convergence is quadratic."""

MAX_STEP = np.float32(0.1)
"""Longest single step, world units: keeps folded regions of extreme poses bounded."""

MIN_DETERMINANT = np.float32(0.2)
"""Below this the slope of the weights is left out of the Jacobian: a fixed-point step."""

ZERO, ONE = np.float32(0), np.float32(1)


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _place(position: Any, nodes: int, inverse_spacing: Any):
    """Lower node, fraction and slope of one axis; beyond the box the border value continues without slope."""
    last = np.float32(nodes - 1)
    slope = inverse_spacing if ZERO <= position <= last else ZERO
    position = min(max(position, ZERO), last)
    index = min(int(position), nodes - 2)
    return index, position - np.float32(index), slope


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _place_point(shape: Any, low: Any, inverse_spacing: Any, x: Any, y: Any, z: Any):
    ix, fx, sx = _place((x - low[0]) * inverse_spacing, shape[2], inverse_spacing)
    iy, fy, sy = _place((y - low[1]) * inverse_spacing, shape[1], inverse_spacing)
    iz, fz, sz = _place((z - low[2]) * inverse_spacing, shape[0], inverse_spacing)
    # unsigned offsets spare the test for negative indices at each of the eight corners
    along_x, along_y = np.uint64(BONES), np.uint64(shape[2] * BONES)
    along_z = np.uint64(shape[1] * shape[2] * BONES)
    start = np.uint64(iz) * along_z + np.uint64(iy) * along_y + np.uint64(ix) * along_x
    return start, along_x, along_y, along_z, fx, fy, fz, sx, sy, sz


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _weight(volume: Any, m: int, place: Any):
    """Trilinear weight of bone m and its slopes along x, y and z."""
    start, along_x, along_y, along_z, fx, fy, fz, sx, sy, sz = place
    near_start = start + np.uint64(m)
    far_start = near_start + along_z
    a, b = volume[near_start], volume[near_start + along_x]
    c, d = volume[near_start + along_y], volume[near_start + along_y + along_x]
    e, f = volume[far_start], volume[far_start + along_x]
    g, h = volume[far_start + along_y], volume[far_start + along_y + along_x]
    ba, dc, fe, hg = b - a, d - c, f - e, h - g
    near_low, near_high, far_low, far_high = a + ba * fx, c + dc * fx, e + fe * fx, g + hg * fx
    near_rise, far_rise = near_high - near_low, far_high - far_low
    near, far = near_low + near_rise * fy, far_low + far_rise * fy
    near_x, far_x = ba + (dc - ba) * fy, fe + (hg - fe) * fy
    return (
        near + (far - near) * fz,
        (near_x + (far_x - near_x) * fz) * sx,
        (near_rise + (far_rise - near_rise) * fz) * sy,
        (far - near) * sz,
    )


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _determinant(a: Any):
    return a[0] * (a[4] * a[8] - a[5] * a[7]) - a[1] * (a[3] * a[8] - a[5] * a[6]) + a[2] * (a[3] * a[7] - a[4] * a[6])


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _move(volume: Any, place: Any, deltas: Any, x: Any, y: Any, z: Any):
    """Displacement (3 numbers) of a canonical point; Jacobian (9, row-major) of its posed position."""
    # Displacement, blended motion (a), and what the slopes of the weights add to it (s).
    px = py = pz = ZERO
    a0 = a4 = a8 = ONE
    a1 = a2 = a3 = a5 = a6 = a7 = ZERO
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = ZERO
    for m in range(BONES):
        weight, wx, wy, wz = _weight(volume, m, place)
        d0, d1, d2 = deltas[0, 0, m], deltas[0, 1, m], deltas[0, 2, m]
        d3, d4, d5 = deltas[1, 0, m], deltas[1, 1, m], deltas[1, 2, m]
        d6, d7, d8 = deltas[2, 0, m], deltas[2, 1, m], deltas[2, 2, m]
        ux = d0 * x + d1 * y + d2 * z + deltas[0, 3, m]
        uy = d3 * x + d4 * y + d5 * z + deltas[1, 3, m]
        uz = d6 * x + d7 * y + d8 * z + deltas[2, 3, m]
        px, py, pz = px + weight * ux, py + weight * uy, pz + weight * uz
        a0, a1, a2 = a0 + weight * d0, a1 + weight * d1, a2 + weight * d2
        a3, a4, a5 = a3 + weight * d3, a4 + weight * d4, a5 + weight * d5
        a6, a7, a8 = a6 + weight * d6, a7 + weight * d7, a8 + weight * d8
        s0, s1, s2 = s0 + ux * wx, s1 + ux * wy, s2 + ux * wz
        s3, s4, s5 = s3 + uy * wx, s4 + uy * wy, s5 + uy * wz
        s6, s7, s8 = s6 + uz * wx, s7 + uz * wy, s8 + uz * wz

    # Where space folds, slopes are left out.
    blended = (a0, a1, a2, a3, a4, a5, a6, a7, a8)
    full = (a0 + s0, a1 + s1, a2 + s2, a3 + s3, a4 + s4, a5 + s5, a6 + s6, a7 + s7, a8 + s8)
    if _determinant(full) < MIN_DETERMINANT:
        full = blended
    return px, py, pz, full


@numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _solve(a: Any, x: Any, y: Any, z: Any):
    """The solution of a 3x3 system by Cramer's rule; zero where the matrix is singular."""
    c0, c1, c2 = a[4] * a[8] - a[5] * a[7], a[2] * a[7] - a[1] * a[8], a[1] * a[5] - a[2] * a[4]
    c3, c4, c5 = a[5] * a[6] - a[3] * a[8], a[0] * a[8] - a[2] * a[6], a[2] * a[3] - a[0] * a[5]
    c6, c7, c8 = a[3] * a[7] - a[4] * a[6], a[1] * a[6] - a[0] * a[7], a[0] * a[4] - a[1] * a[3]
    determinant = a[0] * c0 + a[1] * c3 + a[2] * c6
    inverse = ONE / determinant if abs(determinant) > np.float32(1e-3) else ZERO
    return (
        (c0 * x + c1 * y + c2 * z) * inverse,
        (c3 * x + c4 * y + c5 * z) * inverse,
        (c6 * x + c7 * y + c8 * z) * inverse,
    )


@numba.njit(cache=True, parallel=True, fastmath=FASTMATH, error_model="numpy")
def field_forward(
    volume: Any,
    low: Any,
    inverse_spacing: Any,
    deltas: Any,
    nodes_x: Any,
    nodes_y: Any,
    nodes_z: Any,
    field: Any,
) -> None:
    """Fill `field` (B, nz, ny, nx, 3) with canonical - posed for every node, one row of nodes at a time."""
    batch, nz, ny, nx = field.shape[:4]
    values = volume.reshape(-1)
    for row in numba.prange(batch * nz * ny):
        image, rest = row // (nz * ny), row % (nz * ny)
        iz, iy = rest // ny, rest % ny
        qy, qz = nodes_y[iy], nodes_z[iz]
        motion = deltas[image]
        for ix in range(nx):
            qx = nodes_x[ix]
            sx, sy, sz = ZERO, ZERO, ZERO

            # Newton steps towards the canonical place.
            for _ in range(ITERATIONS):
                x, y, z = qx + sx, qy + sy, qz + sz
                place = _place_point(volume.shape, low, inverse_spacing, x, y, z)
                px, py, pz, jacobian = _move(values, place, motion, x, y, z)
                rx, ry, rz = sx + px, sy + py, sz + pz
                dx, dy, dz = _solve(jacobian, rx, ry, rz)

                # No step is too long, and a small residual makes it the last.
                length = np.sqrt(dx * dx + dy * dy + dz * dz)
                if length > MAX_STEP:
                    shrink = MAX_STEP / length
                    dx, dy, dz = dx * shrink, dy * shrink, dz * shrink
                sx, sy, sz = sx - dx, sy - dy, sz - dz
                if rx * rx + ry * ry + rz * rz < LAST_STEP * LAST_STEP:
                    break
            field[image, iz, iy, ix, 0] = sx
            field[image, iz, iy, ix, 1] = sy
            field[image, iz, iy, ix, 2] = sz


@numba.njit(cache=True, parallel=True, fastmath=FASTMATH, error_model="numpy")
def field_backward(
    volume: Any,
    low: Any,
    inverse_spacing: Any,
    deltas: Any,
    nodes_x: Any,
    nodes_y: Any,
    nodes_z: Any,
    field: Any,
    gradient: Any,
):
    """Gradient with respect to `deltas`, as partial sums (B, nz, 3, 4, BONES), from that for `field`.

    Implicit function theorem at the solution x: J dx = -sum_m W_m(x) dD_m [x; 1].
    """
    batch, nz, ny, nx = field.shape[:4]
    values = volume.reshape(-1)
    partial = np.zeros((batch, nz, 3, 4, BONES), np.float32)
    for slab in numba.prange(batch * nz):
        image, iz = slab // nz, slab % nz
        motion = deltas[image]
        sums = partial[image, iz]
        for iy in range(ny):
            for ix in range(nx):
                gx = gradient[image, iz, iy, ix, 0]
                gy = gradient[image, iz, iy, ix, 1]
                gz = gradient[image, iz, iy, ix, 2]
                if gx == ZERO and gy == ZERO and gz == ZERO:
                    continue

                # Solve the transposed Jacobian at the node's canonical place.
                x = nodes_x[ix] + field[image, iz, iy, ix, 0]
                y = nodes_y[iy] + field[image, iz, iy, ix, 1]
                z = nodes_z[iz] + field[image, iz, iy, ix, 2]
                place = _place_point(volume.shape, low, inverse_spacing, x, y, z)
                _, _, _, j = _move(values, place, motion, x, y, z)
                lx, ly, lz = _solve((j[0], j[3], j[6], j[1], j[4], j[7], j[2], j[5], j[8]), gx, gy, gz)

                # Add its product with each bone's weight and [x; 1].
                for m in range(BONES):
                    weight = -_weight(values, m, place)[0]
                    wx, wy, wz = weight * lx, weight * ly, weight * lz
                    sums[0, 0, m] += wx * x
                    sums[0, 1, m] += wx * y
                    sums[0, 2, m] += wx * z
                    sums[0, 3, m] += wx
                    sums[1, 0, m] += wy * x
                    sums[1, 1, m] += wy * y
                    sums[1, 2, m] += wy * z
                    sums[1, 3, m] += wy
                    sums[2, 0, m] += wz * x
                    sums[2, 1, m] += wz * y
                    sums[2, 2, m] += wz * z
                    sums[2, 3, m] += wz
    return partial
