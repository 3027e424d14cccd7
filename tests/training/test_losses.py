"""Losses against the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.training.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    gradient_penalties,
    pose_loss,
    pyramid_l1,
)

REAL, FAKE = torch.tensor([[0.3], [-1.0]]), torch.tensor([[-0.5], [2.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_nonsaturating():
    expected = (softplus(0.5) + softplus(-2.0)) / 2
    assert generator_loss("nonsaturating", REAL, FAKE).item() == pytest.approx(expected)
    total = (softplus(-0.5) + softplus(2.0) + softplus(-0.3) + softplus(1.0)) / 2
    assert discriminator_loss("nonsaturating", REAL, FAKE).item() == pytest.approx(total)


def test_relativistic():
    assert generator_loss("relativistic", REAL, FAKE).item() == pytest.approx((softplus(0.8) + softplus(-3.0)) / 2)
    assert discriminator_loss("relativistic", REAL, FAKE).item() == pytest.approx((softplus(-0.8) + softplus(3.0)) / 2)


def test_generator_loss_does_not_reach_real_logits():
    real = REAL.clone().requires_grad_()
    fake = FAKE.clone().requires_grad_()
    generator_loss("relativistic", real, fake).backward()
    assert real.grad is None
    assert fake.grad.abs().min() > 0


def test_pose_loss_sums_over_the_six_numbers():
    a, b = torch.zeros(2, 6), torch.tensor([[1.0] * 6, [2.0] * 6])
    assert pose_loss(a, b).item() == pytest.approx((6 + 24) / 2)


def test_gradient_penalty_of_a_linear_discriminator():
    """logit = sum(w x): the gradient is w for every sample."""
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    w = torch.randn(2, 4, 4, requires_grad=True)
    (penalty,) = gradient_penalties((x * w).sum(dim=(1, 2, 3))[:, None], [x])
    torch.testing.assert_close(penalty, w.square().sum().expand(3))
    penalty.mean().backward()
    torch.testing.assert_close(w.grad, 2 * w)


def test_pyramid_weighs_all_scales_inside_the_mask():
    torch.manual_seed(0)
    image, target = torch.randn(2, 2, 3, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) < 0.5).float()
    halved = [v.reshape(2, -1, 4, 2, 4, 2).mean(dim=(3, 5)) for v in (image, target, mask)]
    fine = (image - target).abs() * mask
    coarse = (halved[0] - halved[1]).abs() * halved[2]
    assert pyramid_l1(image, target, mask, levels=2).item() == pytest.approx(
        ((fine.mean() + coarse.mean()) / 2).item(), rel=1e-5
    )
    assert pyramid_l1(image, target, torch.zeros_like(mask)).item() == 0.0
    # noise averages out in coarse levels, an offset stays
    noise, offset = torch.randn(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.8)
    nothing, all_inside = torch.zeros_like(noise), torch.ones_like(noise)
    assert pyramid_l1(noise, nothing, all_inside).item() < 0.5
    assert pyramid_l1(offset, nothing, all_inside).item() == pytest.approx(0.8)


def test_feature_distance_sees_directions_alone():
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, 4, 4), torch.randn(2, 7, 2, 2)]
    assert feature_distance(maps, [3.0 * m for m in maps]).item() == pytest.approx(0.0, abs=1e-6)
    assert feature_distance(maps, [-m for m in maps]).item() == pytest.approx(4.0, rel=1e-4)
    orthogonal = [torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)]
    orthogonal[0][0, 0], orthogonal[1][0, 1] = 5.0, 0.3
    assert feature_distance(orthogonal[:1], orthogonal[1:]).item() == pytest.approx(2.0)
