"""Canonical positions of posed points by Newton's method, parallel over images and nodes, and their gradient.

The plain twin is `geometry.deformation.deformation_field_reference`. Everything is in float32.
Solved per node q: x + sum_m W_m(x) D_m [x; 1] = q, with D_m = (motion of bone m) - identity.
"""

from __future__ import annotations

import numba
import numpy as np

ITERATIONS = 6
"""Newton steps at most; ordinary poses need two or three."""

TOLERANCE = np.float32(1e-5)
"""A node is done when the posed image of its solution lies this close to it, world units."""

MAX_STEP = np.float32(0.06)
"""Longest single step, world units: keeps folded regions of extreme poses bounded."""

MIN_DETERMINANT = np.float32(0.2)
"""Below this the derivative of the weights is left out of the Jacobian, which makes the step a fixed-point step."""

_ONE = np.float32(1)
_ZERO = np.float32(0)


@numba.njit(cache=True, inline="always", fastmath=True)
def _look_up(volume, low, inverse_spacing, x, y, z, weights, slopes):
    """Trilinear weights (M,) and their gradients (M, 3) at a point; returns whether any weight is not zero."""
    nz, ny, nx, bones = volume.shape
    fx = (x - low[0]) * inverse_spacing
    fy = (y - low[1]) * inverse_spacing
    fz = (z - low[2]) * inverse_spacing
    # outside the box the border value continues, hence no slope there
    in_x = inverse_spacing if _ZERO <= fx <= np.float32(nx - 1) else _ZERO
    in_y = inverse_spacing if _ZERO <= fy <= np.float32(ny - 1) else _ZERO
    in_z = inverse_spacing if _ZERO <= fz <= np.float32(nz - 1) else _ZERO
    fx = min(max(fx, _ZERO), np.float32(nx - 1))
    fy = min(max(fy, _ZERO), np.float32(ny - 1))
    fz = min(max(fz, _ZERO), np.float32(nz - 1))
    ix = min(int(fx), nx - 2)
    iy = min(int(fy), ny - 2)
    iz = min(int(fz), nz - 2)
    fx -= np.float32(ix)
    fy -= np.float32(iy)
    fz -= np.float32(iz)
    gx, gy, gz = _ONE - fx, _ONE - fy, _ONE - fz
    total = _ZERO
    for m in range(bones):
        a = volume[iz, iy, ix, m]
        b = volume[iz, iy, ix + 1, m]
        c = volume[iz, iy + 1, ix, m]
        d = volume[iz, iy + 1, ix + 1, m]
        e = volume[iz + 1, iy, ix, m]
        f = volume[iz + 1, iy, ix + 1, m]
        g = volume[iz + 1, iy + 1, ix, m]
        h = volume[iz + 1, iy + 1, ix + 1, m]
        near_low, near_high = a * gx + b * fx, c * gx + d * fx
        far_low, far_high = e * gx + f * fx, g * gx + h * fx
        near = near_low * gy + near_high * fy
        far = far_low * gy + far_high * fy
        weight = near * gz + far * fz
        weights[m] = weight
        total += weight
        slope_x = ((b - a) * gy + (d - c) * fy) * gz + ((f - e) * gy + (h - g) * fy) * fz
        slopes[m, 0] = slope_x * in_x
        slopes[m, 1] = ((near_high - near_low) * gz + (far_high - far_low) * fz) * in_y
        slopes[m, 2] = (far - near) * in_z
    return total != _ZERO


@numba.njit(cache=True, inline="always", fastmath=True)
def _move(deltas, weights, slopes, x, y, z, jacobian):
    """Displacement of a canonical point and the Jacobian of its posed position (rows: output, columns: input)."""
    for i in range(3):
        for j in range(3):
            jacobian[i, j] = _ONE if i == j else _ZERO
    px, py, pz = _ZERO, _ZERO, _ZERO
    for m in range(deltas.shape[0]):
        weight = weights[m]
        ux = deltas[m, 0, 0] * x + deltas[m, 0, 1] * y + deltas[m, 0, 2] * z + deltas[m, 0, 3]
        uy = deltas[m, 1, 0] * x + deltas[m, 1, 1] * y + deltas[m, 1, 2] * z + deltas[m, 1, 3]
        uz = deltas[m, 2, 0] * x + deltas[m, 2, 1] * y + deltas[m, 2, 2] * z + deltas[m, 2, 3]
        px += weight * ux
        py += weight * uy
        pz += weight * uz
        for j in range(3):
            jacobian[0, j] += weight * deltas[m, 0, j] + ux * slopes[m, j]
            jacobian[1, j] += weight * deltas[m, 1, j] + uy * slopes[m, j]
            jacobian[2, j] += weight * deltas[m, 2, j] + uz * slopes[m, j]
    if _determinant(jacobian) < MIN_DETERMINANT:
        for i in range(3):
            for j in range(3):
                jacobian[i, j] = _ONE if i == j else _ZERO
        for m in range(deltas.shape[0]):
            for i in range(3):
                for j in range(3):
                    jacobian[i, j] += weights[m] * deltas[m, i, j]
    return px, py, pz


@numba.njit(cache=True, inline="always", fastmath=True)
def _determinant(a):
    return (
        a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
        - a[0, 1] * (a[1, 0] * a[2, 2] - a[1, 2] * a[2, 0])
        + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
    )


@numba.njit(cache=True, inline="always", fastmath=True)
def _solve(a, x, y, z):
    """The solution of a 3x3 system by Cramer's rule; zero where the matrix is singular."""
    c00 = a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1]
    c01 = a[0, 2] * a[2, 1] - a[0, 1] * a[2, 2]
    c02 = a[0, 1] * a[1, 2] - a[0, 2] * a[1, 1]
    c10 = a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2]
    c11 = a[0, 0] * a[2, 2] - a[0, 2] * a[2, 0]
    c12 = a[0, 2] * a[1, 0] - a[0, 0] * a[1, 2]
    c20 = a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0]
    c21 = a[0, 1] * a[2, 0] - a[0, 0] * a[2, 1]
    c22 = a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]
    determinant = a[0, 0] * c00 + a[0, 1] * c10 + a[0, 2] * c20
    inverse = _ONE / determinant if abs(determinant) > np.float32(1e-3) else _ZERO
    return (
        (c00 * x + c01 * y + c02 * z) * inverse,
        (c10 * x + c11 * y + c12 * z) * inverse,
        (c20 * x + c21 * y + c22 * z) * inverse,
    )


@numba.njit(cache=True, parallel=True, fastmath=True)
def field_forward(volume, low, inverse_spacing, deltas, nodes_x, nodes_y, nodes_z, field):
    """Fill `field` (B, nz, ny, nx, 3) with canonical - posed for every node, one row of nodes at a time."""
    batch, nz, ny, nx = field.shape[:4]
    bones = volume.shape[3]
    for row in numba.prange(batch * nz * ny):
        image, rest = row // (nz * ny), row % (nz * ny)
        qz, qy = nodes_z[rest // ny], nodes_y[rest % ny]
        weights = np.empty(bones, np.float32)
        slopes = np.empty((bones, 3), np.float32)
        jacobian = np.empty((3, 3), np.float32)
        motion = deltas[image]
        out = field[image, rest // ny, rest % ny]
        for column in range(nx):
            qx = nodes_x[column]
            sx, sy, sz = _ZERO, _ZERO, _ZERO
            for _ in range(ITERATIONS):
                x, y, z = qx + sx, qy + sy, qz + sz
                if not _look_up(volume, low, inverse_spacing, x, y, z, weights, slopes) and sx == _ZERO:
                    break
                px, py, pz = _move(motion, weights, slopes, x, y, z, jacobian)
                rx, ry, rz = sx + px, sy + py, sz + pz
                if rx * rx + ry * ry + rz * rz < TOLERANCE * TOLERANCE:
                    break
                dx, dy, dz = _solve(jacobian, rx, ry, rz)
                length = np.sqrt(dx * dx + dy * dy + dz * dz)
                if length > MAX_STEP:
                    shrink = MAX_STEP / length
                    dx, dy, dz = dx * shrink, dy * shrink, dz * shrink
                sx -= dx
                sy -= dy
                sz -= dz
            out[column, 0], out[column, 1], out[column, 2] = sx, sy, sz


@numba.njit(cache=True, parallel=True, fastmath=True)
def field_backward(volume, low, inverse_spacing, deltas, nodes_x, nodes_y, nodes_z, field, gradient):
    """Gradient of a loss with respect to `deltas` (B, M, 3, 4) from its `gradient` with respect to `field`.

    Implicit function theorem: J dx = -sum_m W_m(x) dD_m [x; 1] at the solution x.
    """
    batch, nz, ny, nx = field.shape[:4]
    bones = volume.shape[3]
    partial = np.zeros((batch, nz, bones, 3, 4), np.float32)
    for slab in numba.prange(batch * nz):
        image, iz = slab // nz, slab % nz
        weights = np.empty(bones, np.float32)
        slopes = np.empty((bones, 3), np.float32)
        jacobian = np.empty((3, 3), np.float32)
        transposed = np.empty((3, 3), np.float32)
        motion = deltas[image]
        sums = partial[image, iz]
        for iy in range(ny):
            for ix in range(nx):
                gx, gy, gz = (
                    gradient[image, iz, iy, ix, 0],
                    gradient[image, iz, iy, ix, 1],
                    gradient[image, iz, iy, ix, 2],
                )
                if gx == _ZERO and gy == _ZERO and gz == _ZERO:
                    continue
                x = nodes_x[ix] + field[image, iz, iy, ix, 0]
                y = nodes_y[iy] + field[image, iz, iy, ix, 1]
                z = nodes_z[iz] + field[image, iz, iy, ix, 2]
                if not _look_up(volume, low, inverse_spacing, x, y, z, weights, slopes):
                    continue
                _move(motion, weights, slopes, x, y, z, jacobian)
                for i in range(3):
                    for j in range(3):
                        transposed[i, j] = jacobian[j, i]
                lx, ly, lz = _solve(transposed, gx, gy, gz)
                for m in range(bones):
                    weight = weights[m]
                    for i in range(3):
                        scaled = -weight * (lx if i == 0 else ly if i == 1 else lz)
                        sums[m, i, 0] += scaled * x
                        sums[m, i, 1] += scaled * y
                        sums[m, i, 2] += scaled * z
                        sums[m, i, 3] += scaled
    return partial
