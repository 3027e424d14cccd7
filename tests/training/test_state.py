"""Starting a run from a weights file."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.checkpoint import save_weights
from portrait360.config import PRESETS, Preset
from portrait360.training.state import new_state, read_weights, start_from
from portrait360.types import CheckpointError


def with_blocks(count: int) -> Preset:
    """The tiny preset with so many blocks of the tri-grid."""
    preset = PRESETS["tiny"]
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


def test_weights_with_a_body_of_their_own_are_refused(tmp_path):
    preset = with_blocks(3)
    state = new_state(preset, 3, torch.device("cpu"))
    path = tmp_path / "w.safetensors"
    save_weights(path, preset.model, state.average, state.discriminator, {}, body=state.average.body)
    with pytest.raises(CheckpointError, match="a body of its own"):
        read_weights(path, preset.model)


def test_weights_of_another_shape_are_refused(tmp_path):
    path, _ = weights_file(tmp_path, with_blocks(4))
    wider = dataclasses.replace(with_blocks(5).model, w_dim=64)
    for model in (with_blocks(3).model, wider):
        with pytest.raises(CheckpointError, match="belongs to tiny"):
            read_weights(path, model)


def test_the_number_of_samples_is_free(tmp_path):
    preset = with_blocks(4)
    path, _ = weights_file(tmp_path, preset)
    render = dataclasses.replace(preset.model.render, samples=99)
    assert read_weights(path, dataclasses.replace(preset.model, render=render)).images == 500
