"""Starting a run from a weights file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from portrait360.config import PRESETS, Preset
from portrait360.geometry.cameras import camera_label
from portrait360.model.discriminator import DiscriminatorInput
from portrait360.portrait.weights import save_weights
from portrait360.poses.memory import CAPACITY
from portrait360.runtime.distributed import Ranks
from portrait360.training import schedules
from portrait360.training.adapt import can_start_from, read_weights, start_from, with_pose_path_of
from portrait360.training.checkpoints import Checkpoint, RunRecord, load_checkpoint, save_checkpoint
from portrait360.training.state import fill_state, new_state, state_tensors
from portrait360.training.step import TILT_INTERVAL, training_step
from portrait360.types import CheckpointError
from support.presets import TINY
from support.random_batches import random_batch
from support.shrunken import shrunken


def with_blocks(count: int) -> Preset:
    """The tiny preset with so many blocks of the tri-grid."""
    preset = TINY
    synthesis = dataclasses.replace(preset.model.synthesis, channels=(16, 16, 16, 16, 8)[:count])
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, synthesis=synthesis))


def weights_file(folder, preset: Preset):
    state = new_state(preset, 3, torch.device("cpu"))
    path = folder / "w.safetensors"
    save_weights(path, preset.model, state.average, state.discriminator, {"images": 500}, exact=True)
    return path, state


def test_a_finer_tri_grid_starts_as_the_coarse_one_enlarged(tmp_path):
    small, large = with_blocks(3), with_blocks(5)
    path, before = weights_file(tmp_path, small)
    after = new_state(large, 4, torch.device("cpu"))
    start_from(after, read_weights(path, large.model))
    assert after.images == 500
    w = torch.randn(2, small.model.w_dim)
    coarse = before.average.scene(w).tri_grid
    for generator in (after.generator, after.average):
        fine = generator.scene(w).tri_grid
        expected = coarse.flatten(1, 3)
        for _ in range(2):
            expected = torch.nn.functional.interpolate(expected, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(fine.flatten(1, 3), expected, atol=1e-5, rtol=0)
    block = after.generator.backbone.synthesis.get_submodule("b64")
    assert block.conv1.weight.std() > 0.5
    assert all(torch.equal(a, b) for a, b in zip(after.generator.parameters(), after.average.parameters(), strict=True))


def grown(preset: Preset) -> Preset:
    """The preset for images of twice the side, with another name."""
    model = preset.model
    channels = model.discriminator.channels
    discriminator = dataclasses.replace(model.discriminator, channels=(channels[0], *channels))
    size = {"resolution": 2 * model.resolution, "raw_resolution": 2 * model.raw_resolution}
    larger = dataclasses.replace(model, name="grown", discriminator=discriminator, **size)
    return dataclasses.replace(preset, model=larger)


@pytest.mark.parametrize("pose_blocks", [0, 2])
def test_a_discriminator_of_larger_images_starts_as_the_smaller_one_of_their_means(tmp_path, pose_blocks):
    plain = shrunken(PRESETS["cpu-64"])
    small = dataclasses.replace(plain, model=plain.model.with_pose_blocks(pose_blocks))
    path, before = weights_file(tmp_path, small)
    start = read_weights(path, grown(plain).model)
    large = with_pose_path_of(start.model, grown(plain))
    after = new_state(large, 4, torch.device("cpu"))
    start_from(after, start)
    batch = random_batch(small.model, 6)
    images = DiscriminatorInput(batch.image, None, batch.mask)
    enlarged = images.map(lambda t: t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    expected = before.discriminator(images, batch.camera)
    for network in (after.discriminator, after.average_discriminator):
        for found, wanted in zip(network(enlarged, batch.camera), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    training_step(after, random_batch(large.model, 4))
    block = after.discriminator.get_submodule(f"b{large.model.resolution}")
    assert block.conv1.weight.abs().max() > 0.0  # what begins at zero learns


def test_portrait_128_grows_from_cpu_64():
    small, large = PRESETS["cpu-64"].model, PRESETS["portrait-128"].model
    assert can_start_from(small, large)
    assert can_start_from(large, small)
    assert not can_start_from(small, PRESETS["portrait-256"].model)
    wider = dataclasses.replace(large.discriminator, channels=(48, *small.discriminator.channels))
    assert not can_start_from(small, dataclasses.replace(large, discriminator=wider))


@pytest.mark.slow
def test_a_run_that_refines_poses_resumes_exactly(tmp_path):
    """Two steps, or one, a checkpoint and one: the same weights, memory of poses and tilt."""
    training = dataclasses.replace(TINY.training, pose_refine_kimg=0.001, pose_match_weight=1.0)
    preset = dataclasses.replace(TINY, training=training)
    batches = [random_batch(preset.model, 4, seed) for seed in range(2)]

    def started():
        state = new_state(preset, 0, torch.device("cpu"))
        state.images = 1000
        state.step = TILT_INTERVAL - 2
        some = torch.randn(CAPACITY, 6, generator=torch.Generator().manual_seed(1)) * 0.1
        state.memory.note(camera_label(torch.linspace(0, 6.28, CAPACITY)), some, 0.1 * some, some, 0.5 * some)
        state.memory.keep(Ranks())
        torch.manual_seed(7)
        return state

    whole = started()
    for batch in batches:
        training_step(whole, batch)
    expected = state_tensors(whole, torch.get_rng_state()[None])
    first = started()
    training_step(first, batches[0])
    path = tmp_path / "c.safetensors"
    tensors = state_tensors(first, torch.get_rng_state()[None])
    save_checkpoint(Checkpoint(path, preset, RunRecord("tiny", "preset", 0), first.images, first.step, tensors))
    torch.manual_seed(99)
    second = new_state(preset, 5, torch.device("cpu"))
    fill_state(second, load_checkpoint(path), Ranks())
    assert second.memory.ready
    training_step(second, batches[1])
    assert second.memory.tilt.abs().max() > 0
    found = state_tensors(second, torch.get_rng_state()[None])
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_weights_with_a_body_of_their_own_are_refused(tmp_path):
    preset = with_blocks(3)
    state = new_state(preset, 3, torch.device("cpu"))
    path = tmp_path / "w.safetensors"
    state.average.body = dataclasses.replace(state.average.body, name="mine")
    save_weights(path, preset.model, state.average, state.discriminator, {})
    with pytest.raises(CheckpointError, match="a body of its own"):
        read_weights(path, preset.model)


def test_weights_of_another_shape_are_refused(tmp_path):
    path, _ = weights_file(tmp_path, with_blocks(4))
    wider = dataclasses.replace(with_blocks(5).model, w_dim=64)
    narrow = dataclasses.replace(with_blocks(4).model.synthesis, channels=(16, 16, 16, 8))
    for model in (dataclasses.replace(wider, w_dim=32, synthesis=narrow), wider):
        with pytest.raises(CheckpointError, match="belongs to tiny"):
            read_weights(path, model)


def test_the_number_of_samples_is_free(tmp_path):
    preset = with_blocks(4)
    path, _ = weights_file(tmp_path, preset)
    render = dataclasses.replace(preset.model.render, samples=99)
    assert read_weights(path, dataclasses.replace(preset.model, render=render)).images == 500


def test_the_discriminator_is_averaged_too():
    preset = TINY
    state = new_state(preset, 3, torch.device("cpu"))
    before = [p.clone() for p in state.average_discriminator.parameters()]
    training_step(state, random_batch(preset.model, 4, 0))
    beta = schedules.ema_beta(state.images, state.config)
    for old, new, average in zip(
        before, state.discriminator.parameters(), state.average_discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(average, old.lerp(new, 1.0 - beta))
    tensors = state_tensors(state, torch.get_rng_state()[None])
    resumed = new_state(preset, 3, torch.device("cpu"))
    fill_state(resumed, Checkpoint(Path("c"), preset, RunRecord("tiny", "preset", 3), 4, 1, tensors), Ranks())
    pairs = zip(resumed.average_discriminator.parameters(), state.average_discriminator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
