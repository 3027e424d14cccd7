"""Refined poses: drawn from the right side, with the data's distribution as their fixed point, and kept exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.geometry.cameras import camera_label, zoom_camera
from portrait360.model.generator import Generator
from portrait360.poses.calibration import fit_calibration
from portrait360.poses.memory import (
    CAPACITY,
    LARGEST,
    PoseMemory,
    SharedTurns,
    energy_distance,
    is_zoomed,
    mismatch,
    shared_turns,
)
from portrait360.runtime.distributed import Ranks
from support.presets import TINY
from support.shrunken import shrunken


def filled(real, error, yaws=None, labels=None):
    """A memory of CAPACITY images: poses seen, errors made, all from the front unless yaws are given."""
    memory = PoseMemory()
    cameras = camera_label(torch.zeros(CAPACITY) if yaws is None else yaws)
    labels = torch.zeros(CAPACITY, 6) if labels is None else labels
    memory.note(cameras, real, torch.zeros(CAPACITY, 6), error, labels)
    memory.keep(Ranks())
    return memory


def test_energy_distance_equals_its_double_loop():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=g), torch.randn(7, 3, generator=g)
    cross = sum(float((a - b).norm()) for a in x for b in y) / 35
    within = sum(float((a - b).norm()) for a in x for b in x) / 20
    assert float(energy_distance(x, y)) == pytest.approx(2 * cross - within, abs=1e-3)


def test_only_whole_images_are_remembered_and_the_oldest_go():
    memory = PoseMemory()
    near = zoom_camera(camera_label(torch.zeros(1)), 1.6)
    cameras = torch.cat([camera_label(torch.zeros(2)), near])
    assert is_zoomed(cameras).tolist() == [False, False, True]
    for i in range(CAPACITY // 2 + 1):
        assert not memory.ready
        memory.note(cameras, torch.full((3, 6), float(i)), *torch.zeros(3, 3, 6))
        memory.keep(Ranks())
        if i == CAPACITY // 2 - 1:
            break
    assert memory.ready
    assert sorted(set(memory.seen.rows[:, -1].int().tolist())) == list(range(CAPACITY // 2))
    memory.note(cameras, torch.full((3, 6), -1.0), *torch.zeros(3, 3, 6))
    memory.keep(Ranks())
    assert 0 not in memory.seen.rows[:, -1].int().tolist()
    assert memory.seen.rows[:2, -1].tolist() == [-1.0, -1.0]


def test_poses_come_from_images_of_the_same_side():
    yaws = torch.rand(CAPACITY, generator=torch.Generator().manual_seed(1)) * 6.28
    back = (yaws > 1.57) & (yaws < 4.71)
    real = torch.where(back[:, None], 0.2, -0.2).expand(-1, 6)
    memory = filled(real.contiguous(), 0.25 * real, yaws)
    drawn = memory.draw(camera_label(torch.tensor([0.0, 0.3, 3.1, 2.8])))
    torch.testing.assert_close(drawn[:, 0], torch.tensor([-0.25, -0.25, 0.25, 0.25]))


def test_rendered_poses_make_up_for_most_of_the_tilt():
    """Heads that lean back by 0.08 and are rendered with these poses show the pose less a quarter of that."""
    memory = filled(torch.full((CAPACITY, 6), 0.1), torch.zeros(CAPACITY, 6))
    tilt = torch.tensor([-0.08, 0.0, 0.0, -0.04, 0.0, 0.0])
    memory.tilt = tilt
    rendered = memory.draw(camera_label(torch.zeros(3)))
    torch.testing.assert_close(rendered + tilt, (0.1 + 0.25 * tilt).expand(3, 6))


def test_neck_and_head_share_nods_as_the_labels_say():
    """Necks drifted back by 0.1 and heads forward by 0.2: drawn poses keep the sum and all other axes."""
    mean = torch.tensor([-0.1, 0.03, -0.02, 0.2, 0.05, 0.01])
    spread = 0.1 * torch.randn(CAPACITY, 6, generator=torch.Generator().manual_seed(3))
    memory = filled(mean + spread - spread.mean(dim=0), torch.zeros(CAPACITY, 6))
    camera = camera_label(torch.zeros(4))
    torch.manual_seed(0)
    drifting = memory.draw(camera)
    memory.shared = SharedTurns(0.02, (9.0, 9.0, 9.0))
    torch.manual_seed(0)
    held = memory.draw(camera)
    torch.testing.assert_close(held - drifting, torch.tensor([0.14, 0, 0, -0.14, 0, 0]).expand(4, 6))
    pool = (memory.seen.rows + memory.errors.rows)[:, -6:] + (held - drifting)[0]
    assert float((pool[:, 3] - pool[:, 0]).mean()) == pytest.approx(0.02, abs=1e-6)


def test_neck_and_head_differ_by_no_more_than_labels_do():
    """Turns to the side and tilts are shared too differently: drawn poses keep their sums and the nods."""
    g = torch.Generator().manual_seed(5)
    real, error = (0.1 * torch.randn(CAPACITY, 6, generator=g) for _ in range(2))
    memory = filled(real, error, 6.28 * torch.rand(CAPACITY, generator=g))
    cameras = memory.seen.rows[:, :25]
    torch.manual_seed(0)
    free = memory.draw(cameras)
    memory.shared = SharedTurns(float((free[:, 3] - free[:, 0]).mean()), (9.0, 0.05, 0.02))
    torch.manual_seed(0)
    held = memory.draw(cameras)
    torch.testing.assert_close(held[:, 3:] + held[:, :3], free[:, 3:] + free[:, :3])
    spread = (held[:, 3:] - held[:, :3]).std(dim=0)
    assert spread.tolist() == pytest.approx([float((free[:, 3] - free[:, 0]).std()), 0.05, 0.02], rel=0.05)


def test_a_bias_that_neck_and_head_have_in_common_does_not_count():
    poses = 0.1 * torch.randn(500, 6, generator=torch.Generator().manual_seed(4))
    biased = poses.clone()
    biased[:, [0, 3]] += 0.09
    one, two = shared_turns(biased), shared_turns(poses)
    assert one.nod == pytest.approx(two.nod, abs=1e-6)
    assert one.spread == pytest.approx(two.spread, abs=1e-6)
    assert two.nod == pytest.approx(float(poses[:, 3].mean() - poses[:, 0].mean()), abs=1e-6)
    assert two.spread[1] == pytest.approx(float((poses[:, 4] - poses[:, 1]).std()), abs=1e-6)


def test_poses_stay_within_their_limit():
    memory = filled(torch.full((CAPACITY, 6), 5.0), torch.zeros(CAPACITY, 6))
    assert memory.draw(camera_label(torch.zeros(2))).max() == pytest.approx(LARGEST)


def test_drawn_poses_find_the_true_distribution():
    """A mean-seeking predictor trained on too few and too narrow poses: rounds of drawing widen and shift them."""
    g = torch.Generator().manual_seed(2)
    true_std, noise = 0.2, 0.15
    mean, std = torch.tensor(0.1), torch.tensor(0.1)
    n = CAPACITY
    for _ in range(25):
        gain = std**2 / (std**2 + noise**2)
        poses = mean + std * torch.randn(n, 6, generator=g)

        def predict(x, gain=gain, mean=mean):
            return mean + gain * (x - mean)

        made = predict(poses + noise * torch.randn(n, 6, generator=g))
        real = predict((true_std**2 + noise**2) ** 0.5 * torch.randn(n, 6, generator=g))
        drawn = filled(real, poses - made)
        pool = drawn.seen.rows[:, -6:] + drawn.errors.rows[:, -6:][torch.randperm(n, generator=g)]
        mean, std = pool.mean(), pool.std()
    assert abs(float(mean)) < 0.02
    assert float(std) == pytest.approx(true_std, rel=0.1)


def test_coarse_poses_stay_until_there_is_something_to_draw_from():
    coarse, camera = torch.randn(8, 6), camera_label(torch.zeros(8))
    before = torch.get_rng_state()
    assert PoseMemory().refine(camera, coarse, 1.0) is coarse
    memory = filled(torch.full((CAPACITY, 6), 0.3), torch.zeros(CAPACITY, 6))
    assert memory.refine(camera, coarse, 0.0) is coarse
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(memory.refine(camera, coarse, 1.0), torch.full((8, 6), 0.3))


def test_the_pose_branch_learns_the_drawn_distribution():
    torch.manual_seed(0)
    model = dataclasses.replace(shrunken(TINY).model, pose_hidden=(32,))
    generator = Generator(model)
    wanted = torch.tensor([0.1, 0.0, 0.0, -0.1, 0.0, 0.0]) + 0.15 * torch.randn(CAPACITY, 6)
    yaws = torch.rand(CAPACITY) * 6.28
    memory = filled(wanted, torch.zeros(CAPACITY, 6), yaws)
    optimizer = torch.optim.Adam(generator.pose_branch.parameters(), 0.003)
    for _ in range(700):
        optimizer.zero_grad()
        mismatch(generator, memory.draw_many()).backward()
        optimizer.step()
    with torch.no_grad():
        poses = generator.pose_branch(torch.randn(2000, model.z_dim), camera_label(torch.rand(2000) * 6.28))
    assert (poses.mean(dim=0) - wanted.mean(dim=0))[[0, 3]].abs().max() < 0.04
    assert poses.std(dim=0).min() > 0.09
    assert poses.std(dim=0).max() < 0.21


def test_a_checkpoint_keeps_it():
    memory = filled(torch.randn(CAPACITY, 6), torch.randn(CAPACITY, 6))
    again = PoseMemory.from_tensors(memory.tensors())
    assert all(torch.equal(v, again.tensors()[k]) for k, v in memory.tensors().items())
    assert not PoseMemory.from_tensors({}).ready


def test_labels_calibrate_what_is_seen_once_there_are_enough():
    g = torch.Generator().manual_seed(5)
    seen = torch.randn(CAPACITY, 6, generator=g) * 0.1
    memory = filled(seen, torch.zeros(CAPACITY, 6), labels=0.5 * seen + 0.2)
    expected = fit_calibration(seen[:, None], 0.5 * seen + 0.2).maps
    for known in (memory, PoseMemory.from_tensors(memory.tensors())):
        found = known.calibration()
        assert found.windows == (1.0,)
        torch.testing.assert_close(found.maps, expected)
    assert PoseMemory().calibration() is None
