"""Three joints stand in for the body's bones: alike for small turns, near for large ones, exact where nothing bends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.body import bone_transforms, load_body, posed_vertices
from portrait360.geometry.rig import JOINTS, joint_motions, joint_rotations, make_rig, skinned
from portrait360.geometry.rotations import axis_angle_to_matrix
from tools.glb_reader import rotation_matrix

POSE = torch.tensor([0.2, -0.3, 0.1, 0.15, 0.25, -0.2])


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def rig(body):
    return make_rig(body, body.vertices.numpy())


def test_weights_add_up_and_follow_the_body(body, rig):
    assert rig.weights.min() >= 0
    assert np.abs(rig.weights.sum(1) - 1).max() < 1e-6
    y = body.vertices[:, 1].numpy()
    assert rig.weights[y > 0.12, JOINTS.index("head")].min() > 0.99
    assert rig.weights[y < -0.2, JOINTS.index("root")].min() > 0.999


def test_joints_lie_in_the_neck_one_above_the_other(body, rig):
    assert JOINTS == ("root", "neck", "head")
    assert (np.diff(rig.joints[:, 1]) > 0.02).all()
    assert np.allclose(rig.joints[2], body.joints[-1])
    assert np.allclose(rig.joints[1], body.joints[1:4].mean(0), atol=1e-6)
    assert np.abs(rig.joints[:, 0]).max() < 1e-6


def test_rest_changes_nothing(body, rig):
    assert np.array_equal(joint_motions(rig.joints, torch.zeros(6)), np.tile(np.eye(3, 4), (3, 1, 1)))
    assert np.array_equal(joint_rotations(torch.zeros(6)), np.tile([0.0, 0.0, 0.0, 1.0], (3, 1)))


def test_small_turns_are_those_of_all_bones(body, rig):
    pose = POSE * 0.1
    exact, moved = posed_vertices(body, pose[None])[0].numpy(), skinned(rig, body.vertices.numpy(), pose)
    travelled = np.linalg.norm(exact - body.vertices.numpy(), axis=1)
    apart = np.linalg.norm(exact - moved, axis=1)
    assert apart.max() < 0.1 * travelled.max()
    assert apart[rig.weights[:, 2] > 0.999].max() < 0.02 * travelled.max()


def test_large_turns_put_the_head_where_the_bones_do(body, rig):
    exact = posed_vertices(body, POSE[None])[0].numpy()
    apart = np.linalg.norm(exact - skinned(rig, body.vertices.numpy(), POSE), axis=1)
    assert apart.max() < 0.006  # 8 mm, in the folds of the neck
    assert apart[rig.weights[:, 2] > 0.999].max() < 0.004


def test_the_head_turns_as_the_bones_turn_it(body, rig):
    expected = bone_transforms(body, POSE[None])[0, -1, :, :3].numpy()
    assert np.allclose(joint_motions(rig.joints, POSE)[2, :, :3], expected, atol=1e-5)


def test_rotations_are_the_same_turns_as_motions(rig):
    turns = axis_angle_to_matrix(POSE.reshape(2, 3)).numpy()
    for quaternion, turn in zip(joint_rotations(POSE)[1:], turns, strict=True):
        assert np.allclose(rotation_matrix(quaternion), turn, atol=1e-6)
