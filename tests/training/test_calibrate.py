"""Fitting a calibration to a dataset's labels."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch
import tyro

from portrait360.config import PRESETS
from portrait360.data.shards import write_shards
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import load_weights, save_weights
from portrait360.poses.calibration import PoseCalibration, fit_calibration
from portrait360.poses.windows import window_poses
from portrait360.training import calibrate as module
from portrait360.training import loop
from portrait360.training.calibrate import calibrate, main
from portrait360.training.data import TrainingData
from portrait360.training.state import new_state
from portrait360.training.streaming import StreamingData
from portrait360.types import DatasetError
from support.fake_portraits import write_fake_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrate") / "train.zip"
    write_fake_dataset(path, count=24, resolution=128)
    return path


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    model = PRESETS["cpu-64"].model
    return Generator(model).eval(), Discriminator(model).eval()


def opened(path, **changes) -> TrainingData:
    preset = PRESETS["cpu-64"]
    return TrainingData(path, preset.model, dataclasses.replace(preset.training, **changes), 0)


def test_it_takes_the_windows_that_training_shows(dataset, networks, monkeypatch):
    monkeypatch.setattr(module, "LEAST_IMAGES", 20)
    monkeypatch.setattr(module, "IMAGES", 22)
    data, model = opened(dataset), PRESETS["cpu-64"].model
    found = calibrate(networks[1], model, data)
    assert found is not None
    assert found.windows == (1.0, 0.6, 0.42)
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:22]
    image, mask = data.images[rows] / 127.5 - 1.0, data.masks[rows] / 255.0
    seen = window_poses(networks[1], model, image, mask, data.cameras[rows], (1.0, 0.6, 0.42), on_grey=True)
    expected = fit_calibration(seen, data.body_poses[rows], (1.0, 0.6, 0.42))
    for a, b in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    whole = calibrate(networks[1], model, opened(dataset, zoom_probability=0.0))
    assert whole is not None
    assert whole.windows == (1.0,)


def test_too_few_images_tell_nothing(dataset, networks, tmp_path):
    assert calibrate(networks[1], PRESETS["cpu-64"].model, opened(dataset)) is None
    weights = tmp_path / "w.safetensors"
    save_weights(weights, PRESETS["cpu-64"].model, *networks, {})
    with pytest.raises(DatasetError, match="too few"):
        main(dataset, weights, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_writes_the_same_weights_with_a_calibration(dataset, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_IMAGES", 20)
    weights, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    save_weights(weights, PRESETS["cpu-64"].model, *networks, {"images": 7})
    line = next(line for line in str(module.__doc__).splitlines() if "python -m" in line).split()
    names = {"TRAIN.zip": str(dataset), "weights.safetensors": str(weights), "calibrated.safetensors": str(out)}
    tyro.cli(main, args=[names.get(word, word) for word in line[3:]])
    before, after = load_weights(weights), load_weights(out)
    assert after.info.about == {"images": 7}
    assert before.calibration is None
    assert after.calibration is not None
    assert after.calibration.windows == (1.0, 0.6, 0.42)
    for part in ("generator", "discriminator"):
        old, new = (getattr(loaded, part).state_dict() for loaded in (before, after))
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_centre_crops_are_calibrated_where_images_are_zoomed_and_at_hand(dataset, tmp_path, monkeypatch):
    preset = PRESETS["cpu-64"]
    state = new_state(preset, 0, torch.device("cpu"))
    monkeypatch.setattr(module, "LEAST_IMAGES", 20)
    assert loop.final_calibration(state, opened(dataset)) is None  # nothing was seen yet
    monkeypatch.setattr(state.memory, "calibration", lambda: PoseCalibration((1.0,), (torch.zeros(7, 6),)))
    assert loop.final_calibration(state, opened(dataset, zoom_probability=0.0)) is None
    write_shards(dataset, tmp_path / "shards", 12, progress=False)
    assert loop.final_calibration(state, StreamingData(tmp_path / "shards", preset.model, preset.training, 0)) is None
    found = loop.final_calibration(state, opened(dataset))
    assert found is not None
    assert found.windows == (1.0, 0.6, 0.42)


def test_training_writes_it_at_its_end(tmp_path, monkeypatch):
    found = PoseCalibration((1.0, 0.6), (torch.ones(7, 6), torch.zeros(13, 6)))
    asked = []

    def calibration(state, data):
        asked.append(state.images)
        return found

    monkeypatch.setattr(loop, "final_calibration", calibration)
    write_fake_dataset(tmp_path / "train.zip", count=8)
    weights = loop.train(tmp_path / "train.zip", "tiny", tmp_path / "run", kimg=0.016, device="cpu", quiet=True)
    written = load_weights(weights)
    assert asked == [written.info.about["images"]] == [16]
    assert written.calibration is not None
    assert written.calibration.windows == found.windows
    # told to stop, it does not make anybody wait
    monkeypatch.setattr(loop, "training_step", stopping(loop.training_step))
    stopped = loop.train(tmp_path / "train.zip", "tiny", tmp_path / "stopped", kimg=1.0, device="cpu", quiet=True)
    assert len(asked) == 1
    assert load_weights(stopped).calibration is None


def stopping(step):
    """A training step after which the process is told to end."""

    def stepped(*args):
        metrics = step(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    return stepped
