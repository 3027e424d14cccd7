"""How far a rendering is from a photo: pixels on a pyramid, mask, features of the discriminator, landmarks, colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.encoder.network import PortraitEncoder
from portrait360.inversion.target import Target, resized
from portrait360.model.discriminator import Discriminator, DiscriminatorInput
from portrait360.training.losses import feature_distance, pyramid_l1

_MASK_LEVEL = 2
"""Masks are compared at a half of the side: their borders hold hair."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms."""

    pixel: float = 1.0
    mask: float = 2.0
    feature: float = 0.3
    landmark: float = 5.0
    region: float = 0.3


@dataclass(frozen=True)
class Critics:
    """Fixed networks that look at renderings and photos alike."""

    discriminator: Discriminator | None
    """Of the weights; None where they have none that gives features."""
    encoder: PortraitEncoder | None

    def features(self, image: Tensor, mask: Tensor, camera: Tensor) -> list[Tensor]:
        """The discriminator's feature maps of images on a grey background."""
        assert self.discriminator is not None
        side = self.discriminator.resolution
        return self.discriminator.maps(DiscriminatorInput(resized(image, side), None, resized(mask, side)), camera)

    def landmarks(self, image: Tensor) -> Float[Tensor, "B K 2"]:
        """Where the encoder finds the body's landmarks."""
        assert self.encoder is not None
        return self.encoder(resized(image, self.encoder.config.resolution)).landmarks


@dataclass(frozen=True)
class Comparison:
    """A window of a photo, and what the losses need of it, computed once."""

    target: Target
    weights: LossWeights
    critics: Critics
    features: list[Tensor] | None
    landmarks: Tensor | None
    regions: Float[Tensor, "K 1 S S"] | None
    """Soft masks of hair, skin and clothes."""

    @staticmethod
    @torch.no_grad()
    def of(
        target: Target, weights: LossWeights, critics: Critics, *, whole: bool, regions: Tensor | None = None
    ) -> Comparison:
        """For a window; `whole`: it shows what the encoder was trained on."""
        features = landmarks = None
        if critics.discriminator is not None and weights.feature:
            features = critics.features(target.image, target.mask, target.camera)
        if critics.encoder is not None and weights.landmark and whole:
            landmarks = critics.landmarks(target.image)
        return Comparison(target, weights, critics, features, landmarks, regions)

    def loss(self, image: Tensor, mask: Tensor, background: Float[Tensor, "1 3 1 1"]) -> Float[Tensor, ""]:
        """Of a rendering [1, 3, S, S] on a grey background and its opacity; both stand before `background`."""
        shown, weights = self.target, self.weights
        rendered = image + (1.0 - mask) * background
        wanted = shown.image + (1.0 - shown.mask) * background
        total = weights.pixel * pyramid_l1(rendered, wanted, shown.known)
        small = [F.avg_pool2d(values * shown.known, _MASK_LEVEL) for values in (mask, shown.mask)]
        total = total + weights.mask * (small[0] - small[1]).square().mean()
        if self.features is not None:
            seen = [values * shown.known for values in (image, mask)]
            features = self.critics.features(seen[0], seen[1], shown.camera)
            total = total + weights.feature * feature_distance(features, self.features)
        if self.landmarks is not None:
            places = self.critics.landmarks(image * shown.known)
            total = total + weights.landmark * (places - self.landmarks).square().sum(dim=2).mean()
        if self.regions is not None and weights.region:
            total = total + weights.region * region_colours(image, shown.image, self.regions)
        return total


def region_colours(
    image: Float[Tensor, "1 3 S S"], target: Float[Tensor, "1 3 S S"], regions: Float[Tensor, "K 1 S S"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the regions' mean colours, and of the colours' deviations within them."""
    area = regions.sum(dim=(2, 3)).clamp_min(1.0)

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = (values * regions).sum(dim=(2, 3)) / area
        spread = ((values - mean[..., None, None]).square() * regions).sum(dim=(2, 3)) / area
        return mean, (spread + 1e-4).sqrt()

    return torch.stack([(a - b).abs().mean() for a, b in zip(moments(image), moments(target), strict=True)]).sum()
