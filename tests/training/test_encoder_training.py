"""Training the portrait encoder: batches, losses, and exact continuation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fake_portraits import FakeSource, write_fake_dataset
from portrait360.checkpoint import load_encoder
from portrait360.data.writer import open_writer
from portrait360.geometry.body import load_body
from portrait360.model.encoder import EncoderConfig, PortraitEncoder
from portrait360.training.encoder import (
    EncoderData,
    EncoderTraining,
    batch_of,
    batch_rows,
    contrastive_loss,
    encoder_losses,
    learning_rate,
    train_encoder,
)
from portrait360.types import CheckpointError, DatasetError

SMALL = EncoderConfig(resolution=32, stem=8, channels=(8, 8, 8, 8), blocks=1, mask_channels=8, hidden=16, identity=8)
RECIPE = EncoderTraining(steps=6, people=3, warm_up=2, save_every=3)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Seven persons, three pictures each: the colours belong to the person, the rest to the picture."""
    path = tmp_path_factory.mktemp("people") / "people.zip"
    source = FakeSource()
    with open_writer(path, resolution=32, meta={"label_kind": "exact", "views_per_subject": 3}) as writer:
        for index in range(21):
            sample = source.draw(2, index, 32)
            colour = np.random.default_rng(index // 3).integers(0, 256, 3)
            image = np.where(sample.mask[..., None] > 0, colour, sample.image).astype(np.uint8)
            writer.add(image, sample.mask, sample.camera, sample.body_pose, None)
    return path


@pytest.fixture(scope="module")
def data(people) -> EncoderData:
    return EncoderData.load(people, 32)


def test_every_person_comes_once_an_epoch_with_two_pictures(data):
    for epoch in range(3):
        rows = torch.cat([batch_rows(2 * epoch + i, 3, data, seed=0) for i in range(2)]).reshape(-1, 2)
        assert torch.equal(rows[:, 0] // 3, rows[:, 1] // 3)
        assert (rows[:, 0] != rows[:, 1]).all()
        assert len(set((rows[:, 0] // 3).tolist())) == len(rows) == 6
    assert not torch.equal(batch_rows(0, 3, data, 0), batch_rows(2, 3, data, 0))
    assert not torch.equal(batch_rows(0, 3, data, 0), batch_rows(0, 3, data, 1))


def test_batches_are_a_function_of_the_step(data):
    (a, pose_a), (b, pose_b), (c, _) = (batch_of(step, data, RECIPE) for step in (4, 4, 5))
    assert torch.equal(a.image, b.image)
    assert torch.equal(pose_a, pose_b)
    assert not torch.equal(a.image, c.image)


def test_contrastive_loss_by_hand():
    identity = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = 0.0
    for i in range(6):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [float(torch.exp(identity[i] @ identity[j] / 0.2)) for j in range(6) if j != i]
        expected -= np.log(float(torch.exp(identity[i] @ identity[partner] / 0.2)) / sum(others)) / 6
    assert contrastive_loss(identity, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_and_ends_at_nothing():
    rates = [learning_rate(step, RECIPE) for step in range(RECIPE.steps + 1)]
    assert rates[0] < rates[1] == RECIPE.rate
    assert sorted(rates[1:], reverse=True) == rates[1:]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


@pytest.fixture
def one_thread():
    """Sums over several threads may end in other last bits from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_stopped_run_ends_as_an_unbroken_one(data, tmp_path, one_thread):
    train_encoder(data, tmp_path / "whole.safetensors", SMALL, RECIPE)
    train_encoder(data, tmp_path / "parts.safetensors", SMALL, RECIPE, stop_after=2)
    assert not (tmp_path / "parts.safetensors").exists()
    train_encoder(data, tmp_path / "parts.safetensors", SMALL, RECIPE)
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]
    encoder, info = load_encoder(tmp_path / "whole.safetensors")
    assert info["about"] == {"steps": 6, "pictures": 21}
    assert encoder.config == SMALL
    assert encoder.feature_scale.std() > 0


def test_it_starts_from_a_given_encoder(data, tmp_path, one_thread):
    first = tmp_path / "first.safetensors"
    train_encoder(data, first, SMALL, RECIPE)
    still = dataclasses.replace(RECIPE, steps=1, rate=0.0)
    train_encoder(data, tmp_path / "second.safetensors", SMALL, still, init=first)
    before, after = load_file(first), load_file(tmp_path / "second.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("running" in name or "tracked" in name or name.startswith("encoder/feature_") for name in changed)
    # its features are in units of the pictures' own deviation, not of what the first one's were divided by
    seen = load_encoder(tmp_path / "second.safetensors")[0].encode(batch_of(0, data, RECIPE)[0].image).features
    assert seen.mean().abs() < 0.3
    assert 0.5 < seen.std(0).mean() < 1.5
    with pytest.raises(CheckpointError, match="another size"):
        train_encoder(data, tmp_path / "third.safetensors", EncoderConfig(), RECIPE, init=first)


def test_an_encoder_that_does_not_see_covers_learns_to(data, tmp_path, one_thread):
    first, seeing = tmp_path / "first.safetensors", dataclasses.replace(SMALL, sees_covers=True)
    train_encoder(data, first, SMALL, RECIPE)
    still = dataclasses.replace(RECIPE, steps=1, rate=0.0)
    second = train_encoder(data, tmp_path / "second.safetensors", seeing, still, init=first)
    assert load_encoder(tmp_path / "second.safetensors")[0].config == seeing
    pictures = batch_of(0, data, RECIPE)[0].image
    before, after = load_encoder(first)[0].encode(pictures), second.encode(pictures)
    assert before.covered is None
    assert after.covered is not None
    assert torch.allclose(after.covered, torch.full_like(after.covered, 0.018), atol=1e-3)
    # the rest stays, but for the statistics of one more batch
    assert torch.allclose(before.landmarks, after.landmarks, atol=0.05)
    assert torch.allclose(before.blur, after.blur, rtol=0.2)
    with pytest.raises(CheckpointError, match="sees what is covered"):
        train_encoder(data, tmp_path / "third.safetensors", SMALL, RECIPE, init=tmp_path / "second.safetensors")


def test_it_learns_a_batch_by_heart(data, one_thread):
    torch.manual_seed(0)
    encoder = PortraitEncoder(dataclasses.replace(SMALL, sees_covers=True))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=5e-3)
    photos, poses = batch_of(0, data, RECIPE)
    body = load_body()
    history: list[dict[str, float]] = []
    for _ in range(40):
        losses = encoder_losses(encoder, photos, poses, 0.1, body)
        history.append({name: value.item() for name, value in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert photos.covered.max() > 0.1
    for name in ("yaw", "offset", "pose", "mask", "identity", "cover"):
        assert history[-1][name] < 0.7 * history[0][name], name


def test_data_without_several_pictures_are_refused(tmp_path):
    write_fake_dataset(tmp_path / "one.zip", coarse=True)
    with pytest.raises(DatasetError, match="several times"):
        EncoderData.load(tmp_path / "one.zip", 32)
