"""Nearest triangles by a bounding-volume tree. Plain twin: `geometry.nearest.nearest_triangles_reference`."""

from __future__ import annotations

import numba
import numpy as np

LEAF = 4
"""Triangles per leaf of the tree."""

_STACK = 64


@numba.njit(cache=True, inline="always")
def _box_squared(low, high, node, x, y, z):
    dx = max(low[node, 0] - x, 0.0, x - high[node, 0])
    dy = max(low[node, 1] - y, 0.0, y - high[node, 1])
    dz = max(low[node, 2] - z, 0.0, z - high[node, 2])
    return dx * dx + dy * dy + dz * dz


@numba.njit(cache=True)
def closest_on_triangle(triangle, x, y, z):
    """Barycentric weights of corners 1 and 2 of the closest point, and the squared distance.

    Decides the region (corner, edge, face) explicitly, so that faces that share a corner tie exactly.
    """
    # Projections onto the edges from a, as seen from a, b and c.
    ax, ay, az = triangle[0, 0], triangle[0, 1], triangle[0, 2]
    abx, aby, abz = triangle[1, 0] - ax, triangle[1, 1] - ay, triangle[1, 2] - az
    acx, acy, acz = triangle[2, 0] - ax, triangle[2, 1] - ay, triangle[2, 2] - az
    apx, apy, apz = x - ax, y - ay, z - az
    d1 = abx * apx + aby * apy + abz * apz
    d2 = acx * apx + acy * apy + acz * apz
    bpx, bpy, bpz = x - triangle[1, 0], y - triangle[1, 1], z - triangle[1, 2]
    d3 = abx * bpx + aby * bpy + abz * bpz
    d4 = acx * bpx + acy * bpy + acz * bpz
    cpx, cpy, cpz = x - triangle[2, 0], y - triangle[2, 1], z - triangle[2, 2]
    d5 = abx * cpx + aby * cpy + abz * cpz
    d6 = acx * cpx + acy * cpy + acz * cpz

    # Corners.
    if d1 <= 0.0 and d2 <= 0.0:
        return 0.0, 0.0, apx * apx + apy * apy + apz * apz
    if d3 >= 0.0 and d4 <= d3:
        return 1.0, 0.0, bpx * bpx + bpy * bpy + bpz * bpz
    if d6 >= 0.0 and d5 <= d6:
        return 0.0, 1.0, cpx * cpx + cpy * cpy + cpz * cpz

    # Edges, else the face.
    vc = d1 * d4 - d3 * d2
    vb = d5 * d2 - d1 * d6
    va = d3 * d6 - d5 * d4
    if vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
        v, w = d1 / (d1 - d3), 0.0
    elif vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
        v, w = 0.0, d2 / (d2 - d6)
    elif va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0:
        w = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        v = 1.0 - w
    else:
        scale = 1.0 / (va + vb + vc)
        v, w = vb * scale, vc * scale
    rx, ry, rz = apx - v * abx - w * acx, apy - v * aby - w * acy, apz - v * abz - w * acz
    return v, w, rx * rx + ry * ry + rz * rz


@numba.njit(cache=True)
def build_tree(triangles, order):
    """Bounds (nodes, 3) of a complete binary tree over `order`, LEAF triangles per leaf.

    The children of node i are 2i+1 and 2i+2.
    """
    count = len(order)
    leaves = 1
    while leaves * LEAF < count:
        leaves *= 2
    low = np.full((2 * leaves - 1, 3), np.inf)
    high = np.full((2 * leaves - 1, 3), -np.inf)
    for leaf in range(leaves):
        node = leaves - 1 + leaf
        for slot in range(leaf * LEAF, min((leaf + 1) * LEAF, count)):
            for corner in range(3):
                for axis in range(3):
                    value = triangles[order[slot], corner, axis]
                    low[node, axis] = min(low[node, axis], value)
                    high[node, axis] = max(high[node, axis], value)
    for node in range(leaves - 2, -1, -1):
        for axis in range(3):
            low[node, axis] = min(low[2 * node + 1, axis], low[2 * node + 2, axis])
            high[node, axis] = max(high[2 * node + 1, axis], high[2 * node + 2, axis])
    return low, high


@numba.njit(cache=True, parallel=True)
def query_tree(points, triangles, order, low, high):
    """For every point: nearest triangle (the lowest number among equals), barycentric weights, distance."""
    count = len(points)
    first_leaf = (len(low) + 1) // 2 - 1
    index = np.empty(count, np.int64)
    barycentric = np.empty((count, 2))
    distance = np.empty(count)
    for p in numba.prange(count):
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        best, best_index, best_v, best_w = np.inf, np.int64(-1), 0.0, 0.0
        stack = np.empty(_STACK, np.int64)
        bound = np.empty(_STACK)
        stack[0], bound[0] = 0, 0.0

        # Walk the tree, nearer children first.
        top = 1
        while top > 0:
            top -= 1
            node = stack[top]
            if bound[top] > best:
                continue

            # A leaf's triangles, or the children that may hold a nearer one.
            if node >= first_leaf:
                start = (node - first_leaf) * LEAF
                for slot in range(start, min(start + LEAF, len(order))):
                    face = order[slot]
                    v, w, square = closest_on_triangle(triangles[face], x, y, z)
                    if square < best or (square == best and face < best_index):
                        best, best_index, best_v, best_w = square, face, v, w
            else:
                left, right = 2 * node + 1, 2 * node + 2
                near = _box_squared(low, high, left, x, y, z)
                far = _box_squared(low, high, right, x, y, z)
                if far < near:
                    left, right, near, far = right, left, far, near
                if far <= best:
                    stack[top], bound[top] = right, far
                    top += 1
                if near <= best:
                    stack[top], bound[top] = left, near
                    top += 1
        index[p] = best_index
        barycentric[p, 0], barycentric[p, 1] = best_v, best_w
        distance[p] = np.sqrt(best)
    return index, barycentric, distance
