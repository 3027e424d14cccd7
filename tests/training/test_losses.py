"""Losses against the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from portrait360.training.losses import discriminator_loss, generator_loss, gradient_penalties, pose_loss

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


def test_gradient_penalty_of_a_linear_judge():
    """logit = sum(w x): the gradient is w for every sample."""
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    w = torch.randn(2, 4, 4, requires_grad=True)
    (penalty,) = gradient_penalties((x * w).sum(dim=(1, 2, 3))[:, None], [x])
    torch.testing.assert_close(penalty, w.square().sum().expand(3))
    penalty.mean().backward()
    torch.testing.assert_close(w.grad, 2 * w)
