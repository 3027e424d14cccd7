"""The nearest triangle of every point, on GPUs, in Triton: every point against every triangle, in double precision.

`portrait360.geometry.nearest.nearest_triangles_reference` is its readable twin; on the CPU a tree does it
(`portrait360.kernels.nearest`). A program takes `POINTS` points and walks the triangles, `TRIANGLES` at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

POINTS, TRIANGLES = 64, 8


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
    # the regions of edges and corners, later ones before earlier ones
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
def nearest(points, triangles, index, count, faces, POINTS: tl.constexpr, TRIANGLES: tl.constexpr):
    """Fill `index` (N) with the nearest triangle (T, 3, 3) of each point (N, 3), the first among equals; float64."""
    n = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    there = n < count
    px = tl.load(points + n * 3, mask=there, other=0.0)[:, None]
    py = tl.load(points + n * 3 + 1, mask=there, other=0.0)[:, None]
    pz = tl.load(points + n * 3 + 2, mask=there, other=0.0)[:, None]
    best = tl.full([POINTS], float("inf"), tl.float64)
    chosen = tl.zeros([POINTS], tl.int32)
    for start in range(0, faces, TRIANGLES):
        t = start + tl.arange(0, TRIANGLES)
        exists = t < faces
        there_or_first = tl.where(exists, t, 0)
        a, b = _corner(triangles, there_or_first, 0), _corner(triangles, there_or_first, 1)
        c = _corner(triangles, there_or_first, 2)
        squared = tl.where(exists[None, :], _squared(px, py, pz, a, b, c), float("inf"))
        smallest = tl.min(squared, axis=1)
        first = tl.min(tl.where(squared == smallest[:, None], t[None, :], faces), axis=1)
        closer = smallest < best
        best = tl.where(closer, smallest, best)
        chosen = tl.where(closer, first, chosen)
    tl.store(index + n, chosen, mask=there)
