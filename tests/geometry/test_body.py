"""Laws of the posed body: identity at zero, rigid bones, mirror equivariance, gradients, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from portrait360.geometry.body import BODY_BONES, bone_transforms, load_body, posed_vertices, save_body
from portrait360.geometry.cameras import mirror_body_pose
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.types import AssetError

BODY = load_body()
EXACT = BODY.to("cpu", torch.float64)
FLIP = torch.tensor([-1.0, 1.0, 1.0])


def random_poses(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64) * 0.3


def test_packaged_body_has_the_documented_frame() -> None:
    assert len(BODY_BONES) == BODY.joints.shape[0] == BODY.weights.shape[1] == 5
    assert torch.equal(BODY.joints[BODY_BONES.index("neck02")], torch.zeros(3))
    assert abs(BODY.vertices[:, 1].max().item() - 0.165) < 1e-6
    nose = BODY.vertices[BODY.vertices[:, 2].mul(BODY.vertices[:, 1] > 0.05).argmax()]
    assert nose[2] > 0.1
    assert abs(nose[0].item()) < 1e-3
    torch.testing.assert_close(BODY.weights.sum(1), torch.ones(len(BODY.vertices)), atol=1e-6, rtol=0)
    assert (BODY.weights >= 0).all()
    assert (BODY.vertices.abs() < 0.5).all()


def test_faces_are_wound_outward() -> None:
    corner = BODY.vertices[BODY.faces]
    volume = (corner[:, 0] * torch.linalg.cross(corner[:, 1], corner[:, 2])).sum(1)
    head = (BODY.weights[BODY.faces, 4] > 0.99).all(1)
    assert volume[head].sum() > 0


def test_zero_pose_changes_nothing() -> None:
    zero = torch.zeros(2, 6)
    assert torch.equal(bone_transforms(BODY, zero), torch.eye(4)[:3].expand(2, 5, 3, 4))
    torch.testing.assert_close(posed_vertices(BODY, zero), BODY.vertices.expand(2, -1, -1), atol=1e-7, rtol=0)


def test_neck_thirds_add_up_and_head_comes_on_top() -> None:
    pose = random_poses(6)
    rotation = bone_transforms(EXACT, pose)[..., :3]
    neck, head = axis_angle_to_matrix(pose.view(-1, 2, 3)).unbind(1)
    torch.testing.assert_close(rotation[:, BODY_BONES.index("neck03")], neck)
    torch.testing.assert_close(rotation[:, BODY_BONES.index("head")], neck @ head)
    torch.testing.assert_close(rotation[:, 0], torch.eye(3, dtype=torch.float64).expand(6, 3, 3))


def test_joints_stay_connected() -> None:
    motions = bone_transforms(EXACT, random_poses(6))
    joints = torch.cat([EXACT.joints, torch.ones(5, 1, dtype=torch.float64)], dim=1)
    for bone, parent in enumerate(EXACT.parents):
        if parent >= 0:
            torch.testing.assert_close(motions[:, bone] @ joints[bone], motions[:, parent] @ joints[bone])


@pytest.mark.parametrize(("axis", "moved", "sign"), [(0, 2, 1), (1, 0, 1), (2, 0, -1)])
@pytest.mark.parametrize("joint", [0, 3])
def test_positive_rotations_nod_turn_left_and_tilt_right(joint: int, axis: int, moved: int, sign: int) -> None:
    # +X nods: the crown moves forward. +Y turns to the left: the nose moves to +x. +Z tilts to the right.
    pose = torch.zeros(1, 6)
    pose[0, joint + axis] = math.radians(20)
    shift = (posed_vertices(BODY, pose)[0] - BODY.vertices)[:, moved]
    nose = BODY.vertices[:, 2].mul(BODY.vertices[:, 1] > 0.05).argmax()
    crown = BODY.vertices[:, 1].argmax()
    assert shift[nose if axis == 1 else crown] * sign > 0.01


def test_shoulders_stay_where_they_were() -> None:
    moved = (posed_vertices(EXACT, random_poses(8)) - EXACT.vertices).norm(dim=-1).amax(0)
    shoulders = (BODY.vertices[:, 0].abs() > 0.13) | (BODY.vertices[:, 1] < -0.1)
    assert shoulders.sum() > 500
    assert moved[shoulders].max() < 1e-12
    assert moved[BODY.weights[:, 4] > 0.99].max() > 0.05


def test_vertices_of_a_single_bone_move_rigidly() -> None:
    pose = random_poses(3)
    head = EXACT.weights[:, 4] == 1
    motion = bone_transforms(EXACT, pose)[:, 4]
    expected = EXACT.vertices[head] @ motion[:, :, :3].mT + motion[:, None, :, 3]
    assert head.sum() > 1000
    torch.testing.assert_close(posed_vertices(EXACT, pose)[:, head], expected)


def test_mirrored_pose_gives_the_mirrored_body() -> None:
    pose = random_poses(4)
    distance = torch.cdist(EXACT.vertices, EXACT.vertices * FLIP)
    partner = distance.argmin(1)
    assert distance.amin(1).max() < 1e-6
    mirrored = posed_vertices(EXACT, mirror_body_pose(pose))
    torch.testing.assert_close(mirrored[:, partner] * FLIP.double(), posed_vertices(EXACT, pose), atol=1e-6, rtol=0)


def test_bone_transforms_have_the_right_gradient() -> None:
    for pose in (torch.zeros(1, 6, dtype=torch.float64), random_poses(2)):
        assert torch.autograd.gradcheck(lambda p: bone_transforms(EXACT, p), (pose.requires_grad_(),))


def test_pose_shapes_are_linear_in_the_rotation_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(18, len(EXACT.vertices), 3, generator=generator, dtype=torch.float64) * 0.01
    shaped = replace(EXACT, pose_shapes=shapes)
    pose = random_poses(2)
    turned = axis_angle_to_matrix(pose.view(-1, 2, 3)) - torch.eye(3, dtype=torch.float64)
    for index in range(2):
        rest = replace(EXACT, vertices=EXACT.vertices + torch.tensordot(turned[index].flatten(), shapes, dims=1))
        torch.testing.assert_close(
            posed_vertices(shaped, pose[index : index + 1]), posed_vertices(rest, pose[index : index + 1])
        )
    torch.testing.assert_close(posed_vertices(shaped, pose * 0)[0], EXACT.vertices)


def test_moving_bones_are_the_driven_ones_and_what_hangs_on_them() -> None:
    assert BODY.moving == (1, 2, 3, 4)
    still = replace(BODY, drive=(None, None, ("neck", 1.0), None, None))
    assert still.moving == (2, 3, 4)


def test_template_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "body.safetensors"
    shaped = replace(BODY, pose_shapes=torch.ones(18, len(BODY.vertices), 3), name="other")
    save_body(shaped, path, {"licence": "CC0-1.0"})
    again = load_body(path)
    for field in ("vertices", "faces", "weights", "joints", "pose_shapes", "source_vertices"):
        assert torch.equal(getattr(again, field), getattr(shaped, field))
    assert (again.parents, again.drive, again.name) == (BODY.parents, BODY.drive, "other")
    assert [file.name for file in tmp_path.iterdir()] == ["body.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"weights": BODY.weights[:, :4].contiguous()},
        {"joints": BODY.joints[:, :2].contiguous()},
        {"faces": BODY.faces.int() + 1},
        {"faces": BODY.faces.int()[:0]},
        {"pose_shapes": torch.zeros(3, 3, 3)},
        {"pose_shapes": torch.full((18, len(BODY.vertices), 3), torch.nan)},
        {"vertices": BODY.vertices / 0},
        {"vertices": torch.tensor(1.0)},
        {"vertices": BODY.vertices.int()},
        {"faces": BODY.faces.float()},
        {"hair": torch.zeros(3)},
        {"parents": (-1, 0, 1, 2, 4)},
        {"parents": (-1, 0, 1, 2)},
        {"parents": (-1, 0.0, 1, 2, 3)},
        {"parents": 7},
        {"metres_to_world": None},
        {"metres_to_world": 10**400},
        {"drive": (None, ("neck", float("inf")), None, None, ("head", 1.0))},
        {"drive": (None, ("neck", 1.0), None, None, ("tail", 1.0))},
    ],
)
def test_templates_whose_parts_do_not_fit_are_refused(tmp_path: Path, change: dict) -> None:
    tensors = {name: getattr(BODY, name) for name in ("vertices", "faces", "weights", "joints")}
    tensors["faces"] = tensors["faces"].int()
    info = {"parents": BODY.parents, "drive": BODY.drive, "name": "odd", "metres_to_world": 1.0}
    for name, value in change.items():
        (info if name in info else tensors)[name] = value
    path = tmp_path / "body.safetensors"
    save_file(tensors, path, metadata={"body": json.dumps(info)})
    with pytest.raises(AssetError, match="not a body template"):
        load_body(path)


def test_missing_and_foreign_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no such file"):
        load_body(tmp_path / "none.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"not a tensor file at all")
    with pytest.raises(AssetError, match="not a body template"):
        load_body(foreign)
    save_file({"vertices": torch.zeros(3, 3)}, foreign)
    with pytest.raises(AssetError, match="not a body template"):
        load_body(foreign)
