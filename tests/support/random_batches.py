"""Random images with labels, as a training step takes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from portrait360.geometry.cameras import camera_label
from portrait360.training.passes import Batch, Labels
from portrait360.training.people import People
from portrait360.training.styles import StyleTable


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


def with_random_people(state, batch, seed=0):
    """The batch with images to reconstruct, for recipes that reconstruct some; gives the state random styles first."""
    config = state.config.reconstruction
    if config is None:
        return batch
    count, side, g = 3 * config.images, 2 * state.model.resolution, torch.Generator().manual_seed(seed)
    if state.people is None:
        styles = StyleTable(torch.randn(count, state.model.w_dim, generator=g))
        state.people = People(styles, torch.arange(count), torch.randn(count, 6, generator=g) * 0.1)
    images, masks = torch.rand(config.images, 4, side, side, generator=g).split((3, 1), dim=1)
    kept = images * 2 - 1, masks.round(), camera_label(torch.randn(config.images, generator=g) * 0.4)
    rows = torch.randperm(count, generator=g)[: config.images]
    random = np.random.default_rng(seed)
    return dataclasses.replace(
        batch, targets=state.people.targets(rows, kept, config, state.model.resolution, random, state.generator.body)
    )
