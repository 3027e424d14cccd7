"""Numba kernels of posed meshes: sums of blendshapes, linear blend skinning, vertex normals.

Single-threaded and in a fixed order, so the same numbers give the same bytes.
Plain twins: `tests/support/raster_twin.py`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from portrait360.kernels.simd import FASTMATH

_jit = numba.njit(cache=True, fastmath=FASTMATH, nogil=True)


@_jit
def accumulate_rows(coefficients, rows, out):
    """out[j] += sum_i coefficients[i] * rows[i, j], in row order."""
    for i in range(coefficients.shape[0]):
        c = coefficients[i]
        if c == 0.0:
            continue
        for j in range(out.shape[0]):
            out[j] += c * rows[i, j]


@_jit
def accumulate_sparse(coefficients, starts, indices, values, out):
    """out[indices[k]] += coefficients[i] * values[k] for k in starts[i]:starts[i+1] (values (n, 3), out (V,
    3))."""
    for i in range(coefficients.shape[0]):
        c = coefficients[i]
        if c == 0.0:
            continue
        for k in range(starts[i], starts[i + 1]):
            v = indices[k]
            out[v, 0] += c * values[k, 0]
            out[v, 1] += c * values[k, 1]
            out[v, 2] += c * values[k, 2]


@_jit
def skin_points(points, weights, transforms, out):
    """Linear blend skinning: points (V,3), weights (V,K), transforms (K,4,4) -> out (V,3)."""
    m = np.zeros((3, 4), np.float32)
    for v in range(points.shape[0]):
        m[:] = 0.0
        for k in range(weights.shape[1]):
            w = weights[v, k]
            if w != 0.0:
                for i in range(3):
                    for j in range(4):
                        m[i, j] += w * transforms[k, i, j]
        for i in range(3):
            out[v, i] = m[i, 0] * points[v, 0] + m[i, 1] * points[v, 1] + m[i, 2] * points[v, 2] + m[i, 3]


@_jit
def vertex_normals(points, triangles, out):
    """Area-weighted unit vertex normals, out (V,3)."""
    # Sum the triangles' normals, whose length is twice the area.
    out[:] = 0.0
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux = points[b, 0] - points[a, 0]
        uy = points[b, 1] - points[a, 1]
        uz = points[b, 2] - points[a, 2]
        vx = points[c, 0] - points[a, 0]
        vy = points[c, 1] - points[a, 1]
        vz = points[c, 2] - points[a, 2]
        nx = uy * vz - uz * vy
        ny = uz * vx - ux * vz
        nz = ux * vy - uy * vx
        for k in range(3):
            i = triangles[f, k]
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz

    # Unit length.
    for v in range(out.shape[0]):
        s = math.sqrt(out[v, 0] ** 2 + out[v, 1] ** 2 + out[v, 2] ** 2)
        if s > 1e-20:
            out[v, 0] /= s
            out[v, 1] /= s
            out[v, 2] /= s
