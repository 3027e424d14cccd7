"""Ablations change what they say, train, and are measured once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from portrait360.config import PRESETS, Preset
from portrait360.evaluation.evaluate import Plan
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from portrait360.types import InputError, Portrait360Error
from support.fake_portraits import write_fake_dataset
from support.random_batches import random_batch
from support.shrunken import shrunken
from tools import ablations
from tools.ablations import ARMS, Setting, base, collect, differences, main, measure_arm, train_arm


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_another_training_and_works(name):
    preset = ARMS[name].change(base())
    assert bool(differences(base(), preset)) == (name not in ("recipe", "again"))
    assert preset.training.total_kimg == base().training.total_kimg
    small = shrunken(preset)
    state = new_state(small, ARMS[name].seed, torch.device("cpu"))
    metrics = training_step(state, random_batch(small.model, 4))
    assert all(torch.isfinite(value) for value in metrics.values())


def test_differences_name_the_fields():
    assert differences(base(), base()) == {}
    assert differences(base(), ARMS["one-view"].change(base())) == {"views_per_latent": 1}
    assert differences(base(), ARMS["asymmetric"].change(base())) == {"symmetric_features": 0}


@pytest.fixture
def small(monkeypatch, tmp_path, tiny_encoder):
    """Arms of a tiny model, measured with a tiny encoder."""
    tiny = shrunken(base())
    training = dataclasses.replace(tiny.training, zoom_probability=0.0, face_zoom_probability=0.0)
    measure = ablations.evaluate
    monkeypatch.setenv("PORTRAIT360_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ablations, "base", lambda side, batch: Preset(tiny.model, training))
    monkeypatch.setattr(ablations, "PLAN", Plan(images=20, pairs=2, meshes=1, faces=8))
    monkeypatch.setattr(ablations, "evaluate", lambda *a, **k: measure(*a, encoder=tiny_encoder, progress=False, **k))


@pytest.mark.slow
def test_arms_are_trained_measured_and_left_alone(small, tmp_path):
    data, out = tmp_path / "d.zip", tmp_path / "runs"
    write_fake_dataset(data, count=44, coarse=True)
    (out / "one-view").mkdir(parents=True)
    (out / "one-view" / "log.jsonl").write_text("of a run that was stopped")
    main(data, held_out=data, out=out, minutes=0.02, arms=("one-view", "recipe"))
    collected = json.loads((out / "ablations.json").read_text())["arms"]
    assert [arm["arm"] for arm in collected] == ["recipe", "one-view"]
    for arm in collected:
        assert arm["images"] > 0
        assert arm["measures"]["frechet_random"]["value"] > 0
    assert collected[1]["differs"] == {"views_per_latent": 1}

    weights = out / "recipe" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    setting = Setting(data, data, out, 0.02)
    assert measure_arm("recipe", setting) == collected[0]
    assert weights.stat().st_mtime_ns == before
    for other in ({"minutes": 1.0}, {"side": 64}, {"batch": 32}, {"seed": 1}):
        with pytest.raises(InputError, match="arm of 0.02 minutes at 32 pixels, 16 images a step, seed 0"):
            measure_arm("recipe", dataclasses.replace(setting, **other))


@pytest.mark.slow
def test_arms_may_be_measured_later(small, tmp_path, monkeypatch):
    data, out = tmp_path / "d.zip", tmp_path / "runs"
    write_fake_dataset(data, count=44, coarse=True)
    main(data, held_out=data, out=out, minutes=0.02, arms=("recipe",), train_only=True)
    assert json.loads((out / "ablations.json").read_text()) == {"arms": []}
    weights = (out / "recipe" / "weights.safetensors").read_bytes()
    monkeypatch.setattr(ablations, "train", None)  # nothing is trained again
    main(data, held_out=data, out=out, minutes=0.02, arms=("recipe",))
    (arm,) = json.loads((out / "ablations.json").read_text())["arms"]
    assert (arm["arm"], arm["minutes"], arm["side"]) == ("recipe", 0.02, 32)
    assert (out / "recipe" / "weights.safetensors").read_bytes() == weights


def test_an_arm_that_was_told_to_stop_is_not_done(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "train", lambda *arguments, **options: None)
    with pytest.raises(Portrait360Error, match="'recipe' was stopped"):
        train_arm("recipe", Setting(tmp_path / "d.zip", tmp_path / "d.zip", tmp_path, 1.0))
    assert not (tmp_path / "recipe" / "trained.json").exists()


def test_arms_of_64_pixels_are_those_of_the_default_model():
    assert base(64).model == PRESETS["cpu-64"].model
    assert base(32).model.resolution == 32
    with pytest.raises(InputError, match="32 or 64, not 48"):
        main(Path("d.zip"), held_out=Path("d.zip"), out=Path("runs"), side=48)


def test_learning_rates_grow_with_the_root_of_the_batch():
    training, larger = base().training, base(batch=64).training
    assert (larger.batch, larger.g_lr, larger.d_lr) == (64, 2.0 * training.g_lr, 2.0 * training.d_lr)
    assert base(batch=16) == base()
    for batch in (0, -4, 6):
        with pytest.raises(InputError, match=f"multiples of 4, not {batch}"):
            main(Path("d.zip"), held_out=Path("d.zip"), out=Path("runs"), batch=batch)


def test_unknown_arms_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="no arm 'nothing'"):
        main(tmp_path / "d.zip", held_out=tmp_path / "d.zip", out=tmp_path / "runs", arms=("recipe", "nothing"))
    assert not (tmp_path / "runs").exists()


def test_collecting_nothing_gives_no_arms(tmp_path):
    collect(tmp_path)
    assert json.loads((tmp_path / "ablations.json").read_text()) == {"arms": []}
