"""Training the portrait encoder: batches, losses, and exact continuation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

from portrait360.data.writer import open_writer
from portrait360.encoder import train as encoder_training
from portrait360.encoder.augment import PhotoBatch
from portrait360.encoder.batches import EncoderData, EncoderTraining, batch_of, batch_rows, batches
from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import EncoderConfig, PortraitEncoder, to_view
from portrait360.encoder.train import (
    EncoderState,
    contrastive_loss,
    encoder_losses,
    learning_rate,
    main,
    train_encoder,
    turns_in_view,
)
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import cam2world
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.runtime.distributed import Ranks
from portrait360.types import CheckpointError, DatasetError, InputError
from support.fake_portraits import FakeSource, write_fake_dataset
from support.programs import run_ranks

SMALL = EncoderConfig(resolution=32, stem=8, channels=(8, 8, 8, 8), blocks=1, mask_channels=8, hidden=16, identity=8)
RECIPE = EncoderTraining(steps=6, people=3, warm_up=2, save_every=3)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Seven persons, three images each: the colours belong to the person, the rest to the image."""
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


@pytest.fixture
def one_thread():
    """Sums over several threads may end in other last bits from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_person_comes_once_an_epoch_with_two_images(data):
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


def tensors(photos: PhotoBatch) -> dict[str, Tensor]:
    parts = {f.name: getattr(photos, f.name) for f in dataclasses.fields(photos)}
    camera = parts.pop("camera")
    return parts | {f"camera.{f.name}": getattr(camera, f.name) for f in dataclasses.fields(camera)}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_prepare_the_same_batches_in_order(data, one_thread, workers):
    torch.manual_seed(5)
    found = list(batches(3, 8, data, RECIPE, workers=workers))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert len(found) == 8
    for step, (photos, poses) in enumerate(found, start=3):
        expected, expected_poses = batch_of(step, data, RECIPE)
        assert torch.equal(poses, expected_poses)
        given = tensors(photos)
        assert len(given) == 9
        assert all(torch.equal(given[name], value) for name, value in tensors(expected).items())


def test_no_steps_are_no_batches(data):
    assert list(batches(3, 0, data, RECIPE, workers=2)) == []


def test_batches_go_into_pinned_memory_whole(data, monkeypatch):
    pinned: list[int] = []

    def pin(values: Tensor) -> Tensor:
        pinned.append(id(values))
        return values.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    photos, _ = batch_of(0, data, RECIPE)
    moved = photos.pin_memory()  # as `torch.utils.data.DataLoader` asks for it
    assert isinstance(moved, PhotoBatch)
    assert set(pinned) == set(map(id, tensors(photos).values()))
    given = tensors(moved)
    assert all(torch.equal(given[name], value) for name, value in tensors(photos).items())


@pytest.mark.parametrize("sees_covers", [False, True])
def test_losses_are_computed_where_the_images_are(data, sees_covers):
    """The meta device refuses tensors of the CPU as a GPU does."""
    encoder = PortraitEncoder(dataclasses.replace(SMALL, sees_covers=sees_covers)).to("meta")
    photos, poses = batch_of(0, data, RECIPE)
    photos, body = photos.to("meta"), load_body().to("meta")
    assert all(value.is_meta for value in tensors(photos).values())
    losses = encoder_losses(encoder, photos, poses.to("meta"), 0.1, body)
    assert all(value.is_meta for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()


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
    assert info["about"] == {"steps": 6, "images": 21}
    assert encoder.config == SMALL
    assert encoder.feature_scale.std() > 0


def test_processes_share_the_persons_of_a_batch(data):
    recipe = dataclasses.replace(RECIPE, people=4)
    whole = batch_of(1, data, recipe)[0].camera.yaw.abs()
    shares = [batch_of(1, data, recipe, Ranks(rank, 2))[0] for rank in (0, 1)]
    together = torch.stack([share.camera.yaw.abs().unflatten(0, (-1, 2)) for share in shares], dim=1)
    assert torch.equal(together.flatten(), whole)  # everybody once, if perhaps mirrored
    assert not torch.equal(shares[0].camera.roll, shares[1].camera.roll)
    with pytest.raises(InputError, match="cannot share"):
        train_encoder(data, Path("none.safetensors"), SMALL, recipe, ranks=Ranks(0, 3))


TOGETHER = """
import sys
from pathlib import Path
import torch
from portrait360.encoder.network import EncoderConfig
from portrait360.runtime.distributed import join
from portrait360.encoder.train import train_encoder
from portrait360.encoder.batches import EncoderData, EncoderTraining

ranks = join(torch.device("cpu"))
torch.set_num_threads(1)
data, out = EncoderData.load(Path(sys.argv[1]), 32), Path(sys.argv[2])
config = EncoderConfig(32, stem=8, channels=(8, 8, 8, 8), blocks=1, mask_channels=8, hidden=16, identity=8)
recipe = EncoderTraining(steps=6, people=4, warm_up=2, save_every=3)
encoder = train_encoder(data, out / "whole.safetensors", config, recipe, ranks=ranks)
numbers = torch.cat([p.detach().reshape(-1) for p in encoder.parameters()])
one, two = ranks.gather(numbers[None])
assert torch.equal(one, two)
train_encoder(data, out / "parts.safetensors", config, recipe, ranks=ranks, stop_after=3)
assert not (out / "parts.safetensors").exists()
ranks.wait()
train_encoder(data, out / "parts.safetensors", config, recipe, ranks=ranks)
ranks.leave()
"""


def test_two_processes_train_one_encoder_and_resume_exactly(people, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run_ranks(TOGETHER, people, out)
    assert sorted(p.name for p in out.iterdir()) == ["parts.safetensors", "whole.safetensors"]
    whole, parts = (load_file(out / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_workers_do_not_change_the_encoder(data, tmp_path, one_thread, capsys):
    train_encoder(data, tmp_path / "alone.safetensors", SMALL, RECIPE)
    printed = [line.split("min")[1] for line in capsys.readouterr().out.splitlines()]
    train_encoder(data, tmp_path / "helped.safetensors", SMALL, RECIPE, stop_after=4, workers=2)
    train_encoder(data, tmp_path / "helped.safetensors", SMALL, RECIPE, workers=1)
    alone, helped = (load_file(tmp_path / f"{name}.safetensors") for name in ("alone", "helped"))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)
    assert capsys.readouterr().out.splitlines()[0].split("min")[1] == printed[0]


def test_printed_losses_are_running_means(data, tmp_path, one_thread, capsys, monkeypatch):
    seen: list[dict[str, float]] = []

    def losses(*args) -> dict[str, Tensor]:
        values = encoder_losses(*args)
        seen.append({name: value.item() for name, value in values.items()})
        return values

    monkeypatch.setattr(encoder_training, "encoder_losses", losses)
    train_encoder(data, tmp_path / "encoder.safetensors", SMALL, RECIPE)
    words = capsys.readouterr().out.splitlines()[-1].split("min")[1].split()
    printed = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert printed.keys() == seen[0].keys()
    for name, value in printed.items():
        mean = seen[0][name]
        for step in seen[1:]:
            mean = 0.98 * mean + 0.02 * step[name]
        assert value == pytest.approx(mean, abs=6e-4), name


def test_a_resumed_optimizer_has_the_layout_of_its_parameters(data, tmp_path):
    """Otherwise GPUs would take the parameters one by one from then on."""
    encoder = train_encoder(data, tmp_path / "encoder.safetensors", SMALL, RECIPE, stop_after=2)
    optimizer = torch.optim.AdamW(encoder.parameters())
    state = EncoderState(encoder, optimizer)
    state.resume(tmp_path / "encoder.checkpoint.safetensors")
    assert state.step == 2
    assert len(optimizer.state) == len(list(encoder.parameters()))
    for parameter, moments in optimizer.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
        assert moments["exp_avg_sq"].max() > 0
        assert moments["step"] == 2


def test_the_command_line_of_the_module(people, tmp_path, one_thread):
    line = next(line for line in str(encoder_training.__doc__).splitlines() if "--device cuda" in line)
    words = line.split()
    assert words[:3] == ["python", "-m", "portrait360.encoder.train"]
    with pytest.raises(InputError, match="not a device"):
        main((people,), tmp_path / "encoder.safetensors", config=SMALL, recipe=RECIPE, device="gpu")
    changes = {"train.zip": str(people), "encoder.safetensors": str(tmp_path / "encoder.safetensors")}
    changes |= {"cuda": "cpu", "14": "2"}
    sizes = "--config.resolution 32 --config.stem 8 --config.channels 8 8 8 8 --config.blocks 1"
    sizes += " --config.mask-channels 8 --config.hidden 16 --config.identity 8 --recipe.steps 2 --recipe.people 3"
    tyro.cli(main, args=[changes.get(word, word) for word in words[3:]] + sizes.split())
    encoder, info = load_encoder(tmp_path / "encoder.safetensors")
    assert info["about"] == {"steps": 2, "images": 21}
    assert encoder.config == dataclasses.replace(SMALL, sees_covers=True)


def test_it_starts_from_a_given_encoder(data, tmp_path, one_thread):
    first = tmp_path / "first.safetensors"
    train_encoder(data, first, SMALL, RECIPE)
    still = dataclasses.replace(RECIPE, steps=1, rate=0.0)
    train_encoder(data, tmp_path / "second.safetensors", SMALL, still, init=first)
    before, after = load_file(first), load_file(tmp_path / "second.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("running" in name or "tracked" in name or name.startswith("encoder/feature_") for name in changed)
    # its features are in units of the images' own deviation, not of what the first one's were divided by
    seen = load_encoder(tmp_path / "second.safetensors")[0].encode(batch_of(0, data, RECIPE)[0].image).features
    assert seen.mean().abs() < 0.3
    assert 0.5 < seen.std(0).mean() < 1.5
    with pytest.raises(CheckpointError, match="another size"):
        train_encoder(data, tmp_path / "third.safetensors", EncoderConfig(), RECIPE, init=first)


def test_weights_are_averaged_with_another_encoder_s_at_the_end(data, people, tmp_path, one_thread):
    first, trained, mixed = (tmp_path / f"{name}.safetensors" for name in ("first", "trained", "mixed"))
    train_encoder(data, first, SMALL, RECIPE)
    train_encoder(data, trained, SMALL, RECIPE, init=first)
    train_encoder(data, mixed, SMALL, RECIPE, init=first, average=first, average_share=0.25)
    a, b, c = (load_encoder(path)[0].state_dict() for path in (first, trained, mixed))
    fitted = {"feature_mean", "feature_scale"}  # to what the averaged one sees
    for name in a.keys() - fitted:
        expected = 0.25 * a[name] + 0.75 * b[name] if a[name].is_floating_point() else b[name]
        if expected.dim() < 2:
            torch.testing.assert_close(c[name], expected, atol=1e-6, rtol=1e-5)
            continue
        steps = sum(
            share * v.flatten(1).abs().amax(1) / 127 for share, v in ((0.25, a[name]), (0.75, b[name]), (1, c[name]))
        )
        assert ((c[name] - expected).flatten(1).abs().amax(1) <= 0.51 * steps).all(), name  # of files of 8 bits
    assert not torch.equal(c["feature_scale"], b["feature_scale"])
    assert not torch.equal(a["hidden.weight"], b["hidden.weight"])


def test_an_encoder_that_does_not_see_covers_learns_to(data, tmp_path, one_thread):
    first, seeing = tmp_path / "first.safetensors", dataclasses.replace(SMALL, sees_covers=True)
    train_encoder(data, first, SMALL, RECIPE)
    still = dataclasses.replace(RECIPE, steps=1, rate=0.0)
    second = train_encoder(data, tmp_path / "second.safetensors", seeing, still, init=first)
    assert load_encoder(tmp_path / "second.safetensors")[0].config == seeing
    images = batch_of(0, data, RECIPE)[0].image
    before, after = load_encoder(first)[0].encode(images), second.encode(images)
    assert before.covered is None
    assert after.covered is not None
    assert torch.allclose(after.covered, torch.full_like(after.covered, 0.018), atol=1e-3)
    # the rest stays, but for the statistics of one more batch
    assert torch.allclose(before.landmarks, after.landmarks, atol=0.05)
    assert torch.allclose(before.blur, after.blur, rtol=0.2)
    with pytest.raises(CheckpointError, match="predicts what is covered"):
        train_encoder(data, tmp_path / "third.safetensors", SMALL, RECIPE, init=tmp_path / "second.safetensors")


def test_an_encoder_gets_further_blocks_and_reads_around_landmarks(data, tmp_path, one_thread):
    first, larger = tmp_path / "first.safetensors", dataclasses.replace(SMALL, further_blocks=(1, 0, 1, 0), around=2)
    train_encoder(data, first, SMALL, RECIPE)
    still = dataclasses.replace(RECIPE, steps=1, rate=0.0)
    train_encoder(data, tmp_path / "second.safetensors", larger, still, init=first)
    before, after = load_encoder(first)[0], load_encoder(tmp_path / "second.safetensors")[0]
    assert after.config == larger
    state = after.state_dict()
    for name, value in before.named_parameters():
        found = state[name][:, : value.shape[1]] if name == "hidden.weight" else state[name]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    assert not state["hidden.weight"][:, before.hidden.in_features :].any()
    # and both learn
    third = train_encoder(data, tmp_path / "third.safetensors", larger, RECIPE, init=first)
    assert third.stages[0][1].norm2.weight.abs().max() > 0
    assert third.hidden.weight[:, before.hidden.in_features :].abs().max() > 0
    for smaller in (SMALL, dataclasses.replace(larger, around=1), dataclasses.replace(larger, further_blocks=())):
        with pytest.raises(CheckpointError, match="another size"):
            train_encoder(data, tmp_path / "fourth.safetensors", smaller, still, init=tmp_path / "third.safetensors")


def test_turns_are_those_that_the_camera_sees(data):
    photos, poses = batch_of(0, data, RECIPE)
    neck, head = turns_in_view(photos.camera, to_view(poses, photos.camera)).unbind(1)
    rotation = cam2world(photos.camera.label())[:, :3, :3]
    own_neck, own_head = axis_angle_to_matrix(poses.unflatten(1, (2, 3))).unbind(1)
    torch.testing.assert_close(neck, rotation.mT @ own_neck, atol=2e-6, rtol=0)
    torch.testing.assert_close(head, rotation.mT @ own_neck @ own_head, atol=2e-6, rtol=0)


def test_a_run_in_bf16_goes_on_so_wherever_it_stopped(data, tmp_path, one_thread, monkeypatch):
    asked = []

    def chosen(allowed, device, saved):
        asked.append(saved)
        return bool(saved.get("bf16", True))

    monkeypatch.setattr(encoder_training, "choose_bf16", chosen)
    whole = train_encoder(data, tmp_path / "whole.safetensors", SMALL, RECIPE, bf16=True)
    train_encoder(data, tmp_path / "parts.safetensors", SMALL, RECIPE, bf16=None, stop_after=2)
    parts = train_encoder(data, tmp_path / "parts.safetensors", SMALL, RECIPE, bf16=None)
    exact = train_encoder(data, tmp_path / "exact.safetensors", SMALL, RECIPE)
    assert [saved.get("bf16") for saved in asked] == [None, True]
    states = [encoder.state_dict() for encoder in (whole, parts, exact)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert any(not torch.equal(states[0][name], value) for name, value in states[2].items())
    assert not whole.bf16  # what it is measured with


def test_it_overfits_a_batch(data, one_thread):
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


def _persons(path: Path, views: int) -> Path:
    """Two persons, each seen so often."""
    with open_writer(path, resolution=32, meta={"label_kind": "exact", "views_per_subject": views}) as writer:
        for index in range(2 * views):
            sample = FakeSource().draw(3, index, 32)
            writer.add(sample.image, sample.mask, sample.camera, sample.body_pose, None)
    return path


def test_several_datasets_are_one(people, data, tmp_path):
    others = EncoderData.load(_persons(tmp_path / "others.zip", 3), 32)
    both = EncoderData.load_all([people, tmp_path / "others.zip"], 32)
    assert both.views == 3
    for name in ("images", "masks", "cameras", "body_poses"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(data, name), getattr(others, name)]))


def test_data_without_several_images_are_refused(people, tmp_path):
    write_fake_dataset(tmp_path / "one.zip", coarse=True)
    with pytest.raises(DatasetError, match="several times"):
        EncoderData.load(tmp_path / "one.zip", 32)
    with pytest.raises(DatasetError, match=r"twice\.zip shows each person 2 times, .*people\.zip 3 times"):
        EncoderData.load_all([people, _persons(tmp_path / "twice.zip", 2)], 32)
    with pytest.raises(DatasetError, match="no dataset is given"):
        EncoderData.load_all([], 32)
