"""A discriminator's pose path is fine-tuned on noisy labels of real images; its logits stay the same."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import torch
import tyro

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label, mirror_body_pose
from portrait360.model.discriminator import Discriminator, DiscriminatorInput, with_pose_path
from portrait360.model.generator import Generator
from portrait360.portrait.weights import load_weights, save_weights
from portrait360.training import calibrate
from portrait360.training import finetune_poses as module
from portrait360.training.data import TrainingData
from portrait360.training.finetune_poses import (
    FinetuningData,
    FinetuningState,
    PoseFinetuning,
    finetune,
    finetuning_data,
    main,
    poses_of_labels,
    varied,
)
from portrait360.training.passes import Batch
from portrait360.types import CheckpointError, DatasetError
from support.fake_portraits import write_fake_dataset
from support.presets import ALL_PRESETS, TINY

CPU = torch.device("cpu")
EXACT = "donot_use_mm_for_euclid_dist"
TRAINING = PRESETS["cpu-64"].training
PLAIN = dataclasses.replace(
    TINY.model, raw_resolution=32, features=3, superresolution=None, background=None, conditioning_scale=0.0
)
SMALL = PLAIN.with_pose_blocks(2)
RECIPE = PoseFinetuning(steps=6, images=8, warm_up=2, save_every=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("real-poses") / "train.zip"
    write_fake_dataset(path, count=24, coarse=True, resolution=128)
    return path


@pytest.fixture(scope="module")
def discriminator():
    torch.manual_seed(0)
    return with_pose_path(Discriminator(PLAIN), PLAIN, 2)[0]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(calibrate, "IMAGES", 8)
    monkeypatch.setattr(calibrate, "LEAST_IMAGES", 8)


def opened(path, **changes) -> TrainingData:
    return TrainingData(path, SMALL, dataclasses.replace(TRAINING, **changes), 0)


def data_of(discriminator, path, **changes):
    return finetuning_data(discriminator, SMALL, opened(path, **changes), path)


def test_labels_stand_for_poses_without_their_bias_and_shrinking():
    g = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, 6, generator=g) * 0.15 + torch.tensor([0.02, 0, 0, -0.04, 0, 0])
    bias = torch.tensor([0.09, 0, 0, 0.09, 0, 0])
    labels = 0.7 * true + bias + 0.08 * torch.randn(20_000, 6, generator=g)
    found = poses_of_labels(true, labels, labels)
    torch.testing.assert_close(found.mean(dim=0), torch.tensor([0.011, 0, 0, -0.031, 0, 0]), atol=0.003, rtol=0)
    slope = ((found - found.mean(0)) * (true - true.mean(0))).mean(0) / true.var(dim=0)
    torch.testing.assert_close(slope, torch.ones(6), atol=0.03, rtol=0)


def test_the_mean_nod_is_predicted_but_its_share_is_that_of_the_labels():
    labels = torch.zeros(100, 6)
    labels[:, 0], labels[:, 3] = 0.1, 0.2
    predicted = torch.zeros(100, 6)
    predicted[:, 0], predicted[:, 3], predicted[:, 4] = 0.3, 0.0, 0.05
    mean = poses_of_labels(predicted, labels, labels).mean(dim=0)
    torch.testing.assert_close(mean, torch.tensor([0.1, 0, 0, 0.2, 0, 0]), atol=1e-6, rtol=0)


def test_images_of_the_calibration_are_not_trained_on(dataset, discriminator, monkeypatch):
    data = data_of(discriminator, dataset)
    assert sorted([*data.rows.tolist(), *calibrate.calibration_rows(24).tolist()]) == list(range(24))
    assert data.levels == (0, 1, 2)  # of 0.6, 0.42 and 0.27, which shows the face alone
    assert data_of(discriminator, dataset, zoom_probability=0.0).levels == (0,)
    monkeypatch.setattr(calibrate, "IMAGES", 22)
    with pytest.raises(DatasetError, match="too few"):
        data_of(discriminator, dataset)


def test_a_batch_shows_images_and_their_centre_crops_with_target_poses(dataset, discriminator, monkeypatch):
    monkeypatch.setattr(module, "varied", lambda batch, _: batch)
    data = data_of(discriminator, dataset)
    torch.manual_seed(0)
    images, camera, targets = data.batch(60, SMALL, CPU)
    zooms = camera[:, 16] / camera[:, 16].min()
    assert {round(float(z), 2) for z in zooms} == {1.0, round(128 / 76, 2), round(128 / 54, 2)}
    allowed = data.targets[data.rows]
    allowed = torch.cat([allowed, mirror_body_pose(allowed)])
    assert float(torch.cdist(targets, allowed, compute_mode=EXACT).min(dim=1).values.max()) < 1e-5
    assert images.image.shape == (60, 3, 32, 32)


@pytest.mark.parametrize("background", [False, True])
def test_images_vary_in_colour_and_are_cropped_as_their_cameras_say(background):
    """A square in the middle grows with the focal length; the grey around it stays grey where the model has it."""
    model = TINY.model if background else SMALL
    mask = torch.zeros(64, 1, 32, 32)
    mask[:, :, 12:20, 12:20] = 1.0
    colour = torch.tensor([0.5, 0.2, -0.4])[:, None, None]
    image = (model.plain_background + (colour - model.plain_background) * mask).clone()
    camera, poses = camera_label(torch.linspace(-3, 3, 64)), torch.randn(64, 6)
    torch.manual_seed(0)
    found = varied(Batch(image, mask, camera, poses), model)
    zoom = found.camera[:, 16] / camera[:, 16]
    assert zoom.min() == 1.0 < zoom.max() <= 1.3
    torch.testing.assert_close(found.mask.sum(dim=(1, 2, 3)).sqrt(), 8.0 * zoom, atol=0.35, rtol=0)
    rest = [i for i in range(25) if i not in (16, 20)]
    assert torch.equal(found.camera[:, rest], camera[:, rest])
    assert torch.equal(found.camera[:, 16], found.camera[:, 20])
    assert found.coarse_pose is poses
    middle, corner = found.image[:, :, 16, 16], found.image[:, :, 0, 0]
    assert float(middle.std(dim=1).min()) > 0.01  # never without colour
    changed = (middle - colour[:, 0].T).abs().amax(dim=1) > 0.02
    assert 0.2 < float(changed.float().mean()) < 0.8
    if not background:
        torch.testing.assert_close(corner, torch.full_like(corner, model.plain_background))
    torch.manual_seed(0)
    assert torch.equal(varied(Batch(image, mask, camera, poses), model).image, found.image)


class Bars(FinetuningData):
    """Real images of a bar that rises with the neck's nod, and noisy labels of them."""

    def batch(self, count, model, device):
        pose = torch.zeros(count, 6)
        pose[:, 0] = torch.randn(count) * 0.2
        return bars(pose[:, 0]), camera_label(torch.zeros(count)), pose + 0.05 * torch.randn(count, 6)


def bars(nods):
    rows = torch.linspace(-0.6, 0.6, 32)[None, :, None].expand(len(nods), 32, 32)
    inside = (rows < nods[:, None, None]).float()[:, None]
    return DiscriminatorInput(inside.expand(-1, 3, -1, -1) * 2 - 1, None, inside)


def test_it_learns_what_shows_in_real_images_and_its_logits_stay(dataset, discriminator, tmp_path):
    data = opened(dataset)
    data = Bars(data, data.body_poses, torch.arange(24), (0,))
    recipe = PoseFinetuning(steps=80, images=48, warm_up=5, rate=5e-3, average=10)
    finetuned = finetune(discriminator, SMALL, [data], recipe, tmp_path / "c.safetensors", device=CPU, bf16=False)
    nods, camera = torch.linspace(-0.4, 0.4, 9), camera_label(torch.zeros(9))
    before, after = (network.predict_pose(bars(nods), camera, parts=9)[:, 0] for network in (discriminator, finetuned))
    assert float((after - nods).square().mean()) < 0.3 * float((before - nods).square().mean())
    given = torch.randn(9, 6)
    for images in (bars(nods), DiscriminatorInput(torch.randn(9, 3, 32, 32), None, torch.rand(9, 1, 32, 32))):
        assert torch.equal(finetuned(images, camera, given)[0], discriminator(images, camera, given)[0])


def test_a_stopped_run_goes_on_to_the_same_numbers(dataset, discriminator, tmp_path, monkeypatch):
    data = [data_of(discriminator, dataset)]
    known = {name: value.clone() for name, value in discriminator.state_dict().items()}

    def finetuned(name, recipe=RECIPE, data=data, discriminator=discriminator):
        return finetune(discriminator, SMALL, data, recipe, tmp_path / name, device=CPU, bf16=False).state_dict()

    whole = finetuned("whole.safetensors")
    save = FinetuningState.save

    def saved(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(FinetuningState, "save", saved)
    with pytest.raises(KeyboardInterrupt):
        finetuned("stopped.safetensors")
    monkeypatch.setattr(FinetuningState, "save", save)
    other = copy.deepcopy(discriminator)
    other.b4.fc.bias.data += 1.0
    fewer = [dataclasses.replace(data[0], rows=data[0].rows[1:])]
    for change in ({"recipe": dataclasses.replace(RECIPE, steps=7)}, {"discriminator": other}, {"data": fewer}):
        with pytest.raises(CheckpointError, match="another run"):
            finetuned("stopped.safetensors", **change)
    shutil.copy(tmp_path / "stopped.safetensors", tmp_path / "elsewhere.safetensors")
    rounded = dataclasses.replace(data[0], targets=data[0].targets + 1e-7)  # as on another machine
    finetuned("elsewhere.safetensors", data=[rounded])
    resumed = finetuned("stopped.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)
        assert torch.equal(known[name], discriminator.state_dict()[name])
        assert torch.equal(value, known[name]) == (not name.startswith("pose_")), name


@pytest.mark.parametrize("preset", ["cpu-64", "tiny"])
def test_the_command_writes_weights_with_a_calibration(dataset, tmp_path, preset):
    weights, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    torch.manual_seed(0)
    model = ALL_PRESETS[preset].model
    save_weights(weights, model, Generator(model), Discriminator(model), {"images": 7})
    line = next(line for line in str(module.__doc__).splitlines() if "python -m" in line).split()
    names = {"TRAIN.zip": str(dataset), "weights.safetensors": str(weights), "finetuned.safetensors": str(out)}
    short = ["--recipe.steps", "2", "--recipe.images", "4", "--recipe.pose-blocks", "2"]
    tyro.cli(main, args=[names.get(word, word) for word in line[3:]] + short)
    before, after = load_weights(weights), load_weights(out)
    assert after.info.about == {"images": 7, "real_poses": {"steps": 2, "images": 16}}
    assert after.calibration is not None
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["out.safetensors", "w.safetensors"]
    for name, value in before.generator.state_dict().items():
        assert torch.equal(after.generator.state_dict()[name], value)
    assert after.discriminator.config.pose_blocks == 2
    was, now = before.discriminator.state_dict(), after.discriminator.state_dict()
    assert {name for name in was if not torch.equal(was[name], now[name])} == {
        name for name in was if name.startswith("pose_branch.")
    }


def test_weights_of_no_preset_are_refused(dataset, tmp_path):
    model = dataclasses.replace(TINY.model, name="mine")
    weights = tmp_path / "w.safetensors"
    save_weights(weights, model, Generator(model), Discriminator(model), {})
    with pytest.raises(CheckpointError, match="is not of one of the presets"):
        main((dataset,), weights, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
