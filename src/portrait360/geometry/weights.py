"""A volume of skinning weights around the body, so that hair, collars and air move with the skin beneath them."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.nearest import nearest_triangles

VOLUME_MIN = (-0.36, -0.36, -0.3)
VOLUME_MAX = (0.36, 0.36, 0.36)
"""The canonical box that the weights cover; beyond it they continue with the value on its border."""

VOLUME_SPACING = 0.015
"""Distance of the nodes, world units."""

BLUR_PER_DISTANCE = 0.5
"""Away from the skin, weights are averaged over a Gaussian whose sigma is this times the distance to the skin."""

_volumes: WeakKeyDictionary[BodyTemplate, WeightVolume] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class WeightVolume:
    """Weights of the moving bones at the nodes of a canonical grid, z slowest; the other bones take the rest to 1."""

    values: Float[Tensor, "Z Y X M"]
    low: tuple[float, float, float]
    spacing: float


def weight_volume(body: BodyTemplate) -> WeightVolume:
    """The weight volume of a body; computed once per template and kept as long as the template lives."""
    if body not in _volumes:
        _volumes[body] = build_weight_volume(body)
    return _volumes[body]


def build_weight_volume(body: BodyTemplate) -> WeightVolume:
    """Each node takes the weights of the nearest point of the skin, smoothed more the farther it is from it.

    On the skin the weights are the body's own. Where two parts are equally near (chin and chest), the smoothing
    replaces the switch between them by a transition as wide as the gap.
    """
    axes = [
        np.arange(round((high - low) / VOLUME_SPACING) + 1) * VOLUME_SPACING + low
        for low, high in zip(VOLUME_MIN, VOLUME_MAX, strict=True)
    ]
    shape = (len(axes[2]), len(axes[1]), len(axes[0]))
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    nodes = torch.from_numpy(np.stack([x, y, z], axis=-1).reshape(-1, 3))
    faces, barycentric, distance = nearest_triangles(nodes, body.vertices[body.faces].double())
    skin = body.weights[:, list(body.moving)].double()
    nearest = torch.einsum("nc,ncm->nm", barycentric, skin[body.faces[faces]]).numpy().reshape(*shape, -1)
    width = distance.numpy().reshape(*shape, 1) * (BLUR_PER_DISTANCE / VOLUME_SPACING)
    return WeightVolume(
        values=torch.from_numpy(_blur_by_width(nearest, width)).float().contiguous(),
        low=VOLUME_MIN,
        spacing=VOLUME_SPACING,
    )


def _blur_by_width(values: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Gaussian blur of (Z, Y, X, M) whose sigma (in nodes) varies per node, interpolated between fixed sigmas."""
    sigmas = [0.0, 0.7, 1.4, 2.8, 5.6]
    levels = [values, *(gaussian_filter(values, (s, s, s, 0), mode="nearest") for s in sigmas[1:])]
    result = np.zeros_like(values)
    position = np.interp(width, sigmas, np.arange(len(sigmas)))
    for index, level in enumerate(levels):
        result += np.clip(1 - np.abs(position - index), 0, 1) * level
    return result
