"""Portraits of a generator as training renders them, and sets of their images with predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.evaluation.samples import WINDOWS, Predictors, SampleSet, join
from portrait360.geometry.cameras import zoom_camera
from portrait360.model.discriminator import DiscriminatorInput
from portrait360.model.generator import Generator, RenderDraws, Scene
from portrait360.model.rendering import Occupancy
from portrait360.portrait.scene import find_matter


@dataclass(frozen=True)
class SampledPortraits:
    """Scenes of B portraits, the cameras and body poses that they were sampled for, and their occupied cells."""

    scene: Scene
    camera: Float[Tensor, "B 25"]
    body_pose: Float[Tensor, "B 6"]
    draws: RenderDraws


@dataclass(frozen=True)
class GeneratedSamples:
    """Images of the same portraits from two cameras.

    `same`: the camera and pose that the portrait was sampled for. `random`: others, sampled independently; what counts
    for a portrait that can be viewed from everywhere.
    """

    same: SampleSet
    random: SampleSet


@dataclass(frozen=True)
class PortraitSampler:
    """A generator, with the cameras of the data that its portraits are conditioned on and viewed from."""

    generator: Generator
    cameras: Float[Tensor, "N 25"]

    @torch.no_grad()
    def portraits(self, count: int, draws: torch.Generator, *, truncation_psi: float = 1.0) -> SampledPortraits:
        """New portraits as training samples them, conditioned on a camera of the data and a pose of the branch.

        The pose belongs to the camera and a latent of its own (equations 10.15, `G_predict`).
        """
        # Camera, latents and pose.
        generator = self.generator
        camera = self.cameras[torch.randint(len(self.cameras), (count,), generator=draws)]
        z, other = torch.randn(2, count, generator.config.z_dim, generator=draws)
        device = next(generator.parameters()).device
        camera, z, other = camera.to(device), z.to(device), other.to(device)
        pose = generator.pose_branch(other, camera)

        # The scene, with a seed of its own for the noise in synthesis layers.
        seed = int(torch.randint(1 << 31, (1,), generator=draws))
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
            torch.manual_seed(seed)
            w = generator.map(z, camera, pose, truncation_psi)
            scene = generator.scene(w, noise_mode="random", gradients=False)
        occupied = find_matter(generator, scene)
        return SampledPortraits(
            scene,
            camera,
            pose,
            RenderDraws(occupancy=None if occupied is None else Occupancy(occupied), gradients=False),
        )

    @torch.no_grad()
    def views(self, count: int, draws: torch.Generator) -> tuple[Float[Tensor, "B 25"], Float[Tensor, "B 6"]]:
        """Cameras of the data and poses of the branch, independent of any portrait."""
        device = next(self.generator.parameters()).device
        camera = self.cameras[torch.randint(len(self.cameras), (count,), generator=draws)].to(device)
        z = torch.randn(count, self.generator.config.z_dim, generator=draws).to(device)
        return camera, self.generator.pose_branch(z, camera)


def zoomed_camera(camera: Float[Tensor, "B 25"], window: str) -> Float[Tensor, "B 25"]:
    """The camera of a zoomed crop of the image (a name of `WINDOWS`)."""
    return zoom_camera(camera, 1.0 / WINDOWS[window])


@torch.no_grad()
def generate_samples(
    sampler: PortraitSampler,
    predictors: Predictors,
    count: int,
    seed: int,
    advance: Callable[[int], None],
    *,
    windows: dict[str, int],
    batch: int = 16,
) -> GeneratedSamples:
    """Sample `count` portraits and predict their images from both cameras of `GeneratedSamples`.

    Args:
        sampler, predictors: the measured model, and the networks that measure it.
        count, seed: how many portraits, and which.
        advance: called with the number of portraits that are done.
        windows: zoomed crops to render as well, and their sides (`samples.windows_of`).
        batch: portraits at a time.
    """
    # All random numbers follow the seed.
    draws = torch.Generator().manual_seed(seed)
    generator = sampler.generator
    has_raw = generator.config.superresolution is not None

    # Portraits, the views that they were sampled for, and independent ones.
    same, random = [], []
    for start in range(0, count, batch):
        portraits = sampler.portraits(min(batch, count - start), draws)
        others = sampler.views(len(portraits.camera), draws)
        for (camera, pose), parts in (((portraits.camera, portraits.body_pose), same), (others, random)):
            # Render the whole image and its zoomed crops.
            out = generator.render(portraits.scene, camera, pose, draws=portraits.draws)
            zoomed = {
                name: generator.render(
                    portraits.scene,
                    zoomed_camera(camera, name),
                    pose,
                    resolution=None if has_raw else side,
                    draws=portraits.draws,
                ).image
                for name, side in windows.items()
            }
            images = DiscriminatorInput(out.image, out.raw if has_raw else None, out.mask)
            parts.append(predictors.predict(images, camera, zoomed, body_pose=pose))
        advance(len(portraits.camera))
    return GeneratedSamples(join(same), join(random))
