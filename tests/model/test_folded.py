"""The folded layers of inference equal the plain ones, whose form training uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.config import SuperResolutionConfig, SynthesisConfig
from portrait360.kernels.fir import add_upsampled
from portrait360.model import folded
from portrait360.model.folded import fold_precision
from portrait360.model.layers import LayerConfig, SynthesisLayer, fir_kernel, upsample_fir
from portrait360.model.superres import SuperResolution
from portrait360.model.synthesis import SynthesisNetwork


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """All parameters away from their special initial values (unit affine bias, zero noise strength)."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(5)


@pytest.fixture
def folded_layers(monkeypatch):
    """Counts the folded layers that ran."""
    calls = []
    real = folded.folded_layer
    monkeypatch.setattr(folded, "folded_layer", lambda layer, *rest: calls.append(layer) or real(layer, *rest))
    return calls


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("noise_mode", ["const", "none"])
@pytest.mark.parametrize("side", [4, 8])  # 80 and 320 numbers in the map, 315 in the weight
def test_a_layer(up, clamp, noise_mode, side):
    layer = stirred(SynthesisLayer(5, 7, 2 * side if up else side, LayerConfig(12, clamp), up=up))
    x, w = torch.randn(1, 5, side, side), torch.randn(1, 12)
    with torch.no_grad():
        expected = layer(x, w, noise_mode)
        found = folded.folded_layer(layer, x.contiguous(memory_format=torch.channels_last), w, noise_mode)
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=1e-5)
    if clamp is not None:
        assert expected.max() == clamp


def test_random_noise_is_of_the_same_strength():
    layer = stirred(SynthesisLayer(3, 4, 32, LayerConfig(6)))
    layer.noise_strength.data.fill_(0.5)
    x, w = torch.randn(1, 3, 32, 32), torch.randn(1, 6)
    with torch.no_grad():
        still = folded.folded_layer(layer, x, w, "none")
        noisy = folded.folded_layer(layer, x, w, "random")
        plain = layer(x, w, "random")
    assert (noisy - still).std() == pytest.approx(float((plain - still).std()), rel=0.15)
    assert not torch.equal(noisy, plain)


def test_skip_connection():
    image, rgb = torch.randn(1, 5, 6, 6), torch.randn(1, 5, 12, 12)
    expected = rgb + upsample_fir(image, fir_kernel())
    torch.testing.assert_close(folded.folded_skip(image, rgb.clone()), expected, atol=1e-6, rtol=0)


def test_skip_connection_of_one_pixel():
    out = np.zeros((2, 2, 1), np.float32)
    add_upsampled(np.ones((1, 1, 1), np.float32), out)
    np.testing.assert_allclose(out[..., 0], upsample_fir(torch.ones(1, 1, 1, 1), fir_kernel())[0, 0].numpy())


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_a_tri_grid_network(noise_mode, folded_layers):
    network = stirred(SynthesisNetwork(SynthesisConfig((16, 12, 8, 16)), 24, 18, 3))
    ws = torch.randn(3, 8, 24)
    with torch.no_grad():  # gradients switched off around a call do not choose its form
        expected = network(ws, noise_mode)
    assert folded_layers == []
    found = network(ws, noise_mode, gradients=False)
    assert not found.requires_grad
    assert len(folded_layers) == 3 * 7
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SuperResolutionConfig(16, (12, 8), up_first=True, clamp=2.0),
        SuperResolutionConfig(16, (12, 8), resize="smaller", filter_buffer=True),
    ],
)
def test_super_resolution(config, folded_layers):
    network = stirred(SuperResolution(config, 8, 24))
    raw, features, w = torch.randn(2, 3, 16, 16), torch.randn(2, 8, 16, 16), torch.randn(2, 24)
    before = raw.clone()
    expected = network(raw, features, w).detach()
    found = network(raw, features, w, gradients=False)
    assert len(folded_layers) == 2 * 4
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(raw, before)


@pytest.mark.parametrize("band", [4, 6, 16])
def test_super_resolution_in_bands_of_rows(band, monkeypatch, folded_layers):
    monkeypatch.setattr(folded, "BAND", band)
    network = stirred(SuperResolution(SuperResolutionConfig(16, (12, 8), up_first=True), 8, 24))
    raw, features, w = torch.randn(1, 3, 16, 16), torch.randn(1, 8, 16, 16), torch.randn(1, 24)
    expected = network(raw, features, w).detach()
    found = network(raw, features, w, gradients=False)
    assert len(folded_layers) == 2 + 2 * -(-32 // band)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_bf16_inside_of_autocast(folded_layers):
    """Close to float32: bf16 has 8 bits, so that each of ten convolutions may add some 0.3 per cent."""
    network = stirred(SuperResolution(SuperResolutionConfig(16, (24, 16), up_first=True), 8, 24))
    raw, features, w = torch.randn(1, 3, 16, 16), torch.randn(1, 8, 16, 16), torch.randn(1, 24)
    exact = network(raw, features, w, gradients=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(raw, features, w, gradients=False)
    assert len(folded_layers) == 8
    assert found.dtype == torch.float32
    error = (found - exact).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.02


def test_where_the_folded_forms_stand_in():
    x = torch.zeros(1)
    assert fold_precision(x, gradients=True) is None
    assert fold_precision(x, gradients=False) is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fold_precision(x, gradients=False) is torch.bfloat16
    assert fold_precision(torch.zeros(1, device="meta"), gradients=False) is None
