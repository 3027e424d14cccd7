"""The pyramid of tri-grids: what its layers read, its folded twin, and lookups in all of its levels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.config import SynthesisConfig
from portrait360.geometry.cameras import camera_label
from portrait360.model.folded import rolled_convolution
from portrait360.model.generator import Generator, RenderDraws
from portrait360.model.layers import LayerConfig, SynthesisLayer, ToRGB, roll_out
from portrait360.model.pyramid import PyramidSynthesis
from portrait360.model.rendering import Occupancy
from portrait360.model.trigrid import sample_trigrid
from support.presets import TINY_PYRAMID

CHANNELS, DEPTH = 36, 3


def network(channels=(CHANNELS,) * 3, first=4) -> PyramidSynthesis:
    torch.manual_seed(1)
    made = PyramidSynthesis(SynthesisConfig(channels, pyramid_from=first), 16, CHANNELS, DEPTH)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.normal_()
    return made.eval().requires_grad_(False)


def test_roll_out_in_the_words_of_the_equations():
    """Equations 15.4, element by element."""
    torch.manual_seed(0)
    channels, side = 2, 5
    planes = torch.randn(2, 3, channels, side, side)
    found = roll_out(planes.flatten(0, 1)).unflatten(0, (2, 3))
    for n in range(2):
        p0, p1, p2 = planes[n]
        for h in range(side):
            for w in range(side):
                expected = [
                    (p0[:, h, w], p1[:, :, h].mean(1), p2[:, w, :].mean(1)),
                    (p0[:, w, :].mean(1), p1[:, h, w], p2[:, :, h].mean(1)),
                    (p0[:, :, h].mean(1), p1[:, w, :].mean(1), p2[:, h, w]),
                ]
                for p in range(3):
                    torch.testing.assert_close(found[n, p, :, h, w], torch.cat(expected[p]))


@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((2, 2), (1, 1)), ((1, 2), (0, 1)), ((1, 1), (0, 0))]
)
def test_convolving_without_rolling_out(kernel, padding):
    torch.manual_seed(0)
    planes, weight, bias = torch.randn(3, 4, 6, 6), torch.randn(5, 12, *kernel), torch.randn(5)
    expected = torch.nn.functional.conv2d(roll_out(planes), weight, bias, padding=padding)
    found = torch.cat([rolled_convolution(planes, p)(weight, bias, padding) for p in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_each_plane_has_its_own_style():
    """Setting the style of one plane to zero leaves nothing of that plane but noise and bias."""
    layer = SynthesisLayer(4, 5, 8, LayerConfig(6, planes=3)).eval().requires_grad_(False)
    layer.affine.weight.zero_()
    layer.affine.bias[12:24] = 0.0
    out = layer(torch.randn(6, 4, 8, 8), torch.randn(2, 6), "none")
    assert out.shape == (6, 5, 8, 8)
    still = out.flatten(1).abs().amax(1) == 0
    assert still.tolist() == [False, True, False, False, True, False]


def test_the_colour_gain_counts_channels_before_the_roll_out():
    assert ToRGB(4, 5, 6, planes=3).style_gain == 0.5


@pytest.mark.parametrize("mode", ["const", "none"])
def test_folded_levels_equal_plain_ones(mode):
    synthesis, ws = network(), torch.randn(2, 6, 16)
    plain, folded = synthesis.levels(ws, mode), synthesis.levels(ws, mode, gradients=False)
    assert [level.shape for level in plain] == [(2, 3, 4, 3, s, s) for s in (8, 16, 32)]
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)


def test_random_noise_differs_between_planes():
    synthesis, ws = network(), torch.randn(1, 6, 16)
    drawn, quiet = synthesis.levels(ws, "random"), synthesis.levels(ws, "none")
    for a, b in zip(drawn, quiet, strict=True):
        noise = (a - b)[0].flatten(1)
        assert (noise.abs().mean(1) > 0).all()
        assert not torch.allclose(noise[0], noise[1])


def test_rows_of_styles_belong_to_levels():
    """Row 2k + 1 moves level k; the rows of later levels do not (equations 15.3)."""
    synthesis, ws = network(), torch.randn(1, 6, 16)
    before = synthesis.levels(ws, "none")
    for row, first in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)):
        moved = ws.clone()
        moved[:, row] += 1.0
        after = synthesis.levels(moved, "none")
        changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
        assert changed == [level >= first for level in range(3)]


def test_coarse_levels_may_be_absent():
    whole, part = network(), network(first=8)
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if "b3d4" not in k})
    ws = torch.randn(1, 6, 16)
    levels = part.levels(ws, "const")
    assert [level.shape[-1] for level in levels] == [16, 32]
    assert not torch.allclose(levels[0], whole.levels(ws, "const")[1])  # nothing comes from below


def test_lookups_are_averaged():
    levels = tuple(torch.randn(2, 3, 4, 3, s, s) for s in (4, 8, 16))
    points = torch.rand(2, 50, 3) * 2.4 - 1.2
    expected = torch.stack([sample_trigrid(level, points) for level in levels]).mean(dim=0)
    torch.testing.assert_close(sample_trigrid(levels, points), expected)


def test_fast_renders_of_a_pyramid_are_those_of_the_published_renderer():
    torch.manual_seed(2)
    model = dataclasses.replace(TINY_PYRAMID.model, deformation="field")
    generator = Generator(model).eval().requires_grad_(False)
    generator.decoder.net[2].weight[0] *= 30.0
    scene = generator.scene(torch.randn(2, model.w_dim), gradients=False)
    assert len(scene.coarser) == 2
    camera = camera_label(torch.tensor([0.2, 1.2, 3.0, -1.0]))
    pose = torch.randn(4, 6) * 0.1
    everywhere = RenderDraws(occupancy=Occupancy(torch.ones(2, 4, 4, 4, dtype=torch.uint8)), gradients=False)
    for body_pose in (None, pose):
        fast = generator.render(scene, camera, body_pose, draws=everywhere)
        with torch.enable_grad():
            exact = generator.render(scene, camera, body_pose, draws=dataclasses.replace(everywhere, gradients=True))
        assert exact.mask.std() > 0.02
        assert (fast.raw - exact.raw).abs().max() < 1e-2  # rays end where a thousandth of their light is left
        assert (fast.raw - exact.raw).abs().mean() < 2e-4
