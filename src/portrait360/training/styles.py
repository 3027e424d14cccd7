"""A style of its own for each training image, learned by reconstruction: an auto-decoder.

The generator and the styles are fitted together so that each image is reconstructed from its style (Bojanowski et al.
2018, "Optimizing the latent space of generative networks"; Park et al. 2019, "DeepSDF", section 4.2). An adversarial
loss alone need not give each image a style; this does, and so keeps people apart.

One learning rate suits all numbers of a style, as the run begins by whitening the space of styles (`whitening`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.model.generator import Generator
from portrait360.model.mapping import StyleMixture, mixed

FIRST_DECAY, SECOND_DECAY = 0.5, 0.9
"""Decays of the moments of a row's gradients per visit of that row."""
LOSS_DECAY = 0.7
"""Of the average of an image's losses, per visit."""
KEPT = 0.8
"""Share of the images whose people latents choose from: those that are reconstructed worst look like ghosts."""
SHARED = 0.2
"""Part of the second moment that all numbers of a row share: steadies numbers whose gradients happen to be small."""


class StyleTable:
    """Styles of N images with the state of their optimiser.

    Rows are updated when their image is shown. Adam's bias corrections count a row's own visits, so that a row that is
    visited once in a thousand steps moves as far per visit as one that is visited in each.
    """

    def __init__(self, values: Float[Tensor, "N S"]) -> None:
        self.values = values.clone()
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)
        self.visits = torch.zeros(len(values), dtype=torch.int64)
        self.losses = torch.zeros(len(values))
        """How far each reconstruction is from its image, averaged over the last visits; 0 before the first one."""

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B S"]:
        """Styles of images, as a leaf that gathers their gradients."""
        return self.values[rows].clone().requires_grad_(True)

    @torch.no_grad()
    def step(self, rows: Int[Tensor, " B"], gradients: Float[Tensor, "B S"], rate: float) -> None:
        """Move the styles of images against their gradients; gradients that are not finite count as 0.

        A row that comes twice is moved once, by its first gradient.
        """
        seen: set[int] = set()
        first = [i for i, row in enumerate(rows.tolist()) if not (row in seen or seen.add(row))]
        rows, gradients = rows[first], gradients[first]
        gradients = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        self.visits[rows] += 1
        visits = self.visits[rows, None].to(gradients.dtype)

        # Moments of the row's own gradients
        squares = (1.0 - SHARED) * gradients.square() + SHARED * gradients.square().mean(dim=1, keepdim=True)
        self.first[rows] = FIRST_DECAY * self.first[rows] + (1.0 - FIRST_DECAY) * gradients
        self.second[rows] = SECOND_DECAY * self.second[rows] + (1.0 - SECOND_DECAY) * squares

        # Adam's step, with the row's own bias corrections
        first = self.first[rows] / (1.0 - FIRST_DECAY**visits)
        second = self.second[rows] / (1.0 - SECOND_DECAY**visits)
        self.values[rows] -= rate * first / (second.sqrt() + 1e-12)

    @torch.no_grad()
    def note(self, rows: Int[Tensor, " B"], losses: Float[Tensor, " B"]) -> None:
        """Take note of how far reconstructions are from their images."""
        before = torch.where(self.losses[rows] > 0, self.losses[rows], losses)
        self.losses[rows] = before.lerp(losses, 1.0 - LOSS_DECAY)

    def best(self) -> Float[Tensor, "M S"]:
        """Styles of the images that are reconstructed best, `KEPT` of all, in the table's order."""
        count = max(1, round(KEPT * len(self)))
        return self.values[self.losses.argsort(stable=True)[:count].sort().values]

    def sample(self, count: int) -> Float[Tensor, "B S"]:
        """Styles of new people, mixed from the table's as latents mix them; uses torch's random state."""
        first, second = self.values[torch.randint(len(self), (2, count))]
        return mixed(first, second, self.values.mean(dim=0))

    # ---- checkpoints ----

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {
            "styles/values": self.values,
            "styles/first": self.first,
            "styles/second": self.second,
            "styles/visits": self.visits,
            "styles/losses": self.losses,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> StyleTable:
        """The table of a checkpoint.

        Raises:
            KeyError: the checkpoint has none.
            ValueError: its parts do not fit together.
        """
        table = cls(tensors["styles/values"])
        first, second, visits, losses = (tensors[f"styles/{name}"] for name in ("first", "second", "visits", "losses"))
        if {first.shape, second.shape} != {table.values.shape} or {visits.shape, losses.shape} != {table.visits.shape}:
            raise ValueError("the style table's parts have different numbers of rows")
        table.first, table.second, table.visits = first.clone(), second.clone(), visits.clone()
        table.losses = losses.clone()
        return table


def keep_styles(generator: Generator, table: StyleTable) -> None:
    """Let the generator's latents choose from a table's styles."""
    mapping = generator.backbone.mapping
    assert isinstance(mapping, StyleMixture)
    mapping.keep(table.values)
