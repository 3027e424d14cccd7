"""Where the posed body is in an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait360.data import overlay
from portrait360.geometry.body import load_body, posed_vertices
from portrait360.geometry.cameras import camera_label, project
from portrait360.geometry.silhouette import SIDE, body_silhouette


@pytest.mark.parametrize("yaw", [0.0, 1.6, 3.0])
def test_the_silhouette_is_that_of_the_overlay(yaw):
    """Which is drawn face by face as polygons."""
    body, pose = load_body(), torch.tensor([0.1, 0.3, 0.0, -0.2, 0.2, 0.1])
    camera = camera_label(yaw, 0.1)[0]
    uv, depth = project(camera[None], posed_vertices(body, pose[None]))
    points, depths = uv[0].double().numpy() * SIDE, depth[0].double().numpy()
    expected = np.isfinite(overlay.depth_image(points, depths, body.faces.numpy(), SIDE))
    found = body_silhouette(body, camera, pose)
    assert found[SIDE // 2, SIDE // 2]
    assert not found[0].any()
    assert (found & expected).sum() > 0.95 * (found | expected).sum()
