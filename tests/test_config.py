"""Configs round-trip through JSON and refuse what does not belong."""

from __future__ import annotations

import json

import pytest

from portrait360.config import (
    PRESETS,
    ModelConfig,
    OriginalBugs,
    Preset,
    RawRamp,
    TrainingConfig,
    named_preset,
    original_recipe,
    register_preset,
    stylegan_channels,
)
from portrait360.runtime.tensors import from_json, to_json
from portrait360.types import CheckpointError, InputError
from support.presets import ALL_PRESETS, TINY


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_json_round_trip(name):
    assert from_json(Preset, to_json(ALL_PRESETS[name])) == ALL_PRESETS[name]


def test_preset_names_are_their_keys():
    assert all(preset.model.name == name for name, preset in ALL_PRESETS.items())
    assert all(named_preset(name) == preset for name, preset in ALL_PRESETS.items())
    assert not {"tiny", "tiny-original"} & set(PRESETS)
    with pytest.raises(InputError, match="there is no preset 'huge'"):
        named_preset("huge")
    with pytest.raises(ValueError, match="of the package"):
        register_preset(PRESETS["cpu-64"])


def test_original_channels():
    assert stylegan_channels(32768, 512, 256) == (512, 512, 512, 512, 512, 256, 128)
    assert PRESETS["original-512"].model.discriminator.channels == (64, 128, 256, 512, 512, 512, 512, 512)


def test_super_resolution_reaches_the_resolution():
    for preset in ALL_PRESETS.values():
        sr = preset.model.superresolution
        if sr is not None:
            assert sr.input_resolution * (4 if sr.up_first else 2) == preset.model.resolution


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("synthesis"), "expected entries"),
        (lambda d: d["discriminator"].pop("channels"), "expected entries"),
        (lambda d: d["render"].update(extra=1), "expected entries"),
        (lambda d: d.update(extra=1), "expected entries"),
        (lambda d: d.update(z_dim="many"), "z_dim"),
        (lambda d: d.update(z_dim=True), "z_dim"),
        (lambda d: d.update(decoder_activation="tanh"), "tanh"),
        (lambda d: d["render"].update(box_half=[1.0, 2.0]), "list"),
        (lambda d: d.update(render=3), "expected entries"),
    ],
)
def test_foreign_json_is_refused(change, said):
    data = json.loads(to_json(TINY.model))
    change(data)
    with pytest.raises(CheckpointError, match=said):
        from_json(ModelConfig, json.dumps(data))


def test_files_from_before_a_field_came_take_its_default():
    data = json.loads(to_json(PRESETS["original-512"].model))
    del data["original_bugs"], data["render"]["crop"], data["z_dim"]
    model = from_json(ModelConfig, json.dumps(data))
    assert model.original_bugs == OriginalBugs()
    assert model.render.crop == 0.4
    assert model.z_dim == 512
    assert model.synthesis == PRESETS["original-512"].model.synthesis


def test_text_that_is_not_json_is_refused():
    with pytest.raises(CheckpointError, match="JSON"):
        from_json(ModelConfig, "{")


def test_the_published_recipe():
    """Numbers of equations 10.2 to 10.13."""
    recipe = PRESETS["original-512"].training
    assert recipe == original_recipe(PRESETS["original-512"].model)
    assert (recipe.batch, recipe.loss, recipe.r1_interval) == (32, "nonsaturating", 16)
    assert (recipe.r1_gamma, recipe.r1_gamma_mask) == (1.0, 1.0)
    assert (recipe.g_lr, recipe.betas) == (0.0025, (0.0, 0.99))
    assert recipe.d_lr == pytest.approx(0.0018823529)
    assert recipe.d_betas == pytest.approx((0.0, 0.9905855))
    assert (recipe.swap_probability, recipe.swap_fade_kimg, recipe.background_swap_probability) == (0.7, 1000.0, 0.2)
    assert (recipe.blur_sigma, recipe.blur_fade_kimg, recipe.density_noise_fade_kimg) == (10.0, 200.0, 200.0)
    assert (recipe.pose_preg_weight, recipe.pose_preg_kimg, recipe.pose_loss_weight) == (0.5, 200.0, 1.0)
    assert (recipe.ema_kimg, recipe.ema_rampup, recipe.mirror) == (10.0, 0.05, True)
    assert (recipe.coarse_pose_probability, recipe.pose_refine_kimg, recipe.views_per_latent) == (0.0, None, 1)
    assert (recipe.raw_ramp, PRESETS["original-128"].training.raw_ramp) == (RawRamp(128, 10000.0, 1000.0), None)
    assert original_recipe(PRESETS["cpu-64"].model).raw_ramp is None


def test_separate_phases_exclude_what_they_cannot_do():
    for changes in ({"loss": "relativistic"}, {"zoom_probability": 0.5}):
        with pytest.raises(InputError, match="separate phases"):
            TrainingConfig(separate_phases=True, **changes)
