"""Light of synthetic portraits: soft surroundings (a gradient and a few broad lobes) and one key light with shadows.

Lights stand around the person, mostly in front as in photographs of people, and know nothing of the camera: a portrait
that is seen from another side keeps its light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from portrait360.kernels.shading import Surroundings

SHADOW_STRIDES = (2, 3, 4, 5, 6)
"""Softness of the key light's shadows, texels of its shadow map between taps."""


@dataclass(frozen=True)
class Lighting:
    """Light around a person, linear: `surroundings`, and a key light from `direction` (3,) of `colour` (3,).

    `colour` is the radiance of a white surface that faces the key light, `stride` the softness of its shadows.
    """

    surroundings: Surroundings
    direction: np.ndarray
    colour: np.ndarray
    stride: int


def sample_lighting(rng: np.random.Generator, yaw: float) -> Lighting:
    """Light for a portrait; `yaw` (radians) is the camera's, near which the key stands in one of five."""
    azimuth = yaw + rng.uniform(-1.0, 1.0) if rng.random() < 0.2 else float(rng.normal(0, 0.9))
    height = rng.uniform(0.1, 1.0)

    # a hard key light is rare: windows and overcast skies light most photographs
    hardness = rng.random()
    strength = rng.uniform(0.0, 0.2) if hardness < 0.45 else rng.uniform(0.2, 0.55)
    if hardness > 0.88:
        strength = rng.uniform(0.55, 0.95)
    key = strength * _white_balance(rng, 0.10)

    # three broad lights: beside the key, across, behind
    side = rng.choice([-1.0, 1.0])
    azimuths = (
        azimuth + rng.normal(0, 0.3),
        azimuth + side * rng.uniform(1.1, 2.3),
        math.pi + rng.normal(0, 0.6),
    )
    heights = (height + rng.normal(0, 0.15), rng.uniform(-0.1, 0.6), rng.uniform(0.1, 0.9))
    strengths = (rng.uniform(0.45, 1.0) * (1.15 - strength), rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.5))
    sharpness = np.exp(rng.uniform(np.log([3.0, 2.5, 2.5]), np.log([10.0, 7.0, 7.0])))
    colours = np.stack(
        # a lobe of sharpness k lights a surface that faces it by about 2 / k of its middle
        [s * k / 2 * _white_balance(rng, 0.10) for s, k in zip(strengths, sharpness, strict=True)]
    )

    ambient = float(np.exp(rng.normal(math.log(0.22), 0.4)))
    up = toward(rng.normal(0, 0.6), rng.uniform(0.9, 1.5))
    surroundings = Surroundings(
        up=up,
        sky=(ambient * _white_balance(rng, 0.10)).astype(np.float32),
        ground=(ambient * rng.uniform(0.35, 0.8) * _white_balance(rng, 0.10)).astype(np.float32),
        directions=np.stack([toward(a, h) for a, h in zip(azimuths, heights, strict=True)]),
        sharpness=sharpness.astype(np.float32),
        colours=colours.astype(np.float32),
    )
    return Lighting(surroundings, toward(azimuth, height), key.astype(np.float32), int(rng.choice(SHADOW_STRIDES)))


def toward(azimuth: float, height: float) -> np.ndarray:
    """Unit vector (3,) float32 towards an azimuth (0 in front, positive to the subject's left) and height, radians."""
    flat = math.cos(height)
    return np.array([math.sin(azimuth) * flat, math.sin(height), math.cos(azimuth) * flat], np.float32)


def radiance(around: Surroundings, direction: np.ndarray) -> np.ndarray:
    """Radiance (3,) float32 of the surroundings from a unit direction (3,)."""
    half = 0.5 + 0.5 * float(direction @ around.up)
    lobes = np.exp(around.sharpness * (around.directions @ direction - 1.0))
    return (around.sky * half + around.ground * (1 - half) + lobes @ around.colours).astype(np.float32)


def spread_directions(count: int) -> np.ndarray:
    """Unit vectors (N,3) float32, evenly over the sphere but for a cap below, where the body ends."""
    i = np.arange(count)
    height = 1 - (i + 0.5) / count * 1.75
    flat, turn = np.sqrt(1 - height**2), i * (math.pi * (3 - math.sqrt(5)))
    return np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], 1).astype(np.float32)


def _white_balance(rng: np.random.Generator, spread: float) -> np.ndarray:
    """A light's colour (3,) near the line from candles to blue sky, of luminance about 1."""
    warm = rng.normal(0, spread)
    return np.exp(np.array([warm, 0.15 * warm, -1.1 * warm]) + rng.normal(0, 0.015, 3))
