"""Backgrounds for pictures like photos: what rooms, streets and other people look like to a small network.

Nothing here is a picture of anything. Clouds have the spectrum of photos (power falls with the square of the frequency;
Field, 1987), and in front of them stand boxes, discs and stripes with hard edges: windows, furniture, flags.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHAPES = 10
"""Boxes and discs in a picture at most."""


def _uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _muted(*shape: int, generator: torch.Generator) -> Tensor:
    """Colours [..., 3, 1, 1] in [-1, 1], mostly near grey, as most things are."""
    grey = _uniform(-0.9, 0.9, *shape, 1, 1, 1, generator=generator)
    cast = torch.randn(*shape, 3, 1, 1, generator=generator) * _uniform(0.0, 0.5, *shape, 1, 1, 1, generator=generator)
    return (grey + cast).clamp(-1.0, 1.0)


def clouds(count: int, side: int, generator: torch.Generator) -> Float[Tensor, "B 3 R R"]:
    """Noise whose amplitude falls with the frequency, at a rate, a contrast and a mean colour of each picture's own."""
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1.0 / side)
    slope = _uniform(0.7, 1.6, count, 1, 1, 1, generator=generator)
    shared = torch.randn(count, 1, side, side, generator=generator)
    own = torch.randn(count, 3, side, side, generator=generator)
    spectrum = torch.fft.rfft2(shared + 0.2 * own) * frequency.pow(-slope)
    noise = torch.fft.irfft2(spectrum, s=(side, side))
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    contrast = _uniform(0.1, 0.5, count, 1, 1, 1, generator=generator)
    return (0.8 * _muted(count, generator=generator) + contrast * noise).clamp(-1.0, 1.0)


def shapes(background: Float[Tensor, "B 3 R R"], generator: torch.Generator) -> Float[Tensor, "B 3 R R"]:
    """Up to `SHAPES` boxes and discs in front of pictures, turned, plain or striped, one after the other."""
    count, _, side, _ = background.shape
    centres = (torch.arange(side) + 0.5) / side - 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    image = background
    wanted = _uniform(0.0, SHAPES + 1.0, count, generator=generator).floor()
    for number in range(SHAPES):

        def draw(low: float, high: float) -> Tensor:
            return _uniform(low, high, count, 1, 1, generator=generator)

        angle = draw(-math.pi, math.pi)
        angle = torch.where(draw(0.0, 1.0) < 0.6, (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
        dx, dy = x - draw(-0.5, 0.5), y - draw(-0.5, 0.5)
        u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
        width, height = draw(0.02, 0.4), draw(0.02, 0.4)
        box = torch.maximum(u.abs() / width, v.abs() / height)
        disc = ((u / width).square() + (v / height).square()).sqrt()
        inside = (torch.where(draw(0.0, 1.0) < 0.7, box, disc) < 1.0)[:, None]
        colours = _muted(2, count, generator=generator)
        stripes = ((u / draw(0.01, 0.12)).floor() % 2 == 0) & (draw(0.0, 1.0) < 0.35)
        colour = torch.where(stripes[:, None], colours[0], colours[1])
        seen = inside & (number < wanted)[:, None, None, None]
        image = torch.where(seen, colour, image)
    return image


def bystanders(
    background: Float[Tensor, "B 3 R R"],
    person: Float[Tensor, "B 3 R R"],
    mask: Float[Tensor, "B 1 R R"],
    generator: torch.Generator,
) -> Float[Tensor, "B 3 R R"]:
    """The next picture's person in front of each background, smaller or larger, off the middle, often mirrored."""
    count = len(person)
    scale = _uniform(0.6, 2.5, count, generator=generator)
    side = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = torch.stack([side * _uniform(0.5, 1.2, count, generator=generator),
                         _uniform(-0.4, 0.4, count, generator=generator)], dim=1)  # fmt: skip
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    theta[:, :, 2] = -shift * scale[:, None] * torch.stack([flip, torch.ones(count)], dim=1)
    grid = F.affine_grid(theta, list(person.shape), align_corners=False)
    there = F.grid_sample(mask.roll(1, dims=0), grid, align_corners=False)
    other = F.grid_sample(person.roll(1, dims=0), grid, padding_mode="border", align_corners=False)
    return background + there * (other - background)
