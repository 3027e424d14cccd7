"""The original's formulas written out in plain numpy or float64, for what the golden files never reach.

Cameras from behind, with skew, a shifted principal point, other focal lengths; the crop; opaque and empty rays; the
search of importance samples; clamps; the super-resolutions of all sizes; batches of several statistics groups.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait360.config import PRESETS, RenderConfig
from portrait360.geometry.cameras import camera_label, rays
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.model.generator import Generator
from portrait360.model.layers import Conv, LayerConfig, SynthesisLayer, ToRGB, fir_kernel, resize
from portrait360.model.rendering import EMPTY_DENSITY, importance_depths, march_midpoints, query, render_original
from portrait360.model.rendering import bound_rays as bound
from portrait360.model.superres import SuperResolution
from portrait360.model.trigrid import Decoder
from support.presets import TINY_ORIGINAL

CAMERAS = {
    "front": {},
    "back": {"yaw": math.pi},
    "back left, above": {"yaw": 2.4, "pitch": 0.5, "roll": 0.2},
    "wide": {"yaw": -1.0, "focal": 4.2647},
    "narrow, shifted": {"yaw": -2.9, "focal": 9.0, "centre": (0.62, 0.41)},
    "skewed": {"yaw": 0.8, "centre": (0.45, 0.55), "skew": 0.7},
}


def label(yaw=0.0, pitch=0.0, roll=0.0, focal=6.510416666666667, centre=(0.5, 0.5), skew=0.0) -> Tensor:
    c = camera_label(yaw, pitch, roll, focal=focal)
    c[:, 18], c[:, 21] = centre
    c[:, 17] = skew
    c[:, 20] = focal * 1.1 if skew else focal
    return c


def literal_rays(c: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Equations 5.1, pixel by pixel in float64: origin (3,), directions (M, 3)."""
    m, (fx, sk, cx, _, fy, cy) = c[:16].reshape(4, 4), c[16:22]
    directions = []
    for i in range(side):
        for j in range(side):
            u, v = j / side + 0.5 / side, i / side + 0.5 / side
            x = (u - cx + cy * sk / fy - sk * v / fy) / fx
            point = m @ np.array([x, (v - cy) / fy, 1.0, 1.0])
            ray = point[:3] - m[:3, 3]
            directions.append(ray / np.sqrt((ray**2).sum()))
    return m[:3, 3], np.array(directions)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays(name):
    c = label(**CAMERAS[name])
    origins, directions = rays(c, 6)
    o, d = literal_rays(c[0].double().numpy(), 6)
    assert np.abs(origins[0].numpy() - o).max() < 1e-6
    assert np.abs(directions[0].numpy() - d).max() < 1e-6


# ---- a whole render, ray by ray ----


def literal_lookup(planes: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Equations 5.3 for one point q in [-1, 1]^3: mean over the planes of trilinear lookups, zeros outside."""
    _, features, depth, height, width = planes.shape
    x, y, z = q
    total = np.zeros(features)
    for plane, axes in enumerate(((x, y, z), (x, z, y), (y, z, x))):
        at = [((a + 1) * n - 1) / 2 for a, n in zip(axes, (width, height, depth), strict=True)]
        low = [math.floor(a) for a in at]
        for corner in range(8):
            index = [low[k] + (corner >> k & 1) for k in range(3)]
            if all(0 <= n < size for n, size in zip(index, (width, height, depth), strict=True)):
                weight = np.prod([1 - abs(a - n) for a, n in zip(at, index, strict=True)])
                total += weight * planes[plane, :, index[2], index[1], index[0]]
    return total / 3


def literal_march(sigma, features, t, shift=-1.0):
    """Equations 5.6 for one ray; the depth is not clamped."""
    colour, opacity, distance, through, weights = 0.0, 0.0, 0.0, 1.0, []
    for k in range(len(t) - 1):
        rho = np.logaddexp(0.0, (sigma[k] + sigma[k + 1]) / 2 + shift)
        alpha = 1 - math.exp(-rho * (t[k + 1] - t[k]))
        weight = alpha * through
        weights.append(weight)
        colour = colour + weight * (features[k] + features[k + 1]) / 2
        opacity += weight
        distance += weight * (t[k] + t[k + 1]) / 2
        through *= 1 - alpha + 1e-10
    return colour, opacity, distance, weights


def literal_importance(t, weights, us):
    """Equations 5.7 for one ray."""
    padded = [-np.inf, *weights, -np.inf]
    largest = [max(padded[i], padded[i + 1]) for i in range(len(padded) - 1)]
    smooth = [(largest[i] + largest[i + 1]) / 2 + 0.01 for i in range(len(largest) - 1)]
    bins = [(t[i] + t[i + 1]) / 2 for i in range(len(t) - 1)]
    pdf = np.array(smooth[1:-1]) + 1e-5
    cdf = [0.0, *np.cumsum(pdf / pdf.sum())]
    found = []
    for u in us:
        k = sum(c <= u for c in cdf)
        low, high = max(k - 1, 0), min(k, len(cdf) - 1)
        span = cdf[high] - cdf[low]
        found.append(bins[low] + (u - cdf[low]) / (span if span >= 1e-5 else 1.0) * (bins[high] - bins[low]))
    return found


@pytest.mark.parametrize("name", CAMERAS)
def test_a_render_ray_by_ray(name):
    """Sampling, lookup, decoder, crop, both passes and the merge against loops in float64."""
    torch.manual_seed(0)
    config = RenderConfig(samples=10, importance_samples=9)
    decoder = Decoder(4, 8, 3, "softplus").requires_grad_(False)
    decoder.net[2].weight[0] *= 12
    planes = torch.nn.functional.interpolate(torch.randn(9, 4, 5, 5), size=16, mode="bicubic")
    planes = planes.reshape(3, 3, 4, 16, 16).transpose(1, 2).contiguous()[None]
    c = label(**CAMERAS[name])
    trace: dict[str, Tensor] = {}
    out = render_original(planes, decoder, bound(*rays(c, 5), config), config, trace=trace)
    w1, b1, w2, b2 = (v.double().numpy() for v in decoder.parameters_as_used())
    grid = planes[0].double().numpy()
    o, directions = literal_rays(c[0].double().numpy(), 5)

    def shade(p):
        h = np.logaddexp(0.0, w1 @ literal_lookup(grid, 2 * p) + b1)
        y = w2 @ h + b2
        inside = abs(p[0]) <= 0.4 and abs(p[2]) <= 0.4
        return (y[0] if inside else -1000.0), y[1:]

    step = (3.3 - 2.25) / 9
    opacities = []
    for ray, d in enumerate(directions):
        coarse = [2.25 + k * step + 0.5 * step for k in range(10)]
        shaded = [shade(o + t * d) for t in coarse]
        weights = literal_march(*zip(*shaded, strict=True), coarse)[3]
        fine = literal_importance(coarse, weights, np.linspace(0, 1, 9))
        assert np.abs(trace["depths_fine"][0, ray, :, 0].numpy() - fine).max() < 2e-5
        shaded += [shade(o + t * d) for t in fine]
        order = np.argsort(coarse + fine, kind="stable")
        sigma, feature = zip(*(shaded[i] for i in order), strict=True)
        colour, opacity, distance, _ = literal_march(sigma, feature, np.array(coarse + fine)[order])
        assert np.abs(out.features[0, ray].numpy() - colour).max() < 2e-4
        assert float(out.opacity[0, ray]) == pytest.approx(opacity, abs=1e-4)
        if opacity > 1e-3:
            assert float(out.distance[0, ray]) == pytest.approx(distance / opacity, abs=1e-4)
        opacities.append(opacity)
    assert max(opacities) > 0.5


# ---- hard switches and special rays ----


def test_the_crop_leaves_height_alone():
    """Equations 5.5: |x| and |z| up to 0.4 inclusive, any y."""
    decoder = Decoder(4, 8, 3, "softplus")
    points = torch.tensor(
        [[[0.4, 0.0, 0.0], [0.401, 0, 0], [0, 0, -0.4], [0, 0, -0.401], [0, 0.49, 0], [0.1, -3.0, 0.1]]]
    )
    planes = torch.randn(1, 3, 4, 3, 8, 8)
    density, _ = query(planes, decoder, points, RenderConfig())
    free, _ = query(planes, decoder, points, RenderConfig(), crop=False)
    cropped = torch.tensor([False, True, False, True, False, False])
    assert torch.equal(density[0, :, 0] == EMPTY_DENSITY, cropped)
    assert torch.equal(density[0, ~cropped], free[0, ~cropped])


def test_light_behind_an_opaque_sample_is_ten_to_the_minus_ten():
    """Equations 5.6: T = 1 - alpha + 1e-10, with alpha exactly 1."""
    density = torch.tensor([1e6, 1e6, 1e6, -1e6]).reshape(1, 1, 4, 1)
    t = torch.tensor([2.0, 2.1, 2.2, 2.3]).reshape(1, 1, 4, 1)
    _, _, weights = march_midpoints(torch.zeros(1, 1, 4, 3), density, t, RenderConfig())
    torch.testing.assert_close(weights.reshape(-1), torch.tensor([1.0, 1e-10, 0.0]))


def test_empty_rays_get_the_largest_depth_of_the_whole_batch():
    """Equations 5.6: no weight at all gives infinity, clamped to the depths of all rays of all images."""
    density = torch.full((2, 2, 4, 1), -1000.0)
    t = torch.linspace(2.0, 2.3, 4).reshape(1, 1, 4, 1).repeat(2, 2, 1, 1)
    t[1, 1] += 0.5
    _, distance, weights = march_midpoints(torch.zeros(2, 2, 4, 3), density, t, RenderConfig())
    assert weights.max() == 0
    torch.testing.assert_close(distance, torch.full((2, 2, 1), 2.8))


def test_small_alphas_are_float32_steps():
    """Equations 5.6: alpha = 1 - exp(-x) in float32, correctly rounded: 0 below 2^-25, then multiples of 2^-24."""
    x = torch.tensor([1e-9, 2.9e-8, 3.1e-8, 8.8e-8, 9.1e-8, 1.0])
    density = torch.log(torch.expm1(x.double() / 0.1)).float() + 1.0
    density = torch.stack([density, density], dim=-1)[None, :, :, None]
    t = torch.tensor([2.0, 2.1]).reshape(1, 1, 2, 1).expand(1, 6, 2, 1)
    _, _, weights = march_midpoints(torch.zeros(1, 6, 2, 3), density, t, RenderConfig())
    steps = weights.reshape(-1).double() * 2.0**24
    assert steps[:5].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert float(weights[0, 5]) == pytest.approx(1 - math.exp(-1.0), rel=1e-5)


def test_importance_search_takes_the_right_side():
    """Equations 5.7: a u that equals cdf entries belongs behind the last one; u = 1 gives the last edge in reach."""
    t = torch.linspace(2.0, 3.0, 11)
    weights = torch.zeros(10)  # eight equal bins: the cdf holds multiples of 1/8, exact in float32
    us = torch.tensor([0.0, 0.125, 0.5, 0.99, 1.0])
    fine = importance_depths(t.reshape(1, 1, 11, 1), weights.reshape(1, 1, 10, 1), us.reshape(1, 1, 5))
    expected = literal_importance(t.tolist(), weights.tolist(), us.tolist())
    assert np.abs(fine.reshape(-1).numpy() - expected).max() < 2e-6
    assert float(fine.reshape(-1)[-1]) == pytest.approx(2.85, abs=1e-5)  # the edge at 2.95 is never reached
    peaked = torch.zeros(10)
    peaked[4] = 1e6  # other bins get less than 1e-5 of the cdf: their span counts as 1, and the cdf stays 1 behind
    fine = importance_depths(t.reshape(1, 1, 11, 1), peaked.reshape(1, 1, 10, 1), us.reshape(1, 1, 5))
    expected = literal_importance(t.tolist(), peaked.tolist(), us[:4].tolist())
    assert np.abs(fine.reshape(-1)[:4].numpy() - expected).max() < 2e-5
    assert float(fine.reshape(-1)[-1]) == pytest.approx(2.85, abs=1e-5)  # a search from the left: 2.65


# ---- clamps ----


def test_super_resolution_layers_clamp_at_256():
    layer, rgb = SynthesisLayer(4, 5, 8, LayerConfig(6, 256.0)).eval(), ToRGB(4, 3, 6, clamp=256.0)
    x, w = torch.randn(2, 4, 8, 8) * 1e5, torch.randn(2, 6)
    torch.nn.init.normal_(layer.bias, std=300.0)
    for module, arguments in ((layer, (x, w, "none")), (rgb, (x, w))):
        clamped = module(*arguments)
        module.clamp = None
        free = module(*arguments)
        assert free.abs().max() > 300
        assert torch.equal(clamped, free.clamp(-256.0, 256.0))


@pytest.mark.parametrize(("gain", "limit"), [(1.0, 256.0), (math.sqrt(0.5), 256.0 * math.sqrt(0.5))])
def test_discriminator_layers_clamp_after_the_gain(gain, limit):
    """Equations 8.2, 8.3: 256 times the extra gain, about 181.02 for the second convolution of a block."""
    conv = Conv(3, 5, 3, down=True, clamp=256.0)
    x = torch.randn(2, 3, 8, 8) * 1e4
    clamped = conv(x, gain)
    conv.clamp = None
    free = conv(x, gain)
    assert torch.equal(clamped, free.clamp(-limit, limit))
    assert free.max() > limit
    assert conv.activation == "lrelu"


# ---- super-resolution of the released sizes ----


def double_up(image: Tensor) -> Tensor:
    """Equations 3.5 in float64: zero-stuffed, padded 2 before and 1 after, [1, 3, 3, 1] filter of gain 4."""
    n, c, h, w = image.shape
    stuffed = torch.zeros(n, c, 2 * h, 2 * w, dtype=torch.float64)
    stuffed[:, :, ::2, ::2] = image
    padded = F.pad(stuffed, (2, 1, 2, 1)).reshape(n * c, 1, 2 * h + 3, 2 * w + 3)
    return F.conv2d(padded, fir_kernel().double()[None, None] * 4).reshape(n, c, 2 * h, 2 * w)


def double_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """Equations 3.1 in float64, sample by sample; up-sampling as a true convolution of the zero-stuffed map (3.3)."""
    style = w @ (layer.affine.weight.double() / math.sqrt(w.shape[1])).T + layer.affine.bias.double()
    rows = []
    for i in range(len(x)):
        kernel = layer.weight.double() * style[i][None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up:
            _, c, h, side = x.shape
            stuffed = torch.zeros(1, c, 2 * h - 1, 2 * side - 1, dtype=torch.float64)
            stuffed[:, :, ::2, ::2] = x[i]
            y = F.conv2d(F.pad(stuffed, (2, 2, 2, 2)), kernel.flip(2, 3))
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)).transpose(0, 1), fir_kernel().double()[None, None] * 4).transpose(0, 1)
        else:
            y = F.conv2d(x[i : i + 1], kernel, padding=1)
        rows.append(y)
    y = torch.cat(rows) + layer.bias.double()[:, None, None]
    return (torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)).clamp(-256, 256)


def double_colour(layer: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    """Equations 3.4 in float64."""
    style = w @ (layer.affine.weight.double() / math.sqrt(w.shape[1])).T + layer.affine.bias.double()
    style = style / math.sqrt(x.shape[1])
    y = torch.einsum("bchw,oc,bc->bohw", x, layer.weight.double()[:, :, 0, 0], style)
    return (y + layer.bias.double()[:, None, None]).clamp(-256, 256)


def double_resize(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


@pytest.mark.parametrize(
    ("resolution", "side", "resized"),
    [
        (512, 16, False), (512, 8, True), (512, 32, True), (256, 16, False), (256, 8, True), (256, 32, False),
        (128, 16, False), (128, 8, True), (128, 32, True),
    ],
)  # fmt: skip
def test_super_resolution(resolution, side, resized):
    """Equations 7.2-7.4 with 16 as the input side: only the network of 7.3 keeps larger features as they are."""
    torch.manual_seed(0)
    config = PRESETS[f"original-{resolution}"].model.superresolution
    small = dataclasses.replace(config, input_resolution=16, channels=(6, 4))
    network = SuperResolution(small, 5, 7).eval().requires_grad_(False)
    for p in network.parameters():
        torch.nn.init.normal_(p)
    raw, features, w = torch.randn(2, 3, side, side), torch.randn(2, 5, side, side), torch.randn(2, 7)
    image, x, style = raw.double(), features.double(), w.double()
    if resized:
        image, x = double_resize(image, 16), double_resize(x, 16)
    for block, up in ((network.block0, resolution == 512), (network.block1, True)):
        x = double_layer(block.conv1, double_layer(block.conv0, x, style), style)
        image = (double_up(image) if up else image) + double_colour(block.torgb, x, style)
    found = network(raw, features, w)
    assert found.shape[-1] == (16 if resized else side) * (4 if resolution == 512 else 2)
    torch.testing.assert_close(found.double(), image, atol=2e-4, rtol=1e-5)


# ---- whole networks: noise, statistics groups ----


def test_noise_is_one_map_for_all_channels_and_samples():
    """Equations 3.1: constant noise times its strength after demodulation, before the bias; `none` leaves it out."""
    torch.manual_seed(0)
    layer = SynthesisLayer(4, 5, 8, LayerConfig(6)).eval().requires_grad_(False)
    layer.noise_strength.fill_(0.7)
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 6)

    def before(y: Tensor) -> Tensor:
        y = y / math.sqrt(2)
        return torch.where(y > 0, y, y / 0.2)

    difference = before(layer(x, w, "const")) - before(layer(x, w, "none"))
    torch.testing.assert_close(difference, (0.7 * layer.noise_const).expand(2, 5, 8, 8), atol=1e-5, rtol=1e-4)


def test_eight_images_make_two_statistics_groups():
    """Equations 8.4: images 0, 2, 4, 6 and 1, 3, 5, 7 get the logits of batches of their own."""
    torch.manual_seed(0)
    d = Discriminator(TINY_ORIGINAL.model).eval().requires_grad_(False)
    camera = camera_label(torch.linspace(-3.0, -0.2, 8))
    images = DiscriminatorInput(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 16, 16), torch.rand(8, 1, 16, 16))
    logits, poses = d(images, camera)
    for offset in (0, 1):
        alone, pose = d(images.map(lambda t, o=offset: t[o::2]), camera[offset::2])
        torch.testing.assert_close(logits[offset::2], alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(poses[offset::2], pose, atol=1e-5, rtol=1e-4)
    mixed, _ = d(images.map(lambda t: t[:4]), camera[:4])
    assert (mixed - logits[:4]).abs().max() > 1e-6


def test_the_background_image_has_its_own_style():
    """Equations 5.9: composites are coloured by the portrait's style, the background alone by the background's."""
    torch.manual_seed(0)
    g = Generator(TINY_ORIGINAL.model).eval().requires_grad_(False)
    w = torch.randn(2, g.config.w_dim)
    camera = camera_label(torch.tensor([0.2, -0.9]))
    own = g.render(g.scene(w), camera, resolution=8, plain=True)
    swapped = g.render(g.scene(w, w.flip(0)), camera, resolution=8, plain=True)
    torch.testing.assert_close(swapped.background, own.background.flip(0))
    behind = swapped.features - own.features
    transparent = (1.002 - 0.001 - own.mask) / 1.002
    scene = g.scene(w)
    difference = resize(scene.background, 8).flip(0) - resize(scene.background, 8)
    torch.testing.assert_close(behind, transparent * difference, atol=1e-4, rtol=1e-4)
