"""Numba kernels that light what `kernels.raster` found: sky visibility of vertices, and shading of layers.

Single-threaded and in a fixed order, so the same scene gives the same bytes.
Plain twins: `tests/raster_twin.py`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from portrait360.kernels.fastmath import FASTMATH
from portrait360.kernels.raster import LEVEL_OFFSETS

_jit = numba.njit(cache=True, fastmath=FASTMATH, nogil=True)


@_jit
def ambient_visibility(points, normals, soft, direction, axes, scale, depth, side, bias, total, seen):
    """Add one direction of the sky to the per-vertex ambient visibility.

    `depth` is the orthographic depth map of that direction. Adds the cosine weight (wrapped where `soft`) to
    `total` and its visible share (four bilinear taps) to `seen`.
    """
    for v in range(points.shape[0]):
        cosine = normals[v, 0] * direction[0] + normals[v, 1] * direction[1] + normals[v, 2] * direction[2]
        weight = 0.5 + 0.5 * cosine if soft[v] else cosine
        if weight <= 0.0:
            continue
        total[v] += weight
        x = points[v, 0] + normals[v, 0] * bias
        y = points[v, 1] + normals[v, 1] * bias
        z = points[v, 2] + normals[v, 2] * bias
        sx = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) * scale + 0.5 * side - 0.5
        sy = (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) * scale + 0.5 * side - 0.5
        sz = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z - bias
        ix = int(math.floor(sx))
        iy = int(math.floor(sy))
        if ix < 0 or iy < 0 or ix + 1 >= side or iy + 1 >= side:
            seen[v] += weight
            continue
        fx = sx - ix
        fy = sy - iy
        lit = 0.0
        if depth[iy * side + ix] > sz:
            lit += (1 - fx) * (1 - fy)
        if depth[iy * side + ix + 1] > sz:
            lit += fx * (1 - fy)
        if depth[(iy + 1) * side + ix] > sz:
            lit += (1 - fx) * fy
        if depth[(iy + 1) * side + ix + 1] > sz:
            lit += fx * fy
        seen[v] += weight * lit


@_jit
def _sample(atlas, linear, slot, level, u, v, out):
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
    """Share of the second colour at (u, v)."""
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


@_jit
def shade(
    points,
    normals,
    triangles,
    uv,
    material,
    kind,
    slot,
    level,
    fields,
    atlas,
    linear,
    tint,
    tint_colour,
    ambient,
    count,
    layer_z,
    layer_face,
    layer_bary,
    side,
    origin,
    rotation,
    focal,
    light_direction,
    light_colour,
    sky,
    ground,
    up,
    shadow,
    shadow_axes,
    shadow_scale,
    shadow_side,
    bias,
    rgba,
):
    """Shade every sample front to back into premultiplied linear `rgba` (side*side, 4).

    Key light (row 0, shadowed), fill and rim lights, a two-colour sky times the vertices' ambient visibility,
    and per kind: wrapped diffuse with a two-lobe gloss (skin), soft diffuse and a broad sheen (hair), a sharp
    glint (eyes).
    """
    c = np.zeros(4, np.float32)
    albedo = np.zeros(3, np.float32)
    light = np.zeros(3, np.float32)
    for p in range(side * side):
        n = count[p]
        if n == 0:
            continue
        through = np.float32(1.0)
        py = p // side
        px = p - py * side
        sx = ((px + 0.5) / side - 0.5) / focal
        sy = ((py + 0.5) / side - 0.5) / focal
        dx = rotation[0, 0] * sx + rotation[0, 1] * sy + rotation[0, 2]
        dy = rotation[1, 0] * sx + rotation[1, 1] * sy + rotation[1, 2]
        dz = rotation[2, 0] * sx + rotation[2, 1] * sy + rotation[2, 2]
        il = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
        ux = dx * il
        uy = dy * il
        uz = dz * il
        for k in range(n):
            f = layer_face[p, k]
            if f < 0:
                f = ~f
            m = material[f]
            kd = kind[m]
            b1 = layer_bary[p, k, 0]
            b2 = layer_bary[p, k, 1]
            b0 = 1.0 - b1 - b2
            u = uv[f, 0, 0] * b0 + uv[f, 1, 0] * b1 + uv[f, 2, 0] * b2
            v = uv[f, 0, 1] * b0 + uv[f, 1, 1] * b1 + uv[f, 2, 1] * b2
            _sample(atlas, linear, slot[m], level[f], u, v, c)
            a = c[3]
            if kd == 0 or kd == 3 or kd == 5:
                a = np.float32(1.0)
            elif kd == 2:
                a = np.float32(min(max((a - 0.08) * 1.25, 0.0), 1.0))
            if a < 0.01:
                continue
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            nx = normals[i0, 0] * b0 + normals[i1, 0] * b1 + normals[i2, 0] * b2
            ny = normals[i0, 1] * b0 + normals[i1, 1] * b1 + normals[i2, 1] * b2
            nz = normals[i0, 2] * b0 + normals[i1, 2] * b1 + normals[i2, 2] * b2
            s = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
            facing = (nx * ux + ny * uy + nz * uz) * s
            if kd != 2 and (facing > 0.35 or (kd == 4 and facing > 0.0)):
                s = -s
            nx *= s
            ny *= s
            nz *= s
            if kd == 2 and facing > 0.0:
                # rounded hair normals past the horizon bend back to it
                nx -= facing * ux
                ny -= facing * uy
                nz -= facing * uz
            if kd == 2 or kd == 4:
                detail = max(c[0] * fields[m, 4], 0.02) ** fields[m, 3]
                for q in range(3):
                    albedo[q] = min(fields[m, q] * detail, 0.9)
            elif kd == 3 and fields[m, 4] > 0.0:
                share = _pattern(fields, m, u, v)
                detail = c[0] * fields[m, 4] * (1.0 + fields[m, 13] * (c[1] * 4.0 - 1.0))
                for q in range(3):
                    albedo[q] = min((fields[m, q] * (1 - share) + fields[m, 5 + q] * share) * detail, 0.9)
            else:
                for q in range(3):
                    albedo[q] = min(c[q] * fields[m, q], 0.95)
            if kd == 0:
                mean = (albedo[0] + albedo[1] + albedo[2]) / 3.0
                covered = tint[i0] * b0 + tint[i1] * b1 + tint[i2] * b2
                grain = min(0.5 + 1.2 * mean, 1.0)
                for q in range(3):
                    albedo[q] = (albedo[q] * 0.95 + mean * 0.05) * (1 - covered) + tint_colour[q] * covered * grain
            z = layer_z[p, k]
            kx = nx * light_direction[0, 0] + ny * light_direction[0, 1] + nz * light_direction[0, 2]
            # the sample moves along the normal, more at grazing light, so that a surface does not shadow
            # itself
            push = bias * (1.0 + 2.0 * min(max(1.0 - kx, 0.0), 1.0))
            wx = origin[0] + dx * z + nx * push
            wy = origin[1] + dy * z + ny * push
            wz = origin[2] + dz * z + nz * push
            hx = (shadow_axes[0, 0] * wx + shadow_axes[0, 1] * wy + shadow_axes[0, 2] * wz) * shadow_scale
            hy = (shadow_axes[1, 0] * wx + shadow_axes[1, 1] * wy + shadow_axes[1, 2] * wz) * shadow_scale
            hz = shadow_axes[2, 0] * wx + shadow_axes[2, 1] * wy + shadow_axes[2, 2] * wz - bias
            hx += 0.5 * shadow_side - 0.5
            hy += 0.5 * shadow_side - 0.5
            ix = int(math.floor(hx))
            iy = int(math.floor(hy))
            fx = hx - ix
            fy = hy - iy
            lit = 0.0
            for jy in range(-1, 3):
                wgy = 1.0 - fy if jy == -1 else (fy if jy == 2 else 1.0)
                for jx in range(-1, 3):
                    wgx = 1.0 - fx if jx == -1 else (fx if jx == 2 else 1.0)
                    tx = ix + jx
                    ty = iy + jy
                    if tx < 0 or ty < 0 or tx >= shadow_side or ty >= shadow_side:
                        lit += wgx * wgy
                    elif shadow[ty * shadow_side + tx] > hz:
                        lit += wgx * wgy
            lit /= 9.0
            open_sky = ambient[i0] * b0 + ambient[i1] * b1 + ambient[i2] * b2
            half = 0.5 + 0.5 * (nx * up[0] + ny * up[1] + nz * up[2])
            for q in range(3):
                # light bounced between skin surfaces: occluded places turn warm rather than grey
                glow = open_sky
                if kd == 0:
                    glow = open_sky + (1.0 - open_sky) * albedo[q] * 0.45
                light[q] = (sky[q] * half + ground[q] * (1 - half)) * albedo[q] * glow
            for j in range(light_direction.shape[0]):
                lx = light_direction[j, 0]
                ly = light_direction[j, 1]
                lz = light_direction[j, 2]
                nl = nx * lx + ny * ly + nz * lz
                reach = lit if j == 0 else 0.35 + 0.65 * open_sky
                mx = lx - ux
                my = ly - uy
                mz = lz - uz
                ml = 1.0 / math.sqrt(mx * mx + my * my + mz * mz + 1e-9)
                nh = max((nx * mx + ny * my + nz * mz) * ml, 0.0)
                if kd == 0:
                    nh2 = nh * nh
                    nh4 = nh2 * nh2
                    nh8 = nh4 * nh4
                    nh16 = nh8 * nh8
                    gloss = fields[m, 14] * (0.35 * nh8 * nh4 * nh2 + 0.5 * nh16 * nh16 * nh16) * max(nl, 0.0)
                    for q in range(3):
                        wrap = 0.22 if q == 0 else (0.12 if q == 1 else 0.08)
                        light[q] += (
                            light_colour[j, q]
                            * (albedo[q] * max((nl + wrap) / (1 + wrap), 0.0) + gloss * (1 - covered))
                            * reach
                        )
                elif kd == 2:
                    nh2 = nh * nh
                    nh4 = nh2 * nh2
                    nh16 = nh4 * nh4 * nh4 * nh4
                    for q in range(3):
                        light[q] += light_colour[j, q] * (
                            albedo[q] * max((nl + 0.4) / 1.4, 0.0) * (0.25 + 0.75 * reach)
                            + (fields[m, 14] + albedo[q] * 0.3) * nh16 * nh2 * 0.5 * reach
                        )
                elif kd == 1:
                    glint = 4.0 * nh**400 if nh > 0.97 else 0.0
                    for q in range(3):
                        light[q] += light_colour[j, q] * (albedo[q] * max(nl, 0.0) + glint) * reach
                else:
                    for q in range(3):
                        light[q] += light_colour[j, q] * albedo[q] * max(nl, 0.0) * reach
            for q in range(3):
                rgba[p, q] += light[q] * a * through
            through *= 1 - a
            if through < 0.02:
                through = np.float32(0.0)
                break
        rgba[p, 3] = 1 - through
