"""Renderings that an inversion compares with photos: on a grey background, at any side, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.conventions import model_camera
from portrait360.inversion.target import resized
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.rendering import Occupancy
from portrait360.portrait.scene import find_matter

DRAFT_RAYS = 64
"""Side of the rays of models with super-resolution while they are fitted."""


@dataclass(frozen=True)
class View:
    """A rendering."""

    image: Float[Tensor, "B 3 S S"]
    """On a grey background (0)."""
    mask: Float[Tensor, "B 1 S S"]
    depth: Float[Tensor, "B 1 S S"]
    """Distance along the rays, this project's world units, without gradients."""


@torch.no_grad()
def occupancy_of(generator: Generator, scene: Scene, seed: int | None = None) -> Occupancy | None:
    """The occupied cells of a scene; with a seed some of the others are sampled too, so that matter can grow."""
    coarser = tuple(level.detach() for level in scene.coarser)
    planes = Scene(scene.w.detach(), scene.tri_grid.detach(), None, coarser=coarser)
    found = find_matter(generator, planes)
    return None if found is None else Occupancy(found, seed)


def render_view(
    generator: Generator,
    scene: Scene,
    camera: Float[Tensor, "B 25"],
    body_pose: Float[Tensor, "B 6"],
    side: int,
    *,
    occupancy: Occupancy | None = None,
    draws: torch.Generator | None = None,
    finished: bool = False,
) -> View:
    """Render, with gradients where torch records them.

    Args:
        generator: whose decoder and body are used.
        scene: of one portrait.
        camera: camera labels of this project; the images show what the model's show (`Target.framed`).
        body_pose: one each, radians; heads without a body stay at rest.
        side: of the images.
        occupancy: see `occupancy_of`.
        draws: jitters the samples along the rays; None: they lie in the middle of their intervals.
        finished: with the super-resolution of models that have one. A search does without: its gradients would take
            minutes and gigabytes, and `DRAFT_RAYS` a side are enough for it.
    """
    # Models with super-resolution have rays and images of their own sides
    config = generator.config
    own = config.superresolution is not None
    rays = (config.raw_resolution if finished else min(side, DRAFT_RAYS)) if own else side
    jitter = None if draws is None else torch.rand(len(camera), rays * rays, generator=draws)
    own_draws = RenderDraws(jitter=jitter, occupancy=occupancy, gradients=torch.is_grad_enabled())
    own_camera, pose = model_camera(camera, config.camera), body_pose if config.posable else None
    out = generator.render(scene, own_camera, pose, resolution=rays, draws=own_draws, draft=own and not finished)

    # Their images stand before their own background
    image, mask, depth = (resized(values, side) for values in (out.image, out.mask.clamp(0.0, 1.0), out.depth))
    if config.background is not None:
        image = image * mask
    elif config.plain_background:
        image = image - (1.0 - mask) * config.plain_background
    return View(image, mask, depth / config.camera.scale)
