"""An SMPL body in place of the packaged one."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from photos.test_fit import TRUTH, problem
from portrait360.encoder.files import load_encoder
from portrait360.geometry.body import BODY_BONES, BODY_PARENTS, bone_transforms, load_body, posed_vertices
from portrait360.geometry.rotations import axis_angle_to_matrix
from portrait360.official.smpl import smpl_template
from portrait360.photos import fit
from portrait360.photos.body import load_user_body, place, same_attitude
from portrait360.photos.detect import LEFT_SHOULDER, RIGHT_SHOULDER, Detection
from portrait360.photos.landmark_model import load_landmark_model
from portrait360.photos.user_files import open_user_file
from portrait360.types import AssetError
from support.smpl_files import hostile_smpl_files, lifelike_arrays, npz, random_arrays

NECK, HEAD_JOINT = (0.0, -0.04, 0.01), (0.0, 0.02, 0.03)
"""Joints as SMPL has them: lower, and nearer to the face, than the packaged body's."""
HEAD = BODY_BONES.index("head")


@functools.cache
def _lifelike() -> dict[str, np.ndarray]:
    return lifelike_arrays()


def regressor(vertices: np.ndarray) -> np.ndarray:
    """Gives the joints above, wherever vertices like these are moved."""
    joints = np.zeros((24, 3))
    joints[12], joints[15] = NECK, HEAD_JOINT
    some = np.linspace(0, len(vertices) - 1, 200).astype(int)
    system = np.concatenate([vertices[some].T, np.ones((1, 200))])
    matrix = np.zeros((24, len(vertices)))
    matrix[:, some] = (np.linalg.pinv(system) @ np.concatenate([joints.T, np.ones((1, 24))])).T
    return matrix


def smpl_arrays(scale: float = 1.4, move: tuple[float, float, float] = (0.1, 1.3, -0.2)) -> dict[str, np.ndarray]:
    """The packaged head and shoulders in SMPL's layout and metres, with joints of its own."""
    vertices = load_body().vertices.double().numpy()
    moved = vertices * scale + np.array(move)
    return _lifelike() | {"v_template": moved, "J_regressor": regressor(vertices)}


@pytest.fixture(scope="module")
def packaged():
    return load_body()


@pytest.fixture(scope="module")
def placed(packaged):
    return place(smpl_template(smpl_arrays()), packaged)


def test_a_body_of_any_size_and_place_is_laid_over_the_packaged_one(placed, packaged):
    assert placed.scale == pytest.approx(1.0 / 1.4, rel=1e-5)
    assert placed.apart < 1e-5
    torch.testing.assert_close(placed.body.vertices, packaged.vertices, atol=2e-6, rtol=0)
    np.testing.assert_allclose(placed.body.joints[HEAD], HEAD_JOINT, atol=2e-6)
    for bone in (1, 2, 3):
        np.testing.assert_allclose(placed.body.joints[bone], NECK, atol=2e-6)


def test_heads_that_differ_meet_as_well_as_they_can(packaged):
    """Longer, wider, with fewer vertices and without a part of the back: not far off."""
    arrays = smpl_arrays(1.0, (0.0, 0.0, 0.0))
    some = np.random.default_rng(0).permutation(len(arrays["v_template"]))[:4000]
    some = some[(arrays["v_template"][some] @ [0.0, 1.0, -1.0]) < 0.2]
    shape = np.array([1.05, 0.97, 1.0])
    few = {name: arrays[name][some] for name in ("v_template", "weights", "posedirs")}
    few["J_regressor"] = regressor(few["v_template"])
    few["v_template"] = few["v_template"] * shape
    found = place(smpl_template(arrays | few | {"f": np.array([[0, 1, 2]])}), packaged)
    torch.testing.assert_close(
        found.body.vertices.double(), torch.from_numpy(few["v_template"]), atol=0.012, rtol=0
    )  # fmt: skip
    np.testing.assert_allclose(found.shift, NECK * shape, atol=0.01)
    assert 0.9 < found.scale < 1.1
    assert 0.0005 < found.apart < 0.006


def test_it_moves_as_the_file_s_body_does(placed, packaged):
    """The same motion as the template with all 24 joints, in the packaged body's world."""
    template = smpl_template(smpl_arrays())
    poses = torch.tensor([[0.3, -0.2, 0.1, -0.2, 0.4, 0.1], [0.0] * 6])
    expected = posed_vertices(template, poses) * placed.scale + torch.tensor(placed.shift)
    torch.testing.assert_close(posed_vertices(placed.body, poses), expected, atol=1e-5, rtol=0)
    assert (expected[0] - posed_vertices(packaged, poses)[0]).norm(dim=1).max() > 0.01
    assert placed.body.parents == BODY_PARENTS
    assert placed.body.moving == (1, 2, 3, 4)


def with_axes(x: int, y: int, z: int) -> dict[str, np.ndarray]:
    """Other axes: the numbers, from 1, of those that come first, second and third, negative ones turned round."""
    arrays = smpl_arrays()
    columns = [arrays["v_template"][:, abs(axis) - 1] * np.sign(axis) for axis in (x, y, z)]
    return arrays | {"v_template": np.stack(columns, axis=1)}


def headless(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    weights = arrays["weights"].copy()
    weights[:, 12] += weights[:, 15]
    weights[:, 15] = 0.0
    return arrays | {"weights": weights}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (lambda: random_arrays(4000), "only 11 of its vertices are the head's"),
        (lambda: with_axes(1, -2, 3), "head is below its neck"),
        (lambda: with_axes(1, 2, -3), "does not look like one"),
        (lambda: with_axes(1, -3, 2), "does not look like one"),
        (lambda: with_axes(3, 2, -1), "does not look like one"),
        (lambda: headless(smpl_arrays()), "only 0 of its vertices are the head's"),
        (lambda: smpl_arrays() | {"v_template": np.zeros_like(smpl_arrays()["v_template"])}, "does not look like one"),
    ],
)
def test_bodies_without_a_human_head(packaged, arrays, sentence):
    with pytest.raises(ValueError, match=sentence):
        place(smpl_template(arrays()), packaged)


def test_files_are_read_as_convert_reads_them(tmp_path, packaged):
    np.savez(tmp_path / "good.npz", **smpl_arrays())
    assert load_user_body(open_user_file(tmp_path / "good.npz", "body"), packaged).apart < 1e-5
    (tmp_path / "random.npz").write_bytes(npz(random_arrays()))
    with pytest.raises(AssetError, match=r"random.npz cannot stand for the packaged body: only") as caught:
        load_user_body(open_user_file(tmp_path / "random.npz", "body"), packaged)
    assert "Y up" in caught.value.hint
    make, sentence = hostile_smpl_files()["code-in-an-unused-entry"]
    (tmp_path / "bad.pkl").write_bytes(make())
    with pytest.raises(AssetError, match=sentence):
        load_user_body(open_user_file(tmp_path / "bad.pkl", "body"), packaged)


# ---- attitudes ----


def head_of(body, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction of the head, and place of its middle."""
    motion = bone_transforms(body, torch.from_numpy(pose)[None])[0, HEAD].numpy()
    return motion[:, :3], motion[:, :3] @ [0.0, 0.08, 0.03] + motion[:, 3]


def test_a_body_s_own_attitude_stays(packaged):
    pose = np.array([0.2, -0.1, 0.05, -0.3, 0.2, 0.1])
    np.testing.assert_allclose(same_attitude(pose, packaged, packaged), pose, atol=1e-6)


def test_the_head_comes_to_where_it_was_predicted(placed, packaged):
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(20):
        pose = rng.normal(0, 0.15, 6)
        turn, middle = head_of(packaged, pose)
        before.append(np.linalg.norm(head_of(placed.body, pose)[1] - middle))
        own = same_attitude(pose, packaged, placed.body)
        new_turn, new_middle = head_of(placed.body, own)
        after.append(np.linalg.norm(new_middle - middle))
        assert np.degrees(np.arccos(np.clip((np.trace(turn.T @ new_turn) - 1) / 2, -1, 1))) < 2.0
    assert np.mean(after) < 0.5 * np.mean(before)


def test_people_are_labelled_in_the_body_s_terms(placed, packaged, monkeypatch):
    """What the encoder predicts for the packaged body becomes the pose that brings the user's body there."""
    monkeypatch.setattr(fit, "view_of", lambda *_: fit.View(TRUTH[:6], TRUTH[6:], np.zeros((15, 2)), 0.0))
    monkeypatch.setattr(fit, "ENCODER_PASSES", 1)
    model = load_landmark_model()
    monkeypatch.setattr(type(model), "first_crop", lambda *_: (np.zeros(2), 100.0))
    face, shoulders = problem(TRUTH, mesh=True).places(torch.from_numpy(TRUTH)[None])
    points, mesh = np.random.default_rng(0).normal(0, 10, (33, 2)), np.zeros((478, 2))
    points[[LEFT_SHOULDER, RIGHT_SHOULDER]] = (shoulders[0].numpy() - 0.5) * 100.0
    mesh[model.mesh_indices.numpy()] = (face[0].numpy() - 0.5) * 100.0
    blank, encoder = np.zeros((8, 8, 3), np.uint8), load_encoder()[0]
    for person in (Detection(points, mesh), Detection(points, None)):
        own = fit.fit_person(blank, person, encoder, model, placed.body, packaged)
        same = fit.fit_person(blank, person, encoder, model, packaged)
        assert (own.body_pose - same.body_pose).abs().max() > np.radians(1.5)
        turn, middle = head_of(packaged, TRUTH[6:])
        new_turn, new_middle = head_of(placed.body, own.body_pose.double().numpy())
        assert np.degrees(np.arccos((np.trace(turn.T @ new_turn) - 1) / 2)) < 3.0
        wrong = head_of(placed.body, TRUTH[6:])[1]
        assert np.linalg.norm(new_middle - middle) < 0.6 * np.linalg.norm(wrong - middle)
        torch.testing.assert_close(same.body_pose.double(), torch.from_numpy(TRUTH[6:]), atol=2e-3, rtol=0)


def test_pose_shapes_stay_as_large_as_the_body(placed):
    template = smpl_template(smpl_arrays())
    assert template.pose_shapes is not None
    assert placed.body.pose_shapes is not None
    torch.testing.assert_close(placed.body.pose_shapes, template.pose_shapes * placed.scale)
    assert place(replace(template, pose_shapes=None), load_body()).body.pose_shapes is None


def test_the_joints_differ_in_this_file():
    """Else nothing above would tell the bodies apart."""
    neck, head = axis_angle_to_matrix(torch.tensor([[0.1, 0.0, 0.0], [0.2, 0.0, 0.0]]))
    assert (neck @ head - head @ neck).abs().max() < 1e-6
    assert np.abs(np.array(HEAD_JOINT) - load_body().joints[HEAD].numpy()).max() > 0.02
