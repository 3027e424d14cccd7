"""Numba kernels that light what `kernels.raster` found, with what `kernels.surroundings` baked: shading of layers.

Single-threaded and in a fixed order, so the same scene gives the same bytes.
Plain twins: `tests/support/raster_twin.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from portrait360.kernels.raster import CLOTH, EYE, FRINGE, HAIR, LEVEL_OFFSETS, PLAIN, SKIN
from portrait360.kernels.simd import FASTMATH

SKIN_GLOSS_WIDTH, HAIR_GLOSS_WIDTH, EYE_GLOSS_WIDTH = 12.0, 16.0, 90.0
"""Sharpness of the reflections of surroundings, as that of a lobe of light (`Surroundings`)."""
SKIN_REFLECTANCE = 0.03
"""Of skin seen straight on, at a gloss of 1."""
WRAP = (0.32, 0.17, 0.12)
"""How far red, green and blue light of the key creeps around skin, as a part of the cosine (subsurface scattering)."""

_jit = numba.njit(cache=True, fastmath=FASTMATH, nogil=True)
_inline = numba.njit(cache=True, fastmath=FASTMATH, nogil=True, inline="always")


class Surface(NamedTuple):
    """A posed mesh: F triangles of M materials on V vertices."""

    normals: np.ndarray
    """(V,3) unit."""
    triangles: np.ndarray
    """(F,3)."""
    uv: np.ndarray
    """(F,3,2)."""
    material: np.ndarray
    """(F,)."""
    kind: np.ndarray
    """(M,) of `kernels.raster`."""
    slot: np.ndarray
    """(M,) row of the atlas."""
    level: np.ndarray
    """(F,) mip level."""
    fields: np.ndarray
    """(M, MATERIAL_FIELDS)."""
    tint: np.ndarray
    """(V,) share of skin under painted hair."""
    tint_colour: np.ndarray
    """(V,3) of painted hair."""
    tone: np.ndarray
    """(V,3) factor on the colour of skin."""
    place: np.ndarray
    """(V,2) where a vertex lies at rest, for patterns of cloth."""
    open_sky: np.ndarray
    """(V,) share of the surroundings that a vertex sees."""
    irradiance: np.ndarray
    """(V,3) mean radiance of what it sees of them, cosine weighted."""


class Layers(NamedTuple):
    """What `kernels.raster.raster_layers` found for each sample."""

    count: np.ndarray
    z: np.ndarray
    face: np.ndarray
    weights: np.ndarray


class View(NamedTuple):
    """A pinhole camera: samples per side, centre (3,), cam2world rotation (3,3), normalised focal length."""

    side: int
    origin: np.ndarray
    rotation: np.ndarray
    focal: float


class KeyLight(NamedTuple):
    """A distant light with shadows."""

    direction: np.ndarray
    """(3,) unit, towards it."""
    colour: np.ndarray
    """(3,) radiance of a white surface that faces it."""
    shadow: np.ndarray
    """(side*side,) depths seen from it."""
    axes: np.ndarray
    """(3,3) rows right, down, away from it."""
    scale: float
    """Texels of the shadow map per world unit."""
    side: int
    stride: int
    """Texels between the taps of its 3 x 3 box: how soft shadows are."""
    bias: float


class Surroundings(NamedTuple):
    """Light from everywhere: a gradient from ground to sky, and L lobes of colour * exp(sharpness * (cosine - 1))."""

    up: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    directions: np.ndarray
    """(L,3) unit, towards the lobes."""
    sharpness: np.ndarray
    """(L,)."""
    colours: np.ndarray
    """(L,3) at their middle."""


@_jit
def _sample(atlas, linear, slot, level, u, v, out):
    """Bilinear lookup of a texture at (u, v): linear colour and alpha into `out` (4,)."""
    # Texels and fractions.
    side = 512 >> level
    offset = LEVEL_OFFSETS[level]
    x = (u - math.floor(u)) * side - 0.5
    y = (1.0 - (v - math.floor(v))) * side - 0.5
    x0 = int(math.floor(x))
    y0 = int(math.floor(y))
    fx = x - x0
    fy = y - y0
    xa = max(x0, 0)
    xb = min(x0 + 1, side - 1)
    ya = offset + max(y0, 0) * side
    yb = offset + min(y0 + 1, side - 1) * side
    w00 = (1 - fx) * (1 - fy)
    w01 = fx * (1 - fy)
    w10 = (1 - fx) * fy
    w11 = fx * fy

    # Colour is interpolated after decoding, alpha as it is.
    for k in range(3):
        out[k] = (
            linear[atlas[slot, ya + xa, k]] * w00
            + linear[atlas[slot, ya + xb, k]] * w01
            + linear[atlas[slot, yb + xa, k]] * w10
            + linear[atlas[slot, yb + xb, k]] * w11
        )
    out[3] = (
        atlas[slot, ya + xa, 3] * w00
        + atlas[slot, ya + xb, 3] * w01
        + atlas[slot, yb + xa, 3] * w10
        + atlas[slot, yb + xb, 3] * w11
    ) * (1.0 / 255.0)


@_jit
def _pattern(fields, m, u, v):
    """Share of the second colour of a garment at (u, v)."""
    kind = fields[m, 12]
    if kind == 0.0:
        return 0.0
    f = fields[m, 8]
    a = (u * fields[m, 9] + v * fields[m, 10]) * f
    b = (u * fields[m, 10] - v * fields[m, 9]) * f
    if kind == 1.0:
        return 1.0 if math.sin(a) > fields[m, 11] else 0.0
    if kind == 2.0:
        s = 0.5 if math.sin(a) > fields[m, 11] else 0.0
        return s + (0.5 if math.sin(b) > fields[m, 11] else 0.0)
    s = math.sin(a)
    t = math.sin(b)
    return 1.0 if s * s + t * t < 0.5 + 0.4 * fields[m, 11] else 0.0


@_inline
def _power(x, exponent):
    """x ** exponent for exponents 2, 4, 8, ..., by squaring."""
    while exponent > 1:
        x = x * x
        exponent //= 2
    return x


@_jit
def _albedo(surface, f, m, b0, b1, b2, texel, out):
    """Reflected share of light, linear, into `out` (3,). Returns how much of skin is painted hair."""
    kind, fields = surface.kind[m], surface.fields
    i0, i1, i2 = surface.triangles[f, 0], surface.triangles[f, 1], surface.triangles[f, 2]

    # Hair, patterned cloth and eyes have formulas of their own.
    if kind in (HAIR, FRINGE):
        detail = max(texel[0] * fields[m, 4], 0.02) ** fields[m, 3]
        for q in range(3):
            out[q] = min(fields[m, q] * detail, 0.9)
        return 0.0
    if kind == CLOTH and fields[m, 4] > 0.0:
        x = surface.place[i0, 0] * b0 + surface.place[i1, 0] * b1 + surface.place[i2, 0] * b2
        y = surface.place[i0, 1] * b0 + surface.place[i1, 1] * b1 + surface.place[i2, 1] * b2
        share = _pattern(fields, m, x, y)
        detail = texel[0] * fields[m, 4] * (1.0 + fields[m, 13] * (texel[1] * 4.0 - 1.0))
        for q in range(3):
            out[q] = min((fields[m, q] * (1 - share) + fields[m, 5 + q] * share) * detail, 0.9)
        return 0.0
    if kind == EYE:
        # red holds the detail, green the share of iris and pupil
        for q in range(3):
            out[q] = min((fields[m, q] * texel[1] + fields[m, 5 + q] * (1 - texel[1])) * texel[0] * 4.0, 0.9)
        return 0.0

    # Other materials are textured; skin has a tone and may be painted.
    for q in range(3):
        out[q] = min(texel[q] * fields[m, q], 0.95)
    if kind != SKIN:
        return 0.0
    covered = surface.tint[i0] * b0 + surface.tint[i1] * b1 + surface.tint[i2] * b2
    grain = min(0.5 + 0.4 * (out[0] + out[1] + out[2]), 1.0)
    for q in range(3):
        tone = surface.tone[i0, q] * b0 + surface.tone[i1, q] * b1 + surface.tone[i2, q] * b2
        paint = surface.tint_colour
        painted = paint[i0, q] * b0 + paint[i1, q] * b1 + paint[i2, q] * b2
        out[q] = min(out[q] * tone, 0.95) * (1 - covered) + painted * covered * grain
    return covered


@_jit
def _lit_share(key, x, y, z):
    """Share of the key light that reaches a point: a 3 x 3 box of depth comparisons at fractional position."""
    # The point in the shadow map.
    hx = (
        (key.axes[0, 0] * x + key.axes[0, 1] * y + key.axes[0, 2] * z) * key.scale + 0.5 * key.side - 0.5
    ) / key.stride
    hy = (
        (key.axes[1, 0] * x + key.axes[1, 1] * y + key.axes[1, 2] * z) * key.scale + 0.5 * key.side - 0.5
    ) / key.stride
    hz = key.axes[2, 0] * x + key.axes[2, 1] * y + key.axes[2, 2] * z - key.bias

    # Share of a box of 3 x 3 taps, the outer ones by fractions.
    ix = int(math.floor(hx))
    iy = int(math.floor(hy))
    fx = hx - ix
    fy = hy - iy
    lit = 0.0
    for jy in range(-1, 3):
        wy = 1.0 - fy if jy == -1 else (fy if jy == 2 else 1.0)
        for jx in range(-1, 3):
            wx = 1.0 - fx if jx == -1 else (fx if jx == 2 else 1.0)
            tx = (ix + jx) * key.stride
            ty = (iy + jy) * key.stride
            if tx < 0 or ty < 0 or tx >= key.side or ty >= key.side:
                lit += wx * wy
            elif key.shadow[ty * key.side + tx] > hz:
                lit += wx * wy
    return lit / 9.0


@_jit
def _reflection(around, x, y, z, width, out):
    """Radiance of the surroundings from a direction, blurred to the sharpness `width`, into `out` (3,)."""
    half = 0.5 + 0.5 * (x * around.up[0] + y * around.up[1] + z * around.up[2])
    for q in range(3):
        out[q] = around.sky[q] * half + around.ground[q] * (1 - half)
    for j in range(around.sharpness.shape[0]):
        k = around.sharpness[j] * width / (around.sharpness[j] + width)
        cosine = x * around.directions[j, 0] + y * around.directions[j, 1] + z * around.directions[j, 2]
        share = k / around.sharpness[j] * math.exp(k * (cosine - 1.0))
        for q in range(3):
            out[q] += around.colours[j, q] * share


@_jit
def _light(kind, gloss, covered, albedo, normal, view, key, lit, open_sky, irradiance, reflection, out):
    """Radiance towards the camera into `out` (3,): light of the surroundings, then the key's, diffuse and reflected.

    `view` (3,) points from the camera to the surface. `reflection` (3,) is what a mirror there would show.
    """
    # Cosines: to the light, to the camera, and of the half vector.
    nl = normal[0] * key.direction[0] + normal[1] * key.direction[1] + normal[2] * key.direction[2]
    nv = min(max(-(normal[0] * view[0] + normal[1] * view[1] + normal[2] * view[2]), 0.0), 1.0)
    mx = key.direction[0] - view[0]
    my = key.direction[1] - view[1]
    mz = key.direction[2] - view[2]
    length = math.sqrt(mx * mx + my * my + mz * mz + 1e-9)
    nh = min(max((normal[0] * mx + normal[1] * my + normal[2] * mz) / length, 0.0), 1.0)

    # Each material's diffuse and reflected parts.
    if kind == SKIN:
        # light bounced between skin surfaces: occluded places turn warm rather than grey
        grazing = (1.0 - nv) * (1.0 - nv)
        fresnel = SKIN_REFLECTANCE + 0.09 * grazing * grazing
        sheen = gloss * fresnel * (1.0 - covered)
        nh8 = _power(nh, 8)
        glint = sheen * (1.2 * nh8 + 2.4 * nh8 * nh8 * nh8 * nh8) * max(nl, 0.0) * lit
        for q in range(3):
            wrap = WRAP[0] if q == 0 else (WRAP[1] if q == 1 else WRAP[2])
            bounced = irradiance[q] * (1.0 + (1.0 - open_sky) * albedo[q] * 0.6)
            reach = 0.75 * lit + 0.25 * math.sqrt(lit) if q == 0 else lit
            direct = key.colour[q] * max((nl + wrap) / (1.0 + wrap), 0.0) * reach
            out[q] = albedo[q] * (bounced + direct) + key.colour[q] * glint + sheen * reflection[q] * open_sky
    elif kind == HAIR:
        nh4 = _power(nh, 4)
        strand = nh4 * nh4 * nh4 * nh4 * nh * nh * 0.5 * lit
        wrapped = max((nl + 0.4) / 1.4, 0.0) * (0.25 + 0.75 * lit)
        for q in range(3):
            sheen = gloss + albedo[q] * 0.3
            out[q] = albedo[q] * (irradiance[q] + key.colour[q] * wrapped) + sheen * (
                key.colour[q] * strand + 0.3 * reflection[q] * open_sky
            )
    elif kind == EYE:
        glint = 3.0 * _power(nh, 512) * lit if nh > 0.97 else 0.0
        for q in range(3):
            direct = key.colour[q] * max((nl + 0.2) / 1.2, 0.0) * lit
            out[q] = albedo[q] * (irradiance[q] + direct) + key.colour[q] * glint + 0.035 * reflection[q] * open_sky
    else:
        for q in range(3):
            out[q] = albedo[q] * (irradiance[q] + key.colour[q] * max(nl, 0.0) * lit)


@_inline
def _viewing_ray(view, p, ray):
    """Viewing ray of a sample: that of depth 1 as three numbers, that of length 1 into `ray` (3,)."""
    py = p // view.side
    sx = ((p - py * view.side + 0.5) / view.side - 0.5) / view.focal
    sy = ((py + 0.5) / view.side - 0.5) / view.focal
    dx = view.rotation[0, 0] * sx + view.rotation[0, 1] * sy + view.rotation[0, 2]
    dy = view.rotation[1, 0] * sx + view.rotation[1, 1] * sy + view.rotation[1, 2]
    dz = view.rotation[2, 0] * sx + view.rotation[2, 1] * sy + view.rotation[2, 2]
    inverse = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
    ray[0], ray[1], ray[2] = dx * inverse, dy * inverse, dz * inverse
    return dx, dy, dz


@_inline
def _opacity(kind, alpha):
    """Opacity of a fragment whose texture has that alpha."""
    if kind in (SKIN, CLOTH, PLAIN):
        return np.float32(1.0)
    if kind == HAIR:
        return np.float32(min(max((alpha - 0.08) * 1.25, 0.0), 1.0))
    return alpha


@_inline
def _facing_normal(surface, f, kind, b0, b1, b2, ray, normal):
    """Normal turned to the camera into `normal` (3,); rounded hair normals past the horizon bend back to it."""
    i0, i1, i2 = surface.triangles[f, 0], surface.triangles[f, 1], surface.triangles[f, 2]
    for q in range(3):
        normal[q] = surface.normals[i0, q] * b0 + surface.normals[i1, q] * b1 + surface.normals[i2, q] * b2
    scale = 1.0 / math.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2] + 1e-12)
    facing = (normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2]) * scale
    if kind != HAIR and (facing > 0.35 or (kind == FRINGE and facing > 0.0)):
        scale = -scale
    for q in range(3):
        normal[q] *= scale
    if kind == HAIR and facing > 0.0:
        for q in range(3):
            normal[q] -= facing * ray[q]


@_inline
def _key_share(view, key, dx, dy, dz, z, normal):
    """Share of the key light at depth z of a viewing ray.

    The place moves along the normal, more at grazing light, so that it does not shadow itself.
    """
    towards = normal[0] * key.direction[0] + normal[1] * key.direction[1] + normal[2] * key.direction[2]
    push = key.bias * (1.0 + 2.0 * min(max(1.0 - towards, 0.0), 1.0))
    return _lit_share(
        key,
        view.origin[0] + dx * z + normal[0] * push,
        view.origin[1] + dy * z + normal[1] * push,
        view.origin[2] + dz * z + normal[2] * push,
    )


@_inline
def _from_surroundings(surface, around, f, kind, b0, b1, b2, ray, normal, irradiance, reflection):
    """Light of the surroundings into `irradiance` (3,), what a mirror would show into `reflection` (3,).

    Returns the share of the surroundings that is seen.
    """
    i0, i1, i2 = surface.triangles[f, 0], surface.triangles[f, 1], surface.triangles[f, 2]
    open_sky = surface.open_sky[i0] * b0 + surface.open_sky[i1] * b1 + surface.open_sky[i2] * b2
    for q in range(3):
        irradiance[q] = surface.irradiance[i0, q] * b0 + surface.irradiance[i1, q] * b1 + surface.irradiance[i2, q] * b2
    if kind in (SKIN, HAIR, EYE):
        width = SKIN_GLOSS_WIDTH if kind == SKIN else (HAIR_GLOSS_WIDTH if kind == HAIR else EYE_GLOSS_WIDTH)
        bounce = 2.0 * (normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2])
        _reflection(
            around,
            ray[0] - bounce * normal[0],
            ray[1] - bounce * normal[1],
            ray[2] - bounce * normal[2],
            width,
            reflection,
        )
    return open_sky


@_jit
def shade(surface, atlas, linear, layers, view, key, around, rgba):
    """Shade every sample front to back into premultiplied linear `rgba` (side*side, 4).

    Args:
        surface, layers, view, key, around: see their classes.
        atlas: textures (N, TEXELS_PER_SLOT, 4) uint8; `linear` (256,) decodes their bytes.
        rgba: zeros; only samples with layers are written.
    """
    texel = np.zeros(4, np.float32)
    albedo = np.zeros(3, np.float32)
    light = np.zeros(3, np.float32)
    normal = np.zeros(3, np.float32)
    ray = np.zeros(3, np.float32)
    reflection = np.zeros(3, np.float32)
    irradiance = np.zeros(3, np.float32)
    for p in range(view.side * view.side):
        if layers.count[p] == 0:
            continue
        through = np.float32(1.0)
        dx, dy, dz = _viewing_ray(view, p, ray)

        for k in range(layers.count[p]):
            f = layers.face[p, k]
            if f < 0:
                f = ~f
            m = surface.material[f]
            kind = surface.kind[m]
            b1 = layers.weights[p, k, 0]
            b2 = layers.weights[p, k, 1]
            b0 = 1.0 - b1 - b2

            # texture and opacity
            uv = surface.uv
            u = uv[f, 0, 0] * b0 + uv[f, 1, 0] * b1 + uv[f, 2, 0] * b2
            v = uv[f, 0, 1] * b0 + uv[f, 1, 1] * b1 + uv[f, 2, 1] * b2
            _sample(atlas, linear, surface.slot[m], surface.level[f], u, v, texel)
            alpha = _opacity(kind, texel[3])
            if alpha < 0.01:
                continue

            # what arrives
            _facing_normal(surface, f, kind, b0, b1, b2, ray, normal)
            lit = _key_share(view, key, dx, dy, dz, layers.z[p, k], normal)
            open_sky = _from_surroundings(surface, around, f, kind, b0, b1, b2, ray, normal, irradiance, reflection)

            # what goes on to the camera
            covered = _albedo(surface, f, m, b0, b1, b2, texel, albedo)
            gloss = surface.fields[m, 14]
            _light(kind, gloss, covered, albedo, normal, ray, key, lit, open_sky, irradiance, reflection, light)
            for q in range(3):
                rgba[p, q] += light[q] * alpha * through
            through *= 1 - alpha
            if through < 0.02:
                through = np.float32(0.0)
                break
        rgba[p, 3] = 1 - through
