"""Volume rendering of the tri-grid (official_model 5): the plain renderer, and the fused one for the CPU.

`render_original` is the published two-pass renderer. `render_plain` is the one-pass renderer of this project's own
presets; `render_fused` computes the same in one compiled pass and is its fast twin. `render` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.geometry.cameras import ray_box
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN, apply_field
from portrait360.kernels.lookup import gaps_between, reachable_voxels
from portrait360.kernels.render import EXPLORE_MASK, explore_hash, fused_kernels
from portrait360.model.trigrid import Decoder, normalize_points, sample_trigrid

EMPTY_DENSITY = -1000.0
"""Raw density of cropped space, before shift and softplus (official_model 5.5)."""
STOP_TRANSMITTANCE = 1e-3
"""The fused renderer ends a ray when less than this share of light is left."""

Deform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rays:
    """Where to sample. `near` >= `far` marks a ray that misses the portrait's boxes."""

    origins: Float[Tensor, "B 3"]
    directions: Float[Tensor, "B M 3"]
    near: Float[Tensor, "B M"]
    far: Float[Tensor, "B M"]


@dataclass(frozen=True)
class Rendered:
    """Per ray: weighted features, accumulated weight, distance (NaN-free), in world units."""

    features: Float[Tensor, "B M F"]
    opacity: Float[Tensor, "B M 1"]
    distance: Float[Tensor, "B M 1"]


@dataclass(frozen=True)
class Occupancy:
    """Which cells of the tri-grid box rays visit, portrait by portrait. `seed` picks samples of the others that are
    taken all the same, to find new matter in training; None takes none."""

    occupied: UInt8[Tensor, "L nz ny nx"]
    seed: int | None = None


def bound_rays(origins: Float[Tensor, "B M 3"], directions: Float[Tensor, "B M 3"], config: RenderConfig) -> Rays:
    """Chord of every ray through the union of the config's boxes (or near..far where it has none)."""
    near = torch.full_like(origins[..., 0], config.near)
    far = torch.full_like(near, config.far)
    for i, (low, high) in enumerate(config.ray_boxes):
        n, f, hit = ray_box(origins, directions, low, high)
        n = torch.where(hit, n, torch.full_like(n, 1e6))
        f = torch.where(hit, f, torch.full_like(f, -1e6))
        near, far = (n, f) if i == 0 else (torch.minimum(near, n), torch.maximum(far, f))
    return Rays(origins[:, 0], directions, near, torch.maximum(far, near.clamp_max(1e5)))


# ---- the original two-pass renderer ----


def coarse_depths(near: float, far: float, samples: int, jitter: Float[Tensor, "B M S 1"]) -> Float[Tensor, "B M S 1"]:
    """linspace plus jitter times the spacing; the last sample may lie past `far` (official_model 5.2)."""
    step = (far - near) / (samples - 1)
    return torch.linspace(near, far, samples, device=jitter.device).reshape(1, 1, samples, 1) + jitter * step


@torch.no_grad()
def importance_depths(
    depths: Float[Tensor, "B M S 1"], weights: Float[Tensor, "B M S1 1"], u: Float[Tensor, "B M I"]
) -> Float[Tensor, "B M I 1"]:
    """Inverse-transform samples of the smoothed coarse weights (official_model 5.7)."""
    n, m, s, _ = depths.shape
    t = depths.reshape(n * m, s)
    w = weights.reshape(n * m, 1, s - 1)
    w = F.avg_pool1d(F.max_pool1d(w, 2, stride=1, padding=1), 2, stride=1)[:, 0] + 0.01
    bins = 0.5 * (t[:, 1:] + t[:, :-1])
    pdf = w[:, 1:-1] + 1e-5
    cdf = F.pad((pdf / pdf.sum(dim=1, keepdim=True)).cumsum(dim=1), (1, 0))
    u = u.reshape(n * m, -1).contiguous()
    index = torch.searchsorted(cdf, u, right=True)
    low, high = (index - 1).clamp_min(0), index.clamp_max(cdf.shape[1] - 1)
    cdf_low, cdf_high = cdf.gather(1, low), cdf.gather(1, high)
    bin_low, bin_high = bins.gather(1, low), bins.gather(1, high)
    span = cdf_high - cdf_low
    span = torch.where(span < 1e-5, torch.ones_like(span), span)
    return (bin_low + (u - cdf_low) / span * (bin_high - bin_low)).reshape(n, m, -1, 1)


def march_midpoints(
    features: Float[Tensor, "B M K F"], densities: Float[Tensor, "B M K 1"], depths: Float[Tensor, "B M K 1"],
    config: RenderConfig,
):  # fmt: skip
    """Composite neighbours' averages (official_model 5.6). Returns feature, distance, weights [B, M, K-1, 1]."""

    def middle(v: Tensor) -> Tensor:
        return 0.5 * (v[:, :, 1:] + v[:, :, :-1])

    step = depths[:, :, 1:] - depths[:, :, :-1]
    density = F.softplus(middle(densities) + config.density_shift) * config.density_scale
    # A float32 exponential, rounded alike on every processor: the depth of rays that meet next to nothing hangs on
    # whether their few alphas are 0 or 6e-8.
    alpha = 1.0 - torch.exp((-density * step).double()).to(density.dtype)
    survival = torch.cumprod(1.0 - alpha + 1e-10, dim=2)
    through = torch.cat([torch.ones_like(survival[:, :, :1]), survival[:, :, :-1]], dim=2)
    weights = alpha * through
    distance = (weights * middle(depths)).sum(dim=2) / weights.sum(dim=2)
    distance = torch.nan_to_num(distance, nan=float("inf"), posinf=float("inf"))
    distance = distance.clamp(depths.min(), depths.max())
    return (weights * middle(features)).sum(dim=2), distance, weights


def query(
    tri_grid: Float[Tensor, "B 3 C D H W"],
    decoder: Decoder,
    points: Float[Tensor, "B N 3"],
    config: RenderConfig,
    *,
    crop: bool = True,
):
    """Raw density [B, N, 1] and activated features [B, N, F] at canonical points."""
    normalized = normalize_points(points, config.box_centre, config.box_half)
    density, features = decoder(sample_trigrid(tri_grid, normalized))
    if config.feature_activation == "sigmoid":
        features = torch.sigmoid(features)
    if crop:
        if config.crop is None:
            inside = (normalized.abs() < 1.0).all(dim=-1, keepdim=True)
        else:
            inside = (points[..., 0:1].abs() <= config.crop) & (points[..., 2:3].abs() <= config.crop)
        density = torch.where(inside, density, torch.full_like(density, EMPTY_DENSITY))
    return density, features


def render_original(
    tri_grid: Float[Tensor, "B 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    *,
    deform: Deform | None = None,
    jitter: Float[Tensor, "B M S 1"] | None = None,
    importance_u: Float[Tensor, "B M I"] | None = None,
    density_noise: float = 0.0,
    trace: dict[str, Tensor] | None = None,
) -> Rendered:
    """Coarse pass, importance samples, merge, composite (official_model 5.2-5.8). No jitter means 0.5 everywhere.

    `trace` is filled with `depths_coarse` [B, M, S, 1], `weights_coarse` [B, M, S-1, 1] and `depths_fine` [B, M, I, 1].
    """
    n, m, _ = rays.directions.shape
    device = rays.directions.device

    def shade(t: Tensor) -> tuple[Tensor, Tensor]:
        points = (rays.origins[:, None, None] + t * rays.directions[:, :, None]).reshape(n, -1, 3)
        density, feature = query(tri_grid, decoder, points if deform is None else deform(points), config)
        if density_noise > 0:
            density = torch.where(
                density <= EMPTY_DENSITY, density, density + torch.randn_like(density) * density_noise
            )
        return density.reshape(n, m, -1, 1), feature.reshape(n, m, t.shape[2], -1)

    if jitter is None:
        jitter = torch.full((n, m, config.samples, 1), 0.5, device=device)
    t0 = coarse_depths(config.near, config.far, config.samples, jitter)
    density0, feature0 = shade(t0)
    feature, distance, weights = march_midpoints(feature0, density0, t0, config)
    if trace is not None:
        trace |= {"depths_coarse": t0, "weights_coarse": weights}
    if config.importance_samples:
        if importance_u is None:
            count = config.importance_samples
            importance_u = torch.linspace(0.0, 1.0, count, device=device).expand(n, m, count)
        t1 = importance_depths(t0, weights, importance_u)
        if trace is not None:
            trace["depths_fine"] = t1
        density1, feature1 = shade(t1)
        depths = torch.cat([t0, t1], dim=2)
        order = depths.argsort(dim=2)

        def merge(a: Tensor, b: Tensor) -> Tensor:
            v = torch.cat([a, b], dim=2)
            return v.gather(2, order.expand(-1, -1, -1, v.shape[-1]))

        feature, distance, weights = march_midpoints(
            merge(feature0, feature1), merge(density0, density1), merge(t0, t1), config
        )
    return Rendered(feature, weights.sum(dim=2), distance)


# ---- the one-pass renderer and its fused twin ----


def _finish(summed: Tensor, opacity: Tensor, distance: Tensor, rays: Rays) -> Rendered:
    """Mean distance where anything was hit, the end of the ray elsewhere."""
    hit = opacity > 1e-4
    distance = torch.where(hit, distance / opacity.clamp_min(1e-4), rays.far[..., None].clamp(0.0, 10.0))
    return Rendered(summed, opacity, distance.detach())


def sample_distances(rays: Rays, samples: int, jitter: Float[Tensor, "B M"]) -> Float[Tensor, "B M S"]:
    """Distances (s + jitter) / S of the way from near to far; one jitter per ray."""
    step = (rays.far - rays.near) / samples
    s = torch.arange(samples, device=jitter.device, dtype=torch.float32)
    return rays.near[..., None] + (s + jitter[..., None]) * step[..., None]


VISIBLE_DENSITY = 0.5
"""Density per world unit below which a cell counts as empty; across a cell of 13 mm it stops 0.6 % of the light."""


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
    """`read_density_plain` in one compiled pass on the CPU; not differentiable."""
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
    axes = [(torch.arange(samples * n) + 0.5) / (samples * n) * 2.0 - 1.0 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    density = read_density(tri_grid, decoder, torch.stack([x, y, z], dim=-1).reshape(-1, 3), config)
    grid = F.max_pool3d(density.reshape(-1, 1, *z.shape), samples)
    return (F.max_pool3d(grid, 3, stride=1, padding=1)[:, 0] > visible).to(torch.uint8)


def occupancy_mask(
    normalized: Float[Tensor, "B N 3"], occupancy: Occupancy, rays: int, samples: int
) -> Float[Tensor, "B N"]:
    """1 where the fused renderer takes a sample: occupied cells and the explored share of the others."""
    n = normalized.shape[0]
    latents, *shape = occupancy.occupied.shape
    size = normalized.new_tensor(shape[::-1])
    cell = ((normalized + 1.0) * 0.5 * size).long()
    cell = torch.minimum(cell.clamp_min(0), size.long() - 1)
    index = (cell[..., 2] * shape[1] + cell[..., 1]) * shape[2] + cell[..., 0]
    grids = occupancy.occupied.reshape(latents, -1).repeat_interleave(n // latents, dim=0)
    taken = grids.gather(1, index) > 0
    ray = np.arange(n * rays)[:, None].repeat(samples, axis=1)
    sample = np.arange(samples)[None].repeat(n * rays, axis=0)
    if occupancy.seed is None:
        return taken.float()
    hashed = np.vectorize(explore_hash.py_func, otypes=[np.int64])(occupancy.seed, ray, sample)
    explored = torch.from_numpy((hashed & EXPLORE_MASK) == 0).reshape(n, -1).to(taken.device)
    return (taken | explored).float()


def render_plain(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    *,
    samples: int,
    jitter: Float[Tensor, "B M"],
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    deform: Deform | None = None,
    noise: Float[Tensor, "B M S"] | None = None,
    occupancy: Occupancy | None = None,
) -> Rendered:
    """One stratified pass: w_k = T_k (1 - exp(-rho_k step)), each sample standing for its interval.

    B is a multiple of L: pictures are latent-major, B / L views of each tri-grid.
    """
    n, m, _ = rays.directions.shape
    t = sample_distances(rays, samples, jitter)
    points = (rays.origins[:, None, None] + t[..., None] * rays.directions[:, :, None]).reshape(n, -1, 3)
    if field is not None:
        points = apply_field(field, points)
    elif deform is not None:
        points = deform(points)
    flat = points.reshape(tri_grid.shape[0], -1, 3)
    density, features = query(tri_grid, decoder, flat, config)
    density, features = density.reshape(n, m, samples), features.reshape(n, m, samples, -1)
    if noise is not None:
        density = density + torch.where(density <= EMPTY_DENSITY, torch.zeros_like(noise), noise)
    step = ((rays.far - rays.near) / samples).clamp_min(0.0)[..., None]
    rho = F.softplus(density + config.density_shift) * config.density_scale
    if occupancy is not None:
        normalized = normalize_points(points, config.box_centre, config.box_half)
        rho = rho * occupancy_mask(normalized, occupancy, m, samples).reshape(n, m, samples)
    optical = rho * step
    through = torch.exp(-(optical.cumsum(dim=-1) - optical))
    weights = through * (1.0 - torch.exp(-optical))
    return _finish(
        (weights[..., None] * features).sum(dim=2),
        weights.sum(dim=2)[..., None],
        (weights * t).sum(dim=2)[..., None],
        rays,
    )


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
            -1 if occupancy is None or occupancy.seed is None else occupancy.seed,
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
    """`render_plain` in one compiled pass on the CPU; differentiable in tri-grid, decoder and field."""
    planes, weights, sizes = kernel_inputs(tri_grid, decoder)
    out = _Fused.apply(planes, *weights, field, rays, jitter, noise, occupancy, samples, config, sizes, stop)
    assert isinstance(out, Tensor)
    return _finish(out[..., :-2], out[..., -2:-1], out[..., -1:], rays)


def can_fuse(tri_grid: Tensor, deform: Deform | None) -> bool:
    """The fused renderer runs on the CPU and warps by a field only; its loops want C divisible by 8."""
    return tri_grid.device.type == "cpu" and deform is None and tri_grid.shape[2] % 8 == 0
