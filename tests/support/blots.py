"""Images that are vaguely like people, for tests of inversion."""

from __future__ import annotations

import torch

from portrait360.inversion.target import Target


def blot(camera) -> Target:
    """A person-like blot: skin on a shirt."""
    side = 64
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side),) * 2, indexing="ij")
    head, shirt = (x**2 + (y + 0.1) ** 2 < 0.12), (y > 0.35) & (x.abs() < 0.7)
    image = torch.zeros(1, 3, side, side)
    image[:, :, shirt] = torch.tensor([-0.6, -0.4, 0.3])[:, None]
    image[:, :, head] = torch.tensor([0.6, 0.3, 0.1])[:, None]
    mask = (head | shirt).float()[None, None]
    return Target(image, mask, torch.ones_like(mask), camera, torch.zeros(1, 6))
