"""Numba kernels that find what is visible at each sample of an image: depth maps, and layers of see-through hair.

Every kernel is single-threaded and visits its work in a fixed order, so the same scene gives the same bytes
in any process. Plain numpy twins live in `tests/support/raster_twin.py`.

Conventions: screen x to the right and y down in samples, depth positive away from the camera; triangles are
rows of vertex indices; `uv` holds one pair per triangle corner with v upwards. Textures are slots of one
atlas of 512x512 RGBA bytes with three smaller levels behind each other in the same row (see
`synthetic/textures.py`).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from portrait360.kernels.simd import FASTMATH

SKIN, EYE, HAIR, CLOTH, FRINGE, PLAIN = 0, 1, 2, 3, 4, 5
"""Material kinds. FRINGE is brows and lashes, PLAIN is teeth and tongue."""

MAX_LAYERS = 8
MATERIAL_FIELDS = 15
"""Columns of the material table: 0-2 colour (eyes: of the iris), 3 exponent, 4 gain, 5-7 second colour (eyes: of the
white), 8 pattern frequency, 9-10 its direction, 11 threshold, 12 pattern (0 none, 1 stripes, 2 plaid, 3 dots),
13 weave, 14 gloss."""

TEXTURE_SIDE = 512
LEVEL_OFFSETS = (0, 262144, 327680, 344064)
TEXELS_PER_SLOT = 348160

_jit = numba.njit(cache=True, fastmath=FASTMATH, nogil=True)
_inline = numba.njit(cache=True, fastmath=FASTMATH, nogil=True, inline="always")


@_jit
def _nearest_alpha(atlas, slot, level, u, v):
    side = 512 >> level
    x = min(int((u - math.floor(u)) * side), side - 1)
    y = min(int((1.0 - (v - math.floor(v))) * side), side - 1)
    offset = LEVEL_OFFSETS[level]
    return atlas[slot, offset + y * side + x, 3]


@_jit
def texture_levels(screen, triangles, uv, out):
    """Mip level 0-3 of each triangle so that one texel covers about one sample."""
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        area = abs(
            (screen[b, 0] - screen[a, 0]) * (screen[c, 1] - screen[a, 1])
            - (screen[b, 1] - screen[a, 1]) * (screen[c, 0] - screen[a, 0])
        )
        texels = (
            abs(
                (uv[f, 1, 0] - uv[f, 0, 0]) * (uv[f, 2, 1] - uv[f, 0, 1])
                - (uv[f, 1, 1] - uv[f, 0, 1]) * (uv[f, 2, 0] - uv[f, 0, 0])
            )
            * 262144.0
        )
        ratio = texels / max(area, 1e-3)
        level = 0
        while ratio > 3.0 and level < 3:
            ratio *= 0.25
            level += 1
        out[f] = level


@_jit
def raster_depth(screen, triangles, uv, material, kind, slot, atlas, perspective, threshold, side, depth, face):
    """Nearest depth and triangle per sample centre of a side x side image.

    `depth` (side*side,) starts at +inf (no hit) and `face` at -1. Triangles of hair and fringes count where
    their alpha reaches `threshold` (0-255). `perspective` interpolates 1/z, otherwise z is affine.
    """
    for f in range(triangles.shape[0]):
        i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay, az = screen[i0, 0], screen[i0, 1], screen[i0, 2]
        bx, by, bz = screen[i1, 0], screen[i1, 1], screen[i1, 2]
        cx, cy, cz = screen[i2, 0], screen[i2, 1], screen[i2, 2]

        # Samples that its box covers.
        xs = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
        xe = min(side - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
        ys = max(0, int(math.ceil(min(ay, by, cy) - 0.5)))
        ye = min(side - 1, int(math.floor(max(ay, by, cy) - 0.5)))
        if xs > xe or ys > ye:
            continue
        d = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(d) < 1e-12:
            continue
        inv = 1.0 / d
        m = material[f]
        transparent = kind[m] == 2 or kind[m] == 4
        for y in range(ys, ye + 1):
            py = y + 0.5
            for x in range(xs, xe + 1):
                px = x + 0.5
                w1 = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * inv
                w2 = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * inv
                w0 = 1.0 - w1 - w2
                if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                    continue

                # Depth, and weights with perspective.
                if perspective:
                    z = 1.0 / (w0 / az + w1 / bz + w2 / cz)
                    w1 = w1 / bz * z
                    w2 = w2 / cz * z
                    w0 = 1.0 - w1 - w2
                else:
                    z = w0 * az + w1 * bz + w2 * cz
                p = y * side + x
                if z >= depth[p]:
                    continue

                # See-through texels leave what lies behind.
                if transparent:
                    u = uv[f, 0, 0] * w0 + uv[f, 1, 0] * w1 + uv[f, 2, 0] * w2
                    v = uv[f, 0, 1] * w0 + uv[f, 1, 1] * w1 + uv[f, 2, 1] * w2
                    if _nearest_alpha(atlas, slot[m], 1, u, v) < threshold:
                        continue
                depth[p] = z
                face[p] = f


@_inline
def _insert(layer_z, layer_face, layer_bary, p, n, z, face, b1, b2):
    """Insert a fragment by depth into the `n` of sample `p`, and drop the last one where they are full; its place."""
    i = n if n < layer_z.shape[1] else layer_z.shape[1] - 1
    while i > 0 and layer_z[p, i - 1] > z:
        layer_z[p, i] = layer_z[p, i - 1]
        layer_face[p, i] = layer_face[p, i - 1]
        layer_bary[p, i, 0] = layer_bary[p, i - 1, 0]
        layer_bary[p, i, 1] = layer_bary[p, i - 1, 1]
        i -= 1
    layer_z[p, i] = z
    layer_face[p, i] = face
    layer_bary[p, i, 0] = b1
    layer_bary[p, i, 1] = b2
    return i


@_jit
def raster_layers(
    screen, triangles, uv, material, kind, slot, level, atlas, side, count, layer_z, layer_face, layer_bary
):
    """Keep up to MAX_LAYERS fragments per sample, nearest first, none behind the first opaque one.

    `layer_face` holds the triangle, or its complement (~f) where the fragment is opaque; `layer_bary` the
    perspective-correct weights of corners 1 and 2. `count` must be zero on entry.
    """
    kmax = layer_z.shape[1]
    for f in range(triangles.shape[0]):
        i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay, az = screen[i0, 0], screen[i0, 1], screen[i0, 2]
        bx, by, bz = screen[i1, 0], screen[i1, 1], screen[i1, 2]
        cx, cy, cz = screen[i2, 0], screen[i2, 1], screen[i2, 2]

        # Samples that its box covers.
        xs = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
        xe = min(side - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
        ys = max(0, int(math.ceil(min(ay, by, cy) - 0.5)))
        ye = min(side - 1, int(math.floor(max(ay, by, cy) - 0.5)))
        if xs > xe or ys > ye:
            continue

        # One over its area and over its corners' depths.
        d = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(d) < 1e-9:
            continue
        inv = 1.0 / d
        ia = 1.0 / az
        ib = 1.0 / bz
        ic = 1.0 / cz
        m = material[f]
        k = kind[m]
        solid = not (k == 2 or k == 4 or k == 1)

        # Fragments where a sample lies in it.
        for y in range(ys, ye + 1):
            py = y + 0.5
            for x in range(xs, xe + 1):
                px = x + 0.5
                w1 = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * inv
                w2 = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * inv
                w0 = 1.0 - w1 - w2
                if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                    continue
                z = np.float32(1.0 / (w0 * ia + w1 * ib + w2 * ic))
                p = y * side + x
                n = count[p]
                if n > 0 and z >= layer_z[p, n - 1] and (n == kmax or layer_face[p, n - 1] < 0):
                    continue

                # Weights with perspective; texels that are nearly clear are left out.
                b1 = w1 * ib * z
                b2 = w2 * ic * z
                opaque = True
                if not solid:
                    b0 = 1.0 - b1 - b2
                    u = uv[f, 0, 0] * b0 + uv[f, 1, 0] * b1 + uv[f, 2, 0] * b2
                    v = uv[f, 0, 1] * b0 + uv[f, 1, 1] * b1 + uv[f, 2, 1] * b2
                    alpha = _nearest_alpha(atlas, slot[m], level[f], u, v)
                    if alpha < 10:
                        continue
                    opaque = alpha > 251

                # An opaque fragment ends the list.
                i = _insert(layer_z, layer_face, layer_bary, p, n, z, ~f if opaque else f, b1, b2)
                count[p] = i + 1 if opaque else min(n + 1, kmax)
