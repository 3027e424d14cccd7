"""One step: the shared pass gives the gradients of the separate ones, and every preset trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry.cameras import camera_label
from portrait360.model.rendering import occupied_cells
from portrait360.training.distributed import Ranks
from portrait360.training.pose_memory import CAPACITY
from portrait360.training.state import new_state
from portrait360.training.step import (
    TILT_INTERVAL,
    generate,
    separate_gradients,
    shared_gradients,
    training_step,
    update_average,
)
from random_batches import random_batch
from shrunken import shrunken

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_two_shrunken_steps(name):
    preset = shrunken(PRESETS[name])
    state = new_state(preset, 0, CPU)
    before = {k: v.clone() for k, v in state.generator.state_dict().items()}
    for i in range(2):
        metrics = training_step(state, random_batch(preset.model, 4, i))
        assert all(torch.isfinite(v) for v in metrics.values())
    assert state.images == 8
    assert state.step == 2
    still = {"noise_const", "resample_filter", "w_avg"}
    changed = [k for k, v in state.generator.state_dict().items() if not torch.equal(v, before[k])]
    expected = [k for k in before if not set(k.split(".")) & still]
    may_stay = {k for k in expected if "noise_strength" in k or "affine" in k}
    assert set(expected) - set(changed) <= may_stay


@pytest.mark.parametrize("loss", ["relativistic", "nonsaturating"])
@pytest.mark.parametrize("name", ["tiny", "cpu-64"])
def test_shared_pass_equals_separate_passes(name, loss):
    preset = shrunken(PRESETS[name])
    training = dataclasses.replace(preset.training, loss=loss, r1_interval=1, blur_sigma=1.0, blur_fade_kimg=1.0)
    preset = dataclasses.replace(preset, training=training)
    gradients = []
    for function in (shared_gradients, separate_gradients):
        state = new_state(preset, 3, CPU)
        torch.manual_seed(5)
        function(state, random_batch(preset.model, 4))
        modules = (state.generator, state.discriminator)
        gradients.append([p.grad for m in modules for p in m.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_pose_loss_reaches_only_the_discriminator():
    """10.8: generated poses are targets; the generator learns poses from the logit and from L_preg."""
    preset = shrunken(PRESETS["tiny"])
    grads = []
    for weight in (0.0, 5.0):
        training = dataclasses.replace(preset.training, pose_loss_weight=weight, r1_interval=100)
        state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
        state.step = 1
        shared_gradients(state, random_batch(preset.model, 4))
        grads.append([m.pose_branch.net[0].weight.grad for m in (state.generator, state.discriminator)])
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert grads[0][1].abs().max() == 0
    assert grads[1][1].abs().max() > 0


def test_l_preg_pulls_the_pose_branch_to_the_labels():
    preset = shrunken(PRESETS["tiny"])
    state = new_state(preset, 0, CPU)
    batch = random_batch(preset.model, 4)
    optimizer = torch.optim.Adam(state.generator.pose_branch.parameters(), 0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        regularisation = generate(state, batch).regularisation
        regularisation.backward(inputs=list(state.generator.pose_branch.parameters()))
        optimizer.step()
        values.append(regularisation.item())
    assert values[-1] < 0.5 * values[0]


def test_coarse_poses_are_used_with_their_probability():
    preset = shrunken(PRESETS["tiny"])
    batch = random_batch(preset.model, 4)
    for probability in (0.0, 1.0):
        training = dataclasses.replace(preset.training, coarse_pose_probability=probability)
        state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
        pose = generate(state, batch).body_pose
        assert torch.equal(pose, batch.coarse_pose) == (probability == 1.0)


def refining(name="tiny", **changes):
    """A state in which poses are refined, its memory filled with one pose."""
    preset = shrunken(PRESETS[name])
    training = dataclasses.replace(
        preset.training, pose_refine_kimg=0.001, coarse_pose_probability=1.0, pose_match_weight=1.0, **changes
    )
    state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
    state.images = 1000
    cameras = camera_label(torch.linspace(0, 6.28, CAPACITY))
    state.memory.note(cameras, torch.full((CAPACITY, 6), 0.1), torch.zeros(CAPACITY, 6), torch.zeros(CAPACITY, 6))
    state.memory.keep(Ranks())
    return state


def test_refined_poses_replace_the_labels_and_the_tilt_is_part_of_what_is_shown():
    state = refining()
    state.memory.tilt = torch.tensor([0.05, 0.0, 0.0, -0.02, 0.0, 0.0])
    shown = generate(state, random_batch(state.model, 4)).body_pose
    torch.testing.assert_close(shown, (0.1 + 0.25 * state.memory.tilt).expand(4, 6))


def test_the_discriminator_learns_what_is_shown(monkeypatch):
    """Its pose head is taught the rendered pose plus the tilt; what it says of real pictures is remembered."""
    state = refining()
    state.memory.tilt = torch.full((6,), 0.07)
    taught = []
    monkeypatch.setattr("portrait360.training.step.pose_loss", lambda a, b: (taught.append(b), a.square().mean())[1])
    before = state.memory.seen.added
    training_step(state, random_batch(state.model, 4))
    torch.testing.assert_close(taught[-1], torch.full((4, 6), 0.1 + 0.25 * 0.07))
    assert state.memory.seen.added == before + 4
    assert not torch.equal(state.memory.seen.rows[:4, -6:], torch.full((4, 6), 0.1))


def test_the_tilt_is_followed_now_and_then():
    state = refining()
    state.step = TILT_INTERVAL - 1
    measured = torch.tensor([0.1, 0.0, 0.0, 0.06, 0.0, 0.0])

    class Fixed:
        def measure(self, generator):
            assert generator is state.average
            return measured

    state.alignment = Fixed()
    metrics = training_step(state, random_batch(state.model, 4))
    torch.testing.assert_close(state.memory.tilt, 0.5 * measured)
    state.memory.seen.rows[:, -6:], state.memory.errors.rows[:, -6:] = 0.1, 0.0
    drawn = state.memory.draw(camera_label(torch.zeros(2)))
    torch.testing.assert_close(drawn, (0.1 - 0.75 * state.memory.tilt).expand(2, 6))
    assert float(metrics["tilt_neck"]) == pytest.approx(0.05 * 57.2958, rel=1e-4)
    training_step(state, random_batch(state.model, 4))
    torch.testing.assert_close(state.memory.tilt, 0.5 * measured)


def test_the_original_recipe_remembers_nothing():
    preset = shrunken(PRESETS["original-128"])
    state = new_state(preset, 0, CPU)
    training_step(state, random_batch(preset.model, 4))
    assert state.memory.seen.added == 0


def test_empty_space_is_skipped_without_a_visible_difference(monkeypatch):
    preset = shrunken(PRESETS["cpu-64"])
    state = new_state(preset, 0, CPU)
    with torch.no_grad():  # dense in some places, empty in others
        state.generator.decoder.net[2].bias[0] = -6.0
        state.generator.decoder.net[2].weight[0] *= 20.0
    batch = random_batch(preset.model, 4)
    shares = []

    def spy(*arguments):
        cells = occupied_cells(*arguments)
        shares.append(float(cells.float().mean()))
        return cells

    monkeypatch.setattr("portrait360.training.step.occupied_cells", spy)
    masks = []
    for skips in (True, False):
        torch.manual_seed(5)
        state.config = dataclasses.replace(preset.training, occupancy=skips)
        masks.append(generate(state, batch).pictures.mask.detach())
    assert len(shares) == 1
    assert 0.05 < shares[0] < 0.95
    assert (masks[0] - masks[1]).abs().mean() < 0.01
    assert masks[1].mean() > 0.05


def test_nothing_changes_when_a_loss_is_not_finite():
    preset = shrunken(PRESETS["tiny"])
    state = new_state(preset, 0, CPU)
    with torch.no_grad():
        state.discriminator.b4.out.bias.fill_(float("nan"))
    before = [p.clone() for p in state.generator.parameters()]
    metrics = training_step(state, random_batch(preset.model, 4))
    assert not torch.isfinite(metrics["d_loss"])
    assert all(torch.equal(a, b) for a, b in zip(before, state.generator.parameters(), strict=True))
    assert state.images == 0


def test_average_lerps_parameters_and_copies_buffers():
    a, b = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        b.weight.fill_(3.0)
        b.running_mean.fill_(7.0)
    update_average(a, b, 0.75)
    torch.testing.assert_close(a.weight.data, torch.full((2,), 1.5))
    torch.testing.assert_close(a.running_mean, torch.full((2,), 7.0))
