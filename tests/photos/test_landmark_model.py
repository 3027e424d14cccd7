"""Where landmarks lie on the body, learned from synthetic photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.geometry.body import bone_transforms, load_body
from portrait360.geometry.cameras import camera_label, project
from portrait360.model.encoder import HEAD
from portrait360.photos import landmark_model
from portrait360.photos.landmark_model import load_landmark_model, start_features
from portrait360.types import CheckpointError, DatasetError


def test_a_place_on_the_head_is_found_again_from_its_projections():
    rng = np.random.default_rng(0)
    poses = torch.from_numpy(rng.normal(0, 0.2, (40, 6)))
    camera = camera_label(torch.from_numpy(rng.uniform(-1, 1, 40)), torch.from_numpy(rng.normal(0, 0.2, 40)))
    motion = bone_transforms(load_body(), poses)[:, HEAD]
    place = np.array([0.03, 0.06, 0.09])
    seen = project(camera, (motion[:, :, :3] @ torch.from_numpy(place) + motion[:, :, 3])[:, None])[0][:, 0].numpy()
    seen[:3] += 0.3  # some detections are plainly wrong
    found = landmark_model._place(seen, motion, camera, [0.0, 0.08, 0.1])
    np.testing.assert_allclose(found, place, atol=2e-3)


def test_spread_out_points_are_far_from_each_other():
    places = np.random.default_rng(1).random((200, 3))
    chosen = landmark_model._spread_out(places, 10)
    assert len(set(chosen.tolist())) == 10
    distances = np.linalg.norm(places[chosen][:, None] - places[chosen], axis=2)[~np.eye(10, dtype=bool)]
    assert distances.min() > 0.3


def test_the_first_crop_moves_and_grows_with_the_landmarks():
    model = load_landmark_model()
    points = np.random.default_rng(2).normal(200, 30, (33, 2))
    centre, side = model.first_crop(points)
    moved, larger = model.first_crop(points * 2.0 + [30.0, -10.0])
    np.testing.assert_allclose(moved, centre * 2.0 + [30.0, -10.0], rtol=1e-6)
    assert larger == pytest.approx(2.0 * side)
    features, _, _ = start_features(points)
    assert features.shape == (model.start.shape[0],)


def test_the_packaged_places_are_those_of_a_face():
    """Symmetric, in front of the head's middle, shoulders to either side."""
    model = load_landmark_model()
    assert len(set(model.mesh_indices.tolist())) == len(model.mesh_places)
    assert model.mesh_indices.max() < 478
    assert model.mesh_places[:, 2].min() > 0.0
    assert abs(model.mesh_places[:, 0].mean()) < 0.01
    left, right = model.shoulder_places
    assert left[0] > 0.08 > -0.08 > right[0]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        load_landmark_model(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no model of landmarks"):
        load_landmark_model(landmark_model.Path(landmark_model.__file__).parents[1] / "assets" / "encoder.safetensors")


def test_a_folder_without_truth_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        landmark_model.calibrate(tmp_path)
