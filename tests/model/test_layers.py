"""Layers against the formulas of equations 2.2, 3 and 8.2, written out the slow way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from portrait360.model.layers import (
    Conv,
    FullyConnected,
    LayerConfig,
    SynthesisLayer,
    ToRGB,
    convolve_1x1,
    fir_kernel,
    normalize_second_moment,
    resize,
    upsample_convolve,
    upsample_convolve_plain,
    upsample_fir,
)


def per_sample_kernels(layer: SynthesisLayer, x, w):
    """Equations 3.1 and 3.2: one modulated, demodulated kernel per sample, each applied on its own."""
    # Convolve each sample with its own kernel.
    style = layer.affine(w)
    rows = []
    for i in range(len(x)):
        kernel = layer.weight * style[i][None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        sample = x[i : i + 1]
        if layer.up and layer.resample == "fir":
            n, c, h, side = sample.shape
            stuffed = torch.zeros(n, c, 2 * h - 1, 2 * side - 1)
            stuffed[:, :, ::2, ::2] = sample
            y = F.conv2d(F.pad(stuffed, (2, 2, 2, 2)), kernel.flip(2, 3))  # a true convolution (equations 3.3)
            k = fir_kernel() * 4
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)).transpose(0, 1), k[None, None]).transpose(0, 1)
        elif layer.up:
            y = F.conv2d(sample.repeat_interleave(2, 2).repeat_interleave(2, 3), kernel, padding=1)
        else:
            y = F.conv2d(sample, kernel, padding=1)
        rows.append(y)

    # Noise, bias and activation.
    y = torch.cat(rows)
    if layer.noise:
        y = y + layer.noise_const * layer.noise_strength
    y = y + layer.bias[:, None, None]
    return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("resample", ["fir", "box"])
@pytest.mark.parametrize("noise", [False, True])
def test_modulated_convolution(up, resample, noise):
    layer = SynthesisLayer(5, 7, 8 if up else 4, LayerConfig(6, None, resample, noise), up=up)
    torch.nn.init.normal_(layer.bias)
    if noise:
        layer.noise_strength.data.fill_(0.3)
    x, w = torch.randn(3, 5, 4, 4), torch.randn(3, 6)
    torch.testing.assert_close(layer(x, w, "const"), per_sample_kernels(layer, x, w), atol=2e-5, rtol=1e-4)


def test_noise_modes_differ_and_none_is_deterministic():
    layer = SynthesisLayer(4, 4, 4, LayerConfig(6))
    layer.noise_strength.data.fill_(1.0)
    x, w = torch.randn(2, 4, 4, 4), torch.randn(2, 6)
    assert torch.equal(layer(x, w, "none"), layer(x, w, "none"))
    assert not torch.equal(layer(x, w, "random"), layer(x, w, "random"))
    assert not torch.equal(layer(x, w, "const"), layer(x, w, "none"))


def test_fir_upsampling_keeps_constants_and_doubles_the_side():
    y = upsample_fir(torch.ones(1, 2, 8, 8), fir_kernel())
    assert y.shape == (1, 2, 16, 16)
    torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 12))


def assert_same_with_gradients(fast, slow, *inputs: torch.Tensor) -> None:
    results = []
    for function in (fast, slow):
        leaves = [v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in inputs]
        out = function(*leaves)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_upsampling_convolution_equals_its_twin(layout):
    x = torch.randn(2, 5, 6, 6).contiguous(memory_format=layout)
    assert_same_with_gradients(upsample_convolve, upsample_convolve_plain, x, torch.randn(7, 5, 3, 3))


def test_layers_fold_large_maps_without_a_difference(monkeypatch):
    layer = SynthesisLayer(5, 7, 32, LayerConfig(6, None, "box", False), up=True)
    x, w = torch.randn(2, 5, 16, 16), torch.randn(2, 6)
    folded = layer(x, w, "none")
    monkeypatch.setattr("portrait360.model.layers.upsample_convolve", upsample_convolve_plain)
    torch.testing.assert_close(folded, layer(x, w, "none"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolution_keeps_layout_and_values(layout):
    x = torch.randn(2, 5, 6, 6).contiguous(memory_format=layout)
    weight, bias = torch.randn(7, 5, 1, 1), torch.randn(7)
    assert convolve_1x1(x, weight, bias).is_contiguous(memory_format=layout)
    assert_same_with_gradients(convolve_1x1, F.conv2d, x, weight, bias)


def test_tri_grid_channels_come_slice_by_slice():
    """Weights in the original's order (plane, feature, slice) give channels in the order (plane, slice, feature)."""
    features, depth = 2, 3
    layer, plain = ToRGB(5, 3 * features * depth, 6, plane_depth=depth), ToRGB(5, 3 * features * depth, 6)
    torch.nn.init.normal_(layer.bias)
    plain.load_state_dict(layer.state_dict())
    x, w = torch.randn(2, 5, 4, 4), torch.randn(2, 6)
    grid = layer(x, w).reshape(2, 3, depth, features, 4, 4)
    torch.testing.assert_close(grid, plain(x, w).reshape(2, 3, features, depth, 4, 4).transpose(2, 3))


def test_to_rgb_has_no_demodulation():
    layer = ToRGB(5, 3, 6)
    x, w = torch.randn(2, 5, 4, 4), torch.randn(2, 6)
    style = layer.affine(w) / math.sqrt(5)
    expected = torch.einsum("bchw,oc,bc->bohw", x, layer.weight[:, :, 0, 0], style)
    torch.testing.assert_close(layer(x, w), expected + layer.bias[:, None, None], atol=1e-5, rtol=1e-4)


def test_fully_connected_gains():
    layer = FullyConnected(6, 4, lr_multiplier=0.01, activation="lrelu", bias_init=2.0)
    x = torch.randn(3, 6)
    y = x @ (layer.weight * 0.01 / math.sqrt(6)).T + layer.bias * 0.01
    torch.testing.assert_close(layer(x), torch.where(y > 0, y, 0.2 * y) * math.sqrt(2))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("resample", ["fir", "box"])
def test_downsampling_convolution(kernel, resample):
    conv = Conv(3, 5, kernel, down=True, resample=resample)
    x = torch.randn(2, 3, 8, 8)
    weight = conv.weight / math.sqrt(3 * kernel**2)
    if resample == "box":
        small = x.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
        y = F.conv2d(small, weight, padding=kernel // 2)
    else:
        pad = 1 if kernel == 1 else 2
        smooth = F.conv2d(F.pad(x, [pad] * 4).reshape(6, 1, 8 + 2 * pad, -1), fir_kernel()[None, None])
        smooth = smooth.reshape(2, 3, smooth.shape[2], -1)
        y = F.conv2d(smooth, weight, stride=2)
    y = y + conv.bias[:, None, None]
    assert y.shape == (2, 5, 4, 4)
    expected = torch.where(y > 0, y, 0.2 * y) * math.sqrt(2) * 0.5
    torch.testing.assert_close(conv(x, gain=0.5), expected, atol=1e-5, rtol=1e-4)


def test_clamp_follows_the_gain():
    conv = Conv(1, 1, 1, clamp=1.0)
    y = conv(torch.full((1, 1, 2, 2), 1e4) * conv.weight.detach().sign(), gain=0.5)
    assert y.max().item() == pytest.approx(0.5)


def test_resize_is_the_identity_at_equal_size():
    x = torch.randn(1, 2, 8, 8)
    assert resize(x, 8) is x
    torch.testing.assert_close(resize(x, 4).mean(), x.mean(), atol=0.2, rtol=0)


def test_second_moment():
    x = normalize_second_moment(torch.randn(4, 64) * 7)
    torch.testing.assert_close(x.square().mean(dim=1), torch.ones(4), atol=1e-5, rtol=0)
