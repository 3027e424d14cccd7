"""A generator whose styles are whitened: one learning rate then suits all numbers of a style."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.model.generator import Generator
from portrait360.model.layers import FullyConnected

LEAST_VARIANCE = 1e-3
"""Directions of w with less than this part of the largest variance count as having it."""


@dataclass(frozen=True)
class Whitening:
    """The affine map between styles w and whitened ones."""

    mean: Float[Tensor, " S"]
    root: Float[Tensor, "S S"]

    def styles(self, whitened: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """w of whitened styles."""
        return self.mean + whitened @ self.root.T

    def whitened(self, styles: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """The inverse of `styles`."""
        return torch.linalg.solve(self.root, (styles - self.mean).T).T


@torch.no_grad()
def fit_whitening(styles: Float[Tensor, "N S"]) -> Whitening:
    """The map under which these styles have mean 0 and, in all but flat directions, variance 1."""
    mean = styles.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((styles - mean).T))
    variances = variances.clamp_min(float(variances.max()) * LEAST_VARIANCE)
    return Whitening(mean, directions * variances.sqrt())


@torch.no_grad()
def whiten(generator: Generator, whitening: Whitening) -> None:
    """Let the generator's styles be whitened ones: whitened styles give the portraits that styles gave before.

    Layers that read styles take over the affine map back; what the mapping makes is not changed.
    """
    root = whitening.root
    for module in generator.modules():
        affine = getattr(module, "affine", None)
        if isinstance(affine, FullyConnected):
            weight, bias = affine.effective()
            affine.weight.copy_(weight @ root / affine.weight_gain)
            affine.bias.copy_((bias + weight @ whitening.mean) / affine.bias_gain)
    if generator.config.warp is not None:
        warp, gain = generator.warp, generator.warp.gain
        warp.bias.add_(warp.weight @ whitening.mean * (gain / generator.config.warp.scale))
        warp.weight.copy_(warp.weight @ root)
