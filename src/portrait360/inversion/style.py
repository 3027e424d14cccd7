"""The style space that an inversion searches: whitened, one style with a difference for each layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.conventions import own_camera
from portrait360.model.generator import Generator
from portrait360.training.whitening import Whitening, fit_whitening

_SAMPLES, _AT_ONCE = 10_000, 1000


@dataclass(frozen=True)
class Styles:
    """Whitened styles of a person: v of all layers, and what each layer differs by."""

    common: Float[Tensor, "1 S"]
    layers: Float[Tensor, "1 N S"]

    def ws(self, space: Whitening) -> Float[Tensor, "1 N S"]:
        """The styles of the layers."""
        whitened = self.common[:, None] + self.layers
        return space.styles(whitened.flatten(0, 1)).unflatten(0, whitened.shape[:2])


@torch.no_grad()
def style_space(generator: Generator) -> Whitening:
    """The map under which the styles of random portraits have mean 0 and variance 1."""
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(_SAMPLES, generator.config.z_dim, generator=draws)
    front = own_camera(generator.config.camera, 0.0).expand(len(z), -1)
    return fit_whitening(
        torch.cat([generator.map(*some) for some in zip(z.split(_AT_ONCE), front.split(_AT_ONCE), strict=True)])
    )
