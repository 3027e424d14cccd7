"""Backgrounds of the synthetic portraits: blurred studios, rooms, landscapes and plain light, from a seed."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter

_SIDE = 96


def background(seed: int, resolution: int) -> np.ndarray:
    """A background (R,R,3) in linear light, float32, the same image at any resolution."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[0:_SIDE, 0:_SIDE] + 0.5) / _SIDE
    kind = rng.random()
    image = _gradient(rng, x, y)
    if kind < 0.22:
        image = _studio(rng, image, x, y)
    elif kind < 0.45:
        image = _room(rng, image, x, y)
    elif kind < 0.68:
        image = _landscape(rng, x, y)
    elif kind < 0.92:
        image = _clouds(rng, image)
    if rng.random() < 0.25:
        image = _bokeh(rng, image, x, y)
    blur = math.exp(rng.uniform(math.log(1.0), math.log(5.0)))
    image = gaussian_filter(image, (blur, blur, 0), mode="nearest")
    return _enlarge(np.clip(image, 0.0, 1.6).astype(np.float32), resolution)


def _enlarge(image: np.ndarray, resolution: int) -> np.ndarray:
    """Bilinear resampling to resolution x resolution, pixel centres aligned."""
    side = image.shape[0]
    at = np.clip((np.arange(resolution) + 0.5) / resolution * side - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    share = (at - low).astype(np.float32)
    rows = image[low] * (1 - share)[:, None, None] + image[low + 1] * share[:, None, None]
    return rows[:, low] * (1 - share)[None, :, None] + rows[:, low + 1] * share[None, :, None]


def _tone(rng: np.random.Generator, vivid: float = 0.4) -> np.ndarray:
    colour = rng.uniform(0, 1, 3) ** 1.6
    share = rng.uniform(0, vivid)
    return colour.mean() * (1 - share) + colour * share


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    along = ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5)[..., None]
    return _tone(rng) * (1 - along) + _tone(rng) * along


def _studio(rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A backdrop with a pool of light behind the subject."""
    base = _tone(rng, 0.6) * rng.uniform(0.3, 1.2)
    cx, cy, size = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.7)
    pool = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size * size))[..., None]
    return 0.15 * image + base * (rng.uniform(0.15, 0.6) + pool * rng.uniform(0.3, 0.9))


def _noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    z = gaussian_filter(rng.normal(size=(_SIDE, _SIDE)), sigma, mode="wrap")
    return (z / max(float(z.std()), 1e-6))[..., None]


def _clouds(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    for sigma, amount in ((_SIDE / 6, 0.35), (_SIDE / 16, 0.18), (_SIDE / 40, 0.06)):
        image = image * np.exp(amount * _noise(rng, sigma) * np.exp(rng.normal(0, 0.08, 3)))
    return image


def _room(rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Walls, furniture and windows as upright boxes of different brightness, out of focus."""
    wall = _tone(rng, 0.35) * rng.uniform(0.5, 1.2)
    out = 0.3 * image + 0.7 * wall
    floor = rng.uniform(0.55, 1.1)
    out = np.where((y > floor)[..., None], _tone(rng, 0.5) * 0.6, out)
    for _ in range(int(rng.integers(2, 10))):
        left, top = rng.uniform(-0.2, 1), rng.uniform(-0.2, 0.9)
        width, height = rng.uniform(0.05, 0.5), rng.uniform(0.12, 0.9)
        inside = (x > left) & (x < left + width) & (y > top) & (y < top + height)
        colour = _tone(rng, 0.7)
        if rng.random() < 0.1:
            colour = np.array([1.0, 1.0, 1.0]) * rng.uniform(0.8, 1.5)
        out = np.where(inside[..., None], colour, out)
    return out * np.exp(0.08 * _noise(rng, _SIDE / 24))


def _landscape(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sky, a broken horizon of trees or houses, and ground."""
    blue = rng.uniform(0, 1)
    sky = np.array([0.75, 0.8, 0.85]) * (1 - blue) + np.array([0.22, 0.42, 0.8]) * blue
    sky = sky * rng.uniform(0.5, 1.3) * (1.15 - 0.5 * (1 - y))[..., None]
    ground = np.array([rng.uniform(0.05, 0.4), rng.uniform(0.1, 0.4), rng.uniform(0.03, 0.3)])
    line = rng.uniform(0.25, 0.9)
    edge = line
    for _ in range(6):
        edge = edge + rng.normal(0, 0.05) * np.sin(x * rng.uniform(4, 40) + rng.uniform(0, 6))
    trees = np.array([0.05, 0.12, 0.04]) * rng.uniform(0.5, 3.0)
    if rng.random() < 0.45:
        trees = _tone(rng, 0.5) * rng.uniform(0.2, 0.8)
    leaves = trees * np.exp(0.5 * _noise(rng, _SIDE / 40) + 0.4 * _noise(rng, _SIDE / 14))
    out = np.where((y > edge)[..., None], leaves, sky)
    return np.where((y > line + rng.uniform(0.05, 0.4))[..., None], ground * np.ones_like(out), out)


def _bokeh(rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = image.copy()
    for _ in range(int(rng.integers(3, 14))):
        cx, cy, r = rng.random(), rng.random(), rng.uniform(0.02, 0.12)
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < r * r)[..., None]
        out = out + disc * rng.uniform(0.02, 0.35) * rng.uniform(0.3, 1, 3)
    return out
