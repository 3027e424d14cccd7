"""Plain numpy twins of the kernels in `kernels.raster` and `kernels.shading`: slow, direct, one formula per line."""

from __future__ import annotations

import numpy as np

from portrait360.kernels.raster import (
    CLOTH,
    EYE,
    FRINGE,
    HAIR,
    MAX_LAYERS,
    PLAIN,
    SKIN,
)
from portrait360.kernels.shading import (
    EYE_GLOSS_WIDTH,
    HAIR_GLOSS_WIDTH,
    SKIN_GLOSS_WIDTH,
    SKIN_REFLECTANCE,
    WRAP,
    KeyLight,
    Surface,
    Surroundings,
    View,
)

_SIDES = (512, 256, 128, 64)
_OFFSETS = (0, 262144, 327680, 344064)


def skin_points(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    blended = np.einsum("vk,kij->vij", weights.astype(float), transforms.astype(float))
    return np.einsum("vij,vj->vi", blended[:, :3, :3], points) + blended[:, :3, 3]


def vertex_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (points[triangles[:, k]].astype(float) for k in range(3))
    out = np.zeros(points.shape)
    for k in range(3):
        np.add.at(out, triangles[:, k], np.cross(b - a, c - a))
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-20)


def texture_levels(screen: np.ndarray, triangles: np.ndarray, uv: np.ndarray) -> np.ndarray:
    def area(p: np.ndarray) -> np.ndarray:
        d, e = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
        return np.abs(d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0])

    ratio = area(uv.astype(float)) * 512**2 / np.maximum(area(screen[triangles][..., :2]), 1e-3)
    return sum((ratio > 3.0 * 4**k).astype(int) for k in range(3))


def nearest_alpha(atlas: np.ndarray, slot: int, level: int, u: float, v: float) -> int:
    side = _SIDES[level]
    x = min(int((u - np.floor(u)) * side), side - 1)
    y = min(int((1 - (v - np.floor(v))) * side), side - 1)
    return int(atlas[slot, _OFFSETS[level] + y * side + x, 3])


def fragments(screen, triangles, uv, perspective: bool, side: int):
    """All (sample, triangle, z, weights (3,)) hits of sample centres, in triangle order."""
    centres = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), -1).reshape(-1, 2)
    for f, (i0, i1, i2) in enumerate(triangles):
        a, b, c = screen[i0], screen[i1], screen[i2]
        d = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(d) < 1e-9:
            continue
        w1 = ((centres[:, 0] - a[0]) * (c[1] - a[1]) - (centres[:, 1] - a[1]) * (c[0] - a[0])) / d
        w2 = ((b[0] - a[0]) * (centres[:, 1] - a[1]) - (b[1] - a[1]) * (centres[:, 0] - a[0])) / d
        w = np.stack([1 - w1 - w2, w1, w2], 1)
        for p in np.nonzero((w >= 0).all(1))[0]:
            if perspective:
                z = 1 / (w[p] / [a[2], b[2], c[2]]).sum()
                yield p, f, z, w[p] / [a[2], b[2], c[2]] * z
            else:
                yield p, f, (w[p] * [a[2], b[2], c[2]]).sum(), w[p]


def raster_depth(screen, triangles, uv, material, kind, slot, atlas, perspective, threshold, side):
    depth, face = np.full(side * side, np.inf), np.full(side * side, -1)
    for p, f, z, w in fragments(screen, triangles, uv, perspective, side):
        m = material[f]
        u, v = w @ uv[f]
        if kind[m] in (HAIR, FRINGE) and nearest_alpha(atlas, slot[m], 1, u, v) < threshold:
            continue
        if z < depth[p]:
            depth[p], face[p] = z, f
    return depth, face


def raster_layers(screen, triangles, uv, material, kind, slot, level, atlas, side):
    """Per sample (z, triangle, opaque, weights) of each layer, nearest first, cut after the first opaque."""
    out: list[list[tuple[float, int, bool, np.ndarray]]] = [[] for _ in range(side * side)]
    for p, f, z, w in fragments(screen, triangles, uv, True, side):
        m = material[f]
        opaque = True
        if kind[m] in (HAIR, FRINGE, EYE):
            alpha = nearest_alpha(atlas, slot[m], level[f], *(w @ uv[f]))
            if alpha < 10:
                continue
            opaque = alpha > 251
        out[p].append((z, f, opaque, w))
    for layers in out:
        layers.sort(key=lambda layer: layer[0])
        stop = next((k for k, layer in enumerate(layers) if layer[2]), len(layers))
        del layers[min(stop + 1, MAX_LAYERS) :]
    return out


def direction_visibility(points, normals, soft, direction, axes, scale, depth, side, bias):
    """(cosine weights (V,), visible share (V,)) of one direction."""
    cosine = normals @ direction
    weight = np.maximum(np.where(soft, 0.5 + 0.5 * cosine, cosine), 0)
    place = (points + normals * bias) @ axes.T
    x, y = place[:, 0] * scale + side / 2 - 0.5, place[:, 1] * scale + side / 2 - 0.5
    z = place[:, 2] - bias
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    outside = (ix < 0) | (iy < 0) | (ix + 1 >= side) | (iy + 1 >= side)
    ix, iy, fx, fy = np.where(outside, 0, ix), np.where(outside, 0, iy), x - ix, y - iy
    grid = depth.reshape(side, side)
    lit = sum(
        (grid[iy + dy, ix + dx] > z) * (fx if dx else 1 - fx) * (fy if dy else 1 - fy) for dx in (0, 1) for dy in (0, 1)
    )
    return weight, np.where(outside, 1.0, lit)


def sample(atlas, linear, slot, level, u, v) -> np.ndarray:
    side, offset = _SIDES[level], _OFFSETS[level]
    texture = atlas[slot, offset : offset + side * side].reshape(side, side, 4)
    x, y = (u - np.floor(u)) * side - 0.5, (1 - (v - np.floor(v))) * side - 0.5
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    out = np.zeros(4)
    for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
        for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
            texel = texture[np.clip(y0 + dy, 0, side - 1), np.clip(x0 + dx, 0, side - 1)]
            out[:3] += linear[texel[:3]] * wx * wy
            out[3] += texel[3] / 255 * wx * wy
    return out


def pattern(row: np.ndarray, u: float, v: float) -> float:
    a, b = (u * row[9] + v * row[10]) * row[8], (u * row[10] - v * row[9]) * row[8]
    stripes = [float(np.sin(t) > row[11]) for t in (a, b)]
    dots = float(np.sin(a) ** 2 + np.sin(b) ** 2 < 0.5 + 0.4 * row[11])
    return (0.0, stripes[0], 0.5 * sum(stripes), dots)[int(row[12])]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def lit_share(key: KeyLight, place: np.ndarray) -> float:
    """Lit share of a point: a 3x3 box of depth comparisons at fractional position."""
    x, y, z = key.axes @ place
    x, y = (x * key.scale + key.side / 2 - 0.5) / key.stride, (y * key.scale + key.side / 2 - 0.5) / key.stride
    ix, iy = int(np.floor(x)), int(np.floor(y))
    wx, wy = [1 - (x - ix), 1, 1, x - ix], [1 - (y - iy), 1, 1, y - iy]
    lit = 0.0
    for j in range(4):
        for i in range(4):
            tx, ty = (ix + i - 1) * key.stride, (iy + j - 1) * key.stride
            inside = 0 <= tx < key.side and 0 <= ty < key.side
            lit += wx[i] * wy[j] * (not inside or key.shadow[ty * key.side + tx] > z - key.bias)
    return lit / 9


def reflection(around: Surroundings, direction: np.ndarray, width: float) -> np.ndarray:
    """Radiance of the surroundings from a direction, each lobe convolved with one of sharpness `width`."""
    half = 0.5 + 0.5 * direction @ around.up
    blurred = around.sharpness * width / (around.sharpness + width)
    lobes = blurred / around.sharpness * np.exp(blurred * (around.directions @ direction - 1))
    return around.sky * half + around.ground * (1 - half) + lobes @ around.colours


def albedo(surface: Surface, f: int, m: int, w: np.ndarray, texel: np.ndarray) -> tuple[np.ndarray, float]:
    """Reflected share of light (3,), and how much of skin is painted hair."""
    kind, row = surface.kind[m], surface.fields[m].astype(float)
    corner = surface.triangles[f]
    if kind in (HAIR, FRINGE):
        return np.minimum(row[:3] * max(texel[0] * row[4], 0.02) ** row[3], 0.9), 0.0
    if kind == CLOTH and row[4] > 0:
        share = pattern(row, *(w @ surface.place[corner]))
        detail = texel[0] * row[4] * (1 + row[13] * (texel[1] * 4 - 1))
        return np.minimum((row[:3] * (1 - share) + row[5:8] * share) * detail, 0.9), 0.0
    if kind == EYE:
        return np.minimum((row[:3] * texel[1] + row[5:8] * (1 - texel[1])) * texel[0] * 4, 0.9), 0.0
    colour = np.minimum(texel[:3] * row[:3], 0.95)
    if kind != SKIN:
        return colour, 0.0
    covered = float(w @ surface.tint[corner])
    painted = (w @ surface.tint_colour[corner]) * min(0.5 + 0.4 * colour.sum(), 1.0)
    return np.minimum(colour * (w @ surface.tone[corner]), 0.95) * (1 - covered) + painted * covered, covered


def shade_fragment(
    surface: Surface, atlas, linear, view: View, key: KeyLight, around: Surroundings, f: int, w, z: float, ray
) -> tuple[np.ndarray, float]:
    """(linear colour (3,), alpha) of one fragment; `ray` is the unnormalised viewing ray of depth 1."""
    m = surface.material[f]
    kind, gloss, corner = surface.kind[m], float(surface.fields[m, 14]), surface.triangles[f]
    texel = sample(atlas, linear, surface.slot[m], surface.level[f], *(w @ surface.uv[f]))
    alpha = 1.0 if kind in (SKIN, CLOTH, PLAIN) else texel[3]
    if kind == HAIR:
        alpha = np.clip((alpha - 0.08) * 1.25, 0, 1)
    sight = _unit(ray)
    n = _unit(w @ surface.normals[corner])
    facing = n @ sight
    if kind != HAIR and (facing > 0.35 or (kind == FRINGE and facing > 0)):
        n = -n
    elif kind == HAIR and facing > 0:
        n = n - facing * sight
    colour, covered = albedo(surface, f, m, w, texel)

    nl, nv = n @ key.direction, np.clip(-n @ sight, 0, 1)
    nh = np.clip(n @ _unit(key.direction - sight), 0, 1)
    lit = lit_share(key, view.origin + ray * z + n * key.bias * (1 + 2 * np.clip(1 - nl, 0, 1)))
    open_sky, irradiance = float(w @ surface.open_sky[corner]), w @ surface.irradiance[corner]
    mirror = sight - 2 * (n @ sight) * n
    if kind == SKIN:
        sheen = gloss * (SKIN_REFLECTANCE + 0.09 * (1 - nv) ** 4) * (1 - covered)
        glint = sheen * (1.2 * nh**8 + 2.4 * nh**40) * max(nl, 0) * lit
        reach = np.array([0.75 * lit + 0.25 * np.sqrt(lit), lit, lit])
        wrapped = np.maximum((nl + np.array(WRAP)) / (1 + np.array(WRAP)), 0) * reach
        bounced = irradiance * (1 + (1 - open_sky) * colour * 0.6)
        mirrored = reflection(around, mirror, SKIN_GLOSS_WIDTH) * open_sky
        return colour * (bounced + key.colour * wrapped) + key.colour * glint + sheen * mirrored, alpha
    if kind == HAIR:
        wrapped = max((nl + 0.4) / 1.4, 0) * (0.25 + 0.75 * lit)
        mirrored = 0.3 * reflection(around, mirror, HAIR_GLOSS_WIDTH) * open_sky
        sheen = (gloss + colour * 0.3) * (key.colour * nh**18 * 0.5 * lit + mirrored)
        return colour * (irradiance + key.colour * wrapped) + sheen, alpha
    if kind == EYE:
        glint = 3 * nh**512 * lit if nh > 0.97 else 0.0
        mirrored = 0.035 * reflection(around, mirror, EYE_GLOSS_WIDTH) * open_sky
        direct = key.colour * max((nl + 0.2) / 1.2, 0) * lit
        return colour * (irradiance + direct) + key.colour * glint + mirrored, alpha
    return colour * (irradiance + key.colour * max(nl, 0) * lit), alpha


def shade(surface: Surface, atlas, linear, layers: list, view: View, key: KeyLight, around: Surroundings) -> np.ndarray:
    """Premultiplied linear rgba (side*side, 4) of the layers that `raster_layers` returns."""
    side = view.side
    out = np.zeros((side * side, 4))
    for p, stack in enumerate(layers):
        through = 1.0
        x, y = ((p % side + 0.5) / side - 0.5), ((p // side + 0.5) / side - 0.5)
        ray = view.rotation @ np.array([x / view.focal, y / view.focal, 1.0])
        for z, f, _, w in stack:
            colour, alpha = shade_fragment(surface, atlas, linear, view, key, around, f, w, z, ray)
            if alpha < 0.01:
                continue
            out[p, :3] += colour * alpha * through
            through *= 1 - alpha
            if through < 0.02:
                through = 0.0
                break
        out[p, 3] = 1 - through
    return out
