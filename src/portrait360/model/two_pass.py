"""The fast form of the original renderer: on the CPU, without gradients, and only in occupied cells."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.kernels.blocks import Passes
from portrait360.kernels.two_pass import two_pass_kernel
from portrait360.model.fused import (
    kernel_inputs,
    kernel_light,
    kernel_lines,
    kernel_space,
    kernel_weights,
    occupied_cells,
)
from portrait360.model.rendering import Rays, Rendered
from portrait360.model.trigrid import Decoder, TriGrid, levels_of

STOP_TRANSMITTANCE = 1e-3
"""A ray ends when less than this share of light is left."""

VISIBLE_DENSITY = 0.02
"""Density per world unit below which a cell counts as empty; half a unit of it stops one per cent of the light."""

DENSITY_SPACING = 0.0225
"""Largest distance of the points where densities are read, world units."""


def can_render_two_pass(tri_grid: TriGrid, decoder: Decoder, config: RenderConfig) -> bool:
    """Whether `render_two_pass` can stand in for `render_original`."""
    hidden, finest = len(decoder.parameters_as_used()[1]), levels_of(tri_grid)[-1]
    return (
        config.quadrature == "midpoint"
        and config.feature_activation == "none"
        and config.samples >= 4
        and finest.device.type == "cpu"
        and (finest.shape[2] % 8 == 0 or (finest.shape[2] > 8 and isinstance(tri_grid, tuple)))
        and hidden % 16 == 0
    )


def cells_for_two_pass(tri_grid: TriGrid, decoder: Decoder, config: RenderConfig) -> UInt8[Tensor, "L nz ny nx"]:
    """Cells that rays must visit.

    A cell is as long as the distance of two coarse samples: the compositing averages neighbours, so the samples next to
    visible density count, and cells next to occupied ones are visited too. Densities are read at least every
    `DENSITY_SPACING`.
    """
    spacing = (config.far - config.near) / (config.samples - 1)
    nx, ny, nz = (max(1, int(2.0 * half / spacing)) for half in config.box_half)
    samples = math.ceil(spacing / DENSITY_SPACING)
    return occupied_cells(tri_grid, decoder, config, (nz, ny, nx), samples, visible=VISIBLE_DENSITY)


@torch.no_grad()
def render_two_pass(
    tri_grid: TriGrid,
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    occupied: UInt8[Tensor, "L nz ny nx"],
    *,
    field: Float[Tensor, "B nz2 ny2 nx2 3"] | None = None,
    stop: float = STOP_TRANSMITTANCE,
) -> Rendered:
    """What `render_original` computes at inference (jitter 0.5, even u), in occupied cells of the tri-grid box.

    Samples in other cells, or outside of the box, count as cropped. With everything occupied and `stop` 0 the two
    agree to rounding inside of the box. Rays that meet nothing get the largest distance, as there (equations
    5.2-5.8).
    """
    # What rays meet.
    planes, weights, form = kernel_inputs(tri_grid, decoder)
    images, count, _ = rays.directions.shape
    resolution, latents = levels_of(tri_grid)[-1].shape[-1], len(planes)
    space, geometry, sizes = kernel_space(field, occupied, config, resolution, images // latents)
    half = np.array(config.box_half, np.float32)
    limits = np.ones(3, np.float32) if config.crop is None else np.array([config.crop, half[1], config.crop]) / half

    # Render.
    passes = Passes(
        np.float32(config.near),
        np.float32(config.far),
        config.samples,
        config.importance_samples,
        limits.astype(np.float32),
    )
    out = torch.empty(images, count, form.outputs + 1)
    two_pass_kernel(form)(
        planes.numpy().reshape(-1), kernel_weights(*weights), kernel_lines(rays), passes, space, geometry, sizes,
        kernel_light(config, stop), out.numpy(),
    )  # fmt: skip

    # From sums of weight * distance to distances.
    opacity, distance = out[..., -2:-1], out[..., -1:]
    farthest = config.far + 0.5 * (config.far - config.near) / (config.samples - 1)
    distance = torch.where(opacity > 0, distance / opacity.clamp_min(1e-12), torch.full_like(distance, farthest))
    return Rendered(out[..., :-2], opacity, distance)
