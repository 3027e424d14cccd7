"""Where landmarks lie on the body, and the first crop."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.encoder.files import DEFAULT_ENCODER
from portrait360.photos.landmark_model import load_landmark_model, start_features
from portrait360.types import CheckpointError


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
        load_landmark_model(DEFAULT_ENCODER)
