"""Numba kernel that bakes the light of the surroundings into vertices, one direction at a time.

Single-threaded and in a fixed order, so the same scene gives the same bytes.
Plain twin: `tests/support/raster_twin.py`.
"""

from __future__ import annotations

import math

import numba

from portrait360.kernels.simd import FASTMATH


@numba.njit(cache=True, fastmath=FASTMATH, nogil=True)
def add_direction(points, normals, soft, direction, radiance, axes, scale, depth, side, bias, total, seen, irradiance):
    """Add one direction of the surroundings to the light that vertices get from them.

    `depth` is the orthographic depth map of that direction. Adds the cosine weight (wrapped where `soft`) to
    `total` (V,), its visible share (four bilinear taps) to `seen` (V,), and that times `radiance` (3,) to
    `irradiance` (V,3).
    """
    for v in range(points.shape[0]):
        cosine = normals[v, 0] * direction[0] + normals[v, 1] * direction[1] + normals[v, 2] * direction[2]
        weight = 0.5 + 0.5 * cosine if soft[v] else cosine
        if weight <= 0.0:
            continue
        total[v] += weight

        # the vertex, moved along its normal, in the depth map
        x = points[v, 0] + normals[v, 0] * bias
        y = points[v, 1] + normals[v, 1] * bias
        z = points[v, 2] + normals[v, 2] * bias
        sx = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) * scale + 0.5 * side - 0.5
        sy = (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) * scale + 0.5 * side - 0.5
        sz = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z - bias
        ix = int(math.floor(sx))
        iy = int(math.floor(sy))

        # share of four bilinear taps that are not in front of it
        lit = 0.0
        if ix < 0 or iy < 0 or ix + 1 >= side or iy + 1 >= side:
            lit = 1.0
        else:
            fx = sx - ix
            fy = sy - iy
            if depth[iy * side + ix] > sz:
                lit += (1 - fx) * (1 - fy)
            if depth[iy * side + ix + 1] > sz:
                lit += fx * (1 - fy)
            if depth[(iy + 1) * side + ix] > sz:
                lit += (1 - fx) * fy
            if depth[(iy + 1) * side + ix + 1] > sz:
                lit += fx * fy
        seen[v] += weight * lit
        for q in range(3):
            irradiance[v, q] += weight * lit * radiance[q]
