"""Random pictures with labels, as a training step takes them."""

from __future__ import annotations

import torch

from portrait360.geometry.cameras import camera_label
from portrait360.training.step import Batch


def random_batch(model, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    side = model.resolution
    return Batch(
        torch.rand(size, 3, side, side, generator=g) * 2 - 1,
        (torch.rand(size, 1, side, side, generator=g) < 0.5).float(),
        camera_label(torch.rand(size, generator=g) * 6.28, torch.randn(size, generator=g) * 0.2),
        torch.randn(size, 6, generator=g) * 0.1,
    )
