"""Renderers: laws of volume rendering, brute force, and the fused renderer against its plain twin."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from portrait360.config import PRESETS, RenderConfig
from portrait360.geometry.cameras import camera_label, rays
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN, FIELD_SHAPE, apply_field
from portrait360.kernels.lookup import gaps_between, reachable_voxels
from portrait360.model import fused
from portrait360.model.fused import (
    can_query_fused,
    occupied_cells,
    query_fused,
    read_density,
    read_density_plain,
    render_fused,
)
from portrait360.model.rendering import (
    EMPTY_DENSITY,
    Occupancy,
    Sampling,
    bound_rays,
    coarse_depths,
    importance_depths,
    march_midpoints,
    occupancy_mask,
    query,
    render_original,
    render_plain,
)
from portrait360.model.trigrid import Decoder, normalize_points, sample_trigrid
from portrait360.runtime.threads import settle_threads

CONFIG = PRESETS["cpu-64"].model.render


def scene(latents, views, *, features=3, activation="lrelu", side=8, sigmoid=True, nodes=FIELD_SHAPE):
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, feature_activation="sigmoid" if sigmoid else "none")
    channels = 16 if features == 3 else 8  # sizes of presets, for which other tests compile the kernels too
    decoder = Decoder(channels, 2 * channels, features, activation)
    decoder.net[2].bias.data[0] = 0.5
    tri_grid = torch.randn(latents, 3, channels, 3, 16, 16, requires_grad=True)
    camera = camera_label(torch.rand(latents * views) * 6.28, torch.randn(latents * views) * 0.2)
    bounded = bound_rays(*rays(camera, side), config)
    jitter = torch.rand(latents * views, side * side)
    field = (torch.randn(latents * views, *nodes, 3) * 0.01).requires_grad_()
    return config, decoder, tri_grid, bounded, jitter, field


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ({"latents": 2, "views": 2}, {}),
        ({"latents": 2, "views": 1, "features": 8, "activation": "softplus", "sigmoid": False}, {}),
        ({"latents": 1, "views": 2}, {"noise": True}),
        ({"latents": 2, "views": 2}, {"occupancy": 0.5, "seed": 7}),
        ({"latents": 2, "views": 2}, {"occupancy": 0.05, "seed": 7}),
        ({"latents": 2, "views": 2}, {"occupancy": 0.1, "seed": None}),
        ({"latents": 1, "views": 2}, {"occupancy": 0.2, "seed": 7, "field": None}),
        ({"latents": 1, "views": 1}, {"field": None}),
        ({"latents": 1, "views": 2, "nodes": (9, 5, 12)}, {"occupancy": 0.2, "seed": None}),
        ({"latents": 1, "views": 1, "nodes": (36, 42, 30)}, {}),
    ],
)
def test_fused_equals_plain_in_values_and_gradients(case, options):
    config, decoder, tri_grid, bounded, jitter, field = scene(**case)
    samples = 10
    field = options.get("field", field)
    noise = torch.randn(*jitter.shape, samples) if options.get("noise") else None
    occupancy = None
    if options.get("occupancy"):
        cells = (torch.rand(len(tri_grid), 6, 8, 5) < options["occupancy"]).to(torch.uint8)
        occupancy = Occupancy(cells, options["seed"])
    sampling = Sampling(samples, jitter, noise, occupancy)
    plain = render_plain(tri_grid, decoder, bounded, config, sampling, field=field)
    fused = render_fused(tri_grid, decoder, bounded, config, sampling, field=field, stop=0.0)
    assert 0.01 < plain.opacity.mean() < 0.999
    torch.testing.assert_close(fused.features, plain.features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused.opacity, plain.opacity, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused.distance, plain.distance, atol=1e-4, rtol=1e-4)
    a, b = torch.randn_like(plain.features), torch.randn_like(plain.opacity)
    inputs = [tri_grid, *decoder.parameters(), *([] if field is None else [field])]
    expected = torch.autograd.grad((plain.features * a).sum() + (plain.opacity * b).sum(), inputs)
    found = torch.autograd.grad((fused.features * a).sum() + (fused.opacity * b).sum(), inputs)
    for e, f in zip(expected, found, strict=True):
        assert (e - f).norm() < 1e-3 * e.norm()


def test_threads_share_the_work():
    settle_threads(2)
    try:
        test_fused_equals_plain_in_values_and_gradients({"latents": 2, "views": 2}, {"occupancy": 0.5, "seed": 7})
    finally:
        settle_threads(1)


def test_ending_opaque_rays_early_changes_little():
    config, decoder, tri_grid, bounded, jitter, field = scene(1, 1, side=12)
    tri_grid = tri_grid.detach() * 3 + 0.5
    full = render_fused(tri_grid, decoder, bounded, config, Sampling(24, jitter), field=field, stop=0.0)
    short = render_fused(tri_grid, decoder, bounded, config, Sampling(24, jitter), field=field)
    assert full.opacity.max() > 0.999
    assert (full.features - short.features).abs().max() <= fused.STOP_TRANSMITTANCE


@pytest.mark.parametrize("activation", ["lrelu", "softplus"])
def test_densities_read_by_the_kernel_equal_the_plain_ones(activation):
    config, decoder, tri_grid, *_ = scene(2, 1, features=8, activation=activation)
    points = torch.rand(700, 3) * 2 - 1
    expected = read_density_plain(tri_grid, decoder, points, config)
    torch.testing.assert_close(read_density(tri_grid, decoder, points, config), expected, atol=1e-3, rtol=1e-4)


def test_voxels_that_are_not_reachable_lead_nowhere():
    """Samples all over the field, warped: those that end in occupied cells start in marked voxels."""
    config, _, _, _, _, field = scene(2, 2)
    cells = (torch.rand(2, 6, 8, 5) < 0.03).to(torch.uint8)
    low, high = torch.tensor(FIELD_MIN), torch.tensor(FIELD_MAX)
    box = np.array([*config.box_centre, *config.box_half], np.float32)
    shape = np.array(FIELD_SHAPE) - 1
    reachable = np.empty((4, int(shape.prod())), np.uint8)
    reachable_voxels(
        field.detach().numpy().reshape(-1), FIELD_SHAPE, torch.cat([low, high]).numpy(), box,
        cells.numpy().reshape(-1), (6, 8, 5), 2, reachable,
    )  # fmt: skip
    points = low + (high - low) * torch.rand(4, 40000, 3)
    voxel = ((points - low) / (high - low) * torch.from_numpy(shape[::-1].copy())).long().clamp_min(0)
    index = (voxel[..., 2] * shape[1] + voxel[..., 1]) * shape[2] + voxel[..., 0]
    marked = torch.from_numpy(reachable).gather(1, index) > 0
    normalized = normalize_points(apply_field(field.detach(), points), config.box_centre, config.box_half)
    inside = (normalized.abs() < 1).all(dim=2)
    ends = occupancy_mask(normalized, Occupancy(cells), 40000, 1) > 0
    assert 0.005 < (inside & ends).float().mean() < marked.float().mean() < 0.9
    assert not (inside & ends & ~marked).any()


def test_occupied_cells_hold_all_that_is_visible():
    """Cells around every place with density are occupied, cells far from it are not, portrait by portrait."""
    shape = (6, 8, 5)
    config, decoder, tri_grid, *_ = scene(2, 1)
    with torch.no_grad():
        decoder.net[2].weight[0] *= 8.0
        raw, _ = decoder(sample_trigrid(tri_grid, torch.rand(2, 500, 3) * 2 - 1))
        decoder.net[2].bias[0] -= raw.quantile(0.95) + 4.0  # a twentieth of the space is visible
    cells = occupied_cells(tri_grid, decoder, config, shape)
    z, y, x = torch.meshgrid(*[(torch.arange(n) + 0.5) / n * 2 - 1 for n in shape], indexing="ij")
    density = read_density_plain(tri_grid, decoder, torch.stack([x, y, z], dim=-1).reshape(-1, 3), config)
    dense = density.reshape(2, *shape) > fused.VISIBLE_DENSITY
    assert 0 < dense.float().mean() < 0.5
    for latent, k, j, i in torch.cartesian_prod(*[torch.arange(n) for n in (2, *shape)]).tolist():
        around = tuple(slice(max(c - 1, 0), c + 2) for c in (k, j, i))
        assert bool(cells[latent][k, j, i]) == bool(dense[latent][around].any())
    assert not torch.equal(cells[0], cells[1])


def test_density_zero_is_transparent_and_high_density_is_a_wall():
    config, decoder, tri_grid, bounded, jitter, _ = scene(1, 1)
    with torch.no_grad():
        decoder.net[2].weight.zero_()
        decoder.net[2].bias.zero_()
        decoder.net[2].bias[0] = -50.0
        clear = render_plain(tri_grid, decoder, bounded, config, Sampling(16, jitter))
        assert clear.opacity.max() < 1e-6
        decoder.net[2].bias[0] = 50.0
        wall = render_plain(tri_grid, decoder, bounded, config, Sampling(16, jitter))
    middle = wall.opacity.reshape(8, 8)[4, 4]
    assert middle > 0.999
    torch.testing.assert_close(wall.features.reshape(8, 8, 3)[4, 4], torch.full((3,), 0.5), atol=1e-3, rtol=0)


def test_compositing_against_a_loop():
    """Equations 5.6 written ray by ray, sample by sample."""
    config = RenderConfig()
    features, densities = torch.rand(1, 2, 6, 3), torch.randn(1, 2, 6, 1) * 3
    depths = torch.rand(1, 2, 6, 1).sort(dim=2).values + 2
    feature, distance, weights = march_midpoints(features, densities, depths, config)
    for ray in range(2):
        through, colour, total, far = 1.0, torch.zeros(3), 0.0, 0.0
        for k in range(5):
            step = float(depths[0, ray, k + 1] - depths[0, ray, k])
            raw = float(densities[0, ray, k] + densities[0, ray, k + 1]) / 2 - 1.0
            alpha = 1.0 - math.exp(-math.log1p(math.exp(raw)) * step)
            weight = alpha * through
            colour += weight * (features[0, ray, k] + features[0, ray, k + 1]) / 2
            far += weight * float(depths[0, ray, k] + depths[0, ray, k + 1]) / 2
            total += weight
            through *= 1.0 - alpha + 1e-10
        torch.testing.assert_close(feature[0, ray], colour, atol=1e-5, rtol=1e-4)
        assert float(weights[0, ray].sum()) == pytest.approx(total, rel=1e-4)
        assert float(distance[0, ray]) == pytest.approx(far / total, rel=1e-4)


def test_importance_samples_gather_where_the_weight_is():
    depths = coarse_depths(2.0, 3.0, 21, torch.zeros(1, 1, 21, 1))
    weights = torch.zeros(1, 1, 20, 1)
    weights[0, 0, 9:11] = 0.5
    fine = importance_depths(depths, weights, torch.linspace(0, 1, 64)[None, None])
    near = ((fine - 2.5).abs() < 0.12).float().mean()
    assert near > 0.8
    assert fine.min() >= 2.0
    assert fine.max() <= 3.0


def test_both_renderers_agree_on_a_smooth_field():
    """With many samples the published quadrature and the one-pass one tend to the same integral."""
    torch.manual_seed(1)
    decoder = Decoder(8, 16, 3, "softplus")
    tri_grid = torch.nn.functional.interpolate(torch.randn(1, 72, 4, 4), size=16, mode="bicubic")
    tri_grid = tri_grid.reshape(1, 3, 8, 3, 16, 16) * 0.5
    base = dataclasses.replace(CONFIG, density_scale=10.0, density_shift=0.0)
    camera = camera_label(0.4)
    bounded = bound_rays(*rays(camera, 6), base)
    one = render_plain(tri_grid, decoder, bounded, base, Sampling(400, torch.full((1, 36), 0.5)))
    two = dataclasses.replace(base, quadrature="midpoint", samples=800, importance_samples=0)
    other = render_original(tri_grid, decoder, bounded, two)
    inside = (bounded.far - bounded.near).reshape(-1) > 0.2
    difference = (one.opacity - other.opacity).reshape(-1)[inside].abs()
    assert inside.sum() > 4
    assert difference.mean() < 0.05


def test_rays_that_miss_the_boxes_are_empty():
    origins = torch.tensor([[[0.0, 0.0, 2.7], [0.0, 0.0, 2.7]]])
    directions = torch.nn.functional.normalize(torch.tensor([[[0.0, 0.0, -1.0], [1.0, 0.0, 0.2]]]), dim=-1)
    bounded = bound_rays(origins, directions, CONFIG)
    assert bounded.far[0, 0] - bounded.near[0, 0] > 0.2
    assert bounded.far[0, 1] <= bounded.near[0, 1] + 1e-6


def test_trigrid_lookup_of_a_linear_function_is_exact():
    """Planes hold x, y, z at their texel centres; lookups between the centres return the coordinates."""
    side, depth = 16, 3
    centre = (torch.arange(side) + 0.5) / side * 2 - 1
    planes = torch.zeros(1, 3, 2, depth, side, side)
    planes[0, :, 0] = centre[None, None, None, :]
    planes[0, :, 1] = centre[None, None, :, None]
    points = (torch.rand(1, 20, 3) * 2 - 1) * 0.6
    out = sample_trigrid(planes, points)
    x, y, z = points[0].unbind(dim=-1)
    for plane, (a, b) in enumerate(((x, y), (x, z), (y, z))):
        torch.testing.assert_close(out[0, plane, :, 0], a, atol=1e-5, rtol=0)
        torch.testing.assert_close(out[0, plane, :, 1], b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_gaps_equal_their_brute_force(most):
    shape = (5, 6, 7)
    reachable = (torch.rand(2, *shape) < 0.02).to(torch.uint8)
    reachable[0, 2, 3, 1] = 1
    gaps = np.empty((2, 5 * 6 * 7), np.uint8)
    gaps_between(reachable.reshape(2, -1).numpy(), shape, most, gaps)
    places = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), dim=-1).reshape(-1, 3)
    for image in range(2):
        targets = places[reachable[image].reshape(-1) > 0]
        away = (places[:, None] - targets[None]).abs().amax(dim=2)
        expected = away.amin(dim=1).clamp(max=most) if len(targets) else torch.full((len(places),), most)
        assert gaps[image].tolist() == expected.tolist()
    assert gaps.max() >= min(most, 3)


@pytest.mark.parametrize("features", [3, 8])
@pytest.mark.parametrize("crop", [None, 0.1])
def test_compiled_queries_read_what_plain_ones_do(features, crop):
    torch.manual_seed(3)
    config = dataclasses.replace(CONFIG, crop=crop, feature_activation="sigmoid" if features == 3 else "none")
    channels = 16 if features == 3 else 8
    decoder = Decoder(channels, 2 * channels, features, "lrelu")
    tri_grid = torch.randn(2, 3, channels, 3, 12, 12)
    low, half = torch.tensor(config.box_centre), torch.tensor(config.box_half)
    points = low + half * (torch.rand(2, 700, 3) * 2.4 - 1.2)
    assert can_query_fused(tri_grid, decoder)
    with torch.no_grad():
        plain, fast = query(tri_grid, decoder, points, config), query_fused(tri_grid, decoder, points, config)
    inside = ((points - low).abs() < half).all(-1)
    assert 0.3 < inside.float().mean() < 0.9
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(b[inside], a[inside], rtol=1e-4, atol=1e-4)
    assert (fast[0][~inside] == EMPTY_DENSITY).all()
    assert not can_query_fused(torch.zeros(1, 3, 12, 3, 4, 4), decoder)
