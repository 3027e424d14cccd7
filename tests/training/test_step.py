"""One step: the shared pass gives the gradients of the separate ones, and every preset trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.config import PRESETS, RawRamp, original_recipe
from portrait360.geometry.cameras import camera_label
from portrait360.model.fused import occupied_cells
from portrait360.poses.memory import CAPACITY
from portrait360.runtime.distributed import Ranks
from portrait360.training import step
from portrait360.training.passes import generate, real_images, separate_gradients, shared_gradients
from portrait360.training.state import new_state
from portrait360.training.step import TILT_INTERVAL, training_step, update_average
from support.presets import ALL_PRESETS, TINY, TINY_ORIGINAL, TRAINABLE
from support.random_batches import random_batch, with_random_people
from support.shrunken import shrunken

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_preset_trains_two_shrunken_steps(name):
    preset = shrunken(ALL_PRESETS[name])
    assert preset.model.deformation == ALL_PRESETS[name].model.deformation
    state = new_state(preset, 0, CPU)
    before = {k: v.clone() for k, v in state.generator.state_dict().items()}
    for i in range(2):
        metrics = training_step(state, with_random_people(state, random_batch(preset.model, 4, i), i))
        assert all(torch.isfinite(v) for v in metrics.values())
    assert state.images == 8
    assert state.step == 2
    still = {"noise_const", "resample_filter", "w_avg"}
    changed = [k for k, v in state.generator.state_dict().items() if not torch.equal(v, before[k])]
    expected = [k for k in before if not set(k.split(".")) & still]
    may_stay = {k for k in expected if "noise_strength" in k or "affine" in k}
    if preset.training.reconstruction is not None:  # poses are given there
        may_stay |= {k for k in expected if k.startswith("pose_branch.")}
    assert set(expected) - set(changed) <= may_stay


@pytest.mark.parametrize("loss", ["relativistic", "nonsaturating"])
@pytest.mark.parametrize("name", ["tiny", "cpu-64"])
def test_shared_pass_equals_separate_passes(name, loss):
    preset = shrunken(ALL_PRESETS[name])
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
    """Equations 10.8: generated poses are targets; the generator learns poses from the logit and from L_preg."""
    preset = shrunken(TINY)
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
    preset = shrunken(TINY)
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
    preset = shrunken(TINY)
    batch = random_batch(preset.model, 4)
    for probability in (0.0, 1.0):
        training = dataclasses.replace(preset.training, coarse_pose_probability=probability)
        state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
        pose = generate(state, batch).body_pose
        assert torch.equal(pose, batch.coarse_pose) == (probability == 1.0)


def refining(name="tiny", **changes):
    """A state in which poses are refined, its memory filled with one pose."""
    preset = shrunken(ALL_PRESETS[name])
    training = dataclasses.replace(
        preset.training, pose_refine_kimg=0.001, coarse_pose_probability=1.0, pose_match_weight=1.0, **changes
    )
    state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
    state.images = 1000
    cameras = camera_label(torch.linspace(0, 6.28, CAPACITY))
    state.memory.note(cameras, torch.full((CAPACITY, 6), 0.1), *torch.zeros(3, CAPACITY, 6))
    state.memory.keep(Ranks())
    return state


def test_refined_poses_replace_the_labels_and_the_tilt_is_part_of_what_is_shown():
    state = refining()
    state.memory.tilt = torch.tensor([0.05, 0.0, 0.0, -0.02, 0.0, 0.0])
    shown = generate(state, random_batch(state.model, 4)).body_pose
    torch.testing.assert_close(shown, (0.1 + 0.25 * state.memory.tilt).expand(4, 6))


def test_the_discriminator_learns_what_is_shown(monkeypatch):
    """Its pose head is trained on the rendered pose plus the tilt; its predictions for real images are remembered."""
    state = refining()
    state.memory.tilt = torch.full((6,), 0.07)
    targets = []
    monkeypatch.setattr(
        "portrait360.training.passes.pose_loss", lambda a, b, *_: (targets.append(b), a.square().mean())[1]
    )
    before = state.memory.seen.added
    training_step(state, random_batch(state.model, 4))
    torch.testing.assert_close(targets[-1], torch.full((4, 6), 0.1 + 0.25 * 0.07))
    assert state.memory.seen.added == state.memory.labels.added == before + 4
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

    monkeypatch.setattr("portrait360.training.passes.occupied_cells", spy)
    masks = []
    for skips in (True, False):
        torch.manual_seed(5)
        state.config = dataclasses.replace(preset.training, occupancy=skips)
        masks.append(generate(state, batch).images.mask.detach())
    assert len(shares) == 1
    assert 0.05 < shares[0] < 0.95
    assert (masks[0] - masks[1]).abs().mean() < 0.01
    assert masks[1].mean() > 0.05


def test_nothing_changes_when_a_loss_is_not_finite():
    preset = shrunken(TINY)
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


def published(**changes):
    """A small original model in its own recipe."""
    preset = shrunken(TINY_ORIGINAL)
    training = dataclasses.replace(original_recipe(preset.model), batch=4, **changes)
    return dataclasses.replace(preset, training=training)


def parameters_of(state):
    return {
        name: {k: v.clone() for k, v in module.state_dict().items()}
        for name, module in (("G", state.generator), ("D", state.discriminator))
    }


def test_published_phases_follow_each_other(monkeypatch):
    """Equations 10.10: generator, discriminator, penalties, each with its own labels, after the steps before it."""
    preset = published()
    state = new_state(preset, 0, CPU)
    batch = random_batch(preset.model, 4)
    seen, steps = [], []

    def watched_generate(state, labels, *, gradients=True):
        seen.append((labels, torch.is_grad_enabled(), parameters_of(state)))
        assert gradients == torch.is_grad_enabled()
        return generate(state, labels, gradients=gradients)

    def watched_step(optimizer, original=torch.optim.Adam.step):
        kind = "G" if optimizer is state.g_optimizer else "D"
        steps.append((kind, sorted(optimizer.param_groups[0]["betas"]), optimizer.param_groups[0]["lr"]))
        return original(optimizer)

    monkeypatch.setattr(step, "generate", watched_generate)
    monkeypatch.setattr(torch.optim.Adam, "step", watched_step)
    start = parameters_of(state)
    training_step(state, batch)
    assert [kind for kind, _, _ in steps] == ["G", "D", "D"]
    assert [rate for _, _, rate in steps] == pytest.approx([0.0025, 0.002 * 16 / 17, 0.002 * 16 / 17])
    assert steps[1][1] == pytest.approx([0.0, 0.99 ** (16 / 17)])
    assert [labels is drawn for (labels, _, _), drawn in zip(seen, batch.drawn, strict=True)] == [True, True]
    assert [grad for _, grad, _ in seen] == [True, False]
    first, second = seen[0][2], seen[1][2]
    assert all(torch.equal(first["G"][k], start["G"][k]) for k in start["G"])
    assert any(not torch.equal(second["G"][k], start["G"][k]) for k in start["G"])
    assert all(torch.equal(second["D"][k], start["D"][k]) for k in start["D"])
    training_step(state, batch)
    assert [kind for kind, _, _ in steps[3:]] == ["G", "D"]  # penalties in every 16th step only


def test_published_gradients_are_those_of_their_losses(monkeypatch):
    """Equations 10.7 and 10.8, written out."""
    preset = published(blur_sigma=0.0, r1_interval=100)
    state = new_state(preset, 0, CPU)
    state.step = 1
    batch = random_batch(preset.model, 4)
    for_generator, for_discriminator = batch.drawn
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)
    torch.manual_seed(5)
    training_step(state, batch)
    found = [[p.grad for p in m.parameters()] for m in (state.generator, state.discriminator)]
    state.generator.zero_grad()
    state.discriminator.zero_grad()

    torch.manual_seed(5)
    made = generate(state, for_generator)
    logits, _ = state.discriminator(made.images, for_generator.camera)
    pull = 0.5 * (made.body_pose - for_generator.coarse_pose).square().sum(dim=1).mean()
    (torch.nn.functional.softplus(-logits).mean() + pull).backward(inputs=list(state.generator.parameters()))
    with torch.no_grad():
        made = generate(state, for_discriminator)
    fake, poses = state.discriminator(made.images, for_discriminator.camera)
    real, _ = state.discriminator(real_images(state, batch), batch.camera)
    loss = torch.nn.functional.softplus(fake).mean() + torch.nn.functional.softplus(-real).mean()
    (loss + (poses - made.body_pose).square().sum(dim=1).mean()).backward(inputs=list(state.discriminator.parameters()))
    for grads, module in zip(found, (state.generator, state.discriminator), strict=True):
        for a, p in zip(grads, module.parameters(), strict=True):
            assert (a is None) == (p.grad is None)
            if a is None:
                continue
            torch.testing.assert_close(a, p.grad, atol=1e-6, rtol=1e-3)


def test_the_pose_branch_rests_in_the_later_stages():
    for images, learns in ((0, True), (6_000_000, False)):
        preset = published()
        state = new_state(preset, 0, CPU)
        state.images = images
        before = parameters_of(state)["G"]
        for seed in range(2):
            training_step(state, random_batch(preset.model, 4, seed))
        after = state.generator.state_dict()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert any(k.startswith("pose_branch") for k in moved) == learns
        assert any(k.startswith("backbone.synthesis") for k in moved)


def test_raw_images_grow_on_the_ramp(monkeypatch):
    preset = published(raw_ramp=RawRamp(20, 1.0, 1.0))
    state = new_state(preset, 0, CPU)
    start = preset.model.raw_resolution
    batch = random_batch(preset.model, 4)
    for images, side in ((0, start), (1500, (start + 20) // 2), (2000, 20)):
        state.images = images
        for images in (generate(state, batch.drawn[0]).images, real_images(state, batch)):
            assert images.raw.shape[-1] == images.mask.shape[-1] == side
            assert images.image.shape[-1] == preset.model.resolution
        training_step(state, batch)
