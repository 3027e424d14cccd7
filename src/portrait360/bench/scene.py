"""A head to time renderers on where the weights are random: density as of the body mesh's distance."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.conventions import model_points
from portrait360.geometry.nearest import nearest_triangles
from portrait360.model.generator import Generator, Scene
from portrait360.model.layers import FullyConnected
from portrait360.model.trigrid import normalize_points, sample_trigrid

FLESH = 0.02
"""World units around the mesh that are filled."""
FULL, EMPTY = 150.0, -15.0
"""Density per world unit of the body, and raw density in air."""
CHANNELS, UNITS = 8, 16
"""Feature channels and hidden units that carry the density."""
_SIDE, _POINTS, STEPS, _RATE = 48, 6000, 250, 0.03


def wanted_density(distance: Float[Tensor, " N"], scale: float = 1.0) -> Float[Tensor, " N"]:
    """Raw density at a distance from the skin, in world units; in air anything below is as good.

    `scale`: the model's factor from raw density to density per world unit.
    """
    return EMPTY + (FULL / scale - EMPTY) * torch.sigmoid((FLESH - distance) / (0.12 * FLESH))


def shape_like_body(generator: Generator, scene: Scene, body: BodyTemplate, seed: int = 0) -> Scene:
    """The scene with a density like a body's, written into the first feature channels and hidden units.

    The generator's decoder is changed: those units alone make its density. Every renderer then reads the same field.
    The fit is rough; timing depends on which cells are occupied only. Colours stay random.
    """
    planes, first, second, bias = _fit(generator, body, seed)
    below, above = generator.decoder.net[0], generator.decoder.net[2]
    assert isinstance(below, FullyConnected)
    assert isinstance(above, FullyConnected)
    with torch.no_grad():
        for layer, rows in ((below, slice(0, UNITS)), (above, slice(0, 1))):
            layer.weight[rows] = 0.0
            layer.bias[rows] = 0.0
        below.weight[:UNITS, :CHANNELS] = first / below.weight_gain
        above.weight[0, :UNITS] = second / above.weight_gain
        above.bias[0] = bias / above.bias_gain
        tri_grid, coarser = scene.tri_grid.clone(), tuple(level.clone() for level in scene.coarser)
        fine = F.interpolate(planes.flatten(0, 3)[None], size=tri_grid.shape[-2:], mode="bilinear")
        fine = fine * (1 + len(coarser))  # the levels of a pyramid are averaged
        tri_grid[:, :, :CHANNELS] = fine.reshape(1, *planes.shape[1:4], *tri_grid.shape[-2:])
        for level in coarser:
            level[:, :, :CHANNELS] = 0.0
    return dataclasses.replace(scene, tri_grid=tri_grid, coarser=coarser)


def _fit(generator: Generator, body: BodyTemplate, seed: int):
    """Feature planes, hidden and output weights of the density, by least squares on points around the body."""
    # Points near the skin and anywhere in the box, with their densities, all in the model's world.
    config = generator.config
    unit_length = config.camera.scale
    vertices = model_points(body.vertices, config.camera)
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    chosen = torch.randint(len(vertices), (60_000,), generator=random)
    close = vertices[chosen] + normal(60_000, 3) * (0.04 * unit_length)
    anywhere = (torch.rand(90_000, 3, generator=random) * 2.0 - 1.0) * torch.tensor(config.render.box_half)
    points = torch.cat([close, anywhere + torch.tensor(config.render.box_centre)])
    distance = nearest_triangles(points, vertices[body.faces])[2] / unit_length
    wanted, air = wanted_density(distance, config.render.density_scale * unit_length), distance > 2.0 * FLESH
    unit = float(wanted.max() - wanted.min()) / 8.0
    at = normalize_points(points[None], config.render.box_centre, config.render.box_half)[0]

    # Least squares by Adam, one-sided in air.
    planes = (normal(1, 3, CHANNELS, config.plane_depth, _SIDE, _SIDE) * 0.1).requires_grad_()
    first, second = normal(UNITS, CHANNELS).requires_grad_(), normal(UNITS).requires_grad_()
    bias = torch.zeros(()).requires_grad_()
    activation = generator.decoder.net[1]
    optimizer = torch.optim.Adam([planes, first, second, bias], lr=_RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 2.0 - 2.0 * step / STEPS)
            chosen = torch.randint(len(points), (_POINTS,), generator=random)
            hidden = activation(sample_trigrid(planes, at[chosen][None]).mean(dim=1)[0] @ first.t())
            error = (hidden @ second + bias) * unit - wanted[chosen]
            loss = torch.where(air[chosen], 3.0 * error.relu(), error).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return planes.detach(), first.detach(), second.detach() * unit, bias.detach() * unit
