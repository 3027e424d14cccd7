"""The descent of styles and the tuning of the generator's last layers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.inversion.losses import Critics
from portrait360.inversion.optimise import Descent, Light, Recipe, Watch, optimise_styles, photos_of
from portrait360.inversion.rendering import occupancy_of, render_view
from portrait360.inversion.style import Styles, style_space
from portrait360.inversion.target import Target
from portrait360.inversion.tuning import hold, tune, tuned_names

RECIPE = Recipe(steps=24, tuning_steps=8, side=32, kept_views=4, align_at=())


def photograph(networks, w, camera) -> Target:
    scene = networks.generator.scene(w)
    view = render_view(
        networks.generator, scene, camera, torch.zeros(1, 6), 64, occupancy=occupancy_of(networks.generator, scene)
    )
    return Target(view.image, view.mask, torch.ones_like(view.mask), camera, torch.zeros(1, 6))


def average(networks) -> Styles:
    layers = networks.generator.backbone.synthesis.num_ws
    return Styles(torch.zeros(1, 16), torch.zeros(1, layers, 16))


def found(networks, targets, recipe=RECIPE, watch=None):
    photos, critics = photos_of(targets), Critics(networks.discriminator, networks.encoder)
    space = style_space(networks.generator)
    styles, loss = optimise_styles(
        networks.generator, space, photos, average(networks), recipe, critics, watch or Watch()
    )
    return styles, loss, photos, space


@pytest.fixture(scope="module")
def target(networks, style):
    return photograph(networks, style, camera_label(0.3))


def test_the_loss_falls_and_the_same_seed_gives_the_same_person(networks, target):
    few = dataclasses.replace(RECIPE, steps=2)
    first = found(networks, [target], few)[1]
    styles, loss, _, _ = found(networks, [target])
    assert loss < 0.7 * first
    again = found(networks, [target])[0]
    assert torch.equal(styles.common, again.common)
    assert torch.equal(styles.layers, again.layers)


def test_layers_differ_only_after_their_time(networks, target):
    never = dataclasses.replace(RECIPE, steps=6, layers_from=2.0)
    styles = found(networks, [target], never)[0]
    assert float(styles.layers.abs().max()) == 0.0
    always = dataclasses.replace(RECIPE, steps=6, layers_from=0.0)
    assert float(found(networks, [target], always)[0].layers.abs().max()) > 0.0


def test_an_interruption_keeps_what_was_found(networks, target):
    count = 0

    def advance() -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    watch = Watch(advance)
    styles = found(networks, [target], watch=watch)[0]
    assert watch.interrupted
    assert count == 3
    assert float(styles.common.abs().max()) > 0.0


def test_the_light_of_a_second_photo_is_learned(networks, style, target):
    other = photograph(networks, style, camera_label(-0.4))
    bright = dataclasses.replace(other, image=other.image * 0.5 + 0.3 * other.mask)
    recipe = dataclasses.replace(
        RECIPE, light_rate=0.05, weights=dataclasses.replace(RECIPE.weights, feature=0.0, landmark=0.0)
    )
    photos = found(networks, [target, bright], recipe)[2]
    assert torch.equal(photos[0].light.gain, torch.ones(1, 3, 1, 1))
    assert float(photos[1].light.bias.mean()) > 0.05


def test_light_on_and_off_are_inverse():
    light = Light(torch.full((1, 3, 1, 1), 0.8), torch.full((1, 3, 1, 1), 0.1))
    mask = torch.rand(1, 1, 4, 4)
    image = torch.rand(1, 3, 4, 4) * mask
    torch.testing.assert_close(light.off(light.on(image, mask), mask), image)


def test_a_flat_loss_ends_the_descent_early():
    falling, flat = Descent(100), Descent(100)
    for step in range(100):
        falling.advance(0.97**step)
        flat.advance(1.0)
    count = 0
    flat = Descent(100)
    while not flat.done:
        flat.advance(1.0)
        count += 1
    assert falling.done
    assert 60 < count < 80


def test_tuning_comes_closer_and_keeps_other_views(networks, style, target):
    generator = networks.generator
    ws = generator.backbone.mapping.w_avg[None, None].expand(1, generator.backbone.synthesis.num_ws, -1).contiguous()
    photos, critics = photos_of([target]), Critics(networks.discriminator, networks.encoder)
    photos[0].compare(RECIPE, critics, generator)
    scene = generator.layered_scene(ws)
    held = hold(generator, scene, target.body_pose, 4)
    recipe = dataclasses.replace(RECIPE, tuning_steps=20)
    close = tune(generator, ws, photos, held, dataclasses.replace(recipe, keep=0.0), critics, Watch())
    kept = tune(generator, ws, photos, held, dataclasses.replace(recipe, keep=20.0), critics, Watch())

    def errors(model) -> tuple[float, float]:
        tuned = model.layered_scene(ws)
        there = render_view(model, tuned, target.camera, target.body_pose, 64).image
        poses = held.body_pose.expand(4, -1)
        others = render_view(model, tuned, held.camera, poses, held.view.image.shape[-1]).image
        return float((there - target.image).abs().mean()), float((others - held.view.image).abs().mean())

    before, loose, tight = errors(generator), errors(close), errors(kept)
    assert loose[0] < before[0]
    assert tight[1] < loose[1]

    # Nothing but the last layers has changed, and what has is in float16
    names, own = set(tuned_names(generator)), generator.state_dict()
    for name, value in close.state_dict().items():
        assert torch.equal(value, own[name]) or name in names
        if name in names:
            assert torch.equal(value, value.half().float())
    assert any(not torch.equal(close.state_dict()[name], own[name]) for name in names)
