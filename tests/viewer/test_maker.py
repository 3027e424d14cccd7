"""The generator as a page has it: numbers in few bits that are still the generator's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from portrait360.config import PRESETS, SynthesisConfig, WarpConfig
from portrait360.geometry.cameras import camera_label
from portrait360.model.generator import Generator
from portrait360.types import InputError
from portrait360.viewer.blobs import read_array
from portrait360.viewer.maker import WARP_ERROR, check_can_make, maker_payload

BASE = PRESETS["cpu-64"].model


def generator_of(**changes) -> Generator:
    torch.manual_seed(0)
    return Generator(dataclasses.replace(BASE, **changes)).eval().requires_grad_(False)


def style_by_payload(mapping: dict, z: np.ndarray) -> np.ndarray:
    """The mapping network as the page computes it, in numpy."""
    h = z / np.sqrt(np.mean(z**2) + 1e-8)
    for layer in mapping["layers"]:
        h = read_array(layer["weight"]) @ h + read_array(layer["bias"])
        if layer["activates"]:
            h = np.sqrt(2.0) * np.where(h < 0, 0.2 * h, h)
    return h


@pytest.mark.parametrize("conditioning", [0.0, 1.0])
def test_the_mapping_network_of_a_page_gives_the_generator_s_styles(conditioning):
    generator = generator_of(conditioning_scale=conditioning)
    z = torch.randn(1, BASE.z_dim)
    expected = generator.map(z, camera_label(0.0))[0].numpy()
    found = style_by_payload(maker_payload(generator)["mapping"], z[0].numpy())
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_the_styles_of_a_page_are_those_that_latents_mix():
    generator = generator_of(mapping_styles=20)
    generator.backbone.mapping.keep(torch.randn(20, BASE.w_dim))
    mapping = maker_payload(generator)["mapping"]
    styles = generator.backbone.mapping.styles.numpy()
    assert np.abs(read_array(mapping["styles"]) - styles).max() < 1e-3 * np.abs(styles).max()
    assert mapping["share"] == generator.backbone.mapping.SHARE
    np.testing.assert_allclose(read_array(mapping["average"]), styles.mean(axis=0), atol=1e-6)


def test_the_warp_of_a_page_is_that_of_the_generator():
    generator = generator_of(warp=WarpConfig(shape=(6, 5, 7)))
    torch.nn.init.normal_(generator.warp.weight)
    torch.nn.init.normal_(generator.warp.bias)
    payload = maker_payload(generator)["warp"]
    w = generator.map(torch.randn(200, BASE.z_dim), camera_label(0.0))
    expected = generator.warp(w).flatten(1).numpy()
    found = np.zeros_like(expected)
    found[:, read_array(payload["numbers"])] = w.numpy() @ read_array(payload["weight"]).T + read_array(payload["bias"])
    error = np.sqrt(np.mean((found - expected) ** 2))
    assert error < 1.2 * WARP_ERROR
    assert error < 0.1 * np.sqrt(np.mean(expected**2))
    # the outermost nodes never move, nor do those in the middle sideways
    assert len(read_array(payload["numbers"])) == 3 * 4 * 3 * 5 - 4 * 3


def test_convolutions_arrive():
    generator = generator_of()
    blocks = maker_payload(generator)["synthesis"]["blocks"]
    assert [block["side"] for block in blocks] == generator.backbone.synthesis.resolutions
    assert blocks[0]["conv0"] is None
    assert blocks[0]["toRgb"] is None
    layer = generator.backbone.synthesis.b16.conv0
    found = read_array(blocks[2]["conv0"]["weight"])
    assert np.linalg.norm(found - layer.weight.numpy()) < 1e-3 * float(layer.weight.norm())


@pytest.mark.parametrize(
    "synthesis",
    [SynthesisConfig((16, 16)), SynthesisConfig((16, 16), "box"), SynthesisConfig((16, 6), "box", noise=False)],
)
def test_networks_that_a_page_cannot_run_are_refused(synthesis):
    with pytest.raises(InputError, match="cannot run the networks"):
        check_can_make(dataclasses.replace(BASE, synthesis=synthesis))
