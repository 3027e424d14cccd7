"""The measures of `portrait360 evaluate` on sets of samples whose answers are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from portrait360.evaluation import measures
from portrait360.evaluation.measures import MEASURES
from portrait360.evaluation.samples import SampleSet, join
from portrait360.geometry.cameras import SECTORS, camera_label, yaw_sector
from portrait360.media.images import as_bytes


def samples(count: int = 60, seed: int = 0) -> SampleSet:
    """Images of noise whose encoder sees everything right."""
    g = torch.Generator().manual_seed(seed)
    yaw = torch.linspace(-math.pi, math.pi, count + 1)[:-1]
    pitch = 0.2 * torch.randn(count, generator=g)
    pose = 0.2 * torch.randn(count, 6, generator=g)
    identity = torch.nn.functional.normalize(torch.randn(count, 8, generator=g), dim=1)
    return SampleSet(
        pixels=torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8),
        camera=camera_label(yaw, pitch),
        features=torch.randn(count, 10, generator=g),
        identity=identity,
        encoder_yaw=yaw,
        encoder_pitch=pitch,
        encoder_pose=pose,
        discriminator_pose=pose,
        body_pose=pose,
        coarse_pose=0.5 * pose,
        head_features=torch.randn(count, 10, generator=g),
        face_features=torch.randn(count, 10, generator=g),
    )


def test_a_set_is_at_no_distance_from_itself():
    one = samples()
    found = measures.set_measures(one, one, 0)
    for name in ("frechet", "sliced_wasserstein", "frechet_head", "frechet_face", "pose_distribution"):
        assert found[name] == pytest.approx(0.0, abs=1e-6), name
    assert found["precision"] == found["recall"] == 1.0
    for name in ("yaw_error", "pitch_error", "back_faces"):
        assert found[name] == pytest.approx(0.0, abs=1e-3), name
    for name in ("d_neck_error", "d_head_error", "encoder_neck_error", "encoder_head_error"):
        assert found[name] == pytest.approx(0.0, abs=0.1), name
    assert set(found) <= set(MEASURES)


def test_angles_wrap():
    a, b = torch.tensor([3.1, 0.1, -1.0, 0.0]), torch.tensor([-3.1, 6.2, 1.0, math.pi])
    expected = [2 * math.pi - 6.2, 0.1 + 2 * math.pi - 6.2, 2.0, math.pi]
    assert torch.allclose(measures.angle_between(a, b), torch.tensor(expected), atol=1e-5)


def test_yaw_errors_are_medians_in_degrees():
    one = samples()
    off = dataclasses.replace(
        one, encoder_yaw=one.encoder_yaw + math.radians(7.0), encoder_pitch=one.encoder_pitch - 0.1
    )
    found = measures.camera_truth(off)
    assert found["yaw_error"] == pytest.approx(7.0, abs=0.01)
    assert found["pitch_error"] == pytest.approx(math.degrees(0.1), abs=0.01)


def test_faces_on_the_back_are_counted():
    one = samples()
    behind = one.encoder_yaw.abs() > measures.BEHIND
    seen = one.encoder_yaw.clone()
    rows = behind.nonzero()[::2, 0]
    seen[rows] = 0.2
    found = measures.camera_truth(dataclasses.replace(one, encoder_yaw=seen))
    assert found["back_faces"] == pytest.approx(len(rows) / int(behind.sum()))
    assert "back_faces" not in measures.camera_truth(one.take((~behind).nonzero()[:, 0]))


def test_sectors_go_round():
    centres = torch.deg2rad(torch.tensor([0.0, 45.0, 90.0, 135.0, 180.0, -135.0, -90.0, -45.0]))
    assert yaw_sector(centres).tolist() == list(range(8))
    assert yaw_sector(centres + math.radians(22.0)).tolist() == list(range(8))
    assert yaw_sector(torch.tensor([-math.pi])).item() == SECTORS.index("back")
    one = samples()
    off = dataclasses.replace(
        one, encoder_yaw=torch.where(one.encoder_yaw.abs() < 0.3, one.encoder_yaw + 0.5, one.encoder_yaw)
    )
    errors = measures.sector_errors(off)
    assert sum(int(entry["pictures"] or 0) for entry in errors.values()) == len(one)
    assert errors["front"]["yaw_error"] == pytest.approx(math.degrees(0.5), abs=0.01)
    assert errors["back"]["yaw_error"] == pytest.approx(0.0, abs=0.01)
    none = measures.sector_errors(one.take((one.encoder_yaw.abs() < 0.3).nonzero()[:, 0]))
    assert none["back"] == {"pictures": 0, "yaw_error": None, "pitch_error": None}


def test_pose_errors_are_angles_of_rotations():
    g = np.random.default_rng(0)
    a, b = g.normal(0, 0.3, (2, 9, 6))
    angles = [
        (Rotation.from_rotvec(a[:, k : k + 3]).inv() * Rotation.from_rotvec(b[:, k : k + 3])).magnitude()
        for k in (0, 3)
    ]
    found = measures.pose_errors("x", torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert found["x_neck_error"] == pytest.approx(np.degrees(angles[0].mean()), abs=1e-3)
    assert found["x_head_error"] == pytest.approx(np.degrees(angles[1].mean()), abs=1e-3)


def test_poses_of_real_images():
    one = samples()
    found = measures.real_pose_truth(one)
    assert found["d_neck_error_real"] == pytest.approx(0.0, abs=0.1)
    assert 0 < found["coarse_neck_error_real"] < found["mean_neck_error_real"]
    assert found["coarse_pose_distribution"] == pytest.approx(measures.pose_distance(one.coarse_pose, one.body_pose))
    assert set(found) <= set(MEASURES)
    assert measures.real_pose_truth(dataclasses.replace(one, body_pose=None)) == {}
    assert not {k for k in measures.real_pose_truth(dataclasses.replace(one, coarse_pose=None)) if "coarse" in k}


def test_what_is_unknown_is_left_out():
    bare = dataclasses.replace(samples(), body_pose=None, head_features=None, face_features=None)
    found = measures.set_measures(bare, bare, 0)
    assert not {name for name in found if "pose" in name or "neck" in name or name in ("frechet_head", "frechet_face")}
    assert "frechet" in found
    more = dataclasses.replace(bare, further_features=torch.randn(60, 4))
    assert measures.fidelity(more, more, 0)["inception_frechet"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("corrupt", "worse"),
    [
        (lambda s: dataclasses.replace(s, features=s.features + 2.0), ["frechet", "kernel"]),
        (lambda s: dataclasses.replace(s, head_features=s.head_features * 3.0), ["frechet_head"]),
        (lambda s: dataclasses.replace(s, face_features=s.face_features * 3.0), ["frechet_face"]),
        (lambda s: dataclasses.replace(s, pixels=s.pixels // 8 * 8 // 2), []),
        (lambda s: dataclasses.replace(s, camera=s.camera.flip(0)), ["yaw_error"]),
        (lambda s: dataclasses.replace(s, body_pose=s.body_pose.flip(0)), ["d_neck_error", "encoder_head_error"]),
        (lambda s: dataclasses.replace(s, body_pose=s.body_pose * 0.3), ["pose_distribution"]),
    ],
)
def test_corrupted_samples_score_worse(corrupt, worse):
    real, other = samples(seed=0), samples(seed=1)
    before = measures.set_measures(real, other, 0)
    after = measures.set_measures(real, corrupt(other), 0)
    for name in worse:
        assert after[name] > 1.3 * before[name], name


def test_faces_are_compared_where_they_show():
    real, other = samples(seed=0), samples(seed=1)
    before = measures.fidelity(real, other, 0)["frechet_face"]
    front = measures.shows_face(other)
    assert 10 < front.sum() < 30
    backs = torch.where(front[:, None], other.face_features, 9.0)
    faces = torch.where(front[:, None], 9.0, other.face_features)
    corrupted = [dataclasses.replace(other, face_features=features) for features in (backs, faces)]
    assert measures.fidelity(real, corrupted[0], 0)["frechet_face"] == pytest.approx(before)
    assert measures.fidelity(real, corrupted[1], 0)["frechet_face"] > 10 * before


def test_few_persons_are_recalled_less():
    one = samples()
    few = one.take(torch.arange(60) % 5)
    assert measures.fidelity(one, few, 0)["recall"] < 0.5


def test_sets_are_joined_and_cut():
    one = samples(10)
    again = join([one.take(torch.arange(4)), one.take(torch.arange(4, 10))])
    for field in dataclasses.fields(SampleSet):
        a, b = getattr(one, field.name), getattr(again, field.name)
        assert (a is None and b is None) or torch.equal(a, b)
    assert join([one, dataclasses.replace(one, body_pose=None)]).body_pose is None
    assert torch.equal(as_bytes(one.images), one.pixels)


def test_mean_and_deviation():
    assert measures.spread([2.0]) == (2.0, 0.0)
    assert measures.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert measures.finite({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0}
    assert measures.mean_where(torch.tensor([1.0, math.nan, 3.0])) == 2.0
    assert math.isnan(measures.mean_where(torch.tensor([math.nan])))


def test_numbers_have_three_digits():
    texts = [measures.rounded(v) for v in (123.4, 12.34, 1.234, 0.1234, 0.01234, 0.0, -4.567)]
    assert texts == ["123", "12.3", "1.23", "0.123", "0.0123", "0.0000", "-4.57"]
    assert measures.with_spread(12.34, 0.056) == "12.3 ± 0.1"
