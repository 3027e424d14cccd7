"""A portrait that photos have coloured, for tests of pages: stripes and a tint on a packaged person, no likeness."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from portrait360.geometry.cameras import camera_label
from portrait360.model.appearance import TINT_SHAPE, Appearance, PhotoResidual
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.portrait import Portrait

SIDE = 256


def photographed(model: PortraitModel, seed: int = 0) -> Portrait:
    """Photos from the front and from the side, the person's head turned in the second one."""
    person = model.sample(seed)
    poses = torch.tensor([[0.0] * 6, [0.05, 0.1, 0.0, 0.0, 0.25, 0.05]])
    cameras = torch.cat([camera_label(0.1, 0.05, 0.05), camera_label(1.2)])
    cameras[0, 16] *= 1.05
    cameras[0, 18] += 0.02
    residuals = []
    for index in range(2):
        one = slice(index, index + 1)
        out = person.renderer.render(cameras[one], poses[one], SIDE)
        stripes = 0.5 * torch.sin(torch.arange(SIDE) / 9.0)[None, None, :, None].expand(1, 3, SIDE, SIDE)
        stripes = stripes * torch.tensor([1.0, 0.3, -0.6])[None, :, None, None]
        inner = -F.max_pool2d(-(out.mask > 0.9).float(), 9, 1, 4)
        weight = F.avg_pool2d(inner, 9, 1, 4) * (1.0 - 0.4 * index)
        residuals.append(PhotoResidual(cameras[one], poses[one], stripes.contiguous(), weight, out.depth))
    z = torch.linspace(-0.3, 0.3, TINT_SHAPE[0])[None, None, :, None, None].expand(1, 3, *TINT_SHAPE)
    renderer = dataclasses.replace(person.renderer, appearance=Appearance(tuple(residuals), z.contiguous()))
    return dataclasses.replace(person, renderer=renderer)
