"""Clutter behind and in front of people, with the statistics of rooms, streets and objects.

Nothing here depicts anything. Clouds have the spectrum of photos (power falls with the square of the frequency;
Field, 1987), and in front of them stand boxes, discs and stripes with hard edges: windows, furniture, flags.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SHAPES = 10
"""Boxes and discs in an image at most."""
THINGS = 3
"""Objects in front of a person at most."""


def _uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _muted(*shape: int, generator: torch.Generator) -> Tensor:
    """Colours [..., 3, 1, 1] in [-1, 1], mostly near grey, as most things are."""
    grey = _uniform(-0.9, 0.9, *shape, 1, 1, 1, generator=generator)
    cast = torch.randn(*shape, 3, 1, 1, generator=generator) * _uniform(0.0, 0.5, *shape, 1, 1, 1, generator=generator)
    return (grey + cast).clamp(-1.0, 1.0)


def clouds(count: int, side: int, generator: torch.Generator) -> Float[Tensor, "B 3 R R"]:
    """Noise whose amplitude falls with the frequency, at a rate, a contrast and a mean colour of each image's own."""
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
    """Up to `SHAPES` boxes and discs in front of images, turned, plain or striped, one after the other."""
    count, _, side, _ = background.shape
    image = background.clone()
    wanted = torch.randint(SHAPES + 1, (count,), generator=generator)
    for number in range(SHAPES):
        rows = torch.nonzero(wanted > number)[:, 0]
        centres = _uniform(-0.5, 0.5, len(rows), 2, generator=generator)
        inside, colour = _shape(centres, (0.02, 0.4), side, generator)
        image[rows] = torch.where(inside, colour, image[rows])
    return image


def _shape(
    centres: Float[Tensor, "B 2"], sizes: tuple[float, float], side: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "B 1 R R"], Float[Tensor, "B 3 R R"]]:
    """A box or disc about each centre (right and down of the middle), half as wide and high as `sizes` allow: where it
    is, and its colours, plain or striped. All in units of the image's side."""
    count = len(centres)
    steps = (torch.arange(side) + 0.5) / side - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")

    def draw(low: float, high: float) -> Tensor:
        return _uniform(low, high, count, 1, 1, generator=generator)

    angle = draw(-math.pi, math.pi)
    angle = torch.where(draw(0.0, 1.0) < 0.6, (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
    dx, dy = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
    width, height = draw(*sizes), draw(*sizes)
    box = torch.maximum(u.abs() / width, v.abs() / height)
    disc = ((u / width).square() + (v / height).square()).sqrt()
    inside = torch.where(draw(0.0, 1.0) < 0.7, box, disc) < 1.0
    colours = _muted(2, count, generator=generator)
    stripes = ((u / draw(0.01, 0.12)).floor() % 2 == 0) & (draw(0.0, 1.0) < 0.35)
    return inside[:, None], torch.where(stripes[:, None], colours[0], colours[1])


def things(
    image: Float[Tensor, "B 3 R R"],
    mask: Float[Tensor, "B 1 R R"],
    chosen: Bool[Tensor, " B"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B 3 R R"], Bool[Tensor, "B 1 R R"]]:
    """One to `THINGS` boxes and discs in front of the `chosen` people: cups, books, microphones, arms.

    Each is somewhere on the person, with the texture of `clouds` on its colours. Returns images, and where objects are.
    """
    # Who gets how many, and their texture
    image, side = image.clone(), image.shape[-1]
    covered = torch.zeros_like(mask, dtype=torch.bool)
    people = torch.nonzero(chosen)[:, 0]
    if not len(people):
        return image, covered
    wanted = torch.randint(1, THINGS + 1, (len(people),), generator=generator)
    texture = clouds(len(people), side, generator)
    texture = texture - texture.mean(dim=(2, 3), keepdim=True)

    # One object after the other
    for number in range(THINGS):
        more = wanted > number
        rows = people[more]
        place = torch.multinomial(mask[rows].flatten(1) + 1e-6, 1, generator=generator)[:, 0]
        centres = (torch.stack([place % side, place // side], dim=1) + 0.5) / side - 0.5
        inside, colour = _shape(centres, (0.03, 0.25), side, generator)
        image[rows] = torch.where(inside, (colour + 0.5 * texture[more]).clamp(-1.0, 1.0), image[rows])
        covered[rows] = covered[rows] | inside
    return image, covered


def bystanders(
    background: Float[Tensor, "B 3 R R"],
    person: Float[Tensor, "B 3 R R"],
    mask: Float[Tensor, "B 1 R R"],
    generator: torch.Generator,
) -> Float[Tensor, "B 3 R R"]:
    """The next image's person in front of each background, smaller or larger, off the middle, often mirrored."""
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
