"""Photos become portraits of the published networks and their relatives too."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.geometry.cameras import camera_label, project
from portrait360.geometry.conventions import model_camera, model_crop, translated
from portrait360.inversion.invert import Inversion, Networks, as_shown, invert_targets, with_translation
from portrait360.inversion.optimise import Recipe
from portrait360.inversion.portrait import same_view
from portrait360.inversion.rendering import render_view
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.scene import SceneRenderer
from support.blots import blot
from support.presets import TINY_HEAD, TINY_ORIGINAL, TINY_PYRAMID

RECIPE = Recipe(steps=16, tuning_steps=6, side=32, kept_views=3, align_at=(0.5,))
PRESETS = {preset.model.name: preset for preset in (TINY_ORIGINAL, TINY_PYRAMID, TINY_HEAD)}


@pytest.fixture(scope="module", params=sorted(PRESETS))
def relative(request) -> Networks:
    # solid, so that there is a surface
    given = PRESETS[request.param].model
    model = dataclasses.replace(given, render=dataclasses.replace(given.render, density_scale=200.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(model)
        # PanoHead's weights come without the discriminator
        discriminator = Discriminator(model) if model.posable else None
    return Networks.of(generator, discriminator, None)


@pytest.fixture(scope="module")
def target():
    return blot(camera_label(0.4))


@pytest.fixture(scope="module")
def result(relative, target) -> Inversion:
    return invert_targets(relative, [target], RECIPE)


def test_the_search_comes_closer_to_the_photo(relative, target, result):
    start = invert_targets(relative, [target], RECIPE, fast=True)
    assert result.losses["photo"] < 0.95 * start.losses["photo"]


def test_the_portrait_from_the_photos_camera_shows_the_photo(result):
    """The residual completes what untrained weights do not show."""
    photo, errors = result.photos[0], []
    for appearance in (result.appearance, None):
        renderer = SceneRenderer.from_layers(result.generator, result.ws, appearance)
        side = renderer.own_side
        assert side is not None
        shown = torch.from_numpy(same_view(renderer, photo, side)).permute(2, 0, 1).float() / 127.5 - 1.0
        window = photo.target.window(1.0, side)
        errors.append(((shown - window.image[0]).abs() * window.mask[0] * window.known[0]).mean())
    assert errors[0] < 0.8 * errors[1]


def test_photos_are_cut_as_the_models_images_are(relative, target):
    """The camera of the cut photo sees what the model's own camera sees."""
    generator = relative.generator
    cut = dataclasses.replace(as_shown(generator, target), camera=target.camera)
    w = torch.randn(1, generator.config.w_dim)
    view = render_view(generator, generator.scene(w), cut.camera, cut.body_pose, 32)
    pose = target.body_pose if generator.config.posable else None
    own = SceneRenderer.from_w(generator, w).render(target.camera, pose)
    mask = torch.nn.functional.interpolate(own.mask, size=(32, 32), mode="area")
    assert (view.mask - mask).abs().mean() < 0.02
    side = model_crop(target.camera, generator.config.camera)[1]
    assert abs(cut.image.shape[-1] - float(side) * target.image.shape[-1]) <= 1.0


def test_a_predicted_shift_moves_what_the_camera_sees():
    torch.manual_seed(1)
    generator = Generator(TINY_HEAD.model).eval().requires_grad_(False)
    model, label = generator.config.camera, camera_label(torch.tensor([0.3, -1.0]))
    moved = model_camera(with_translation(generator, label), model)
    own = model_camera(label, model)
    shifted = translated(own, generator.inversion_translation(own))
    middle = torch.tensor(model.look_at).expand(2, 1, 3)
    torch.testing.assert_close(project(moved, middle)[0], project(shifted, middle)[0], atol=1e-5, rtol=0)
    assert (project(shifted, middle)[0] - project(own, middle)[0]).abs().max() > 1e-4
    other = Generator(TINY_PYRAMID.model)
    assert torch.equal(with_translation(other, label), label)
