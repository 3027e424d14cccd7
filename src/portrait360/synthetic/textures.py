"""The texture atlas of the synthetic portraits: every image of the parts, made ready for the shader once.

A slot is 512x512 RGBA bytes (gamma 2.2) followed by three levels of half the size each. Hair, brows, lashes
and garments are stored without their colour, so that the shader can give them any:

* hair, brows: red = fine luminance detail around 1 (divided by `GAIN`), with the painted light and dark bands
removed;
* garments: red = folds from the ambient-occlusion and normal maps (divided by `GAIN`), green = weave noise;
* eyes: red = detail around 1 (divided by `GAIN`), green = share of iris and pupil;
* skins, teeth and the one suit without an occlusion map keep their colours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter

from portrait360.kernels.raster import TEXELS_PER_SLOT, TEXTURE_SIDE

GAIN = 4.0
GAMMA = 2.2
IRIS_CENTRES, IRIS_RADIUS = ((360.5, 152.5), (149.5, 359.5)), 60.0
"""Where MakeHuman's painted eyeballs have their irises, texels (x, y)."""
FACE_REGION = (slice(210, 300), slice(415, 475))
"""Rows and columns of a skin that show cheeks, nose and forehead."""


def linear_table() -> np.ndarray:
    """Byte -> linear light, (256,) float32."""
    return ((np.arange(256) / 255.0) ** GAMMA).astype(np.float32)


def texels(uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the nearest texel of texture coordinates (N,2), whose v points up."""
    u, v = uv[:, 0] % 1, uv[:, 1] % 1
    last = TEXTURE_SIDE - 1
    return np.minimum((u * TEXTURE_SIDE).astype(int), last), np.minimum(((1 - v) * TEXTURE_SIDE).astype(int), last)


def read_rgba(path: Path) -> np.ndarray:
    """An image as (512,512,4) float32: linear colour and alpha."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
        if rgba.size != (TEXTURE_SIDE, TEXTURE_SIDE):
            rgba = rgba.resize((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.BICUBIC)
        pixels = np.asarray(rgba, np.float32) / 255.0
    out = pixels.copy()
    out[..., :3] **= GAMMA
    return out


def dilate(rgba: np.ndarray) -> np.ndarray:
    """Spread the colour of solid texels into the others, so that filtering pulls in no dark fringes.

    Solid is what reaches 0.9 of the greatest alpha around it: some hair cards are painted half transparent.
    """
    alpha = rgba[..., 3]
    known = (alpha >= 0.9 * maximum_filter(alpha, 25)) & (alpha >= 0.2)
    if not known.any():
        known = alpha >= 0.7 * alpha.max()
    if known.all():
        return rgba
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    assert nearest is not None
    out = rgba.copy()
    out[..., :3] = rgba[nearest[0], nearest[1], :3]
    return out


def strand_detail(rgba: np.ndarray, keep_bands: float = 0.2, sigma: float = 10.0) -> np.ndarray:
    """Luminance detail of a hair image around 1, its painted highlights and dark partings mostly removed.

    `keep_bands` is the exponent left to the slow part (0 removes it, 1 keeps it).
    """
    light = dilate(rgba)[..., :3].mean(-1) + 2e-3
    # opaque black between the cards is nobody's hair
    solid = rgba[..., 3] * (light > 6e-3)
    weight = gaussian_filter(solid, sigma) + 1e-4
    slow = gaussian_filter(light * solid, sigma) / weight
    mean = float((light * solid).sum() / max(float(solid.sum()), 1e-6))
    band = np.clip(slow / max(mean, 1e-4), 0.05, 8) ** keep_bands
    detail = np.clip(light / np.maximum(slow, 1e-4), 0.4, 1.8) * band
    return detail / max(float((detail * solid).sum() / max(float(solid.sum()), 1e-6)), 1e-4)


def hair_slot(path: Path) -> np.ndarray:
    """Encode a hair, brow or lash image."""
    rgba = read_rgba(path)
    detail = strand_detail(rgba)
    out = np.zeros_like(rgba)
    out[..., :3] = np.clip(detail / GAIN, 0, 1)[..., None]
    out[..., 3] = rgba[..., 3]
    return dilate(out)


def brow_slot(path: Path) -> np.ndarray:
    """Encode a brow image: strands as of hair, dense enough to be seen where a face is 40 pixels wide."""
    out = hair_slot(path)
    out[..., 3] = np.clip(1.35 * out[..., 3] ** 0.75, 0, 1)
    return out


def eye_slot(path: Path) -> np.ndarray:
    """Encode a pair of painted eyeballs: detail of iris and white, each around 1, and where the irises are."""
    rgba = read_rgba(path)
    light = rgba[..., :3].mean(-1)
    y, x = np.mgrid[0:TEXTURE_SIDE, 0:TEXTURE_SIDE] + 0.5
    iris, detail = np.zeros_like(light), np.ones_like(light)
    for centre in IRIS_CENTRES:
        radius = np.hypot(x - centre[0], y - centre[1]) / IRIS_RADIUS
        inside = np.clip((1.0 - radius) / 0.06, 0, 1)
        ring = (radius > 0.35) & (radius < 0.9)
        pattern = np.clip(light / max(float(light[ring].mean()), 1e-4), 0.0, 2.2)
        # a dark rim where the iris ends, and the pupil
        pattern *= 1.0 - 0.65 * np.clip((radius - 0.78) / 0.2, 0, 1)
        pattern *= np.clip((radius - 0.27) / 0.06, 0, 1)
        detail = np.where(inside > 0, pattern * inside + (1 - inside), detail)
        iris = np.maximum(iris, inside)
    white = np.clip(light / max(float(np.median(light[iris == 0])), 1e-4), 0.75, 1.1)
    detail = np.where(iris > 0, detail, white)
    return np.stack([detail / GAIN, iris, detail / GAIN, rgba[..., 3]], -1).astype(np.float32)


def cloth_slot(occlusion: Path, normal: Path | None, seed: int) -> np.ndarray:
    """Encode a garment from its ambient-occlusion map and, where it exists, its normal map."""
    with Image.open(occlusion) as image:
        grey = image.convert("L").resize((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.BICUBIC)
        folds = np.asarray(grey, np.float32) / 255.0
    folds = np.clip(folds / max(float(np.percentile(folds, 80)), 1e-3), 0.3, 1.15) ** 1.3
    if normal is not None:
        with Image.open(normal) as image:
            bumps = image.convert("RGB").resize((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.BICUBIC)
            n = np.asarray(bumps, np.float32) / 127.5 - 1.0
        folds = folds * np.clip(0.35 + 0.65 * n[..., 2], 0.3, 1.0) * np.clip(1.0 + 0.35 * n[..., 1], 0.6, 1.4)
    rng = np.random.default_rng(seed)
    weave = gaussian_filter(rng.normal(size=folds.shape), 1.0, mode="wrap")
    weave += 2.0 * gaussian_filter(rng.normal(size=folds.shape), 6.0, mode="wrap")
    weave = np.clip(1.0 + 0.5 * weave / weave.std(), 0, 3)
    return np.stack([folds / GAIN, weave / 4.0, folds, np.ones_like(folds)], -1).astype(np.float32)


def encode(rgba: np.ndarray) -> np.ndarray:
    """(512,512,4) linear floats -> one slot (TEXELS_PER_SLOT, 4) uint8 with its smaller levels (box
    filtered)."""
    levels = []
    level = rgba.astype(np.float32)
    for _ in range(4):
        stored = np.concatenate([np.clip(level[..., :3], 0, 1) ** (1 / GAMMA), level[..., 3:]], -1)
        levels.append(np.round(np.clip(stored, 0, 1) * 255).astype(np.uint8).reshape(-1, 4))
        side = level.shape[0] // 2
        level = level.reshape(side, 2, side, 2, 4).mean((1, 3))
    out = np.concatenate(levels)
    assert out.shape == (TEXELS_PER_SLOT, 4)
    return out
