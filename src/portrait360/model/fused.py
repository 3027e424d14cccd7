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
from portrait360.kernels.blocks import DecoderWeights, Form, Geometry, Gradients, Light, Lines, Samples, Sizes, Space
from portrait360.kernels.lookup import gaps_between, reachable_voxels
from portrait360.kernels.points import density_kernel, outputs_kernel
from portrait360.kernels.render import backward_kernel, forward_kernel
from portrait360.model.fused_gpu import Cast, render_triton, triton_works
from portrait360.model.rendering import EMPTY_DENSITY, Deform, Rays, Rendered, Sampling, activated, finish, image_width
from portrait360.model.trigrid import Decoder, TriGrid, levels_of, normalize_points, sample_trigrid

STOP_TRANSMITTANCE = 1e-3
"""The fused renderer ends a ray when less than this share of light is left."""

VISIBLE_DENSITY = 0.5
"""Density per world unit below which a cell counts as empty; across a cell of 13 mm it stops 0.6 % of the light."""

TRAINING_CELLS = (20, 32, 24)
"""Cells (nz, ny, nx) of the tri-grid box that training divides into occupied and empty ones: new ones in every step."""

VIEWING_CELLS = (36, 54, 48)
"""The same for a portrait that is rendered many times: finer, as the cells are computed once."""


def read_density_plain(
    tri_grid: TriGrid, decoder: Decoder, normalized: Float[Tensor, "N 3"], config: RenderConfig
) -> Float[Tensor, "L N"]:
    """Density per world unit at points of the tri-grid's [-1, 1]^3, the same points for every tri-grid."""
    points = normalized.expand(len(levels_of(tri_grid)[-1]), -1, -1)
    raw, _ = decoder(sample_trigrid(tri_grid, points))
    return F.softplus(raw[..., 0] + config.density_shift) * config.density_scale


def read_density(
    tri_grid: TriGrid, decoder: Decoder, normalized: Float[Tensor, "N 3"], config: RenderConfig
) -> Float[Tensor, "L N"]:
    """`read_density_plain`, in one compiled pass on the CPU; not differentiable."""
    finest = levels_of(tri_grid)[-1]
    if finest.device.type != "cpu":
        with torch.no_grad():
            return read_density_plain(tri_grid, decoder, normalized, config)
    planes, weights, form = kernel_inputs(tri_grid, decoder)
    densities = torch.empty(len(finest), len(normalized))
    density_kernel(form)(
        planes.detach().numpy().reshape(-1), finest.shape[-1], len(finest), kernel_weights(*weights),
        normalized.numpy(), kernel_light(config, 0.0), densities.numpy(),
    )  # fmt: skip
    return densities


def query_fused(
    tri_grid: TriGrid, decoder: Decoder, points: Float[Tensor, "L N 3"], config: RenderConfig
) -> tuple[Float[Tensor, "L N 1"], Float[Tensor, "L N F"]]:
    """`rendering.query` in one compiled pass on the CPU; not differentiable, and empty outside of the box."""
    normalized = normalize_points(points, config.box_centre, config.box_half).detach()
    inside = normalized.clamp(-1.0, 1.0).contiguous()  # the kernel reads no other points
    planes, weights, form = kernel_inputs(tri_grid, decoder)
    resolution = levels_of(tri_grid)[-1].shape[-1]
    values = torch.empty(*points.shape[:2], form.outputs)
    for one, places, rows in zip(planes.detach(), inside, values, strict=True):
        outputs_kernel(form)(
            one.numpy().reshape(-1), resolution, kernel_weights(*weights), places.numpy(), rows.numpy()
        )
    outside = (inside != normalized).any(dim=-1, keepdim=True)
    density = values[..., :1].masked_fill(outside, EMPTY_DENSITY)
    return activated(density, values[..., 1:], points, normalized, config)


def can_query_fused(tri_grid: TriGrid, decoder: Decoder) -> bool:
    """Whether the kernel's loops fit the sizes: C divisible by 8, the hidden layer by 16, on the CPU."""
    hidden = len(decoder.parameters_as_used()[1])
    finest = levels_of(tri_grid)[-1]
    fits = finest.shape[2] % 8 == 0 or (finest.shape[2] > 8 and isinstance(tri_grid, tuple))
    return finest.device.type == "cpu" and fits and hidden % 16 == 0


@torch.no_grad()
def occupied_cells(
    tri_grid: TriGrid,
    decoder: Decoder,
    config: RenderConfig,
    shape: tuple[int, int, int],
    samples: int = 1,
    visible: float = VISIBLE_DENSITY,
) -> UInt8[Tensor, "L nz ny nx"]:
    """Where each portrait's density is above `visible`: `samples` per cell and axis, grown by one cell to be safe."""
    device = levels_of(tri_grid)[-1].device
    axes = [(torch.arange(samples * n, device=device) + 0.5) / (samples * n) * 2.0 - 1.0 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    density = read_density(tri_grid, decoder, torch.stack([x, y, z], dim=-1).reshape(-1, 3), config)
    grid = F.max_pool3d(density.reshape(-1, 1, *z.shape), samples)
    return (F.max_pool3d(grid, 3, stride=1, padding=1)[:, 0] > visible).to(torch.uint8)


# ---- the kernels' inputs ----


def kernel_inputs(tri_grid: TriGrid, decoder: Decoder) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], Form]:
    """Planes in the kernels' order (no copy if a channels-last synthesis network made them), weights, sizes.

    The planes of a pyramid are joined: one row for each latent.
    """
    levels = levels_of(tri_grid)
    ordered = [level.permute(0, 4, 5, 1, 3, 2).float().contiguous() for level in levels]
    planes = ordered[0] if len(levels) == 1 else torch.cat([level.flatten(1) for level in ordered], dim=1)
    weights = decoder.parameters_as_used()
    hidden, channels = weights[0].shape
    softplus = decoder.net[1].name == "softplus"
    return planes, weights, Form(channels, hidden, weights[2].shape[0], levels[0].shape[3], softplus, len(levels))


def kernel_weights(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> DecoderWeights:
    """The decoder's weights as the kernels read them."""
    w1 = w1.detach().t()
    return DecoderWeights(*(value.detach().contiguous().reshape(-1).numpy() for value in (w1, b1, w2, b2)))


def kernel_light(config: RenderConfig, stop: float) -> Light:
    """How decoded values become light; a ray ends when less than `stop` is left."""
    sigmoid = config.feature_activation == "sigmoid"
    return Light(np.float32(config.density_scale), np.float32(config.density_shift), sigmoid, np.float32(stop))


def kernel_lines(rays: Rays) -> Lines:
    """The rays of square images (or of one row each)."""
    width = image_width(rays.directions.shape[1])
    return Lines(rays.origins.contiguous().numpy(), rays.directions.contiguous().numpy(), width)


def kernel_space(
    field: Tensor | None, occupied: Tensor | None, config: RenderConfig, resolution: int, views: int
) -> tuple[Space, Geometry, Sizes]:
    """What rays meet, without gaps to leap over: displacements and occupied cells, if there are any."""
    box = np.array([*config.box_centre, *config.box_half], np.float32)
    field_box = np.array([*FIELD_MIN, *FIELD_MAX], np.float32)
    displacements = np.zeros(0, np.float32) if field is None else field.detach().contiguous().numpy().reshape(-1)
    cells = np.zeros(0, np.uint8) if occupied is None else occupied.contiguous().numpy().reshape(-1)
    return (
        Space(displacements, cells, np.zeros((0, 0), np.uint8), -1),
        Geometry(box, field_box, field_box),
        Sizes(
            resolution=resolution,
            views=views,
            field=_NO_NODES if field is None else tuple(field.shape[1:4]),
            cells=_NO_CELLS if occupied is None else tuple(occupied.shape[1:]),
            gaps=_NO_NODES,
        ),
    )


_NO_NODES, _NO_CELLS = (2, 2, 2), (1, 1, 1)
"""Shapes of fields and occupancy grids that are missing."""

FARTHEST_GAP = 8
"""Largest distance to an occupied voxel that is stored, in voxels."""


def _with_gaps(
    space: Space, geometry: Geometry, sizes: Sizes, seed: int | None, images: int
) -> tuple[Space, Geometry, Sizes]:
    """The same with the voxels over which rays may leap: those of the field, before warping; without a field, the
    occupancy's cells."""
    latents, field, corners, gap_box = images // sizes.views, space.field, sizes.field, geometry.field
    grids = images
    if not len(field):
        grids, corners = latents, tuple(n + 1 for n in sizes.cells)
        centre, half = geometry.box[:3], geometry.box[3:]
        field = np.zeros(latents * math.prod(corners) * 3, np.float32)
        gap_box = np.concatenate([centre - half, centre + half])

    # Which voxels lead to an occupied cell, and how far the others are from one that does.
    voxels = tuple(n - 1 for n in corners)
    reachable = np.empty((grids, math.prod(voxels)), np.uint8)
    reachable_voxels(field, corners, gap_box, geometry.box, space.occupied, sizes.cells, grids // latents, reachable)
    gaps = np.empty_like(reachable)
    # where unoccupied samples are explored, rays cannot leap
    gaps_between(reachable, voxels, FARTHEST_GAP if seed is None else 1, gaps)

    return (
        space._replace(gaps=gaps.repeat(images // grids, axis=0), seed=-1 if seed is None else seed),
        geometry._replace(gaps=gap_box),
        sizes._replace(gaps=corners),
    )


# ---- the renderer ----


class _Fused(torch.autograd.Function):
    """Glue between autograd and the compiled kernels. Planes arrive as (L, P, P, 3, D, C)."""

    @staticmethod
    def forward(ctx, cast, planes, field, *weights):
        rays, sampling, occupancy = cast.rays, cast.sampling, cast.sampling.occupancy
        images, count, _ = rays.directions.shape

        # What rays meet, and where they may leap.
        cells, views = None if occupancy is None else occupancy.occupied, images // planes.shape[0]
        space, geometry, sizes = kernel_space(field, cells, cast.config, planes.shape[2], views)
        if occupancy is not None:
            seed = None if occupancy.seed is None else int(occupancy.seed)
            space, geometry, sizes = _with_gaps(space, geometry, sizes, seed, images)

        # Render; the inputs serve the backward pass again.
        noise = np.zeros((0, 0, 0), np.float32) if sampling.noise is None else sampling.noise.contiguous().numpy()
        near, far, jitter = (value.contiguous().numpy() for value in (rays.near, rays.far, sampling.jitter))
        ctx.inputs = (
            planes.detach().numpy().reshape(-1), kernel_weights(*weights), kernel_lines(rays),
            Samples(near, far, jitter, noise, sampling.count), space, geometry, sizes,
            kernel_light(cast.config, cast.stop),
        )  # fmt: skip
        rendered = torch.empty(images, count, cast.form.outputs + 1)
        forward_kernel(cast.form)(*ctx.inputs, rendered.numpy())
        ctx.form, ctx.planes, ctx.field = cast.form, planes.shape, torch.Size() if field is None else field.shape
        return rendered

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        form, wants_field = ctx.form, len(ctx.field) > 0 and ctx.needs_input_grad[2]

        # Let the kernel add up, the decoder's gradients one row per latent.
        planes, field = torch.zeros(ctx.planes), torch.zeros(ctx.field) if wants_field else torch.zeros(0)
        lengths = (form.channels * form.hidden, form.hidden, form.outputs * form.hidden, form.outputs)
        rows = [torch.zeros(ctx.planes[0], length) for length in lengths]
        grads = Gradients(*(values.numpy() for values in (planes.view(-1), *rows, field.view(-1))))
        backward_kernel(form)(*ctx.inputs, grad.contiguous().float().numpy(), grads)

        # Back to the shapes of `Decoder.parameters_as_used`.
        w1, b1, w2, b2 = (row.sum(dim=0) for row in rows)
        w1, w2 = w1.reshape(form.channels, form.hidden).t(), w2.reshape(form.outputs, form.hidden)
        return None, planes, field if wants_field else None, w1, b1, w2, b2


def render_fused(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    sampling: Sampling,
    *,
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    stop: float = STOP_TRANSMITTANCE,
) -> Rendered:
    """`render_plain` in one compiled pass; differentiable in tri-grid, decoder and field.

    A ray ends when less than `stop` of its light is left.
    """
    if tri_grid.device.type != "cpu":
        return render_triton(tri_grid, decoder, rays, config, sampling, field=field, stop=stop)
    planes, weights, form = kernel_inputs(tri_grid, decoder)
    out = _Fused.apply(Cast(rays, sampling, config, form, stop), planes, field, *weights)
    assert isinstance(out, Tensor)
    return finish(out[..., :-2], out[..., -2:-1], out[..., -1:], rays)


def can_fuse(tri_grid: Tensor, deform: Deform | None) -> bool:
    """The fused renderer warps by a field only; its loops on the CPU want C divisible by 8, GPUs want Triton."""
    if deform is not None:
        return False
    if tri_grid.device.type == "cpu":
        return tri_grid.shape[2] % 8 == 0
    return tri_grid.device.type == "cuda" and triton_works(tri_grid.device)
