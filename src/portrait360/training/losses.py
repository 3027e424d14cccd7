"""Loss terms as pure functions of logits, poses and gradients (equations 10.7-10.9; R3GAN, Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

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

    The inputs may be some of the images whose logits are given (B <= N).
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return [g.float().square().sum(dim=(1, 2, 3)) for g in gradients]


def pyramid_l1(
    image: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], mask: Float[Tensor, "B 1 H W"], levels: int = 4
) -> Float[Tensor, ""]:
    """Mean absolute difference inside the mask, averaged over a pyramid whose levels halve the side.

    Coarse levels correct brightness and features that are misplaced by more than their width; fine ones sharpen.
    """
    losses = []
    for level in range(levels):
        if level:
            image, target, mask = (F.avg_pool2d(values, 2) for values in (image, target, mask))
        losses.append(((image - target).abs() * mask).mean())
    return torch.stack(losses).mean()


def feature_distance(
    features: Sequence[Float[Tensor, "B _C _H _W"]], targets: Sequence[Float[Tensor, "B _C _H _W"]]
) -> Float[Tensor, ""]:
    """Squared distance of feature maps whose pixels are unit vectors along channels, averaged over pixels and maps
    (Zhang et al. 2018, with equal weights)."""
    losses = [
        (F.normalize(a.float(), dim=1, eps=1e-3) - F.normalize(b.float(), dim=1, eps=1e-3)).square().sum(dim=1).mean()
        for a, b in zip(features, targets, strict=True)
    ]
    return torch.stack(losses).mean()
