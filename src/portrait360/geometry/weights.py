"""A volume of skinning weights around the body: hair, collars and air move with the skin beneath them."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.nearest import nearest_triangles
from portrait360.runtime.device import constant

VOLUME_MIN = (-0.27, -0.27, -0.24)
VOLUME_MAX = (0.27, 0.30, 0.27)
"""The canonical box that the weights cover; beyond it they continue with the value on its border."""

VOLUME_SPACING = 0.015
"""Distance of the nodes, world units."""

BLUR_PER_DISTANCE = 0.3
"""Away from the skin, weights are averaged over a Gaussian whose sigma is this times the distance to it."""

CUT = 0.01
CUT_FROM = 0.02
"""At this distance from the skin and beyond, weights below CUT become exactly zero, so that shoulders stay
exactly where they are. On the skin nothing is cut."""

_SIGMAS = (0.0, 0.7, 1.4, 2.8, 5.6)
"""Blurs (in nodes) between which the blur of a node is interpolated."""

_volumes: WeakKeyDictionary[BodyTemplate, WeightVolume] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class WeightVolume:
    """Weights of the moving bones at the nodes of a canonical grid; the other bones take the rest to 1."""

    values: Float[Tensor, "Z Y X M"]
    low: tuple[float, float, float]
    spacing: float

    def padded(self, bones: int) -> Float[Tensor, "Z Y X bones"]:
        """The weights with zero columns up to `bones` moving bones."""
        return F.pad(self.values, (0, bones - self.values.shape[-1]))

    def to(self, like: Tensor) -> WeightVolume:
        """The volume on the device and with the dtype of another tensor."""
        return WeightVolume(self.values.to(like), self.low, self.spacing)


def weight_volume(body: BodyTemplate) -> WeightVolume:
    """The weight volume of a body; computed once per template and kept as long as the template lives."""
    if body not in _volumes:
        _volumes[body] = build_weight_volume(body)
    return _volumes[body]


def build_weight_volume(body: BodyTemplate) -> WeightVolume:
    """Each node takes the weights of the nearest point of the skin, smoothed more the farther it is from it.

    On the skin the weights are the body's own. Where two parts are equally near (chin and chest), smoothing
    replaces the switch between them by a transition as wide as the gap.
    """
    x, y, z = (
        np.arange(round((high - low) / VOLUME_SPACING) + 1) * VOLUME_SPACING + low
        for low, high in zip(VOLUME_MIN, VOLUME_MAX, strict=True)
    )
    nodes = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
    shape = nodes.shape[:3]
    faces, barycentric, distance = nearest_triangles(
        torch.from_numpy(nodes.reshape(-1, 3)), body.vertices[body.faces].double().cpu()
    )
    skin = body.weights[:, list(body.moving)].double().cpu()
    nearest = torch.einsum("nc,ncm->nm", barycentric, skin[body.faces.cpu()[faces]]).numpy()
    away = distance.numpy().reshape(*shape, 1)
    smooth = _blur(nearest.reshape(*shape, -1), away * (BLUR_PER_DISTANCE / VOLUME_SPACING))
    values = _cut_tails(smooth, CUT * np.minimum(away / CUT_FROM, 1))
    return WeightVolume(torch.from_numpy(values).float().contiguous(), VOLUME_MIN, VOLUME_SPACING)


def look_up(
    volume: WeightVolume, points: Float[Tensor, "*shape 3"]
) -> tuple[Float[Tensor, "*shape M"], Float[Tensor, "*shape M 3"]]:
    """Trilinear weights of the moving bones at canonical points, and their slopes along x, y and z."""
    # The cell of each point, and where in it.
    values = volume.values
    last = constant(tuple(n - 1 for n in reversed(values.shape[:3])), points)
    position = (points - constant(tuple(volume.low), points)) / volume.spacing
    # beyond the box the border value continues, hence without slope
    scale = ((position >= 0) & (position <= last)).to(points) / volume.spacing
    position = torch.minimum(position.clamp_min(0), last)
    cell = torch.minimum(position.floor(), last - 1)
    fraction = position - cell

    # Sum over its corners.
    weights = torch.zeros_like(values[0, 0, 0]).expand(*points.shape[:-1], -1)
    slopes = torch.zeros_like(weights)[..., None]
    for corner in range(8):
        bits = constant((corner & 1, corner >> 1 & 1, corner >> 2), points, torch.long)
        x, y, z = (cell.long() + bits).unbind(-1)
        value = values[z, y, x]
        share = torch.where(bits == 1, fraction, 1 - fraction)
        along_x, along_y, along_z = share.unbind(-1)
        others = torch.stack([along_y * along_z, along_x * along_z, along_x * along_y], dim=-1)
        across = others * (2 * bits - 1) * scale
        weights = weights + value * share.prod(-1, keepdim=True)
        slopes = slopes + value[..., None] * across[..., None, :]
    return weights, slopes


def _blur(values: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur of (Z, Y, X, M) with a sigma per node (in nodes)."""
    from scipy.ndimage import gaussian_filter  # slow to import, and not needed for portraits in the canonical pose

    position = np.interp(sigma, _SIGMAS, np.arange(len(_SIGMAS)))
    result = np.zeros_like(values)
    for index, level in enumerate(_SIGMAS):
        blurred = gaussian_filter(values, (level, level, level, 0), mode="nearest") if level else values
        result += np.clip(1 - np.abs(position - index), 0, 1) * blurred
    return result


def _cut_tails(weights: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Take `cut` off every weight, that of the still bones included, and rescale the sum to 1."""
    still = np.maximum(1 - weights.sum(axis=-1, keepdims=True) - cut, 0)
    weights = np.maximum(weights - cut, 0)
    return weights / (weights.sum(axis=-1, keepdims=True) + still)
