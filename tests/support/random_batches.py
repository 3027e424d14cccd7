"""Random images with labels, as a training step takes them."""

from __future__ import annotations

import torch

from portrait360.geometry.cameras import camera_label
from portrait360.training.passes import Batch, Labels


def random_labels(size, generator):
    yaw, pitch = torch.rand(size, generator=generator) * 6.28, torch.randn(size, generator=generator) * 0.2
    return Labels(camera_label(yaw, pitch), torch.randn(size, 6, generator=generator) * 0.1)


def random_batch(model, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    side = model.resolution
    image = torch.rand(size, 3, side, side, generator=g) * 2 - 1
    mask = (torch.rand(size, 1, side, side, generator=g) < 0.5).float()
    labels = random_labels(size, g)
    drawn = random_labels(size, g), random_labels(size, g)
    return Batch(image, mask, labels.camera, labels.coarse_pose, drawn)
