"""Tuning of the generator's last layers around the styles that were found (pivotal tuning, Roich et al. 2022)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import camera_label
from portrait360.inversion.losses import Critics
from portrait360.inversion.optimise import Photo, Recipe, Watch, photo_loss, rate_factor
from portrait360.inversion.rendering import View, occupancy_of, render_view
from portrait360.model.generator import Generator, Scene
from portrait360.model.rendering import Occupancy
from portrait360.training.losses import pyramid_l1

FIRST_SIDE = 64
"""Synthesis blocks from this side on are tuned."""
_KEPT_SIDE = 96
_PITCHES = (-0.15, 0.0, 0.15)
_MASK = 2.0
_REFRESH = 8


@dataclass(frozen=True)
class Held:
    """Views that tuning keeps as they are: cameras around the portrait in the first photo's body pose."""

    camera: Float[Tensor, "K 25"]
    body_pose: Float[Tensor, "1 6"]
    view: View


def held_cameras(count: int) -> Float[Tensor, "K 25"]:
    """All around, a little from above and from below."""
    yaw = torch.arange(count, dtype=torch.float32) * (2.0 * math.pi / count) + 0.1
    pitch = torch.tensor([_PITCHES[k % len(_PITCHES)] for k in range(count)])
    return camera_label(yaw, pitch)


@torch.no_grad()
def hold(generator: Generator, scene: Scene, body_pose: Float[Tensor, "1 6"], count: int) -> Held:
    """Render the views to be kept."""
    cameras, occupancy = held_cameras(count), occupancy_of(generator, scene)
    view = render_view(generator, scene, cameras, body_pose.expand(count, -1), _KEPT_SIDE, occupancy=occupancy)
    return Held(cameras, body_pose, view)


def tuned_names(generator: Generator) -> list[str]:
    """The generator's tensors that tuning changes: the last synthesis blocks and the decoder."""
    sides = [side for side in generator.backbone.synthesis.resolutions if side >= FIRST_SIDE]
    prefixes = tuple(f"backbone.synthesis.b{side}." for side in sides or generator.backbone.synthesis.resolutions[-1:])
    return [name for name, _ in generator.named_parameters() if name.startswith((*prefixes, "decoder."))]


def tune(
    generator: Generator,
    ws: Float[Tensor, "1 N S"],
    photos: list[Photo],
    held: Held,
    recipe: Recipe,
    critics: Critics,
    watch: Watch,
) -> Generator:
    """A copy of the generator whose portrait lies closer to the photos.

    Tuned tensors are rounded to float16, as files keep them.

    Args:
        generator: as it was.
        ws: the styles, which stay.
        photos: what comes closer.
        held: what stays.
        recipe, critics, watch: see `optimise_styles`.
    """
    # A copy with gradients in its last layers
    tuned = copy.deepcopy(generator).requires_grad_(False)
    parameters = dict(tuned.named_parameters())
    moving = [parameters[name].requires_grad_(True) for name in tuned_names(generator)]
    optimizer = torch.optim.Adam(moving, lr=recipe.tuning_rate, betas=(0.9, 0.95))
    draws = torch.Generator().manual_seed(recipe.seed + 1)
    order = torch.randperm(len(held.camera), generator=draws).tolist()
    steps = recipe.tuning_steps + (len(photos) - 1) * recipe.tuning_steps // 2

    # Each step a photo and a held view
    occupancy = None
    try:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = recipe.tuning_rate * rate_factor(step / steps, step)
            scene = tuned.layered_scene(ws)
            if step % _REFRESH == 0:
                occupancy = occupancy_of(tuned, scene, step)
            loss = photo_loss(tuned, scene, photos[step % len(photos)], occupancy, draws)
            loss = loss + recipe.keep * _held_loss(tuned, scene, held, order[step % len(order)], occupancy, draws)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            watch.advance()
    except KeyboardInterrupt:
        watch.interrupted = True
    with torch.no_grad():
        for parameter in moving:
            parameter.copy_(parameter.half().float())
    return tuned.requires_grad_(False)


def _held_loss(
    generator: Generator, scene: Scene, held: Held, index: int, occupancy: Occupancy | None, draws: torch.Generator
) -> Float[Tensor, ""]:
    one = slice(index, index + 1)
    view = render_view(generator, scene, held.camera[one], held.body_pose, _KEPT_SIDE, occupancy=occupancy, draws=draws)
    image, mask = held.view.image[one], held.view.mask[one]
    pixel = pyramid_l1(view.image, image, torch.ones_like(mask), levels=3)
    return pixel + _MASK * (view.mask - mask).square().mean()
