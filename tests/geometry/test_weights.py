"""The weight volume: a partition of one that continues the body's own weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from portrait360.geometry.body import BODY_BONES, load_body
from portrait360.geometry.weights import VOLUME_MAX, VOLUME_MIN, build_weight_volume, look_up, weight_volume

BODY = load_body()
VOLUME = weight_volume(BODY)


def test_weights_are_shares_of_one() -> None:
    assert VOLUME.values.min() >= 0
    assert VOLUME.values.sum(-1).max() <= 1 + 1e-6
    assert VOLUME.values.shape[-1] == len(BODY.moving)


def test_weights_on_the_skin_are_those_of_the_body() -> None:
    inside = ((BODY.vertices > torch.tensor(VOLUME_MIN)) & (BODY.vertices < torch.tensor(VOLUME_MAX))).all(1)
    weights, _ = look_up(VOLUME, BODY.vertices[inside])
    error = (weights - BODY.weights[inside][:, list(BODY.moving)]).abs().sum(1)
    assert error.mean() < 0.01
    assert error.quantile(0.99) < 0.15


def test_head_space_is_rigid_and_shoulder_space_is_still() -> None:
    points = torch.tensor([[0.0, 0.25, 0.0], [0.0, 0.12, 0.2], [0.0, 0.12, -0.15], [0.15, 0.1, 0.0]])
    head, _ = look_up(VOLUME, points)
    torch.testing.assert_close(head[:, -1], torch.ones(4), atol=0.03, rtol=0)
    still, _ = look_up(VOLUME, torch.tensor([[0.2, -0.1, 0.0], [-0.15, -0.2, 0.1], [0.0, -0.22, 0.1]]))
    assert torch.equal(still, torch.zeros(3, 4))


def test_weights_of_a_symmetric_body_are_symmetric() -> None:
    torch.testing.assert_close(VOLUME.values, VOLUME.values.flip(2), atol=2e-3, rtol=0)


def test_slopes_are_the_derivatives_of_the_weights() -> None:
    volume = VOLUME.to(torch.zeros((), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 0.7 - 0.35
    _, slopes = look_up(volume, points)
    step = 1e-7
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[axis] = step
        ahead, _ = look_up(volume, points + shift)
        behind, _ = look_up(volume, points - shift)
        torch.testing.assert_close(slopes[..., axis], (ahead - behind) / (2 * step), atol=1e-5, rtol=1e-5)


def test_volume_is_kept_per_template() -> None:
    assert weight_volume(BODY) is VOLUME
    other = replace(BODY, weights=BODY.weights.roll(1, 1))
    assert weight_volume(other) is not VOLUME
    assert (build_weight_volume(BODY).values == VOLUME.values).all()
    assert BODY_BONES[BODY.moving[-1]] == "head"
