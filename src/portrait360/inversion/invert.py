"""From photos to a portrait: start, descent of the styles, tuning, reprojection."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.encoder.files import load_encoder
from portrait360.encoder.network import PortraitEncoder
from portrait360.geometry.cameras import project
from portrait360.geometry.conventions import OURS, model_camera, translated
from portrait360.inversion.losses import Critics
from portrait360.inversion.optimise import Photo, Recipe, Watch, align_photos, optimise_styles, photo_loss, photos_of
from portrait360.inversion.regressor import StartRegressor, start_features
from portrait360.inversion.rendering import occupancy_of, render_view
from portrait360.inversion.reproject import colour_change, photo_residual, tint
from portrait360.inversion.style import Styles, style_space
from portrait360.inversion.target import Target, resized
from portrait360.inversion.tuning import hold, tune, tuned_names
from portrait360.model.appearance import Appearance
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.training.losses import pyramid_l1
from portrait360.training.whitening import Whitening

RESIDUAL_SIDE = 1024
"""Pixels of one photo's residual; several share what a file may hold."""
_SMALLEST_RESIDUAL = 256
_START_SHARES = (1.0, 0.5, 0.0)
"""Shares of the regressor's style that are tried: the last is the average person."""
_RANDOM_STARTS, _START_SPREAD = 24, 0.7
"""Where there is no regressor: so many random people are tried, of this share of the styles' deviation."""
_START_SIDE = 64
"""Pixels at which starts are compared."""


@dataclass(frozen=True)
class Networks:
    """What an inversion works with; none of it changes."""

    generator: Generator
    discriminator: Discriminator | None
    """None: no features are compared."""
    encoder: PortraitEncoder
    regressor: StartRegressor | None
    """None: it starts from the best of some random people."""

    @staticmethod
    def of(generator: Generator, discriminator: Discriminator | None, regressor: StartRegressor | None) -> Networks:
        """With the packaged encoder, all for use."""
        usable = discriminator is not None and discriminator.config.mirror_once and not discriminator.has_raw
        critic = discriminator.eval().requires_grad_(False) if usable and discriminator is not None else None
        encoder = load_encoder()[0].eval().requires_grad_(False)
        return Networks(generator.eval().requires_grad_(False), critic, encoder, regressor)


@dataclass
class Inversion:
    """What came of it."""

    generator: Generator
    """Tuned."""
    ws: Float[Tensor, "1 N S"]
    tuned: dict[str, Tensor]
    appearance: Appearance
    photos: list[Photo]
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """Losses and times for portrait.json."""
        rounded = {name: round(value, 4) for name, value in self.losses.items()}
        times = {name: round(value, 1) for name, value in self.seconds.items()}
        return {"losses": rounded, "seconds": times, "interrupted": self.interrupted}


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now


def step_count(photos: int, recipe: Recipe) -> int:
    """Steps of an inversion, for progress; fewer where the loss is flat."""
    return sum(steps + (photos - 1) * steps // 2 for steps in (recipe.steps, recipe.tuning_steps))


def invert_targets(
    networks: Networks, targets: Sequence[Target], recipe: Recipe, *, fast: bool = False, watch: Watch | None = None
) -> Inversion:
    """The portrait of a person in photos.

    Deterministic: the same arguments give the same portrait.

    Args:
        networks: of some weights.
        targets: photos of one person, the one with the best evidence first: light is as in that one.
        recipe: how.
        fast: leave out descent and tuning.
        watch: follows the steps.
    """
    # The start
    watch, clock = watch or Watch(), _Clock()
    generator = networks.generator
    targets = [as_shown(generator, target) for target in targets]
    # the encoder's landmarks are those of images that are framed as ours
    framed_as_ours = generator.config.camera == OURS
    critics = Critics(networks.discriminator, networks.encoder if framed_as_ours else None)
    photos, space = photos_of(targets), style_space(generator)
    styles = start_styles(networks, space, photos, recipe)
    clock.mark("start")

    # Styles, cameras and body poses
    losses = {}
    if fast:
        with torch.no_grad():
            scene = generator.layered_scene(styles.ws(space), gradients=False)
        if recipe.align_at:
            align_photos(generator, scene, photos, recipe, critics)
    else:
        styles, losses["styles"] = optimise_styles(generator, space, photos, styles, recipe, critics, watch)
    ws = styles.ws(space)
    clock.mark("styles")

    # The generator's last layers
    tuned = generator
    if not fast and not watch.interrupted:
        with torch.no_grad():
            scene = generator.layered_scene(ws)
        held = hold(generator, scene, photos[0].target.body_pose, recipe.kept_views)
        tuned = tune(generator, ws, photos, held, recipe, critics, watch)
        clock.mark("tuning")

    # The photos' own pixels, and their colours where they do not reach
    with torch.no_grad():
        scene = tuned.layered_scene(ws, gradients=False)
    residuals = tuple(photo_residual(tuned, scene, photo, residual_side(photo, len(photos))) for photo in photos)
    appearance = Appearance(residuals, tint(tuned, scene, colour_change(tuned, scene, photos)))
    losses["photo"] = _final_loss(tuned, ws, photos, recipe, critics)
    clock.mark("reprojection")
    names = tuned_names(generator) if tuned is not generator else []
    own = tuned.state_dict()
    return Inversion(
        tuned, ws, {name: own[name] for name in names}, appearance, photos, losses, clock.seconds, watch.interrupted
    )


def as_shown(generator: Generator, target: Target) -> Target:
    """The target as the generator's images show people: their part of the photo, at rest where there is no body."""
    pose = target.body_pose if generator.config.posable else torch.zeros_like(target.body_pose)
    shown = dataclasses.replace(target, body_pose=pose).framed(generator.config.camera)
    return dataclasses.replace(shown, camera=with_translation(generator, shown.camera))


@torch.no_grad()
def with_translation(generator: Generator, label: Float[Tensor, "B 25"]) -> Float[Tensor, "B 25"]:
    """The label of a photo's camera after the shift that a model predicts for inversions (equations 15.2).

    The camera stays on its sphere: the place and size at which it sees what the model's cameras look at are those of
    the shifted camera. Without effect for models without `model.camera_translation`.
    """
    model = generator.config.camera
    if not generator.config.camera_translation:
        return label
    own = model_camera(label, model)
    middle = torch.tensor(model.look_at).expand(len(label), 1, 3)
    (before, near), (after, far) = (
        project(camera, middle) for camera in (own, translated(own, generator.inversion_translation(own)))
    )
    moved = label.clone()
    moved[:, [16, 20]] *= near / far
    moved[:, [18, 21]] += (after - before)[:, 0]
    return moved


def residual_side(photo: Photo, count: int) -> int:
    """Pixels of a photo's residual: as many as its crop has, as far as a file may hold them."""
    most = RESIDUAL_SIDE
    while most * most * count > RESIDUAL_SIDE**2 and most > _SMALLEST_RESIDUAL:
        most //= 2
    return min(most, photo.target.image.shape[-1])


@torch.no_grad()
def start_styles(networks: Networks, space: Whitening, photos: list[Photo], recipe: Recipe) -> Styles:
    """The start that is nearest to the first photo: of the regressor's style and parts of it, or of random people."""
    # What is tried
    generator = networks.generator
    width, layers = generator.config.w_dim, generator.backbone.synthesis.num_ws
    if networks.regressor is not None:
        side = networks.encoder.config.resolution
        images = torch.cat([resized(photo.target.image, side) for photo in photos])
        guess = networks.regressor(start_features(networks.encoder, images)).mean(dim=0, keepdim=True)
        tried = torch.cat([share * guess for share in _START_SHARES])
    else:
        draws = torch.Generator().manual_seed(recipe.seed)
        random = _START_SPREAD * torch.randn(_RANDOM_STARTS, width, generator=draws)
        tried = torch.cat([torch.zeros(1, width), random])

    # The one whose rendering is nearest
    shown = photos[0].target.window(1.0, _START_SIDE)
    losses = []
    for common in tried.split(1):
        scene = generator.scene(space.styles(common), gradients=False)
        view = render_view(
            generator, scene, shown.camera, shown.body_pose, _START_SIDE, occupancy=occupancy_of(generator, scene)
        )
        losses.append(float(pyramid_l1(view.image, shown.image, shown.known)))
    best = losses.index(min(losses))
    return Styles(tried[best : best + 1].clone(), torch.zeros(1, layers, width))


@torch.no_grad()
def _final_loss(
    generator: Generator, ws: Float[Tensor, "1 N S"], photos: list[Photo], recipe: Recipe, critics: Critics
) -> float:
    """Mean loss of the photos, without priors."""
    scene = generator.layered_scene(ws, gradients=False)
    occupancy, total = occupancy_of(generator, scene), 0.0
    for photo in photos:
        draws = torch.Generator().manual_seed(recipe.seed)
        photo.compare(recipe, critics, generator)
        total += float(photo_loss(generator, scene, photo, occupancy, draws)) / len(photos)
    return total
