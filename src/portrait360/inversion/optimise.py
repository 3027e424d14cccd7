"""The portrait whose renderings are closest to the photos: styles by gradient descent, cameras by Gauss-Newton."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.inversion.alignment import Alignment, align
from portrait360.inversion.losses import Comparison, Critics, LossWeights
from portrait360.inversion.regions import target_regions
from portrait360.inversion.rendering import occupancy_of, render_view
from portrait360.inversion.style import Styles
from portrait360.inversion.target import Target
from portrait360.model.generator import Generator, Scene
from portrait360.model.rendering import Occupancy
from portrait360.training.whitening import Whitening


@dataclass
class Watch:
    """Who follows an inversion: `advance` is called after each step."""

    advance: Callable[[], None] = lambda: None
    interrupted: bool = False
    """Whether Ctrl-C ended a stage before its time; what it had found is kept, and further stages are left out."""


@dataclass(frozen=True)
class Recipe:
    """How an inversion runs. Rates are of Adam on whitened styles."""

    steps: int = 80
    """Of the styles' descent, for one photo."""
    tuning_steps: int = 25
    """Of the generator's."""
    style_rate: float = 0.16
    layer_rate: float = 0.08
    layers_from: float = 0.4
    """Share of the steps after which layers may differ."""
    light_rate: float = 0.01
    tuning_rate: float = 2e-3
    style_prior: float = 0.002
    """Weight of the squared whitened style: photos are likely people."""
    layer_prior: float = 0.01
    windows: tuple[float, ...] = (1.0, 0.45)
    """Centre crops that are compared, as shares of the image's side."""
    side: int = 128
    """Pixels at which they are compared."""
    align_at: tuple[float, ...] = (0.4, 0.8)
    """Shares of the steps at which cameras and body poses are corrected; empty: never."""
    weights: LossWeights = field(default_factory=LossWeights)
    keep: float = 1.0
    """Weight of the views that tuning holds."""
    kept_views: int = 12
    seed: int = 0


WARM_UP = 5
"""Steps over which rates grow."""
_REFRESH = 8
"""Steps between which the occupied cells stay the same."""
_LEAST_RATE = 0.02
_PATIENCE, _GAIN = 20, 0.005
"""Where the loss falls by less than this share in so many steps, the rates decay at once."""
_DECAY_FROM = 0.8
"""Share of the steps from which nothing but the rates' decay is left."""


@dataclass(frozen=True)
class Light:
    """How a photo's colours differ from those of the first one: gain and bias of each channel."""

    gain: Float[Tensor, "1 3 1 1"]
    bias: Float[Tensor, "1 3 1 1"]

    @staticmethod
    def none() -> Light:
        """No difference."""
        return Light(torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1))

    def on(self, image: Tensor, mask: Tensor) -> Tensor:
        """A rendering on a grey background in the photo's light."""
        return image * self.gain + self.bias * mask

    def off(self, image: Tensor, mask: Tensor) -> Tensor:
        """The inverse: a photo in the first one's light."""
        return (image - self.bias * mask) / self.gain


@dataclass
class Photo:
    """A photo while it is inverted."""

    target: Target
    alignment: Alignment
    light: Light = field(default_factory=Light.none)
    comparisons: list[Comparison] = field(default_factory=list)

    def compare(self, recipe: Recipe, critics: Critics, generator: Generator) -> None:
        """Compute anew what its windows are compared by, after its camera changed."""
        self.comparisons = []
        for share in recipe.windows:
            window = self.target.window(share, recipe.side)
            regions = target_regions(window, generator.body, recipe.side, generator.config.camera)
            whole = share == 1.0
            self.comparisons.append(Comparison.of(window, recipe.weights, critics, whole=whole, regions=regions))


def photos_of(targets: Sequence[Target]) -> list[Photo]:
    """Photos as they come."""
    return [Photo(target, Alignment.of(target)) for target in targets]


def rate_factor(progress: float, step: int) -> float:
    """Warm-up, then a half cosine."""
    return min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress)) + _LEAST_RATE


def photo_loss(
    generator: Generator, scene: Scene, photo: Photo, occupancy: Occupancy | None, draws: torch.Generator
) -> Float[Tensor, ""]:
    """Sum over a photo's windows, before a random background."""
    background = torch.rand(1, 3, 1, 1, generator=draws) * 2.0 - 1.0
    losses = []
    for comparison in photo.comparisons:
        shown = comparison.target
        view = render_view(
            generator, scene, shown.camera, shown.body_pose, shown.image.shape[-1], occupancy=occupancy, draws=draws
        )
        losses.append(comparison.loss(photo.light.on(view.image, view.mask), view.mask, background))
    return torch.stack(losses).sum()


@dataclass
class Descent:
    """Where the rates are in their schedule; a flat loss ends it early."""

    steps: int
    step: int = 0
    skipped: int = 0
    """Steps that a flat loss has saved."""
    average: float = math.nan
    _marks: list[float] = field(default_factory=list)

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return (self.step + self.skipped) / self.steps

    @property
    def done(self) -> bool:
        """Whether the schedule is at its end."""
        return self.progress >= 1.0

    def advance(self, loss: float) -> None:
        """Take note of a step's loss."""
        self.average = loss if math.isnan(self.average) else 0.9 * self.average + 0.1 * loss
        self._marks.append(self.average)
        self.step += 1
        flat = len(self._marks) > _PATIENCE and self.average > (1.0 - _GAIN) * self._marks[-1 - _PATIENCE]
        if flat and 0.5 < self.progress < _DECAY_FROM:
            self.skipped += math.ceil((_DECAY_FROM - self.progress) * self.steps)


def optimise_styles(
    generator: Generator,
    space: Whitening,
    photos: list[Photo],
    start: Styles,
    recipe: Recipe,
    critics: Critics,
    watch: Watch,
) -> tuple[Styles, float]:
    """Fit the styles to the photos, and cameras and body poses with them.

    Returns:
        The styles, and the averaged loss of the last steps.
    """
    # What moves: the common style, the layers' differences, the light of all photos but the first
    common, layers = start.common.clone().requires_grad_(), start.layers.clone().requires_grad_()
    for photo in photos[1:]:
        photo.light = Light(photo.light.gain.clone().requires_grad_(), photo.light.bias.clone().requires_grad_())
    lights = [value for photo in photos[1:] for value in (photo.light.gain, photo.light.bias)]
    groups = [{"params": [common]}, {"params": [layers]}] + ([{"params": lights}] if lights else [])
    optimizer = torch.optim.Adam(groups, lr=recipe.style_rate, betas=(0.9, 0.95))

    # Photos take turns
    draws = torch.Generator().manual_seed(recipe.seed)
    for photo in photos:
        photo.compare(recipe, critics, generator)
    descent = Descent(recipe.steps + (len(photos) - 1) * recipe.steps // 2)
    corrections, occupancy = list(recipe.align_at), None
    try:
        while not descent.done:
            # Rates
            factor, plus = rate_factor(descent.progress, descent.step), descent.progress >= recipe.layers_from
            rates = recipe.style_rate, recipe.layer_rate if plus else 0.0, recipe.light_rate
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * factor

            # The portrait, and now and then the cameras
            scene = generator.layered_scene(Styles(common, layers).ws(space))
            if corrections and descent.progress >= corrections[0]:
                corrections.pop(0)
                align_photos(generator, scene, photos, recipe, critics)
            if descent.step % _REFRESH == 0:
                occupancy = occupancy_of(generator, scene, descent.step)

            # The step
            photo = photos[descent.step % len(photos)]
            prior = recipe.style_prior * common.square().mean() + recipe.layer_prior * layers.square().mean()
            loss = prior + photo_loss(generator, scene, photo, occupancy, draws)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            descent.advance(float(loss.detach()))
            watch.advance()
    except KeyboardInterrupt:
        watch.interrupted = True
    for photo in photos:
        photo.light = Light(photo.light.gain.detach(), photo.light.bias.detach())
    return Styles(common.detach(), layers.detach()), descent.average


@torch.no_grad()
def align_photos(generator: Generator, scene: Scene, photos: list[Photo], recipe: Recipe, critics: Critics) -> None:
    """Correct the cameras and body poses of all photos."""
    coarser = tuple(level.detach() for level in scene.coarser)
    scene = replace(scene, w=scene.w.detach(), tri_grid=scene.tri_grid.detach(), coarser=coarser)
    occupancy = occupancy_of(generator, scene)
    for photo in photos:

        def render(camera: Tensor, pose: Tensor, side: int, photo: Photo = photo) -> tuple[Tensor, Tensor]:
            view = render_view(generator, scene, camera, pose, side, occupancy=occupancy)
            return photo.light.on(view.image, view.mask), view.mask

        photo.target, photo.alignment = align(photo.target, photo.alignment, render)
        photo.compare(recipe, critics, generator)
