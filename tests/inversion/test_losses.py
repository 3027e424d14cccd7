"""Losses between renderings and photos."""

from __future__ import annotations

import pytest
import torch

from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label
from portrait360.inversion.losses import Comparison, Critics, LossWeights, region_colours
from portrait360.inversion.optimise import photos_of
from portrait360.inversion.regions import CLOTHES, HAIR, SKIN, surface_regions, target_regions
from portrait360.inversion.target import Target


@pytest.fixture
def target() -> Target:
    draws = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 6:, 6:26] = 1.0
    image = (torch.rand(1, 3, 32, 32, generator=draws) * 2 - 1) * mask
    return Target(image, mask, torch.ones_like(mask), camera_label(0.2), torch.zeros(1, 6))


def comparison(target: Target, networks, regions=None) -> Comparison:
    critics = Critics(networks.discriminator, networks.encoder)
    return Comparison.of(target, LossWeights(), critics, whole=True, regions=regions)


def test_the_photo_itself_has_no_loss(target, networks):
    regions = target_regions(target, networks.generator.body, 32)
    made = comparison(target, networks, regions)
    assert float(made.loss(target.image, target.mask, torch.rand(1, 3, 1, 1))) < 1e-6


@pytest.mark.parametrize("change", ["brighter", "shifted", "larger"])
def test_every_difference_costs(target, networks, change):
    made = comparison(target, networks)
    image, mask = target.image, target.mask
    if change == "brighter":
        image = image + 0.2 * mask
    elif change == "shifted":
        image, mask = image.roll(3, dims=3), mask.roll(3, dims=3)
    else:
        mask = torch.ones_like(mask)
    assert float(made.loss(image, mask, torch.full((1, 3, 1, 1), 0.5))) > 0.05


def test_padding_does_not_count(target, networks):
    known = target.known.clone()
    known[..., 20:, :] = 0.0
    cut = Target(target.image, target.mask, known, target.camera, target.body_pose)
    made = Comparison.of(cut, LossWeights(feature=0.0, landmark=0.0), Critics(None, None), whole=True)
    other = target.image.clone()
    other[..., 24:, :] = 1.0
    background = torch.zeros(1, 3, 1, 1)
    assert float(made.loss(other, target.mask, background)) == pytest.approx(
        float(made.loss(target.image, target.mask, background)), abs=1e-3
    )


def test_region_colours_compare_means_and_deviations():
    regions = torch.ones(1, 1, 8, 8)
    flat, bright = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    assert float(region_colours(flat, bright, regions)) == pytest.approx(0.5, abs=1e-3)
    striped = torch.ones(1, 3, 8, 8)
    striped[..., ::2] = -1.0
    assert float(region_colours(flat, striped, regions)) == pytest.approx(0.99, abs=0.02)


def test_face_hair_and_clothes_are_told_apart_by_the_body():
    body = load_body()
    places = torch.tensor([[0.0, 0.075, 0.125], [0.0, 0.11, -0.1], [0.15, -0.12, 0.0], [0.0, 0.2, 0.03]])
    assert surface_regions(body, places).tolist() == [SKIN, HAIR, CLOTHES, HAIR]


def test_regions_share_the_mask(target):
    regions = target_regions(target, load_body(), 32)
    assert regions.shape == (3, 1, 32, 32)
    total = regions.sum(dim=0)
    assert float((total - target.mask[0]).abs().max()) < 1e-4
    assert photos_of([target])[0].target is target
