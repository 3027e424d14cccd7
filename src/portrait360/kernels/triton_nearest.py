"""The nearest triangle of every point, on GPUs, in Triton, in double precision.

`portrait360.geometry.nearest.nearest_triangles_reference` is its readable twin; on the CPU a tree does it
(`portrait360.kernels.nearest`). Triangles come in groups of neighbours, each with its box. A program takes `POINTS`
points that lie close together. The farthest corner of a box bounds how far the nearest triangle can be; groups whose
boxes are farther from all of the points than that, or than what has been found, are passed over.
"""

from __future__ import annotations

import triton
import triton.language as tl

POINTS, GROUP, TRIANGLES = 64, 16, 8
"""Points of a program, triangles of a group, and how many of these are tried at once."""

_SLACK = tl.constexpr(1e-6)
"""Bounds are this much (relative) wider than computed, so that rounding (of this number to float32, too) hides no
triangle, nor an equal one."""


@triton.jit
def _dot(ax, ay, az, bx, by, bz):
    return ax * bx + ay * by + az * bz


@triton.jit
def _over(a, b):
    """a / b, and a where b is zero: in triangles without area, whose other regions count then."""
    return a / tl.where(b == 0, 1.0, b)


@triton.jit
def _corner(triangles, t, corner: tl.constexpr):
    """x, y, z of a corner of triangles t, as a row."""
    at = triangles + t * 9 + 3 * corner
    return tl.load(at)[None, :], tl.load(at + 1)[None, :], tl.load(at + 2)[None, :]


@triton.jit
def _squared(px, py, pz, a, b, c):
    """Squared distance of points (columns) to triangles (rows): Ericson, Real-Time Collision Detection, 5.1.5."""
    # Projections onto the edges from a, as seen from a, b and c; the closest point of the plane.
    abx, aby, abz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    acx, acy, acz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    apx, apy, apz = px - a[0], py - a[1], pz - a[2]
    bpx, bpy, bpz = px - b[0], py - b[1], pz - b[2]
    cpx, cpy, cpz = px - c[0], py - c[1], pz - c[2]
    d1, d2 = _dot(abx, aby, abz, apx, apy, apz), _dot(acx, acy, acz, apx, apy, apz)
    d3, d4 = _dot(abx, aby, abz, bpx, bpy, bpz), _dot(acx, acy, acz, bpx, bpy, bpz)
    d5, d6 = _dot(abx, aby, abz, cpx, cpy, cpz), _dot(acx, acy, acz, cpx, cpy, cpz)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    v, w = _over(vb, va + vb + vc), _over(vc, va + vb + vc)
    x, y, z = apx - abx * v - acx * w, apy - aby * v - acy * w, apz - abz * v - acz * w

    # The regions of edges and corners, later ones before earlier ones
    bc = (va <= 0) & (d4 >= d3) & (d5 >= d6)
    along = _over(d4 - d3, (d4 - d3) + (d5 - d6))
    x = tl.where(bc, bpx - (acx - abx) * along, x)
    y = tl.where(bc, bpy - (acy - aby) * along, y)
    z = tl.where(bc, bpz - (acz - abz) * along, z)
    ac = (vb <= 0) & (d2 >= 0) & (d6 <= 0)
    along = _over(d2, d2 - d6)
    x, y, z = tl.where(ac, apx - acx * along, x), tl.where(ac, apy - acy * along, y), tl.where(ac, apz - acz * along, z)
    ab = (vc <= 0) & (d1 >= 0) & (d3 <= 0)
    along = _over(d1, d1 - d3)
    x, y, z = tl.where(ab, apx - abx * along, x), tl.where(ab, apy - aby * along, y), tl.where(ab, apz - abz * along, z)
    at_c = (d6 >= 0) & (d5 <= d6)
    x, y, z = tl.where(at_c, cpx, x), tl.where(at_c, cpy, y), tl.where(at_c, cpz, z)
    at_b = (d3 >= 0) & (d4 <= d3)
    x, y, z = tl.where(at_b, bpx, x), tl.where(at_b, bpy, y), tl.where(at_b, bpz, z)
    at_a = (d1 <= 0) & (d2 <= 0)
    x, y, z = tl.where(at_a, apx, x), tl.where(at_a, apy, y), tl.where(at_a, apz, z)
    return x * x + y * y + z * z


@triton.jit
def _side(box, p, axis: tl.constexpr):
    """How far points are outside of a box along an axis (0 inside), and from the farther of its two faces."""
    low, high = tl.load(box + axis), tl.load(box + 3 + axis)
    return tl.maximum(tl.maximum(low - p, p - high), 0.0), tl.maximum(p - low, high - p)


@triton.jit
def nearest(
    points,
    triangles,
    numbers,
    boxes,
    index,
    count,
    groups,
    faces,
    POINTS: tl.constexpr,
    GROUP: tl.constexpr,
    TRIANGLES: tl.constexpr,
):
    """Fill `index` (N) with the number of the nearest triangle of each point, the lowest among equals.

    Args:
        points: (N, 3) float64, those of a program close together.
        triangles: (groups * GROUP, 3, 3) float64.
        numbers: (groups * GROUP,) int32: their numbers, below `faces`.
        boxes: (groups, 2, 3) float64: the lowest and highest corner of each group's bounding box.
        count, groups, faces: how many.
    """
    # This program's points.
    n = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    there = n < count
    own = points + tl.minimum(n, count - 1) * 3
    px, py, pz = tl.load(own), tl.load(own + 1), tl.load(own + 2)

    # A bound: the least distance to the farthest corner of a box.
    best = tl.full([POINTS], float("inf"), tl.float64)
    for group in range(groups):
        box = boxes + group * 6
        _, far_x = _side(box, px, 0)
        _, far_y = _side(box, py, 1)
        _, far_z = _side(box, pz, 2)
        best = tl.minimum(best, _dot(far_x, far_y, far_z, far_x, far_y, far_z))
    best *= 1.0 + _SLACK

    # Try the triangles of groups that may hold a nearer one.
    chosen = tl.full([POINTS], 0, tl.int32) + faces
    for group in range(groups):
        box = boxes + group * 6
        x, _ = _side(box, px, 0)
        y, _ = _side(box, py, 1)
        z, _ = _side(box, pz, 2)
        within = _dot(x, y, z, x, y, z) * (1.0 - _SLACK) <= best
        if tl.max(within.to(tl.int32), axis=0) > 0:
            for start in range(0, GROUP, TRIANGLES):
                t = group * GROUP + start + tl.arange(0, TRIANGLES)
                a, b, c = _corner(triangles, t, 0), _corner(triangles, t, 1), _corner(triangles, t, 2)
                squared = _squared(px[:, None], py[:, None], pz[:, None], a, b, c)
                smallest = tl.min(squared, axis=1)
                number = tl.load(numbers + t)[None, :]
                first = tl.min(tl.where(squared == smallest[:, None], number, faces), axis=1)
                closer = (smallest < best) | ((smallest == best) & (first < chosen))
                best = tl.where(closer, smallest, best)
                chosen = tl.where(closer, first, chosen)
    tl.store(index + n, chosen, mask=there)
