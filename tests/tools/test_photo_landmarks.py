"""Where landmarks lie on the body is found from synthetic photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.encoder.network import HEAD
from portrait360.geometry.body import bone_transforms, load_body
from portrait360.geometry.cameras import camera_label, project
from portrait360.types import DatasetError
from tools import photo_landmarks


def test_a_place_on_the_head_is_found_again_from_its_projections():
    rng = np.random.default_rng(0)
    poses = torch.from_numpy(rng.normal(0, 0.2, (40, 6)))
    camera = camera_label(torch.from_numpy(rng.uniform(-1, 1, 40)), torch.from_numpy(rng.normal(0, 0.2, 40)))
    motion = bone_transforms(load_body(), poses)[:, HEAD]
    place = np.array([0.03, 0.06, 0.09])
    seen = project(camera, (motion[:, :, :3] @ torch.from_numpy(place) + motion[:, :, 3])[:, None])[0][:, 0].numpy()
    seen[:3] += 0.3  # some detections are plainly wrong
    found = photo_landmarks.fit_place(seen, motion, camera, [0.0, 0.08, 0.1])
    np.testing.assert_allclose(found, place, atol=2e-3)


def test_spread_out_points_are_far_from_each_other():
    places = np.random.default_rng(1).random((200, 3))
    chosen = photo_landmarks.spread_out(places, 10)
    assert len(set(chosen.tolist())) == 10
    distances = np.linalg.norm(places[chosen][:, None] - places[chosen], axis=2)[~np.eye(10, dtype=bool)]
    assert distances.min() > 0.3


def test_a_folder_without_truth_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        photo_landmarks.calibrate(tmp_path)
