"""The fused renderer behind autograd, and what rays may skip: `portrait360.kernels.render` on the CPU, on GPUs
`portrait360.model.fused_gpu`.

`portrait360.model.rendering.render_plain` is the readable twin.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN
from portrait360.kernels.lookup import gaps_between, reachable_voxels
from portrait360.kernels.render import fused_kernels
from portrait360.model.fused_gpu import render_triton, triton_works
from portrait360.model.rendering import Deform, Occupancy, Rays, Rendered, finish
from portrait360.model.trigrid import Decoder, sample_trigrid

STOP_TRANSMITTANCE = 1e-3
"""The fused renderer ends a ray when less than this share of light is left."""

VISIBLE_DENSITY = 0.5
"""Density per world unit below which a cell counts as empty; across a cell of 13 mm it stops 0.6 % of the light."""

TRAINING_CELLS = (20, 32, 24)
"""Cells (nz, ny, nx) of the tri-grid box that training divides into occupied and empty ones: new ones in every step."""

VIEWING_CELLS = (36, 54, 48)
"""The same for a portrait that is rendered many times: finer, as the cells are computed once."""


def read_density_plain(
    tri_grid: Float[Tensor, "L 3 C D H W"], decoder: Decoder, normalized: Float[Tensor, "N 3"], config: RenderConfig
) -> Float[Tensor, "L N"]:
    """Density per world unit at points of the tri-grid's [-1, 1]^3, the same points for every tri-grid."""
    points = normalized.expand(len(tri_grid), -1, -1)
    raw, _ = decoder(sample_trigrid(tri_grid, points))
    return F.softplus(raw[..., 0] + config.density_shift) * config.density_scale


def read_density(
    tri_grid: Float[Tensor, "L 3 C D H W"], decoder: Decoder, normalized: Float[Tensor, "N 3"], config: RenderConfig
) -> Float[Tensor, "L N"]:
    """`read_density_plain`, in one compiled pass on the CPU; not differentiable."""
    if tri_grid.device.type != "cpu":
        with torch.no_grad():
            return read_density_plain(tri_grid, decoder, normalized, config)
    planes, weights, sizes = kernel_inputs(tri_grid.detach(), decoder)
    densities = torch.empty(len(tri_grid), len(normalized))
    fused_kernels(*sizes)[2](
        planes.numpy().reshape(-1), planes.shape[2], len(tri_grid), *kernel_weights(*weights), normalized.numpy(),
        np.float32(config.density_scale), np.float32(config.density_shift), densities.numpy(),
    )  # fmt: skip
    return densities


@torch.no_grad()
def occupied_cells(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    config: RenderConfig,
    shape: tuple[int, int, int],
    samples: int = 1,
    visible: float = VISIBLE_DENSITY,
) -> UInt8[Tensor, "L nz ny nx"]:
    """Where each portrait's density is above `visible`: `samples` per cell and axis, grown by one cell to be safe."""
    axes = [(torch.arange(samples * n, device=tri_grid.device) + 0.5) / (samples * n) * 2.0 - 1.0 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    density = read_density(tri_grid, decoder, torch.stack([x, y, z], dim=-1).reshape(-1, 3), config)
    grid = F.max_pool3d(density.reshape(-1, 1, *z.shape), samples)
    return (F.max_pool3d(grid, 3, stride=1, padding=1)[:, 0] > visible).to(torch.uint8)


def picture_width(rays: int) -> int:
    """Columns of a square picture; one row when the rays are not a square picture."""
    side = math.isqrt(rays)
    return side if side * side == rays else rays


def kernel_inputs(tri_grid: Tensor, decoder: Decoder):
    """Planes in the kernels' order (no copy if a channels-last synthesis network made them), weights, sizes."""
    planes = tri_grid.permute(0, 4, 5, 1, 3, 2).float().contiguous()
    weights = decoder.parameters_as_used()
    hidden, channels = weights[0].shape
    softplus = decoder.net[1].name == "softplus"
    return planes, weights, (channels, hidden, weights[2].shape[0] - 1, tri_grid.shape[3], softplus)


def kernel_weights(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[np.ndarray, ...]:
    """The decoder's weights as the kernels read them: w1 (C, H) and w2 (K, H), flat."""
    w1 = w1.detach().t().contiguous().reshape(-1)
    return (w1.numpy(), b1.detach().contiguous().numpy(), w2.detach().contiguous().reshape(-1).numpy(),
            b2.detach().contiguous().numpy())  # fmt: skip


FARTHEST_GAP = 8
"""Voxels up to which distances to the nearest occupied one are told apart."""


def _gaps(
    field: np.ndarray | None,
    shape: tuple[int, ...],
    field_box: np.ndarray,
    box: np.ndarray,
    occupancy: Occupancy,
    images: int,
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Where rays may leap, as (voxels between nodes [B, N], nodes (nz, ny, nx), corners of their box).

    Voxels are those of the field, before warping; without a field, the occupancy's cells.
    """
    latents, *cells = occupancy.occupied.shape
    if field is None:
        shape = tuple(n + 1 for n in cells)
        field, field_box = np.zeros(latents * math.prod(shape) * 3, np.float32), box[[0, 1, 2, 0, 1, 2]].copy()
        field_box[:3] -= box[3:]
        field_box[3:] += box[3:]
        grids = latents
    else:
        grids = images
    voxels = tuple(n - 1 for n in shape)
    reachable = np.empty((grids, math.prod(voxels)), np.uint8)
    occupied = occupancy.occupied.numpy().reshape(-1)
    reachable_voxels(field, shape, field_box, box, occupied, tuple(cells), grids // latents, reachable)
    gaps = np.empty_like(reachable)
    # where unoccupied samples are explored, rays cannot leap
    gaps_between(reachable, voxels, FARTHEST_GAP if occupancy.seed is None else 1, gaps)
    return gaps.repeat(images // grids, axis=0), shape, field_box


class _Fused(torch.autograd.Function):
    """Glue between autograd and the compiled kernels. Planes arrive as (L, P, P, 3, D, C)."""

    @staticmethod
    def forward(ctx, planes, w1, b1, w2, b2, field, rays, jitter, noise, occupancy, samples, config, sizes, stop):
        planes_array = planes.detach().numpy().reshape(-1)
        empty = np.zeros(0, np.float32)
        shape = (2, 2, 2) if field is None else tuple(field.shape[1:4])
        images, count, _ = rays.directions.shape
        cells = (1, 1, 1) if occupancy is None else tuple(occupancy.occupied.shape[1:])
        views = images // planes.shape[0]
        field_array = empty if field is None else field.detach().contiguous().numpy().reshape(-1)
        field_box = np.array([*FIELD_MIN, *FIELD_MAX], np.float32)
        box = np.array([*config.box_centre, *config.box_half], np.float32)
        occupied = np.zeros(0, np.uint8) if occupancy is None else occupancy.occupied.numpy().reshape(-1)
        gaps = (np.zeros((0, 0), np.uint8), (2, 2, 2), field_box)
        if occupancy is not None:
            gaps = _gaps(None if field is None else field_array, shape, field_box, box, occupancy, images)
        common = (
            planes.shape[2],
            views,
            *kernel_weights(w1, b1, w2, b2),
            rays.origins.contiguous().numpy(),
            rays.directions.contiguous().numpy(),
            picture_width(count),
            rays.near.contiguous().numpy(),
            rays.far.contiguous().numpy(),
            jitter.contiguous().numpy(),
            samples,
            empty.reshape(0, 0, 0) if noise is None else noise.contiguous().numpy(),
            field_array,
            shape,
            field_box,
            box,
            occupied,
            cells,
            *gaps,
            -1 if occupancy is None or occupancy.seed is None else int(occupancy.seed),
            np.float32(config.density_scale),
            np.float32(config.density_shift),
            config.feature_activation == "sigmoid",
            np.float32(stop),
        )  # fmt: skip
        rendered = torch.empty(images, count, sizes[2] + 2)
        fused_kernels(*sizes)[0](planes_array, *common, rendered.numpy())
        ctx.common, ctx.sizes, ctx.planes = common, sizes, planes_array
        ctx.shapes = planes.shape, None if field is None else field.shape
        return rendered

    @staticmethod
    def backward(ctx, grad):
        planes_shape, field_shape = ctx.shapes
        channels, hidden, features, _, _ = ctx.sizes
        latents = planes_shape[0]
        wants_field = field_shape is not None and ctx.needs_input_grad[5]
        grad_planes = torch.zeros(planes_shape)
        grad_field = torch.zeros(field_shape or (0,)) if wants_field else torch.zeros(0)
        parts = [torch.zeros(latents, n) for n in (channels * hidden, hidden, (1 + features) * hidden, 1 + features)]
        fused_kernels(*ctx.sizes)[1](
            ctx.planes,
            *ctx.common,
            grad.contiguous().float().numpy(),
            grad_planes.numpy().reshape(-1),
            *[p.numpy() for p in parts],
            grad_field.numpy().reshape(-1),
        )
        g1, gb1, g2, gb2 = (p.sum(dim=0) for p in parts)
        return (
            grad_planes, g1.reshape(channels, hidden).t(), gb1, g2.reshape(1 + features, hidden), gb2,
            grad_field if wants_field else None, *([None] * 8),
        )  # fmt: skip


def render_fused(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    *,
    samples: int,
    jitter: Float[Tensor, "B M"],
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    noise: Float[Tensor, "B M S"] | None = None,
    occupancy: Occupancy | None = None,
    stop: float = STOP_TRANSMITTANCE,
) -> Rendered:
    """`render_plain` in one compiled pass; differentiable in tri-grid, decoder and field."""
    if tri_grid.device.type != "cpu":
        return render_triton(
            tri_grid, decoder, rays, config, width=picture_width(rays.directions.shape[1]), samples=samples,
            jitter=jitter, field=field, noise=noise, occupancy=occupancy, stop=stop,
        )  # fmt: skip
    planes, weights, sizes = kernel_inputs(tri_grid, decoder)
    out = _Fused.apply(planes, *weights, field, rays, jitter, noise, occupancy, samples, config, sizes, stop)
    assert isinstance(out, Tensor)
    return finish(out[..., :-2], out[..., -2:-1], out[..., -1:], rays)


def can_fuse(tri_grid: Tensor, deform: Deform | None) -> bool:
    """The fused renderer warps by a field only; its loops on the CPU want C divisible by 8, GPUs want Triton."""
    if deform is not None:
        return False
    if tri_grid.device.type == "cpu":
        return tri_grid.shape[2] % 8 == 0
    return tri_grid.device.type == "cuda" and triton_works(tri_grid.device)
