"""Volume rendering of the tri-grid (equations 5): the plain renderers, and the fused one's twin.

`render_original` is the published two-pass renderer; `two_pass.render_two_pass` is its fast twin for inference.
`render_plain` is the one-pass renderer of this project's own presets; `fused.render_fused` computes the same in one
compiled pass and is its fast twin. `Generator.cast` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.geometry.cameras import ray_box
from portrait360.geometry.deformation import apply_field
from portrait360.kernels.rays import EXPLORE_MASK, explore_hash
from portrait360.model.trigrid import Decoder, TriGrid, normalize_points, sample_trigrid

EMPTY_DENSITY = -1000.0
"""Raw density of cropped space, before shift and softplus (equations 5.5)."""

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
    taken all the same, to find new density in training; None takes none. As a tensor (int32) it may stay on a GPU."""

    occupied: UInt8[Tensor, "L nz ny nx"]
    seed: int | Int[Tensor, ""] | None = None


@dataclass(frozen=True)
class Sampling:
    """Where the one-pass renderers sample rays."""

    count: int
    """Samples per ray."""
    jitter: Float[Tensor, "B M"]
    """Where in its interval each sample of a ray lies, 0 to 1."""
    noise: Float[Tensor, "B M S"] | None = None
    """On raw densities."""
    occupancy: Occupancy | None = None
    """None: samples are taken everywhere."""


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


def image_width(rays: int) -> int:
    """Columns of a square image; one row when the rays are not a square image."""
    side = math.isqrt(rays)
    return side if side * side == rays else rays


# ---- the original two-pass renderer ----


def coarse_depths(near: float, far: float, samples: int, jitter: Float[Tensor, "B M S 1"]) -> Float[Tensor, "B M S 1"]:
    """linspace plus jitter times the spacing; the last sample may lie past `far` (equations 5.2)."""
    step = (far - near) / (samples - 1)
    return torch.linspace(near, far, samples, device=jitter.device).reshape(1, 1, samples, 1) + jitter * step


@torch.no_grad()
def importance_depths(
    depths: Float[Tensor, "B M S 1"], weights: Float[Tensor, "B M S1 1"], u: Float[Tensor, "B M I"]
) -> Float[Tensor, "B M I 1"]:
    """Inverse-transform samples of the smoothed coarse weights (equations 5.7)."""
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
    """Composite neighbours' averages (equations 5.6). Returns feature, distance, weights [B, M, K-1, 1]."""

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
    tri_grid: TriGrid,
    decoder: Decoder,
    points: Float[Tensor, "B N 3"],
    config: RenderConfig,
    *,
    crop: bool = True,
):
    """Raw density [B, N, 1] and activated features [B, N, F] at canonical points."""
    normalized = normalize_points(points, config.box_centre, config.box_half)
    density, features = decoder(sample_trigrid(tri_grid, normalized))
    return activated(density, features, points, normalized, config, crop=crop)


def activated(
    density: Float[Tensor, "B N 1"],
    features: Float[Tensor, "B N F"],
    points: Float[Tensor, "B N 3"],
    normalized: Float[Tensor, "B N 3"],
    config: RenderConfig,
    *,
    crop: bool = True,
) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N F"]]:
    """What the decoder gave at points, emptied outside of the box (`crop`), and features activated."""
    if config.feature_activation == "sigmoid":
        features = torch.sigmoid(features)
    if crop:
        if config.crop is None:
            inside = (normalized.abs() < 1.0).all(dim=-1, keepdim=True)
        else:
            inside = (points[..., 0:1].abs() <= config.crop) & (points[..., 2:3].abs() <= config.crop)
        density = torch.where(inside, density, torch.full_like(density, EMPTY_DENSITY))
    return density, features


@dataclass(frozen=True)
class TwoPassDraws:
    """What is random in a two-pass render."""

    jitter: Float[Tensor, "B M S 1"] | None = None
    """Where in its interval each coarse sample lies, 0 to 1; None: in the middle."""
    density_noise: float = 0.0
    """Standard deviation of the noise on raw densities."""


def render_original(
    tri_grid: TriGrid,
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    *,
    deform: Deform | None = None,
    draws: TwoPassDraws | None = None,
    trace: dict[str, Tensor] | None = None,
) -> Rendered:
    """Coarse pass, importance samples, merge, composite (equations 5.2-5.8).

    `draws`: what is random in training; None: nothing.
    `trace` is filled with `depths_coarse` [B, M, S, 1], `weights_coarse` [B, M, S-1, 1] and `depths_fine` [B, M, I, 1].
    """
    draws = draws or TwoPassDraws()
    n, m, _ = rays.directions.shape
    device = rays.directions.device

    # What a pass reads at distances along the rays.
    def shade(t: Tensor) -> tuple[Tensor, Tensor]:
        points = (rays.origins[:, None, None] + t * rays.directions[:, :, None]).reshape(n, -1, 3)
        density, feature = query(tri_grid, decoder, points if deform is None else deform(points), config)
        if draws.density_noise > 0:
            density = torch.where(
                density <= EMPTY_DENSITY, density, density + torch.randn_like(density) * draws.density_noise
            )
        return density.reshape(n, m, -1, 1), feature.reshape(n, m, t.shape[2], -1)

    # Coarse pass.
    jitter = torch.full((n, m, config.samples, 1), 0.5, device=device) if draws.jitter is None else draws.jitter
    t0 = coarse_depths(config.near, config.far, config.samples, jitter)
    density0, feature0 = shade(t0)
    feature, distance, weights = march_midpoints(feature0, density0, t0, config)
    if trace is not None:
        trace |= {"depths_coarse": t0, "weights_coarse": weights}
    if not config.importance_samples:
        return Rendered(feature, weights.sum(dim=2), distance)

    # Importance samples.
    count = config.importance_samples
    t1 = importance_depths(t0, weights, torch.linspace(0.0, 1.0, count, device=device).expand(n, m, count))
    if trace is not None:
        trace["depths_fine"] = t1
    density1, feature1 = shade(t1)

    # Both by distance.
    order = torch.cat([t0, t1], dim=2).argsort(dim=2)

    def merge(a: Tensor, b: Tensor) -> Tensor:
        v = torch.cat([a, b], dim=2)
        return v.gather(2, order.expand(-1, -1, -1, v.shape[-1]))

    feature, distance, weights = march_midpoints(
        merge(feature0, feature1), merge(density0, density1), merge(t0, t1), config
    )
    return Rendered(feature, weights.sum(dim=2), distance)


# ---- the one-pass renderer and its fused twin ----


def finish(summed: Tensor, opacity: Tensor, distance: Tensor, rays: Rays) -> Rendered:
    """Mean distance where anything was hit, the end of the ray elsewhere."""
    hit = opacity > 1e-4
    distance = torch.where(hit, distance / opacity.clamp_min(1e-4), rays.far[..., None].clamp(0.0, 10.0))
    return Rendered(summed, opacity, distance.detach())


def sample_distances(rays: Rays, samples: int, jitter: Float[Tensor, "B M"]) -> Float[Tensor, "B M S"]:
    """Distances (s + jitter) / S of the way from near to far; one jitter per ray."""
    step = (rays.far - rays.near) / samples
    s = torch.arange(samples, device=jitter.device, dtype=torch.float32)
    return rays.near[..., None] + (s + jitter[..., None]) * step[..., None]


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
    if occupancy.seed is None:
        return taken.float()
    ray = np.arange(n * rays)[:, None].repeat(samples, axis=1)
    sample = np.arange(samples)[None].repeat(n * rays, axis=0)
    hashed = np.vectorize(explore_hash.py_func, otypes=[np.int64])(int(occupancy.seed), ray, sample)
    explored = torch.from_numpy((hashed & EXPLORE_MASK) == 0).reshape(n, -1).to(taken.device)
    return (taken | explored).float()


def render_plain(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    sampling: Sampling,
    *,
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    deform: Deform | None = None,
) -> Rendered:
    """One stratified pass: w_k = T_k (1 - exp(-rho_k step)), each sample standing for its interval.

    B is a multiple of L: images are latent-major, B / L views of each tri-grid.
    """
    # Place the samples and bring them to canonical space.
    n, m, _ = rays.directions.shape
    samples, noise = sampling.count, sampling.noise
    t = sample_distances(rays, samples, sampling.jitter)
    points = (rays.origins[:, None, None] + t[..., None] * rays.directions[:, :, None]).reshape(n, -1, 3)
    if field is not None:
        points = apply_field(field, points)
    elif deform is not None:
        points = deform(points)

    # Decode them, the views of a tri-grid together.
    flat = points.reshape(tri_grid.shape[0], -1, 3)
    density, features = query(tri_grid, decoder, flat, config)
    density, features = density.reshape(n, m, samples), features.reshape(n, m, samples, -1)
    if noise is not None:
        density = density + torch.where(density <= EMPTY_DENSITY, torch.zeros_like(noise), noise)

    # Composite; samples that are not taken have no density.
    step = ((rays.far - rays.near) / samples).clamp_min(0.0)[..., None]
    rho = F.softplus(density + config.density_shift) * config.density_scale
    if sampling.occupancy is not None:
        normalized = normalize_points(points, config.box_centre, config.box_half)
        rho = rho * occupancy_mask(normalized, sampling.occupancy, m, samples).reshape(n, m, samples)
    optical = rho * step
    through = torch.exp(-(optical.cumsum(dim=-1) - optical))
    weights = through * (1.0 - torch.exp(-optical))
    return finish(
        (weights[..., None] * features).sum(dim=2),
        weights.sum(dim=2)[..., None],
        (weights * t).sum(dim=2)[..., None],
        rays,
    )
