"""Mapping networks: (z, camera, body pose) to style (equations 2), labels to D's condition (equations 8.6)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from portrait360.model.layers import FullyConnected, normalize_second_moment
from portrait360.types import BODY_POSE_SIZE, CAMERA_LABEL_SIZE


def latent(seed: int, z_dim: int) -> Float[Tensor, "1 Z"]:
    """z of a seed: numpy's RandomState, as the original's scripts draw it (equations 14.1)."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()


class MappingNetwork(nn.Module):
    """(z, camera, body pose) to w. With `z_dim` 0 it is the conditioning network of the discriminator.

    With `conditioning_scale` 0 there is no embedding of the labels and w depends on z alone. (Feeding zeros instead
    would take two thirds of the variance that z gives to w, and the portraits lose their variety.)
    `posed`: whether the labels hold the body pose beside the camera. `average` keeps the running mean `w_avg` that
    truncation pulls towards.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        num_layers: int,
        *,
        conditioning_scale: float = 1.0,
        posed: bool = True,
        lr_multiplier: float = 0.01,
        average: bool = True,
    ) -> None:
        super().__init__()
        self.z_dim, self.num_layers, self.conditioning_scale = z_dim, num_layers, conditioning_scale
        self.posed = posed
        embedded = 0
        if conditioning_scale != 0:
            self.embed = FullyConnected(CAMERA_LABEL_SIZE + (BODY_POSE_SIZE if posed else 0), w_dim)
            embedded = w_dim
        for i in range(num_layers):
            width = z_dim + embedded if i == 0 else w_dim
            self.add_module(f"fc{i}", FullyConnected(width, w_dim, lr_multiplier, "lrelu"))
        if average:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Float[Tensor, "B Z"] | None,
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """w, one row per sample, without truncation."""
        inputs = []
        if z is not None and self.z_dim > 0:
            inputs.append(normalize_second_moment(z.float()))
        if self.conditioning_scale != 0:
            labels = camera
            if self.posed:
                if body_pose is None:
                    body_pose = camera.new_zeros(camera.shape[0], BODY_POSE_SIZE)
                labels = torch.cat([camera, body_pose], dim=1)
            labels = labels.float() * self.conditioning_scale
            inputs.append(normalize_second_moment(self.embed(labels)))
        h = torch.cat(inputs, dim=1)
        for i in range(self.num_layers):
            h = self.get_submodule(f"fc{i}")(h)
        return h

    @torch.no_grad()
    def update_average(self, w: Float[Tensor, "B S"], decay: float) -> None:
        """w_avg <- decay * w_avg + (1 - decay) * mean(w) (equations 2.4)."""
        self.w_avg.copy_(w.detach().float().mean(dim=0).lerp(self.w_avg, decay))

    def truncated(
        self,
        z: Float[Tensor, "B Z"],
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        psi: float = 1.0,
    ) -> Float[Tensor, "B S"]:
        """w_avg + psi (w - w_avg) (equations 2.5)."""
        w = self(z, camera, body_pose)
        return w if psi == 1.0 else self.w_avg.lerp(w, psi)


class StyleMixture(nn.Module):
    """z to w without a network: a latent chooses two learned styles, a person's and another one's, and mixes them.

    The styles are those of an auto-decoder (`training.reconstruction`). What tells people apart lies in the tails of
    their distribution, which neither a mapping network nor a Gaussian keeps; mixtures of two do. The sum of squares of
    both shares is 1, so that mixtures differ from the average person as the styles do.

    Truncation takes the second style's share away first, and draws towards the average person only near 0: every
    truncation above that gives people who differ (compare Mokady et al. 2022, "Self-distilled StyleGAN", on truncation
    towards several centres).
    """

    SHARE = 0.5
    """Of the second style at full variety."""

    def __init__(self, z_dim: int, w_dim: int, count: int) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.styles = nn.Parameter(torch.zeros(count, w_dim), requires_grad=False)

    @property
    def w_avg(self) -> Float[Tensor, " S"]:
        """The average person's style."""
        return self.styles.mean(dim=0)

    @torch.no_grad()
    def keep(self, styles: Float[Tensor, "N S"]) -> None:
        """Choose from these; where there are more than there is room for, from the first ones."""
        rows = torch.arange(len(self.styles)) % len(styles)
        self.styles.copy_(styles[rows])

    def forward(
        self,
        z: Float[Tensor, "B Z"],
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """w, one row per sample, without truncation; it depends on z alone."""
        return self.truncated(z, camera)

    def truncated(
        self,
        z: Float[Tensor, "B Z"],
        camera: Float[Tensor, "B 25"],
        body_pose: Float[Tensor, "B 6"] | None = None,
        psi: float = 1.0,
    ) -> Float[Tensor, "B S"]:
        """w between the average person (psi 0) and full variety (psi 1)."""
        first, second = (self.styles[self._chosen(z[:, i], z[:, i + 1])] for i in (0, 2))
        return mixed(first, second, self.w_avg, psi)

    def update_average(self, w: Float[Tensor, "B S"], decay: float) -> None:
        """The average follows from the styles."""

    def _chosen(self, x: Float[Tensor, " B"], y: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """A row for each pair of normal numbers: their direction is uniform."""
        turn = torch.atan2(y.double(), x.double()) / (2.0 * math.pi) + 0.5
        return (turn * len(self.styles)).long().clamp_max(len(self.styles) - 1)


def mixed(
    first: Float[Tensor, "B S"], second: Float[Tensor, "B S"], average: Float[Tensor, " S"], psi: float = 1.0
) -> Float[Tensor, "B S"]:
    """A mixture of two styles, as `StyleMixture` describes it."""
    share = StyleMixture.SHARE * psi**2
    whole = 1.0 - (1.0 - psi) ** 2
    return average + whole * math.sqrt(1.0 - share**2) * (first - average) + share * (second - average)


class CameraTranslation(MappingNetwork):
    """(z, camera) to how far the camera is to be moved, in the model's world (equations 15.2).

    A mapping network three numbers wide, whose last layer is linear.
    """

    def __init__(self, z_dim: int, num_layers: int, conditioning_scale: float = 1.0) -> None:
        super().__init__(z_dim, 3, num_layers, conditioning_scale=conditioning_scale, posed=False, lr_multiplier=1.0)
        last = self.get_submodule(f"fc{num_layers - 1}")
        assert isinstance(last, FullyConnected)
        last.activation = "linear"


INVERSION_SEED, INVERSION_LATENTS = 123, 10_000
"""Whose mean is the latent that the published inversion predicts camera translations from."""


def inversion_latent(z_dim: int) -> Float[Tensor, "1 Z"]:
    """The mean of many latents. It is almost zero, but mapping networks scale it to unit mean square, so that this very
    stream of random numbers matters (equations 15.2)."""
    drawn = np.random.RandomState(INVERSION_SEED).randn(INVERSION_LATENTS, z_dim)
    return torch.from_numpy(drawn.mean(axis=0, keepdims=True)).float()
