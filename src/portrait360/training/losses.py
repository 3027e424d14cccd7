"""Loss terms as pure functions of logits, poses and gradients (official_model 10.7-10.9; R3GAN, Huang et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generator_loss(kind: str, real: Float[Tensor, "B 1"], fake: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """`nonsaturating`: softplus(-fake); `relativistic`: softplus(real - fake), pair by pair."""
    return (F.softplus(-fake) if kind == "nonsaturating" else F.softplus(real.detach() - fake)).mean()


def discriminator_loss(kind: str, real: Float[Tensor, "B 1"], fake: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """`nonsaturating`: softplus(fake) + softplus(-real); `relativistic`: softplus(fake - real)."""
    if kind == "nonsaturating":
        return F.softplus(fake).mean() + F.softplus(-real).mean()
    return F.softplus(fake - real).mean()


def pose_loss(predicted: Float[Tensor, "B 6"], target: Float[Tensor, "B 6"]) -> Float[Tensor, ""]:
    """Squared error summed over the six numbers, mean over the batch."""
    return (predicted - target).square().sum(dim=1).mean()


def gradient_penalties(logits: Float[Tensor, "N 1"], inputs: list[Tensor]) -> list[Float[Tensor, " B"]]:
    """Per-sample squared norm of d(sum of logits)/d(input), for each input; differentiable once more.

    The inputs may be a part of what was judged (B <= N).
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return [g.float().square().sum(dim=(1, 2, 3)) for g in gradients]
